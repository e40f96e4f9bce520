"""Processes that were forked from one with an open pipeline: they use nothing of it, nor end it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rhei_pipeline import Settings
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.forked import output_of
from tests.support.holding import OtherProcess, written

#: What asks: another process than the one that holds the mirror, which is not one of its forks.
_ASK = """
import sys
import rhei_pipeline as rhei
with rhei.open(rhei.Settings.model_validate_json(sys.argv[1])) as htap:
    print(htap.holds, htap.query("select count(*) as n from orders", hint="olap")["n"][0].as_py())
"""
#: Forks while a pipeline syncs in the background, while others answer queries and are closed.
_FORKING = """
import multiprocessing, os, signal, sys
import rhei_pipeline as rhei

settings = rhei.Settings.model_validate_json(sys.argv[1])
query = ("select count(*) as n from orders",)

def refused(call):
    try:
        call()
    except rhei.ForkedProcessError as error:
        return str(os.getppid()) in str(error)
    return False

def in_fork():
    signal.alarm(60)  # what waits for a thread of the parent would wait for ever
    calls = {
        "query": lambda: htap.query(*query),
        "oltp": lambda: htap.query(*query, hint="oltp"),
        "olap": lambda: htap.query(*query, hint="olap"),
        "cluster": lambda: htap.query(*query, hint="cluster"),
        "stream": lambda: htap.stream(*query),
        "execute": lambda: htap.execute("delete from orders"),
        "sync_now": htap.sync_now,
        "start_sync": lambda: htap.start_sync(0.01),
        "stop_sync": htap.stop_sync,
        "status": htap.sync_status,
        "left_out": lambda: htap.left_out,
        "repair": lambda: htap.repair("orders"),
        "closed": lambda: rhei.open(settings),
        "reader": lambda: reader.query(*query),
        "readers": lambda: rhei.reader({"a": settings}).query(*query),
        "open_mirror": lambda: rhei.open_mirror(settings.mirror),
        "validate": lambda: rhei.validate(settings),
    }
    wrong = [name for name, call in calls.items() if not refused(call)]
    reader.close()
    with htap:  # it is closed, and may be again
        htap.close()
    sys.exit(f"not refused: {wrong}" if wrong else 7)

with rhei.open(settings) as htap:
    htap.sync_now()
reader = rhei.reader(settings)
with rhei.open(settings) as htap:
    htap.start_sync(0.01)
    found = reader.query(*query)["n"][0].as_py()
    child = os.fork()
    if child == 0:
        in_fork()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    htap.execute("insert into orders values (3, 'new')")
    spawned = multiprocessing.get_context("spawn").Process(target=exec, args=(sys.argv[2],))
    spawned.start()
    spawned.join()
    later = htap.query(*query)["n"][0].as_py()
    print(found, status, spawned.exitcode, later, htap.sync_status().running, flush=True)
    sys.stdin.readline()
    print(htap.sync_now().dead_letters, htap.verify().equal, flush=True)
"""
#: What the error tells to do instead.
_SPAWNED = """
import sys
import rhei_pipeline as rhei
with rhei.open(rhei.Settings.model_validate_json(sys.argv[1])) as htap:
    assert not htap.holds and htap.execute("insert into orders values (4, 'new')") == 1
"""
_OTHERS = """
select pid, backend_type from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and client_port is not null
"""
#: Its child outlives it.
_OUTLIVED = """
import os, sys, time
import rhei_pipeline as rhei

htap = rhei.open(rhei.Settings.model_validate_json(sys.argv[1]))
htap.sync_now()
if os.fork() == 0:
    os.close(1)
    time.sleep(600)
    os._exit(0)
htap.start_sync(0.01)
print("ready", flush=True)
sys.stdin.read()
"""


def started(settings: Settings) -> subprocess.Popen[str]:
    """Start the process that forks: an interpreter that also ends as one does."""
    return subprocess.Popen(
        [sys.executable, "-c", _FORKING, written(settings), _SPAWNED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


def see_that_a_fork_harms_nobody(settings: Settings) -> None:
    with started(settings) as parent:
        assert parent.stdout is not None and parent.stdin is not None  # noqa: PT018
        assert parent.stdout.readline().strip() == "2 7 0 4 True", parent.communicate()
        # The fork has neither removed the socket nor let go of the lock.
        assert output_of(_ASK, written(settings)).strip() == "False 4"
        assert parent.communicate("\n", timeout=60)[0].strip() == "0 True"
        assert parent.returncode == 0


@pytest.mark.long
def test_a_fork_uses_nothing_of_its_parent_and_ends_without_harm(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.run("create table orders(id integer primary key, status text)")
    world.run("insert into orders values (1, 'new'), (2, 'new')")
    see_that_a_fork_harms_nobody(world.settings)


@pytest.mark.long
def test_a_fork_ends_no_session_of_its_parent(make_postgres: Callable[..., PostgresWorld]) -> None:
    world = make_postgres(storage="parquet")
    world.run("create table orders(id integer primary key, status text)")
    world.run("insert into orders values (1, 'new'), (2, 'new')")
    see_that_a_fork_harms_nobody(world.settings)


def test_a_fork_that_outlives_its_parent_keeps_nobody_from_the_mirror(
    make_world: Callable[..., World],
) -> None:
    world = make_world(buffered=True)
    world.run("create table orders(id integer primary key, status text)")
    see_that_the_next_process_goes_on(world)


@pytest.mark.long
@pytest.mark.parametrize("storage", [None, "parquet"])
def test_a_fork_that_outlives_its_parent_keeps_nobody_from_the_slot(
    make_postgres: Callable[..., PostgresWorld], storage: str | None
) -> None:
    world = make_postgres(capture={"method": "logical"}, storage=storage)
    world.run("create table orders(id integer primary key, status text)")
    see_that_the_next_process_goes_on(world)


def wait_until_the_server_has_ended_other_sessions(world: PostgresWorld) -> None:
    deadline = time.monotonic() + 30
    while world.app.execute(_OTHERS).fetchall():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def see_that_the_next_process_goes_on(world: World | PostgresWorld) -> None:
    world.run("insert into orders values (1, 'new')")
    parent = OtherProcess(_OUTLIVED, written(world.settings))
    task = Path(f"/proc/{parent.process.pid}/task/{parent.process.pid}")
    [child] = task.joinpath("children").read_text().split()
    try:
        with parent:
            parent.kill()
        world.run("insert into orders values (2, 'new')")
        if isinstance(world, PostgresWorld):
            wait_until_the_server_has_ended_other_sessions(world)
        assert Path(f"/proc/{child}").exists()
        world.htap.sync_now()
        world.assert_equal("orders")
    finally:
        os.kill(int(child), signal.SIGKILL)
