"""Histories are played at random for as long as there is time, and what was covered is said."""

from pathlib import Path

import pytest

from tests.support.declarations import Play
from tests.torture import CELLS, REPORT, main

CELL = "sqlite-trigger temporal memory"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the report written where it is no one else's."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.long
def test_what_was_covered_is_reported() -> None:
    assert main(["--minutes", "0", "--seed", "3", "--only", CELL]) == 0
    report = REPORT.read_text()
    assert f"| {CELL} |" in report
    assert "| sync |" in report
    assert len(CELLS) == 100


@pytest.mark.long
def test_what_failed_is_told_with_how_to_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def differs(_play: Play) -> None:
        raise AssertionError("differs")

    monkeypatch.setattr(Play, "_check", differs)
    assert main(["--minutes", "60", "--seed", "3", "--only", CELL]) == 1
    assert f"failed: --seed 3 --only '{CELL}'" in REPORT.read_text()


def test_an_unknown_cell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "mysql"])
    assert "no cell is 'mysql'" in capsys.readouterr().err
