"""Where a trigger's log gave no number since, it is not read: and nothing is missed for that."""

import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest

from rhei_pipeline.sources.postgres.triggers import snapshot as trigger_snapshot
from tests.support.fix_postgres import INSTALLED, PostgresWorld, database, skip_without
from tests.support.installed_postgres import InstalledServer, Pooler, binaries, give
from tests.support.parts import connection_of, engine_of

pytestmark = pytest.mark.turns

_TABLES = ("a", "b", "c")


@pytest.fixture(params=["destructive", "temporal"])
def world(
    request: pytest.FixtureRequest,
    make_postgres: Callable[..., PostgresWorld],
    monkeypatch: pytest.MonkeyPatch,
) -> PostgresWorld:
    """Return a mirror whose logs are all asked for their last numbers, and have settled."""
    monkeypatch.setattr(trigger_snapshot, "_LOOKS_AT_ONCE", 1)
    made = make_postgres(
        capture={"method": "trigger"},
        mode=request.param,
        tables=[{"name": name} for name in _TABLES],
    )
    fill(made)
    return made


@pytest.fixture
def other(world: PostgresWorld) -> Iterator[psycopg.Connection]:
    """Return a session in which a transaction can be held open."""
    with psycopg.connect(world.dsn) as connection:
        yield connection


def fill(world: PostgresWorld) -> None:
    """Make its tables, and sync until their logs have settled."""
    for name in _TABLES:
        world.run(
            f"create table {name}(id int primary key, v int)", f"insert into {name} values (1, 0)"
        )
    settle(world)


def settle(world: PostgresWorld) -> None:
    """Sync so often that logs without changes are not read any more."""
    for _ in range(4):
        world.run("update a set v = v + 1 where id = 1")
        world.htap.sync_now()


def quiet(world: PostgresWorld) -> set[str]:
    """Return the tables whose logs are not read while they give no number."""
    source: Any = engine_of(world.htap).source
    known = source._memory.numbers._known
    return {name for name, counted in known.items() if counted.is_quiet}


def test_only_logs_of_which_all_is_over_are_not_read(
    world: PostgresWorld, other: psycopg.Connection
) -> None:
    assert quiet(world) == {"b", "c"}
    other.execute("insert into b values (2, 0)")
    settle(world)
    assert quiet(world) == {"c"}
    other.commit()
    assert world.htap.sync_now().events == 1
    world.assert_equal(*_TABLES)
    settle(world)
    assert quiet(world) == {"b", "c"}


def test_a_transaction_that_is_the_newest_of_all_is_waited_for(
    world: PostgresWorld, other: psycopg.Connection
) -> None:
    """It has a number already, and a snapshot's end is no more than the newest that is over."""
    world.run("create table of_others(id int)")
    world.htap.sync_now()
    with ExitStack() as opened:
        older = [opened.enter_context(psycopg.connect(world.dsn)) for _ in range(4)]
        for number, session in enumerate(older):
            session.execute("insert into of_others values (%s)", (number,))
        other.execute("insert into b values (2, 0)")
        for session in older:
            session.commit()  # none of them begins after it
            world.htap.sync_now()
    other.commit()
    world.htap.sync_now()
    world.assert_equal(*_TABLES)


def test_a_log_that_counts_from_its_start_again_is_read(world: PostgresWorld) -> None:
    ((oid,),) = world.app.execute("select 'b'::regclass::oid::int")
    ((last,),) = world.app.execute(f"select count(*) from _rhei.log_{oid}")
    assert (last, quiet(world)) == (1, {"b", "c"})
    world.run(f"truncate _rhei.log_{oid} restart identity", "insert into b values (2, 0)")
    world.htap.sync_now()
    world.assert_equal(*_TABLES)


def test_a_log_is_quiet_behind_the_position_it_was_found_quiet_behind_and_no_other(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that goes back, as where a copy is given up, has behind it what the copy had read."""
    engine: Any = engine_of(world.htap)
    monkeypatch.setattr(engine.source, "acknowledge", lambda *_, **__: 0)  # the log is kept
    table, before = world.htap.table_schemas()["b"], engine.mirror.ledger().needed_from("b")
    world.run("insert into b values (2, 0)")
    world.htap.sync_now()
    settle(world)
    assert "b" in quiet(world)
    with engine.source.snapshot() as snapshot:
        assert snapshot.proves(table, before)
        assert snapshot.pending(table, before) == 1


def test_another_session_may_count_otherwise(world: PostgresWorld) -> None:
    connection_of(engine_of(world.htap).source).close()
    world.run("update a set v = v + 1")
    world.htap.sync_now()
    assert not quiet(world)


def test_a_log_whose_sessions_take_numbers_in_store_is_read(world: PostgresWorld) -> None:
    """The last number that was given tells of them before they are in an entry."""
    ((oid,),) = world.app.execute("select 'b'::regclass::oid::int")
    world.run(f"alter sequence _rhei.log_{oid}_seq_seq cache 50", "insert into b values (2, 0)")
    settle(world)
    assert quiet(world) == {"c"}
    world.run("insert into b values (3, 0)")
    world.htap.sync_now()
    world.assert_equal(*_TABLES)


@pytest.fixture
def reader(dsn: str) -> Iterator[str]:
    """Return a user of ours that may do no more than it is granted."""
    name = f"rhei_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(f"create role {name} login".encode())
        admin.execute(f"create schema _rhei authorization {name}".encode())
        yield name
        admin.execute(f"drop owned by {name} cascade".encode())
        admin.execute(f"drop role {name}".encode())


def test_a_log_whose_numbers_may_be_asked_no_more_is_read(
    make_postgres: Callable[..., PostgresWorld],
    monkeypatch: pytest.MonkeyPatch,
    dsn: str,
    reader: str,
) -> None:
    """Newer servers fail not for that: they know no last number, however often they are asked."""
    monkeypatch.setattr(trigger_snapshot, "_LOOKS_AT_ONCE", 1)
    world = make_postgres(
        capture={"method": "trigger"},
        tables=[{"name": name} for name in _TABLES],
        source={"dsn": psycopg.conninfo.make_conninfo(dsn, user=reader)},
    )
    for name in _TABLES:
        world.run(f"create table {name}(id int primary key, v int)")
        world.run(f"alter table {name} owner to {reader}", f"insert into {name} values (1, 0)")
    settle(world)
    assert quiet(world) == {"b", "c"}
    ((oid,),) = world.app.execute("select 'b'::regclass::oid::int")
    world.run(f"revoke all on sequence _rhei.log_{oid}_seq_seq from {reader}")
    settle(world)
    world.run("insert into b values (2, 0)")
    world.htap.sync_now()
    world.assert_equal(*_TABLES)
    world.crash()


@pytest.fixture
def put_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[PostgresWorld, Callable[[], None], Callable[[], None]]]:
    """Return a settled mirror behind a pooler, and what keeps and puts back its server's disk."""
    skip_without(binaries(INSTALLED) / "initdb", "pgbouncer")
    monkeypatch.setattr(trigger_snapshot, "_LOOKS_AT_ONCE", 1)
    with ExitStack() as stack:
        where, disk, pool = (
            Path(stack.enter_context(TemporaryDirectory(prefix=f"rhei-{name}-")))
            for name in ("postgres", "disk", "pooler")
        )
        give(disk)
        server = InstalledServer(INSTALLED, where)
        stack.callback(server.stop)
        dsn = next(database(server))
        pooler = Pooler(pool, dsn, "transaction", 12, 20)
        stack.callback(pooler.stop)
        world = PostgresWorld(
            pooler.dsn,
            tmp_path,
            capture={"method": "trigger"},
            tables=[{"name": name} for name in _TABLES],
        )
        stack.callback(world.close)
        fill(world)

        def back() -> None:
            server.put_back(disk / "kept")
            with psycopg.connect(dsn, autocommit=True) as others:  # it has as many transactions
                others.execute("create table of_others(id int)")
                for _ in range(60):
                    others.execute("insert into of_others values (1)")

        yield world, lambda: server.keep(disk / "kept"), back


@pytest.mark.long
def test_a_session_at_a_pooler_outlives_a_server_that_is_put_back(
    put_back: tuple[PostgresWorld, Callable[[], None], Callable[[], None]],
) -> None:
    """The older state gives the number again by which the log was found quiet."""
    world, keep, back = put_back
    keep()
    world.run("insert into b values (2, 0)")
    settle(world)
    session = connection_of(engine_of(world.htap).source)
    assert "b" in quiet(world)
    back()
    world.run("insert into b values (3, 0)")
    world.htap.sync_now()
    world.assert_equal(*_TABLES)
    assert connection_of(engine_of(world.htap).source) is session


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_whoever_ends_when_the_mirror_equals_the_source(world: PostgresWorld, seed: int) -> None:
    drawn = random.Random(seed)
    sessions = [psycopg.connect(world.dsn) for _ in range(4)]
    try:
        for number in range(120):
            session = drawn.choice(sessions)
            act = drawn.random()
            if act < 0.4:
                table = drawn.choice(_TABLES)
                session.execute(f"insert into {table} values ({number + 10}, 0)".encode())
            elif act < 0.7:
                drawn.choice([session.commit, session.commit, session.rollback])()
            else:
                world.htap.sync_now()
                world.assert_equal(*_TABLES)
    finally:
        for session in sessions:
            session.close()
    world.htap.sync_now()
    world.assert_equal(*_TABLES)
