"""What other users of the machine see of a process: its arguments, and those of its helpers."""

import sqlite3
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import rhei_pipeline as rhei
from rhei_pipeline.sources.sqlite import arrow_rows
from tests.support.masking import KEY

PERSON = "Vergessmich"


def test_no_process_that_is_started_has_a_secret_or_a_value_in_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Sequence[str]] = []

    class Noting(subprocess.Popen[Any]):
        def __init__(self, args: Sequence[str], **options: Any) -> None:
            seen.append(args)
            super().__init__(args, **options)

    monkeypatch.setattr(subprocess, "Popen", Noting)
    monkeypatch.setattr(arrow_rows, "LEAST_ROWS", 1)
    monkeypatch.setenv("RHEI__MASKING__KEY", KEY)
    settings = rhei.Settings(
        source={"path": tmp_path / "app.db"},
        mirror={"path": tmp_path / "m.duckdb", "published": {"path": tmp_path / "p.duckdb"}},
        mode="temporal",
        registry={"path": tmp_path / "registry.json"},
        tables=[{"name": "people", "mask": {"mail": "hash"}}],
    )
    with sqlite3.connect(settings.sqlite_path) as app:
        app.execute("create table people(id integer primary key, name text, mail text)")
        app.execute("insert into people values (1, ?, ?), (2, 'b', 'b')", (PERSON, PERSON))
    with rhei.open(settings) as htap:
        htap.sync_now()
        app.execute("delete from people where id = 1")
        app.commit()
        assert htap.forget("people", [1]).is_clear
    app.close()
    started = {Path(each).name for args in seen for each in args if each.endswith(".py")}
    assert len(started) == 3, started
    shown = " ".join(str(each) for args in seen for each in args)
    assert KEY not in shown
    assert PERSON not in shown
    assert PERSON.encode().hex() not in shown
