"""Ctrl-C ends any query, whichever engine works on it; the shell goes on."""

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import duckdb
import psycopg
import pyarrow as pa
import pytest

from rhei_pipeline.mirrors.duckdb.driver_errors import translated
from rhei_pipeline.mirrors.duckdb.tables import registered
from rhei_pipeline.sources.sqlite import signals
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.terminal import INTERRUPT, Terminal

ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n"
CROSS = "select count(*) from t a, t b, t c, t d, t e where a.id + b.id + c.id + d.id > e.id"


def declared(world: World) -> Path:
    """Close a world, and return the declaration of its pipeline."""
    world.run(
        "create table t(id integer primary key)",
        "insert into t with recursive n(i) as"
        " (select 1 union all select i + 1 from n where i < 1000) select i from n",
    )
    world.htap.sync_now()
    world.crash()
    file = world.directory / "p.json"
    file.write_text(world.settings.model_dump_json())
    return file


def test_ctrl_c_is_heard_where_rows_are_shown_to_a_transaction() -> None:
    """That they cannot be taken away again says no more than that the transaction is aborted."""
    with duckdb.connect() as connection:
        connection.execute("begin transaction")
        with (
            pytest.raises(KeyboardInterrupt),
            translated("m"),
            registered(connection, "r", pa.table({"n": [1]})),
        ):
            with suppress(duckdb.Error):
                connection.execute("select error('as Ctrl-C does, this aborts it')")
            raise RuntimeError("Query interrupted")  # as DuckDB says of Ctrl-C


@pytest.mark.long
@pytest.mark.parametrize("storage", [None, "parquet"], ids=["duckdb", "datafusion"])
def test_ctrl_c_ends_a_query_and_the_shell_goes_on(
    make_world: Callable[..., World], storage: str | None
) -> None:
    file = declared(make_world(storage=storage))
    asked = (("\\olap", CROSS), ("\\oltp", ENDLESS)) if storage is None else (("\\olap", CROSS),)
    with Terminal("query", "--config", str(file), cwd=file.parent) as shell:
        shell.shows("rhei> ")
        for side, sql in asked:
            shell.press(f"{side}\n{sql};\n")
            shell.is_at_work()
            shell.press(INTERRUPT)
            shell.shows("interrupted")
        shell.press("select 40 + 2 as answer;\n")
        shell.shows("42")
        shell.press("\\q\n")
        assert shell.exit_code() == 0


class Rung(Exception):  # noqa: N818  (a signal's, not an error of ours)
    """What the handler of a signal raises."""


def test_a_signal_ends_what_sqlite_does_in_the_main_thread(world: World) -> None:
    def ring(_: int, frame: FrameType | None) -> None:
        # Elsewhere, as in a callback of SQLite's while it plans, it is not what is tested.
        if frame is not None and frame.f_code.co_filename == signals.__file__:
            raise Rung
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    former = signal.signal(signal.SIGALRM, ring)
    try:
        for work in (
            lambda: world.htap.query(ENDLESS, hint="oltp"),
            lambda: world.htap.execute(f"update orders set status = ({ENDLESS})"),
        ):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Rung):
                work()
    finally:
        signal.signal(signal.SIGALRM, former)
    assert world.htap.query("select count(*) as n from orders", hint="oltp")["n"][0].as_py() == 3
    assert world.htap.execute("update orders set status = 'x' where id = 1") == 1


@pytest.mark.long
def test_ctrl_c_ends_what_a_server_does(
    make_postgres: Callable[..., PostgresWorld], tmp_path: Path
) -> None:
    world = make_postgres()
    world.run("create table t(id int primary key)")
    world.htap.sync_now()
    world.crash()
    file = tmp_path / "p.yaml"
    file.write_text(
        f"source: {{kind: postgres, dsn: {world.dsn!r}}}\n"
        f"mirror: {{path: {world.settings.mirror.path}}}\n"
        f"registry: {{path: {world.settings.registry.path}}}\n"
    )
    under_way = (
        "select count(*) from pg_stat_activity where state = 'active'"
        " and query like '%pg_sleep(86400)%' and pid <> pg_backend_pid()"
    )
    sql = "select pg_sleep(86400), count(*) from t"
    with (
        psycopg.connect(world.dsn, autocommit=True) as watching,
        Terminal("query", sql, "--config", str(file), cwd=tmp_path) as command,
    ):
        command.shows("<begun>")
        while watching.execute(under_way).fetchone() == (0,):
            assert command.process.poll() is None
        command.press(INTERRUPT)
        assert command.exit_code() == 130
        assert watching.execute(under_way).fetchone() == (0,)


#: A thread that gets a process's signal is what a signal is that comes just before a wait: the
#: main thread, which runs handlers, is not woken.
UNNOTICED = """
import signal, sys, threading, time
from concurrent.futures import Future

def ring():
    time.sleep(0.3)
    signal.pthread_kill(threading.get_ident(), signal.{number})

def served():
    from rhei_pipeline.server.serve import StopSignal
    asked = StopSignal()
    threading.Thread(target=ring).start()
    asked.wait()

def awaited():
    from rhei_pipeline.holder.worker import awaited
    threading.Thread(target=ring).start()
    try:
        awaited(Future())
    except KeyboardInterrupt:
        return
    sys.exit("not heard")

{waiting}()
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("waiting", "number"), [("served", "SIGTERM"), ("served", "SIGINT"), ("awaited", "SIGINT")]
)
def test_a_signal_just_before_a_wait_is_heard(waiting: str, number: str) -> None:
    script = UNNOTICED.format(waiting=waiting, number=number)
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    subprocess.run([sys.executable, "-c", heard + script], check=True, timeout=60)
