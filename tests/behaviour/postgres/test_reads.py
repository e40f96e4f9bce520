"""A query of PostgreSQL has no effect: on data, settings, locks, sessions or others' answers."""

import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from pglast import parser
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from rhei_pipeline.errors import QueryError, QueryLimitError, RheiError, SourceBusyError
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.sources.postgres import read_sessions
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.functions import Functions
from rhei_pipeline.sources.postgres.query import _batch
from rhei_pipeline.sources.postgres.read_only import Call, reading_statement
from rhei_pipeline.sources.postgres.read_sessions import ReadSession
from tests.support.corpus import hostile_postgres, ordinary_postgres
from tests.support.fix_postgres import PostgresWorld
from tests.support.tcp_relay import tcp_relay

#: What a statement may have an effect on, seen by a session that took no part.
_STATE = """
select (select array_agg(t order by id) from t)::text, (select array_agg(what) from log_)::text,
    (select array_agg((relname, relkind, relnatts, relpages) order by oid)
     from pg_class where relpersistence <> 't')::text,
    (select count(*) from pg_class where relpersistence = 't'),
    (select array_agg((oid, proname) order by oid) from pg_proc where oid >= 16384)::text,
    (select (last_value, is_called) from s)::text,
    (select array_agg((locktype, objid, mode)) from pg_locks
     where locktype = 'advisory' or mode = 'AccessExclusiveLock')::text,
    (select array_agg(slot_name) from pg_replication_slots)::text,
    (select array_agg(roname) from pg_replication_origin)::text,
    (select array_agg(pubname) from pg_publication)::text,
    (select stats_reset from pg_stat_database where datname = current_database()),
    (select stats_reset from pg_stat_bgwriter),
    (select count(*) from pg_largeobject_metadata), (select count(*) from pg_prepared_xacts),
    (select array_agg((name, setting)) from pg_file_settings)::text,
    (select array_agg(relacl::text) from pg_class where relname = 't')::text,
    (select count(*) from pg_description where objoid = 't'::regclass),
    (select array_agg(pid order by pid) from pg_stat_activity
     where application_name = 'rhei' and datname = current_database())::text,
    pg_conf_load_time(), pg_snapshot_xmax(pg_current_snapshot())::text
"""
#: What a session shows of those who had it before; what the driver prepared is for nobody to use.
_FOOTPRINT = (
    "select name, setting from pg_settings where name <> 'application_name' and name !~ 'plpgsql'",
    "select name from pg_prepared_statements where name !~ '^_pg3_'",
    "select name from pg_cursors",
    "select pg_listening_channels()",
    "select pg_my_temp_schema()::text",
    "select locktype, objid::text from pg_locks where pid = pg_backend_pid()"
    " and locktype not in ('relation', 'virtualxid')",
    "select array_agg(t order by id)::text from t",
)
_LASTVAL = "select lastval()"


def _made(dsn: str, world: tuple[str, ...]) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in world:
            connection.execute(statement.encode())


@pytest.fixture
def open_database(dsn: str) -> Iterator[Callable[..., PostgresDatabase]]:
    opened: list[PostgresDatabase] = []

    def make(**how: Any) -> PostgresDatabase:
        opened.append(PostgresDatabase(dsn, **how))
        return opened[-1]

    yield make
    for database in opened:
        database.close()


def _streamed(database: PostgresDatabase, sql: str, params: tuple[Any, ...] = ()) -> pa.Table:
    streamed = database.stream(sql, params, None, 1000)
    if streamed is None:
        return database.query(sql, params)
    return pa.Table.from_batches(streamed.batches, streamed.schema)


def _footprint(session: Any) -> list[Any]:
    def ask(sql: str) -> Any:  # as the session is, with nothing set for it
        return psycopg.Connection.execute(session, sql.encode()).fetchall()

    found = [ask(sql) for sql in _FOOTPRINT]
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        ask(_LASTVAL)  # no sequence was drawn from
    return [sorted(rows) for rows in found]


def _sessions(database: PostgresDatabase) -> Iterator[ReadSession]:
    """Have the sessions that queries are asked in, as a query finds them."""
    pool = database._reader._sessions._pool
    lent = [pool.getconn() for _ in range(pool.get_stats()["pool_size"])]
    yield from lent
    for session in lent:
        pool.putconn(session)


def test_no_hostile_statement_has_an_effect(
    dsn: str, open_database: Callable[..., PostgresDatabase]
) -> None:
    _made(dsn, hostile_postgres.WORLD)
    database = open_database()
    database.query("select 1")
    with psycopg.connect(dsn, autocommit=True) as observer:
        before = observer.execute(_STATE.encode()).fetchall()
        passed = []
        directory = _directory(observer)
        for kind, statements in hostile_postgres.HOSTILE.items():
            for written in statements:
                sql = written.replace("{directory}", str(directory))
                for ask in (database.query, lambda sql: _streamed(database, sql)):
                    with suppress(RheiError):
                        ask(sql)
                        passed.append(sql)
                    assert observer.execute(_STATE.encode()).fetchall() == before, (kind, sql)
        assert not list(directory.glob("rhei_hostile_*"))
    fresh = open_database()
    fresh.query("select 1")
    (wanted,) = map(_footprint, _sessions(fresh))
    assert all(_footprint(session) == wanted for session in _sessions(database))
    # Views and defaults are the application's own: what they do ends with the query. The last one
    # is a text that only looks like two statements.
    assert set(passed) <= {
        "select * from locking",
        "table locking",
        "select defaulted()",
        "select E'\\'; delete from t; --'",
    }


@pytest.mark.long
def test_the_hostile_statements_do_harm_where_nobody_judges_them(dsn: str) -> None:
    """The comparison above can fail."""
    harmful = 0
    _made(dsn, hostile_postgres.WORLD)
    with psycopg.connect(dsn, autocommit=True) as observer:
        directory = _directory(observer)
        for statements in hostile_postgres.HOSTILE.values():
            for written in statements:
                sql = written.replace("{directory}", str(directory))
                if sql == "drop table log_":
                    continue  # it would end the comparison
                before = observer.execute(_STATE.encode()).fetchall()
                naive = psycopg.connect(dsn, autocommit=True, options="-c lock_timeout=1s")
                with closing(naive), suppress(psycopg.Error):
                    naive.execute(sql.replace("\0", "").encode())
                harmful += observer.execute(_STATE.encode()).fetchall() != before
        files = list(directory.glob("rhei_hostile_*"))
        for file in files:
            file.unlink()
    assert harmful >= 40
    assert files


def test_what_is_no_query_is_refused_by_its_grammar_alone() -> None:
    """Also where its transaction would have ended without an effect."""
    hostile = hostile_postgres.HOSTILE
    kinds = ("plain writes", "hidden writes", "explained writes", "commands")
    let_through = set[str]()
    for sql in (sql for kind in kinds for sql in hostile[kind]):
        with suppress(QueryError):
            reading_statement(sql)
            let_through.add(sql)
    # A text that only looks like two statements, and what the catalogue tells of functions.
    assert let_through == {
        "select E'\\'; delete from t; --'",
        "explain analyze select vol(1)",
        "explain analyze select pg_advisory_lock(1)",
    }


def test_what_changes_something_is_refused_by_the_catalogue_alone(
    dsn: str, open_database: Callable[..., PostgresDatabase]
) -> None:
    """Also where its transaction would not have let it happen."""
    _made(dsn, hostile_postgres.WORLD)
    database = open_database()
    database.query("select 1")
    (session,) = _sessions(database)
    functions = Functions()
    kinds = ("functions of the server", "statements in strings", "functions of users")
    let_through = set[str]()
    for sql in (sql for kind in kinds for sql in hostile_postgres.HOSTILE[kind]):
        with suppress(RheiError):
            functions.judge(reading_statement(sql), session)
            let_through.add(sql)
    # Views and defaults are the application's own.
    assert let_through == {
        "select * from counting",
        "select * from locking",
        "table locking",
        "select defaulted()",
    }


def _directory(observer: psycopg.Connection[Any]) -> Path:
    """Return the one directory in which a server may write files, whoever runs it."""
    ((found,),) = observer.execute("show data_directory").fetchall()
    return Path(found)


def test_ordinary_queries_are_answered_as_the_server_does(
    dsn: str, open_database: Callable[..., PostgresDatabase]
) -> None:
    _made(dsn, ordinary_postgres.WORLD)
    database = open_database()
    with psycopg.connect(dsn, autocommit=True) as plain:
        for setting in ("TimeZone = 'UTC'", "IntervalStyle = 'iso_8601'", "DateStyle = 'ISO, YMD'"):
            plain.execute(f"set {setting}".encode())
        plain.execute('set search_path = "$user", public, pg_temp')
        for statements in ordinary_postgres.ORDINARY.values():
            for sql in statements:
                wanted = pa.Table.from_batches([_batch(plain.execute(sql.encode()), None)])
                assert database.query(sql).equals(wanted), sql
                assert _streamed(database, sql).equals(wanted), sql


def test_what_named_functions_leave_in_a_session_is_gone(
    dsn: str, open_database: Callable[..., PostgresDatabase]
) -> None:
    _made(dsn, hostile_postgres.WORLD)
    poison = (
        "create function poison() returns int language plpgsql as $$ begin"
        " perform pg_advisory_lock(1); perform set_config('work_mem', '5MB', false);"
        " perform set_config('search_path', 'app', false); execute 'listen news';"
        " perform pg_notify('told', 'x'); perform setseed(0.5);"
        " execute 'prepare mine as select 1'; return 1; end $$"
    )
    _made(dsn, (poison,))
    with pytest.raises(QueryError, match=r"public\.poison.*queries\.functions"):
        open_database().query("select poison()")
    database, fresh = open_database(functions=["poison"]), open_database()
    fresh.query("select 1")
    (wanted,) = map(_footprint, _sessions(fresh))
    with psycopg.connect(dsn, autocommit=True) as observer:
        told = list[Any]()
        observer.add_notify_handler(told.append)
        observer.execute("listen told")
        seeded = observer.execute("select random() from (select setseed(0.5)) s").fetchall()
        for ask in (database.query, lambda sql: _streamed(database, sql)):
            ask("select poison()")
            (session,) = _sessions(database)
            assert _footprint(session) == wanted
            assert psycopg.Connection.execute(session, "select random()").fetchall() != seeded
        observer.execute("select")  # brings what it was told
        assert told == []


def test_no_temporary_table_stands_for_one_of_the_application(
    dsn: str, open_database: Callable[..., PostgresDatabase]
) -> None:
    _made(dsn, hostile_postgres.WORLD)
    database = open_database()
    asked = "select min(v) as v from t"
    assert database.query(asked).to_pylist() == [{"v": "v1"}]
    (session,) = _sessions(database)
    forged = "begin read write; create temp table t as select 1::bigint as id, 'x' as v; commit"
    for statement in forged.split("; "):
        psycopg.Connection.execute(session, statement.encode())
    for ask in (database.query, lambda sql: _streamed(database, sql)):
        assert ask(asked).to_pylist() == [{"v": "v1"}]
    assert list(_sessions(database)) == [session]


def test_a_text_is_lexed_by_the_server_as_it_was_judged(
    dsn: str, open_database: Callable[..., PostgresDatabase]
) -> None:
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    _made(dsn, (f"alter database {name} set standard_conforming_strings = off",))
    # One text, or with backslashes as escapes a text, a call and a comment.
    asked = "select '\\'' , pg_try_advisory_lock(7)::text --' as told"
    assert open_database().query(asked).num_columns == 1


def test_long_queries_keep_no_short_one_waiting(
    open_database: Callable[..., PostgresDatabase],
) -> None:
    database = open_database(pool_size=4, connect_timeout_seconds=0.5)
    cancels: list[Callable[[], None]] = []
    begun = threading.Semaphore(0)

    def note(cancel: Callable[[], None]) -> None:
        cancels.append(cancel)
        begun.release()

    def sleep(number: int) -> None:
        with suppress(RheiError):
            database.query(f"select pg_sleep(14), {number}", begun=note)

    sleepers = [threading.Thread(target=sleep, args=(number,)) for number in range(3)]
    for sleeper in sleepers:
        sleeper.start()
        begun.acquire()
    with pytest.raises(SourceBusyError, match="3 long queries are under way"):
        while True:  # until all three have their sessions
            database.query("select pg_sleep(2)")
    assert database.query("select 1 as a").to_pylist() == [{"a": 1}]
    for cancel in cancels:
        cancel()
    for sleeper in sleepers:
        sleeper.join()


def test_a_session_that_cannot_be_cleaned_is_lent_to_nobody(
    open_database: Callable[..., PostgresDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_session: ReadSession, *, thoroughly: bool) -> None:
        raise psycopg.OperationalError(f"it is gone, {thoroughly}")

    sessions = open_database(pool_size=4)._reader._sessions
    with monkeypatch.context() as failing, sessions.lend("select 1") as lent:
        failing.setattr(ReadSession, "clean", fail)
        lent.end()
    assert lent.session.closed
    with sessions.lend("select 1") as another:
        assert another.session is not lent.session


def test_who_waits_for_a_session_can_be_told_to_go(
    open_database: Callable[..., PostgresDatabase],
) -> None:
    sessions, cancel = open_database(pool_size=2)._reader._sessions, Cancel()
    with sessions.lend("first", is_long=True):
        ending = threading.Timer(0.1, cancel)
        ending.start()
        with (
            pytest.raises(QueryError, match="was cancelled"),
            sessions.lend("second", is_long=True, cancel=cancel),
        ):
            pass
        ending.join()


def test_no_more_slow_statements_are_remembered_than_may_be(
    open_database: Callable[..., PostgresDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_sessions, "_REMEMBERED", 2)
    sessions = open_database(pool_size=4)._reader._sessions
    for number in range(4):
        with sessions.lend(f"select {number}", is_long=True):
            pass
    assert list(sessions._slow) == ["select 2", "select 3"]


def _read_slowly(database: PostgresDatabase, sql: str) -> None:
    streamed = database.stream(sql, (), None, 10)
    assert streamed is not None
    for _ in streamed.batches:
        threading.Event().wait(0.01)


def test_a_stream_ends_when_its_time_is_over(
    open_database: Callable[..., PostgresDatabase],
) -> None:
    database = open_database(query_seconds=0.5)
    for asked in ("pg_sleep(0.001)", "repeat('x', 10)"):
        with pytest.raises(QueryLimitError, match=r"longer than 0\.5 s.*query_seconds"):
            _read_slowly(database, f"select {asked} from generate_series(1, 1000000)")
    with pytest.raises(QueryLimitError, match=r"longer than 0\.5 s.*query_seconds"):
        database.query("select pg_sleep(5)")
    assert database.query("select 1 as a").num_rows == 1


@pytest.mark.long
def test_an_answer_is_not_held_beyond_its_bytes(
    dsn: str, open_database: Callable[..., PostgresDatabase]
) -> None:
    """Over a network that is slower than the reader: a row that comes faster is taken whole."""
    place = conninfo_to_dict(dsn)
    with ExitStack() as held:
        if str(place["host"]).startswith("/"):
            socket = f"{place['host']}/.s.PGSQL.{place.get('port', 5432)}"
            port = held.enter_context(tcp_relay(socket, 64 << 20))
            dsn = make_conninfo(dsn, host="127.0.0.1", port=port)
        database = PostgresDatabase(dsn, query_bytes=8 << 20)
        held.callback(database.close)
        before = _peak_bytes()
        for asked in (
            "select repeat('x', 400000000)",
            "select repeat('x', 1000) from generate_series(1, 20000)",
        ):
            with pytest.raises(QueryLimitError, match=r"more than 8,388,608 bytes.*query_bytes"):
                database.query(asked)
        assert _peak_bytes() - before < 100 << 20
        rows = _streamed(database, "select repeat('x', 1000) as v from generate_series(1, 20000)")
        assert (rows.num_rows, rows.nbytes > 16 << 20) == (20000, True)


def test_a_value_beyond_the_bytes_of_an_answer_is_refused_on_any_connection(
    open_database: Callable[..., PostgresDatabase],
) -> None:
    database = open_database(query_bytes=8 << 20)
    with pytest.raises(QueryLimitError, match=r"more than 8,388,608 bytes.*query_bytes"):
        database.query("select repeat('x', 9000000)")
    assert database.query("select 1 as a").num_rows == 1


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_no_more_rows_are_fetched_than_an_answer_may_have(
    open_database: Callable[..., PostgresDatabase],
) -> None:
    database = open_database(query_rows=3)
    # Without end: it is answered only where no more is read of it.
    counted = "with recursive c(n) as (select 1 union all select n + 1 from c) select n from c"
    for asked in (counted, "select 1 from pg_class, pg_class b", "table pg_class"):
        with pytest.raises(QueryLimitError, match=r"more than 3 rows.*queries\.query_rows"):
            database.query(asked)
    assert database.query(f"{counted} limit 3").num_rows == 3
    assert database.query("select 1 where false").num_rows == 0
    assert database.query("show server_version").num_rows == 1


def test_nesting_without_end_is_read_or_refused() -> None:
    for sql in ("select " + "+".join(["1"] * 1000), "select " + "abs(" * 500 + "1" + ")" * 500):
        assert reading_statement(sql).is_fetched
    with pytest.raises(QueryError):
        reading_statement("select " + "(" * 100_000)


def test_every_name_that_a_statement_reaches_is_looked_up() -> None:
    """Also where the grammar implies it, and where no catalogue in reach makes a difference."""
    compared = {("", word) for word in ("<", "<=", ">", ">=")}
    for condition, operators in {
        "1 between 2 and 3": compared,
        "1 not between symmetric 2 and 3": compared,
        "1 === any (select 2)": {("", "===")},
        "1 operator(app.+) all (array[2])": {("app", "+")},
        "1 in (select 2)": {("", "=")},
        "case 1 when 2 then true end": {("", "=")},
        "exists (select from t order by id using <<<)": {("", "<<<")},
    }.items():
        assert reading_statement(f"select {condition}").operators >= operators, condition
    for join in ("natural join u", "join u using (id)"):
        assert reading_statement(f"select 1 from t {join}").operators == {("", "=")}, join
    for text, call in {
        "select f(variadic array[1])": Call(("", "f"), None),
        "select app.f(1) within group (order by 2)": Call(("app", "f"), None),
        "select * from t tablesample app.f(1)": Call(("app", "f"), None),
        "select json_arrayagg(1)": Call(("", "json_arrayagg"), None),
        "select json_query('{}', '$')": Call(("", "json_query"), None),
    }.items():
        assert call in reading_statement(text).calls, text
    refused = ("select 1; select 2", "select 1 for update", "select 1 into t", "select '\0'")
    for text in (*refused, "explain (nonsense) select 1"):
        with pytest.raises(QueryError):
            reading_statement(text)
    assert "hidden" not in reading_statement("explain /* hidden */ (analyze) select 1").text


def test_an_explain_that_was_rebuilt_otherwise_is_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = "explain select 1"
    assert "select 1" in reading_statement(asked).text.lower()
    reading_statement.cache_clear()
    monkeypatch.setattr(parser, "deparse_protobuf", lambda _: "EXPLAIN DELETE FROM t")
    with pytest.raises(QueryError, match="not supported"):
        reading_statement(asked)


def test_a_statement_takes_as_many_parameters_as_it_is_given() -> None:
    assert reading_statement("select %s, '%%'", parameters=1).text == "select $1, '%'"
    for sql, parameters in (("select %s", 2), ("select %s, %s", 1), ("select %d", 1)):
        with pytest.raises(QueryError, match=r"takes|placeholder"):
            reading_statement(sql, parameters=parameters)


def test_what_a_view_or_a_policy_runs_leaves_nothing_in_a_session(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres()
    world.run(
        "create table t (id integer primary key)",
        "insert into t values (1)",
        "create function leave() returns boolean language plpgsql volatile as $$ begin"
        " perform set_config('search_path', 'evil', false), pg_advisory_lock(99);"
        " return true; end $$",
        "create view seen as select id, leave() as left from t",
    )
    world.htap.sync_now()
    settings = "select current_setting('search_path') as path"
    before = world.htap.query(settings, hint="oltp").to_pylist()
    # So often that the driver prepares each of them, and more often.
    for _ in range(12):
        assert world.htap.query("select * from seen").num_rows == 1
        assert world.htap.query(settings, hint="oltp").to_pylist() == before
    locks = "select count(*) from pg_locks where locktype = 'advisory'"
    assert world.app.execute(locks).fetchall() == [(0,)]
