"""What hostile statements do to a SQLite source, by their effects: nothing. Ordinary reads pass."""

import re
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest

from rhei_pipeline.errors import RheiError
from rhei_pipeline.sources.sqlite.database import SqliteDatabase, _Idle
from rhei_pipeline.sources.sqlite.read_only import ALLOWED_FUNCTIONS, REFUSED_FUNCTIONS
from tests.support.corpus.duckdb import statements
from tests.support.corpus.sqlite import HOSTILE, READS

#: What a statement may make of one value, and hold of an answer.
BYTES = 64 * 2**20


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteDatabase]:
    directory = tmp_path_factory.mktemp("hostile")
    sqlite3.connect(directory / "other.db").close()
    with closing(sqlite3.connect(directory / "app.db")) as made:
        made.executescript(
            "pragma journal_mode = wal; create table t(id integer primary key, v, w);"
            "insert into t values (1, 'a', 2), (2, 'b', 3), (3, 'A', null); create index i on t(v);"
            "create view w as select v from t; create virtual table f using fts5(x);"
            "insert into f values ('hello world'); create virtual table f4 using fts4(x);"
            "insert into f4 values ('hello you'); create virtual table r using rtree(id, a, b);"
            "insert into r values (1, 2, 3)"
        )
    opened = SqliteDatabase(directory / "app.db", busy_timeout_seconds=0.2, query_bytes=BYTES)
    yield opened
    opened.close()


def state(database: SqliteDatabase) -> dict[str, Any]:
    """Return all that a statement could leave behind: in the file, the session, the process."""
    found: dict[str, Any] = {}
    with database._lent(database._askers, database._lock_down) as session:
        session.set_authorizer(None)  # looks at what the guard shows nobody
        settings = [name for (name,) in session.execute("pragma pragma_list").fetchall()]
        for name in set(settings) - _NOT_ASKED:
            found[name] = session.execute(f"pragma {name}").fetchall()
        found["temporary"] = session.execute("select name from sqlite_temp_master").fetchall()
        found["like"] = session.execute("select 'a' like 'A', count(*) from t").fetchall()
        found["open"] = session.in_transaction
        database._lock_down(session)
    with closing(sqlite3.connect(database.path, timeout=0)) as other:
        other.execute("begin immediate")  # nobody holds a lock
        found["rows"] = other.execute("select * from t order by id").fetchall()
        found["objects"] = other.execute("select * from sqlite_master").fetchall()
        found["tree"] = other.execute("select * from r").fetchall()
        found["config"] = other.execute("select * from f_config").fetchall()
        other.execute("rollback")
    found["file"] = database.path.stat().st_mtime_ns, database.path.stat().st_size
    found["files"] = {file.name for file in database.path.parent.iterdir()}
    return found


#: These would do something, or count what is looked at.
_NOT_ASKED = {
    "data_version",
    "incremental_vacuum",
    "integrity_check",
    "module_list",
    "optimize",
    "quick_check",
    "shrink_memory",
    "wal_checkpoint",
}


def test_no_hostile_statement_has_an_effect(database: SqliteDatabase) -> None:
    state(database)  # which opens the temporary database
    before = state(database)
    held_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    hostile = statements(HOSTILE)
    assert len(hostile) >= 60
    let_through = []
    for place, sql in enumerate(hostile, 1):
        given = sql.replace("{dir}", str(database.path.parent))
        with suppress(RheiError):
            let_through.append((sql, database.query(given)))
        if place % 10 == 0 or place == len(hostile):
            assert state(database) == before, hostile[place - 10 : place]
    assert let_through == []
    # Kilobytes: what would have been made is ten times as large.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held_before < 3 * BYTES // 1024


#: Settings of the whole process, which are still there when a session ends.
_OF_PROCESS = ("heap_limit", "temp_store_directory", "data_store_directory")


def test_a_session_whose_guard_is_gone_still_changes_nothing(database: SqliteDatabase) -> None:
    state(database)
    before = state(database)
    for sql in statements(HOSTILE):
        if any(setting in sql for setting in _OF_PROCESS):
            continue  # the guard alone stands before it
        for only in (True, False):
            _, session = database._reading_connection(_Idle(), database._lock_down)
            with closing(session), suppress(sqlite3.Error):
                session.set_authorizer(None)
                if not only:
                    session.execute("pragma query_only = off")
                session.execute(sql.replace("{dir}", str(database.path.parent))).fetchmany(1)
                assert len(session.execute("pragma database_list").fetchall()) <= 2, sql
                made = session.execute("select * from sqlite_temp_master").fetchall()
                assert made == [] or not only, sql
    assert state(database) == before


def test_a_session_refuses_by_itself_what_is_hostile(database: SqliteDatabase) -> None:
    """Also where the tokens of the text would have let it through."""
    state(database)
    before, ended_late = state(database), []
    for sql in statements(HOSTILE):
        with (
            database._lent(database._askers, database._lock_down) as session,
            pytest.raises((sqlite3.Error, sqlite3.Warning)) as refused,
        ):
            session.execute(sql.replace("{dir}", str(database.path.parent))).fetchmany(1)
        if "readonly" in str(refused.value):
            ended_late.append(sql)
    assert state(database) == before
    # What an R-tree is read by is compiled; only the file refuses it, which is open for reading.
    assert ended_late == ["insert into r_node values (9, x'00')", "delete from r_rowid"]


def test_a_session_refuses_by_itself_every_pragma_that_sets(database: SqliteDatabase) -> None:
    state(database)
    before = state(database)
    for asked in _pragmas_that_set():
        for sql in asked:
            with (
                database._lent(database._askers, database._lock_down) as session,
                suppress(sqlite3.Error),
            ):
                session.execute(sql).fetchmany(1)
        assert state(database) == before, asked


def test_no_pragma_that_sets_anything_passes(database: SqliteDatabase) -> None:
    state(database)
    before = state(database)
    for asked in _pragmas_that_set():
        for sql in asked:
            with suppress(RheiError):
                database.query(sql)
        assert state(database) == before, asked


def test_only_pragmas_that_look_at_what_they_are_given_take_a_value(
    database: SqliteDatabase,
) -> None:
    taken = set[str]()
    with database._lent(database._askers, database._lock_down) as session:
        for sql in (sql for asked in _pragmas_that_set() for sql in asked):
            with suppress(sqlite3.DatabaseError):
                session.execute(sql)
                taken.update(re.findall(r"^pragma (?:main\.)?(\w+)", sql))
    assert taken == {
        *("foreign_key_list", "index_info", "index_list", "index_xinfo"),
        *("table_info", "table_list", "table_xinfo"),
    }


def _pragmas_that_set() -> Iterator[list[str]]:
    """Yield every pragma of this version with one value, in each way to give it."""
    with closing(sqlite3.connect(":memory:")) as connection:
        found = connection.execute("select name from pragma_pragma_list").fetchall()
    names = [name for (name,) in found if name not in _NOT_ASKED]
    for value in ("0", "1", "2", "'utf16'"):
        yield [
            sql
            for name in names
            for sql in (f"pragma {name}({value})", f"pragma main.{name} = {value}")
        ]


def test_ordinary_reads_pass(database: SqliteDatabase) -> None:
    reads = statements(READS)
    assert len(reads) >= 60
    for sql in reads:
        assert database.query(sql).num_columns, sql


def test_every_function_of_this_version_is_allowed_or_refused() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        found = connection.execute("select distinct name from pragma_function_list").fetchall()
    assert {name for (name,) in found} - ALLOWED_FUNCTIONS - REFUSED_FUNCTIONS == set()
    assert ALLOWED_FUNCTIONS.isdisjoint(REFUSED_FUNCTIONS)


def test_an_answer_may_be_as_large_as_declared_and_no_larger(database: SqliteDatabase) -> None:
    many = "with recursive r(n) as (select 1 union all select n + 1 from r where n < {})"
    row = "select printf('%1000000s', n) as s from r"
    assert database.query(f"{many.format(9)} {row}").num_rows == 9
    with pytest.raises(RheiError, match=r"queries\.query_bytes"):
        database.query(f"{many.format(10_000)} {row}")
