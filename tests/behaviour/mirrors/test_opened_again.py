"""A DuckDB file that is opened again: texts that this process compressed are slow to read."""

import threading
from collections.abc import Callable
from typing import Any

import duckdb
import pytest

from rhei_pipeline.errors import MirrorBusyError
from rhei_pipeline.mirrors.duckdb import block_cache
from rhei_pipeline.mirrors.duckdb import mirror as duckdb_mirror
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from tests.support.fix_world import World
from tests.support.parts import connection_of, engine_of

MODES = ["destructive", "temporal"]


@pytest.fixture(autouse=True)
def little_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have any checkpoint write much."""
    monkeypatch.setattr(block_cache, "_MUCH_BYTES", 1)


def filled(make_world: Callable[..., World], mode: str = "destructive") -> World:
    """Return a world whose mirror has a table."""
    world = make_world(mode=mode, tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    return world


def mirror_of(world: World) -> DuckDBMirror:
    """Return the mirror of a world."""
    mirror = engine_of(world.htap).mirror
    assert isinstance(mirror, DuckDBMirror)
    return mirror


def change(world: World, where: str = "") -> Any:
    """Change the table, mirror that, and return the connection by which it was written."""
    world.run(f"update t set v = v || 'x' {where}", "insert into t(v) values ('new')")
    world.htap.sync_now()
    world.assert_equal("t")
    return connection_of(mirror_of(world))


@pytest.mark.parametrize("mode", MODES)
def test_the_file_is_opened_again_behind_a_checkpoint_and_only_then(
    make_world: Callable[..., World], mode: str
) -> None:
    world = filled(make_world, mode)
    first = change(world)
    assert change(world) is first
    world.htap.maintain()
    assert change(world) is first  # it comes to know of the checkpoint
    second = change(world)
    assert second is not first
    with pytest.raises(duckdb.ConnectionException):
        first.execute("select 1")
    assert change(world) is second


def test_the_file_is_opened_again_behind_a_large_copy(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB writes many rows of one commit into the file at once, without its log."""
    monkeypatch.setattr(block_cache, "_MUCH_BYTES", 2**20)
    world = make_world(tables=[{"name": "t"}], batch_rows=200_000)
    world.run(
        "create table t(id integer primary key, v text)",
        "with recursive r(i) as (select 1 union all select i + 1 from r where i < 130000)"
        " insert into t select i, hex(randomblob(16)) from r",
    )
    world.htap.sync_now()
    first = connection_of(mirror_of(world))
    second = change(world, where="where id < 100")
    assert second is not first
    assert change(world, where="where id < 100") is second


def test_no_query_is_ended_for_it(make_world: Callable[..., World]) -> None:
    world = filled(make_world)
    first = change(world)
    world.htap.maintain()
    change(world)
    under_way = mirror_of(world).stream("select id, v from t order by id", (), 1)
    next(under_way.batches)
    assert change(world) is first
    assert sum(batch.num_rows for batch in under_way.batches) == 2
    assert change(world) is not first


def test_it_waits_for_the_end_of_a_copy(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tables=[{"name": "t"}], batch_rows=1000)
    world.run(
        "create table t(id integer primary key, v text)",
        "with recursive r(i) as (select 1 union all select i + 1 from r where i < 5000)"
        " insert into t select i, 'v' from r",
    )
    monkeypatch.setattr(block_cache.BlockCache, "decodes_slowly", True)
    copying, connect_again = [], DuckDBMirror._connect_again

    def noted(mirror: DuckDBMirror) -> None:
        copying.append(bool(mirror.ledger().copies))
        connect_again(mirror)

    monkeypatch.setattr(DuckDBMirror, "_connect_again", noted)
    world.htap.sync_now()
    change(world)
    assert copying
    assert not any(copying)


def test_it_is_tried_again_where_another_program_had_the_file(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = filled(make_world)
    first = change(world)
    world.htap.maintain()
    change(world)
    busy = MirrorBusyError("another process has the file open", hint="end it")

    def refuse(*_: Any) -> duckdb.DuckDBPyConnection:
        raise busy

    world.run("insert into t(v) values ('pending')")
    with monkeypatch.context() as patched:
        patched.setattr(duckdb_mirror, "connect_once_free", refuse)
        with pytest.raises(MirrorBusyError):
            world.htap.sync_now()
    assert world.htap.query("select count(*) as n from t", hint="olap")["n"][0].as_py() == 3
    assert change(world) is not first


def test_queries_of_another_thread_are_answered_while_it_is_opened_again(
    make_world: Callable[..., World],
) -> None:
    world = filled(make_world)
    troubles: list[Exception] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(0.005):
            try:
                world.htap.query("select count(*) as n, max(v) as v from t", hint="olap")
            except Exception as error:  # noqa: BLE001  (the test shows it)
                troubles.append(error)
                return

    asking = threading.Thread(target=ask)
    asking.start()
    connections: set[Any] = set()
    while len(connections) < 4 and asking.is_alive():
        world.htap.maintain()
        connections |= {change(world), change(world)}
    ended.set()
    asking.join()
    assert not troubles
