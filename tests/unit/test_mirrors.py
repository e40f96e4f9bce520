"""A mirror is opened with what it needs, or says what to install."""

import subprocess
import sys
from pathlib import Path

import pytest

from rhei_pipeline import Settings
from rhei_pipeline.errors import MirrorBusyError, MissingExtraError
from rhei_pipeline.mirrors import locking
from rhei_pipeline.wiring.mirror import open_mirror
from tests.support.packages import unload


@pytest.mark.parametrize(
    ("package", "mirror", "extra"),
    [
        ("datafusion", {"path": "m"}, "datafusion"),
        ("obstore", {"path": "s3://bucket/m"}, "datafusion"),
        ("deltalake", {"path": "m", "storage": "delta"}, "delta"),
        ("datafusion", {"path": "m", "storage": "delta"}, "delta"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_the_command(
    package: str,
    mirror: dict[str, str],
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unload(monkeypatch, "rhei_pipeline.mirrors")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    settings = Settings(source={"path": "a"}, mirror={"kind": "datafusion", **mirror})
    with pytest.raises(MissingExtraError, match=f"{package}.*rhei-pipeline\\[{extra}\\]"):
        open_mirror(settings.mirror)
    assert not list(tmp_path.iterdir())


def test_duckdb_prints_no_progress_where_somebody_types(tmp_path: Path) -> None:
    # A program without a file is interactive to DuckDB, which then prints while it works.
    shown = (
        "from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror;"
        f"held = DuckDBMirror({str(tmp_path / 'm.duckdb')!r})._connection;"
        "ask = \"select current_setting('enable_progress_bar')\";"
        "print([each.execute(ask).fetchone() for each in (held, held.cursor())])"
    )
    found = subprocess.run(
        [sys.executable, "-c", shown], check=True, capture_output=True, text=True
    )
    assert found.stdout == "[(False,), (False,)]\n"


def test_who_is_waited_for_is_told_of_even_where_the_wait_ends_with_the_first_try(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locking, "_TOLD_SECONDS", 0.0)
    waiting = locking.Waiting("m", 0.0, lambda: locking.LockNote(7))
    with pytest.raises(MirrorBusyError, match="process 7"):
        waiting.pause()
    assert "waiting: mirror 'm' is held by another process: process 7" in caplog.text


def test_since_when_is_said_of_the_mirror_and_not_of_the_answer() -> None:
    note = locking.LockNote(7, "rhei sync", "2026-11-30T05:00:00+00:00")
    assert note.shown == "process 7 (rhei sync) since 2026-11-30T05:00:00+00:00"
    assert (
        note.holding == "process 7 (rhei sync) has held the mirror since 2026-11-30T05:00:00+00:00"
    )
    assert locking.LockNote(7).holding == "process 7 holds the mirror"
