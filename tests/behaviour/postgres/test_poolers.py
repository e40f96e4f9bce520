"""Behind a pooler, sessions are shared with the application: we leave nothing behind in them."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import psycopg
import pytest

from rhei_pipeline.cli.init import starter
from rhei_pipeline.errors import (
    CaptureError,
    QueryError,
    SettingsError,
    SourceBusyError,
    SourceError,
)
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.logical.source import LogicalSource
from rhei_pipeline.wiring.engine import unseen_events
from rhei_pipeline.wiring.source import validate
from tests.support.fix_postgres import AnyServer, PostgresWorld, database
from tests.support.installed_postgres import Pooler
from tests.support.parts import engine_of

pytestmark = pytest.mark.turns

_WRITERS = 3
_TRANSACTIONS = 60
_TABLE = (
    "create table orders(id bigint generated always as identity primary key, writer int,"
    " turn int, updated_at timestamptz not null default now())",
    "create index on orders(updated_at, id)",
)
_CAPTURES = ["logical", "trigger", "polling"]
#: What an application would notice in a session of its own. A pooler follows `application_name`;
#: a library that was loaded in a session, as any trigger has it, shows its settings as they are.
_FOOTPRINT = (
    "select name, setting from pg_settings"
    " where name <> 'application_name' and name not like 'plpgsql.%'",
    "select name, statement from pg_prepared_statements",
    "select name from pg_cursors",
    "select pg_listening_channels()",
    "select relname from pg_class where relpersistence = 't'",
    "select locktype, mode from pg_locks where pid = pg_backend_pid()"
    " and locktype not in ('relation', 'virtualxid')",
)


def footprint(connection: psycopg.Connection[Any]) -> set[Any]:
    """Return what a session shows of those who had it before."""
    return {row for sql in _FOOTPRINT for row in connection.execute(sql.encode())}


def found(dsn: str, sessions: int) -> list[set[Any]]:
    """Return that of so many sessions at once, so that a pooler lends as many."""
    with ExitStack() as stack:
        lent = [
            stack.enter_context(psycopg.connect(dsn, prepare_threshold=None))
            for _ in range(sessions)
        ]
        return [footprint(connection) for connection in lent]


@contextmanager
def leaving_nothing(pooler: Pooler, server: str) -> Iterator[None]:
    """Compare the sessions that a pooler lends afterwards with one of the server's own."""
    yield
    with psycopg.connect(server) as fresh:
        wanted = footprint(fresh)
    for shown in found(pooler.dsn, 8):
        assert shown ^ wanted == set()


def _world(
    make_installed: Callable[..., PostgresWorld], dsn: str, method: str, **options: Any
) -> PostgresWorld:
    table: dict[str, Any] = {"name": "orders", "mode": "temporal"}
    if method == "polling":
        table = {"name": "orders", "polling": {"clock": "database"}}
    world = make_installed(dsn=dsn, capture={"method": method}, tables=[table], **options)
    world.run(*_TABLE)
    return world


def _write(dsn: str, number: int, failures: list[Exception]) -> None:
    """Write as an application does: with names that its own path finds."""
    draw = random.Random(number)
    try:
        with psycopg.connect(dsn, prepare_threshold=None) as connection:
            for turn in range(_TRANSACTIONS):
                for _ in range(draw.randint(1, 4)):
                    connection.execute(
                        "insert into orders(writer, turn) values (%s, %s)", (number, turn)
                    )
                connection.execute(
                    "update orders set turn = -turn, updated_at = now()"
                    " where writer = %s and turn = %s",
                    (number, draw.randint(0, turn)),
                )
                if draw.randrange(8):
                    connection.commit()
                else:
                    connection.rollback()
    except Exception as error:  # noqa: BLE001  (told by the test)
        failures.append(error)


@pytest.mark.long
@pytest.mark.parametrize("method", _CAPTURES)
def test_nothing_is_lost_through_a_pooler_and_nothing_stays_in_its_sessions(
    method: str,
    make_installed: Callable[..., PostgresWorld],
    make_pooler: Callable[..., Pooler],
    installed_dsn: str,
) -> None:
    pooler = make_pooler("transaction")
    world = _world(make_installed, pooler.dsn, method)
    with leaving_nothing(pooler, installed_dsn):
        world.htap.sync_now()
    failures: list[Exception] = []
    writers = [
        threading.Thread(target=_write, args=(pooler.dsn, number, failures))
        for number in range(_WRITERS)
    ]
    with leaving_nothing(pooler, installed_dsn):
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            world.htap.sync_now()
        world.htap.sync_now()
        assert failures == []
        world.assert_equal("orders")
    for command in _commands(world):
        with leaving_nothing(pooler, installed_dsn):
            command()
        world.run("select 1 from orders")  # by its name alone
    world.assert_equal("orders")


def _commands(world: PostgresWorld) -> list[Callable[[], object]]:
    htap = world.htap
    insert = "insert into orders(writer, turn) values (%s, %s)"
    commands: list[Callable[[], object]] = [
        lambda: validate(world.settings),
        lambda: starter(world.dsn),
        lambda: unseen_events(world.settings),
        htap.sync_status,
        htap.verify,
        lambda: htap.repair("orders"),
        lambda: htap.initial_sync("orders"),
        lambda: htap.query("select count(*) from orders", hint="olap"),
    ]
    if world.capture["method"] == "polling":  # the source is only read, and by capture alone
        return commands
    streamed: Any = engine_of(htap).database
    asked = "select id from orders where id > %s"
    return [
        lambda: [htap.execute(insert, (9, turn)) for turn in range(8)],
        lambda: htap.execute_batch([(insert, (9, turn)) for turn in range(8)]),
        lambda: htap.execute("vacuum orders"),
        lambda: [htap.query(asked, (turn,), hint="oltp") for turn in range(8)],
        lambda: list(streamed.stream("select * from orders", (), None, 100).batches),
        htap.sync_now,
        *commands,
    ]


def test_what_somebody_leaves_in_a_shared_session_is_seen(
    make_pooler: Callable[..., Pooler], installed_dsn: str
) -> None:
    """The comparison above can fail."""
    pooler = make_pooler("transaction", size=8)
    with psycopg.connect(pooler.dsn, autocommit=True) as careless:
        careless.execute("set search_path = pg_catalog")
    with pytest.raises(AssertionError), leaving_nothing(pooler, installed_dsn):
        pass


@pytest.mark.long
def test_a_pooler_that_lends_sessions_whole_is_no_hindrance(
    make_installed: Callable[..., PostgresWorld], make_pooler: Callable[..., Pooler]
) -> None:
    pooler = make_pooler("session")
    world = _world(make_installed, pooler.dsn, "logical")
    world.htap.sync_now()
    world.run("insert into orders(writer, turn) select 1, g from generate_series(1, 50) g")
    assert world.htap.sync_now().inserted == 50
    world.assert_equal("orders")


def test_a_pooler_that_lends_a_session_for_a_statement_is_refused_by_name(
    make_installed: Callable[..., PostgresWorld],
    make_pooler: Callable[..., Pooler],
    installed_dsn: str,
) -> None:
    pooler = make_pooler("statement")
    world = make_installed(dsn=pooler.dsn)
    with pytest.raises(SourceError, match=r"each statement another session.*pool_mode") as refused:
        world.htap.sync_now()
    assert refused.value.hint
    # Also where capture goes another way: queries ask through it.
    with pytest.raises(SourceError, match="each statement another session"):
        make_installed(dsn=pooler.dsn, source={"direct_dsn": installed_dsn}).htap.sync_now()
    out = make_installed(dsn=make_pooler("transaction").dsn)
    out.run(*_TABLE, "insert into orders(writer) values (1)")
    assert out.htap.sync_now().inserted == 1


@pytest.mark.long
def test_what_needs_a_session_names_the_way_round_the_pooler(
    make_installed: Callable[..., PostgresWorld],
    make_pooler: Callable[..., Pooler],
    installed_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pooler = make_pooler("transaction")
    world = _world(make_installed, pooler.dsn, "logical", batch_rows=10)
    world.run("insert into orders(writer, turn) select 1, g from generate_series(1, 200) g")
    world.capture = {"method": "logical", "streaming": True}
    with pytest.raises(CaptureError, match=r"capture.streaming.*source\.direct_dsn"):
        world.htap.sync_now()
    (named,) = validate(world.settings)
    assert "source.direct_dsn" in named.remedy
    world.source = {"direct_dsn": installed_dsn}
    shared: list[object] = []
    share = LogicalSource._sharing

    def counted(*how: Any) -> Any:
        shared.append(how)
        return share(*how)

    monkeypatch.setattr(LogicalSource, "_sharing", counted)
    world.htap.sync_now()
    world.htap.initial_sync("orders")
    assert shared  # a large copy reads on several connections again
    world.run("update orders set turn = 0 where turn = 7")
    assert world.htap.sync_now().updated == 1
    assert engine_of(world.htap).source._log._stream is not None  # type: ignore[attr-defined]
    world.assert_equal("orders")
    assert validate(world.settings) == []
    assert installed_dsn not in repr(world.settings)


def test_a_direct_way_to_another_database_is_refused(
    make_installed: Callable[..., PostgresWorld], installed_server: AnyServer
) -> None:
    for other in database(installed_server):
        world = make_installed(source={"direct_dsn": other})
        with pytest.raises(SettingsError, match="direct_dsn leads to another database"):
            world.htap.sync_now()


def test_what_would_stay_in_a_shared_session_is_refused(
    make_installed: Callable[..., PostgresWorld],
) -> None:
    world = _world(make_installed, make_installed().dsn, "logical")
    for statement in ("set search_path = x", "listen changes", "discard all"):
        with pytest.raises(QueryError, match=r"changes a session.*set local"):
            world.htap.execute(statement)
    insert = ("insert into orders(writer) select extract(hour from '10:00+00'::timetz)", ())
    assert world.htap.execute_batch([("set local timezone = 'Asia/Tokyo'", ()), insert]) == 1


@pytest.mark.parametrize("method", ["trigger", "polling"])
def test_another_server_behind_the_pooler_is_noticed(
    method: str,
    make_installed: Callable[..., PostgresWorld],
    make_pooler: Callable[..., Pooler],
) -> None:
    world = _world(make_installed, make_pooler("transaction").dsn, method)
    world.htap.sync_now()
    source: Any = engine_of(world.htap).source
    source._origin = f"{source._origin}0"  # as if it had been another one, or before a promotion
    with pytest.raises(SourceBusyError, match="another server answers behind the pooler"):
        world.htap.sync_now()
    world.run("insert into orders(writer) values (1)")
    world.htap.sync_now()
    world.assert_equal("orders")


def test_a_pool_without_room_for_a_sync_is_named_with_its_way_out(
    make_installed: Callable[..., PostgresWorld],
    make_pooler: Callable[..., Pooler],
    installed_dsn: str,
) -> None:
    pooler = make_pooler("transaction", size=1, wait=1)
    world = _world(make_installed, pooler.dsn, "logical")
    with pytest.raises(SourceBusyError, match=r"gave no session in time.*source\.direct_dsn"):
        world.htap.sync_now()
    world.crash()
    world.source = {"direct_dsn": installed_dsn}
    world.run("insert into orders(writer) values (1)")
    assert world.htap.sync_now().inserted == 1


def test_no_temporary_table_in_a_shared_session_stands_for_one_of_the_application(
    make_pooler: Callable[..., Pooler],
) -> None:
    pooler = make_pooler("transaction", size=1)
    with psycopg.connect(pooler.dsn, autocommit=True) as careless:
        careless.execute("create table t as select 'kept' as v")
        careless.execute("create temp table t as select 'forged' as v")
        assert careless.execute("select v from t").fetchall() == [("forged",)]
        with closing(PostgresDatabase(pooler.dsn)) as database:
            asked = "select v from t"
            assert database.query(asked).to_pylist() == [{"v": "kept"}]
            (batch,) = [batch for batch in _streamed(database, asked) if batch.num_rows]
            assert batch.to_pylist() == [{"v": "kept"}]


def test_what_a_statement_sets_is_not_there_for_the_next(dsn: str) -> None:
    asked = "select date '2026-01-02' as day, decode('ff', 'hex') as bytes"
    with closing(PostgresDatabase(dsn, pool_size=1, functions=["change"])) as database:
        database.execute(
            "create function change() returns text language sql as $$"
            " select set_config('DateStyle', 'German', false);"
            " select set_config('bytea_output', 'escape', false) $$"
        )
        wanted = database.query(asked)
        for act in (
            lambda: database.execute("select change()"),
            lambda: database.execute_batch([("select change()", ())]),
            lambda: database.query("select change()"),
            lambda: list(_streamed(database, "select change()")),
        ):
            act()
            assert database.query(asked) == wanted


def _streamed(database: PostgresDatabase, sql: str) -> Iterator[Any]:
    streamed = database.stream(sql, (), None, 10)
    assert streamed is not None
    return streamed.batches
