"""A program that ends, or is ended, while one of its threads asks: it ends cleanly, and soon."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fix_world import World

#: The thread still holds the error, and by it what it asked with, as the program goes on to end.
PROGRAM = """
import os, signal, sys, threading, time
import rhei_pipeline as rhei

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
htap, asks = rhei.open(sys.argv[1]), threading.Event()

def ask():
    asks.set()
    try:
        many = "select count(*) from t a, t b, t c where a.id + b.id + c.id % 3 = 7"
        htap.query(many, hint="olap")
    except rhei.RheiError as error:
        time.sleep(0.3)
        print(error)

threading.Thread(target=ask, daemon=True).start()
asks.wait()
time.sleep(0.5)
if sys.argv[2] == "ctrl-c":
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


@pytest.mark.long
@pytest.mark.each
@pytest.mark.parametrize("end", ["last line", "ctrl-c"])
@pytest.mark.parametrize("storage", [None, "parquet"])
def test_a_program_ends_cleanly_while_a_thread_asks(
    make_world: Callable[..., World], tmp_path: Path, storage: str | None, end: str
) -> None:
    world = make_world(storage=storage)
    rows = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)"
    world.run("create table t(id integer primary key)", f"insert into t {rows} select i from n")
    world.htap.sync_now()
    world.crash()
    declared = tmp_path / "pipeline.yaml"
    declared.write_text(world.settings.model_dump_json(exclude_none=True))
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, declared, end],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "the mirror is closed" in ended.stdout, ended.stderr
    assert "leaked" not in ended.stdout + ended.stderr
    assert ended.returncode == (-signal.SIGINT if end == "ctrl-c" else 0)
