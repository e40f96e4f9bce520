"""A query of PostgreSQL that is refused, and what the refusal says to do instead."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import (
    QueryError,
    QueryLimitError,
    RheiError,
    SourceBusyError,
    SourceError,
)
from rhei_pipeline.wiring.source import validate
from tests.support.fix_postgres import PostgresWorld
from tests.support.parts import engine_of
from tests.support.refusals import refused

MakeWorld = Callable[..., PostgresWorld]
READING = "a query reads tables only"
OF_FILES = (
    "a query reads tables only: load the file into the source, or use a client of your own for it"
)
PLACEHOLDERS = "a parameter is written %s, and a percent sign beside parameters %%"


@dataclass(frozen=True)
class Walk:
    """A query that is refused, and the one to ask instead, each with its parameters."""

    way_out: str
    asked: str
    instead: str
    params: tuple[Any, ...] = ()
    instead_params: tuple[Any, ...] = ()


WALKS = [
    Walk("run them one by one", "select 1; select 2", "select 2"),
    Walk(READING, "select pg_read_file('x')", "select * from t"),
    Walk(OF_FILES, "copy t to '/x'", "select * from t"),
    Walk(OF_FILES, "load 'x'", "select * from t"),
    Walk(PLACEHOLDERS, "select %d", "select %s", (1,), (1,)),
    Walk(PLACEHOLDERS, "select 10 % 4 = %s", "select 10 %% 4 = %s", (2,), (2,)),
    Walk("give one for each %s", "select %s, %s", "select %s, %s", (1,), (1, 2)),
    Walk("it has {}", "explain (nonsense) select 1", "explain (costs off) select 1"),
    Walk("correct its encoding", "select '\udce9'", "select 'é'"),
    Walk("create it in another schema", "select pg_temp.f()", "select elsewhere.f()"),
    Walk("cast it to text", "select time '24:00' as v", "select cast(time '24:00' as text) as v"),
]


@pytest.fixture
def world(make_postgres: MakeWorld) -> PostgresWorld:
    """Make a table, and functions."""
    made = make_postgres(capture={"method": "trigger"})
    made.run(
        "create table t(id int primary key, v text)",
        "insert into t values (1, 'a'), (2, 'b')",
        "create schema elsewhere",
        "create function elsewhere.f() returns int stable language sql as 'select 1'",
        "create function volatile_one() returns int language sql as 'select 1'",
    )
    return made


def test_a_refused_query_is_asked_as_its_refusal_says(world: PostgresWorld) -> None:
    for walk in WALKS:
        with refused(walk.way_out, RheiError):
            world.htap.query(walk.asked, walk.params, hint="oltp")
        assert world.htap.query(walk.instead, walk.instead_params, hint="oltp").num_rows > 0


def test_a_write_goes_through_execute(world: PostgresWorld) -> None:
    way_out = "use execute for writes: a sync brings them to the mirror"
    for sql in ("insert into t values (3, 'c')", "create table u(id int primary key)"):
        for hint in ("oltp", "auto"):
            with refused(way_out, QueryError):
                world.htap.query(sql, hint=hint)
        world.htap.execute(sql)
    with refused(way_out, QueryError):
        world.htap.query("call p()", hint="oltp")
    world.run("create procedure p() language sql as 'update t set v = ''called'' where id = 1'")
    world.htap.execute("call p()")
    world.htap.sync_now()
    world.assert_equal("t", "u")


def test_a_transaction_goes_through_execute_batch(world: PostgresWorld) -> None:
    for refuse in (world.htap.execute, world.htap.query):
        with refused("give all statements of the transaction to execute_batch", QueryError):
            refuse("begin")
    with refused("lock them in execute_batch's transaction", QueryError):
        world.htap.query("select * from t for update", hint="oltp")
    with refused("give all statements of the transaction to execute_batch", QueryError):
        world.htap.query("lock table t", hint="oltp")
    batch = ["lock table t", "select * from t for update", "delete from t where id = 1"]
    world.htap.execute_batch([(sql, ()) for sql in batch])
    with refused("use 'set local' as the first statement of execute_batch", QueryError):
        world.htap.execute("set timezone = 'Asia/Tokyo'")
    insert = "insert into t values (9, current_setting('timezone'))"
    world.htap.execute_batch([("set local timezone = 'Asia/Tokyo'", ()), (insert, ())])
    world.htap.sync_now()
    world.assert_equal("t")
    assert world.source_rows("t") >= {("2", "b")} or world.app.execute(
        "select v from t where id = 9"
    ).fetchone() == ("Asia/Tokyo",)


def test_a_setting_of_the_session_is_declared(world: PostgresWorld) -> None:
    world.run("create table elsewhere.only_there(id int primary key)")
    world.run("insert into elsewhere.only_there values (7)")
    with refused("a query only reads mirrored tables; settings belong in the declaration"):
        world.htap.query("set search_path = elsewhere", hint="oltp")
    world.crash()
    world.source = {"dsn": f"{world.dsn}&options=-csearch_path%3Delsewhere"}
    assert world.htap.query("select id from only_there", hint="oltp").to_pylist() == [{"id": 7}]


def test_a_volatile_function_is_declared_stable_or_named(world: PostgresWorld) -> None:
    way_out = "have its owner declare it STABLE if it only reads, or name it in 'queries.functions'"
    with refused(way_out, QueryError):
        world.htap.query("select volatile_one() as v", hint="oltp")
    world.crash()
    settings = world.settings.model_copy(
        update={
            "queries": world.settings.queries.model_copy(update={"functions": ["volatile_one"]})
        }
    )
    with HTAP(settings) as htap:
        assert htap.query("select volatile_one() as v", hint="oltp").num_rows == 1
    world.run("alter function volatile_one() stable")
    assert world.htap.query("select volatile_one() as v", hint="oltp").num_rows == 1


def _limited(world: PostgresWorld, section: str, **fields: Any) -> Settings:
    return world.settings.with_fields({section: fields})


SLOW = "select count(*) as n from generate_series(1, 3000000) a, generate_series(1, %s) b"


@pytest.mark.long
def test_what_takes_too_long_is_given_time_or_made_cheaper(world: PostgresWorld) -> None:
    with HTAP(_limited(world, "source", statement_timeout_seconds=0.2)) as htap:
        with refused(
            "make it cheaper, or raise 'queries.query_seconds' (of PostgreSQL, also"
            " 'source.statement_timeout_seconds')",
            QueryLimitError,
        ):
            htap.query(SLOW, (1000,), hint="oltp")
        assert htap.query("select 1 as n", hint="oltp").num_rows == 1
        write = "insert into t select g, '' from generate_series(10, %s) g"
        with refused(
            "make the statement cheaper, or raise source.statement_timeout_seconds", SourceBusyError
        ):
            htap.execute(write, (10_000_000,))
        assert htap.execute(write, (11,)) == 2
    with HTAP(_limited(world, "source", statement_timeout_seconds=300)) as htap:
        assert htap.query(SLOW, (1,), hint="oltp").num_rows == 1
        assert htap.execute("insert into t select g, '' from generate_series(20, 50000) g") > 0


def test_a_larger_answer_is_allowed_or_made_smaller(world: PostgresWorld) -> None:
    large = "select repeat('a', %s) as v"
    with HTAP(_limited(world, "queries", query_bytes=2**20)) as htap:
        with refused("ask for less at once, stream it, or raise queries.query_bytes"):
            htap.query(large, (2**21,), hint="oltp")
        assert htap.query(large, (2**10,), hint="oltp").num_rows == 1
    with HTAP(_limited(world, "queries", query_bytes=2**23)) as htap:
        assert htap.query(large, (2**21,), hint="oltp").num_rows == 1


def test_more_long_queries_are_asked_later_or_given_sessions(world: PostgresWorld) -> None:
    def asked(pool_size: int) -> None:
        fields = {"pool_size": pool_size, "connect_timeout_seconds": 0.3}
        with HTAP(_limited(world, "source", **fields)) as htap:
            sessions = engine_of(htap).database._reader._sessions  # type: ignore[attr-defined]
            with sessions.lend("first", is_long=True), sessions.lend("second", is_long=True):
                assert htap.query("select * from t", hint="oltp").num_rows == 2

    with refused("ask again later, or raise 'source.pool_size'", SourceBusyError):
        asked(2)
    asked(4)


def test_more_writers_are_given_sessions(world: PostgresWorld) -> None:
    way_out = "it is tried again; if it stays, raise source.pool_size"
    for pool_size in (1, 2):
        fields = {"pool_size": pool_size, "connect_timeout_seconds": 0.3}
        with HTAP(_limited(world, "source", **fields)) as htap:
            database: Any = engine_of(htap).database
            with database._pool.connection():
                if pool_size == 1:
                    with refused(way_out, SourceBusyError):
                        htap.execute("insert into t values (60, '')")
                else:
                    assert htap.execute("insert into t values (60, '')") == 1


def test_a_user_is_corrected_and_a_privilege_granted(world: PostgresWorld) -> None:
    world.run("drop role if exists ways_reader", "create role ways_reader login")
    try:
        for wrong, way_out in (
            (world.dsn.replace("/test_", "/no_"), "correct source.dsn, its user or its password"),
            (f"{world.dsn}&user=nobody_of_that_name", "correct the user of source.dsn"),
        ):
            world.source = {"dsn": wrong}
            with refused(way_out, SourceError):
                world.htap.sync_now()
        world.source = {"dsn": f"{world.dsn}&user=ways_reader"}
        world.tables = [{"name": "t"}]
        way_out = (
            "grant the missing privilege; of what mirroring needs, 'rhei check' shows the"
            " statements"
        )
        with refused(way_out, SourceError):
            world.htap.query("select * from t", hint="oltp")
        found = validate(world.settings)
        (remedy,) = {each.remedy for each in found if "may not read" in each.what}
        world.run(remedy)
        assert world.htap.query("select * from t", hint="oltp").num_rows == 2
    finally:
        world.crash()
        world.run("drop owned by ways_reader", "drop role ways_reader")


def test_another_encoding_is_dumped_and_restored(world: PostgresWorld, tmp_path: Any) -> None:
    """What a dump and its restoration do, done by statements: another database, the same rows."""
    name = f"{world.app.info.dbname}_latin1"
    world.run(f"create database {name} template template0 encoding latin1 locale 'C'")
    other = world.dsn.replace(world.app.info.dbname, name)
    try:
        with psycopg.connect(other, autocommit=True) as latin:
            latin.execute("create table t(id int primary key, v text)")
            latin.execute("insert into t values (100, 'é')")
            rows = latin.execute("select * from t").fetchall()
        settings = world.settings.with_fields({"source": {"dsn": other}})
        with refused("dump it and restore it into a database with encoding UTF8", SourceError):
            HTAP(settings)
        with world.app.cursor() as restored:
            restored.executemany("insert into t values (%s, %s)", rows)
        world.htap.sync_now()
        world.assert_equal("t")
    finally:
        world.run(f"drop database {name} with (force)")
