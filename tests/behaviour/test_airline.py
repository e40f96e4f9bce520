"""The demo's airline: a real application's writes, from another process, mirrored exactly."""

import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from config.settings import load
from examples.airline.database import build
from examples.airline.home import PROJECT, refuse_other_data, remove_data
from rhei_pipeline import HTAP

DAYS = 2


def test_days_of_flights_are_mirrored_while_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RHEI__SOURCE__PATH", str(tmp_path / "airline.db"))
    monkeypatch.setenv("RHEI__MIRROR__PATH", str(tmp_path / "mirror.duckdb"))
    monkeypatch.setenv("RHEI__REGISTRY__PATH", str(tmp_path / "registry.json"))
    past = build(tmp_path / "airline.db", date(2013, 1, 3))
    with HTAP(load()) as htap:
        assert htap.sync_now().tables["flights"].inserted == past
        command = [sys.executable, "-m", "examples.airline.writer", "--first", "2013-01-03"]
        database = ["--database", str(tmp_path / "airline.db"), "--days", str(DAYS)]
        with subprocess.Popen([*command, *database], cwd=PROJECT, stdout=subprocess.PIPE) as writer:
            while writer.poll() is None:
                htap.sync_now()
        assert htap.verify().equal
        ended = htap.query("select distinct _rhei_operation as o from flights", hint="olap")
    assert set(ended["o"].to_pylist()) == {"I", "U", "D"}


@pytest.mark.parametrize(
    "variable", ["RHEI__SOURCE__PATH", "RHEI__MIRROR__PATH", "RHEI__REGISTRY__PATH"]
)
def test_the_demo_never_deletes_what_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    precious = tmp_path / "airline.db"
    precious.write_text("precious")
    refuse_other_data(load())
    monkeypatch.setenv(variable, str(precious))
    with pytest.raises(SystemExit, match="does nothing here"):
        remove_data(load())
    assert precious.read_text() == "precious"
