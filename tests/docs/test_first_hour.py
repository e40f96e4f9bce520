"""What a newcomer meets who forgets something."""

import subprocess
import sys
from pathlib import Path

import pytest

#: Asks once in the foreground while a sync runs beside it, and ends without closing.
FORGETFUL = """
import sqlite3, threading
import rhei_pipeline as rhei
with sqlite3.connect("app.db") as app:
    app.execute("create table t(id integer primary key)")
mirrored = threading.Event()
htap = rhei.open(rhei.Settings(source={"path": "app.db"}, mirror={"path": "mirror.duckdb"},
                               registry={"path": "registry.json"}))
htap.watch(lambda report: mirrored.set(), lambda side, seconds: None)
htap.start_sync(0.01)
assert mirrored.wait(60)
print(htap.query("select count(*) as n from t", hint="olap")["n"][0])
1 / 0
"""


@pytest.mark.long
def test_a_program_that_forgets_to_close_ends_without_a_word_of_the_binding(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "0\n"
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert "nanobind" not in done.stderr
