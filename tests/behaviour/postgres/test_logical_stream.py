"""Changes that the server sends by itself: what breaks off, what is too much, who else reads."""

from collections import Counter
from collections.abc import Callable

import psycopg
import pytest

from examples.postgres_server import Server
from rhei_pipeline.sources.postgres.logical import reader as logical_log
from rhei_pipeline.sources.postgres.logical import stream as logical_stream
from rhei_pipeline.wiring.engine import unseen_events
from tests.support.fix_postgres import PostgresWorld
from tests.support.parts import engine_of

MakeWorld = Callable[..., PostgresWorld]

CREATE = "create table t(id int primary key, v text)"
IS_STREAMED = "select active from pg_replication_slots where database = current_database()"
END_STREAM = (
    "select pg_terminate_backend(active_pid) from pg_replication_slots"
    " where database = current_database()"
)


@pytest.fixture
def world(make_postgres: MakeWorld) -> PostgresWorld:
    made = make_postgres(mode="temporal", capture={"streaming": True})
    made.run(CREATE, "insert into t values (1, 'a')")
    made.htap.sync_now()
    change(made, "b")
    return made


def change(world: PostgresWorld, value: str) -> None:
    world.run(f"update t set v = '{value}' where id = 1")
    assert world.htap.sync_now().updated == 1


def is_streamed(world: PostgresWorld) -> bool:
    found = world.app.execute(IS_STREAMED).fetchone()
    return found is not None and bool(found[0])


def test_what_is_committed_is_streamed_and_then_forgotten(world: PostgresWorld) -> None:
    assert is_streamed(world)
    for value in "cdef":
        change(world, value)
    behind = "select pg_current_wal_flush_lsn() - confirmed_flush_lsn from pg_replication_slots"
    found = world.app.execute(f"{behind} where database = current_database()".encode()).fetchone()
    assert found is not None
    assert found[0] < 1_000
    assert len(world.versions("t")) == 6


def test_what_a_stream_has_confirmed_is_not_proved_though_the_server_has_not_noted_it(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(world.htap)
    table, before = engine.pipeline.table("t"), engine.mirror.ledger().watermarks["t"].position
    told = logical_stream.LogicalStream._report

    def reported(stream: logical_stream.LogicalStream, *, reply: bool) -> None:
        if reply:
            told(stream, reply=True)

    monkeypatch.setattr(logical_stream.LogicalStream, "_report", reported)
    with engine.source.snapshot() as snapshot:
        assert snapshot.proves(table, before)
    change(world, "c")
    with engine.source.snapshot() as snapshot:
        assert not snapshot.proves(table, before)
        assert snapshot.proves(table, engine.mirror.ledger().watermarks["t"].position)


def test_a_stream_that_breaks_off_is_read_again(world: PostgresWorld) -> None:
    for value in "cd":
        world.run(END_STREAM)
        change(world, value)
    change(world, "e")
    assert is_streamed(world)
    assert [row["v"] for row in world.versions("t")] == list("abcde")


def test_a_long_stretch_of_the_log_is_asked_for_instead(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logical_log, "STREAM_BYTES", 10_000)
    world.run("insert into t select i, 'many' from generate_series(2, 1000) i")
    assert world.htap.sync_now().inserted == 999
    assert not is_streamed(world)
    change(world, "c")
    assert is_streamed(world)
    world.assert_equal("t")


def test_more_than_memory_should_hold_is_asked_for_instead(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logical_stream, "HELD_BYTES", 10_000)
    for turn in range(3):
        world.run(f"insert into t select i, 'x' from generate_series({turn}002, {turn}999) i")
        assert world.htap.sync_now().inserted == 998
    world.assert_equal("t")


@pytest.mark.long
def test_large_messages_are_asked_for_in_pieces(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logical_log, "STREAM_BYTES", 0)
    monkeypatch.setattr(logical_log, "PIECE_BYTES", 64)
    monkeypatch.setattr(logical_log, "FETCH_MESSAGES", 5)
    # Each length of a message from less than a piece to several, so that some fill their last one.
    world.run("insert into t select i, repeat('x', i) from generate_series(2, 300) i")
    world.run("update t set v = v || 'y' where id % 3 = 0", "delete from t where id % 7 = 0")
    report = world.htap.sync_now()
    assert (report.inserted, report.updated, report.deleted) == (299, 100, 42)
    world.assert_equal("t")
    found = Counter(row["id"] for row in world.versions("t") if row["_rhei_operation"] != "D")
    assert [found[key] for key in (6, 7, 8)] == [2, 0, 1]


def test_shapes_told_once_hold_for_all_that_follows(world: PostgresWorld) -> None:
    world.run("create table u(id int primary key, w int)")
    world.htap.register_table("u")
    world.htap.sync_now()
    for turn in range(3):
        world.run(f"insert into u values ({turn}, {turn})", f"update t set v = 'u{turn}'")
        assert world.htap.sync_now().events == 2
    world.run("alter table t add column x int default 7", "update t set x = 8")
    world.htap.sync_now()
    world.run("update t set x = 9", "insert into u values (10, 10)")
    assert world.htap.sync_now().events == 2
    world.assert_equal("t", "u")


def test_whoever_asks_meanwhile_is_told_that_it_is_read(world: PostgresWorld) -> None:
    assert is_streamed(world)
    assert unseen_events(world.settings) == 0
    world.run("update t set v = 'unseen'")
    world.crash()
    assert unseen_events(world.settings) == 1


def test_a_server_killed_while_it_streams(world: PostgresWorld, server: Server) -> None:
    world.run("update t set v = 'before'")
    world.app.close()
    server.kill()
    world.app = psycopg.connect(world.dsn, autocommit=True)
    world.run("update t set v = 'after'")
    world.htap.sync_now()  # on connections of its own making: those that were kept have ended
    world.assert_equal("t")
    assert [row["v"] for row in world.versions("t")] == ["a", "b", "before", "after"]
