"""What an application may do to its tables, and the mirror follows."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rhei_pipeline.errors import RheiError
from rhei_pipeline.model.schema import Table
from rhei_pipeline.sources.sqlite.database import SqliteDatabase
from rhei_pipeline.sources.sqlite.triggers import source as trigger_source
from rhei_pipeline.sources.sqlite.triggers.source import SqliteTriggerSource
from tests.support.fix_world import World
from tests.support.left_out import assert_left_out
from tests.support.model import source_rows
from tests.support.parts import connection_of, engine_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
BOTH_MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])


@pytest.fixture
def users(make_world: MakeWorld, mode: str) -> World:
    world = make_world(mode=mode)
    world.run(
        "create table users(id integer primary key, email text unique, n integer)",
        "insert into users values (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)",
    )
    world.htap.sync_now()
    return world


@BOTH_MODES
@pytest.mark.parametrize(
    "statement",
    [
        "replace into users values (9, 'a', 9)",
        "replace into users values (2, 'a', 9)",
        "update or replace users set email = 'a' where id = 3",
        "update or replace users set id = 1 where id = 3",
        "update or replace users set id = 1, email = 'b' where id = 3",
        "update users set id = id + 10",
        "insert into users values (1, 'z', 5) on conflict(id) do update set n = excluded.n",
        "insert into users values (8, 'a', 5) on conflict(email) do update set n = excluded.n",
        "insert or ignore into users values (7, 'a', 1)",
        "delete from users",
        "update users set rowid = 77 where id = 1",
    ],
)
def test_one_statement_of_any_shape(users: World, statement: str) -> None:
    users.run(statement)
    users.htap.sync_now()
    users.assert_equal("users")


@BOTH_MODES
@pytest.mark.parametrize(
    "index",
    [
        "create unique index u on users(lower(email))",
        "create unique index u on users(n) where n > 1",
        "create unique index u on users(n, email collate nocase desc)",
        "create unique index u on users(substr(email, 1, 1) collate nocase, n) where n is not null",
        "create unique index u on users(\"n\") where email like '%'",
    ],
)
def test_replace_evicts_through_any_unique_index(users: World, index: str) -> None:
    users.run(index)
    users.htap.sync_now()
    users.run("replace into users values (9, 'A', 1)", "replace into users values (10, 'B', 2)")
    users.htap.sync_now()
    users.assert_equal("users")


@BOTH_MODES
def test_a_cascade_reaches_the_children_of_an_evicted_parent(
    make_world: MakeWorld, mode: str
) -> None:
    world = make_world(mode=mode)
    world.run(
        "pragma foreign_keys = on",
        "create table parent(id integer primary key, code text unique)",
        "create table child(id integer primary key,"
        " parent integer references parent(id) on delete cascade on update cascade)",
        "insert into parent values (1, 'a'), (2, 'b')",
        "insert into child values (10, 1), (20, 2)",
    )
    world.htap.sync_now()
    world.run("replace into parent values (3, 'a')", "update parent set id = 5 where id = 2")
    world.htap.sync_now()
    world.assert_equal("parent", "child")
    assert source_rows(world.app, "child") == {("20", "5")}


@BOTH_MODES
def test_the_applications_own_trigger_has_the_last_word(users: World) -> None:
    users.run(
        "create trigger touch after update of email on users"
        " begin update users set n = n + 100 where id = new.id; end",
        "update users set email = 'x' where id = 1",
    )
    users.htap.sync_now()
    users.assert_equal("users")


@BOTH_MODES
def test_a_rename_through_a_case_insensitive_key(make_world: MakeWorld, mode: str) -> None:
    world = make_world(mode=mode)
    world.run(
        "create table t(k text collate nocase primary key, v)", "insert into t values ('a', 1)"
    )
    world.htap.sync_now()
    world.run("update t set k = 'A'")
    world.htap.sync_now()
    world.assert_equal("t")
    world.run("replace into t values ('a', 2)")
    world.htap.sync_now()
    world.assert_equal("t")


@BOTH_MODES
@pytest.mark.parametrize(
    "name",
    [
        "order",
        "two words",
        'say "hi"',
        "Grüße",
        "CamelCase",
        "semi;colon",
        "it's",
        "a.b",
        "[x]",
        "1st",
    ],
)
def test_any_legal_identifier(make_world: MakeWorld, mode: str, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    world = make_world(mode=mode)
    world.run(
        f'create table {quoted}({quoted} text primary key, "select" integer, "from ""x""" real)',
        f'create unique index u on {quoted}("select")',
        f"insert into {quoted} values ('k', 1, 1.5)",
    )
    world.htap.sync_now()
    world.run(
        f"replace into {quoted} values ('l', 1, 2.5)", f"insert into {quoted} values ('m', 2, 0)"
    )
    world.htap.sync_now()
    found = world.htap.query(f"select * from {quoted}", hint="olap")
    assert found.column_names[:3] == [name, "select", 'from "x"']
    assert world.htap.verify().equal


@BOTH_MODES
def test_a_wide_table(make_world: MakeWorld, mode: str) -> None:
    world = make_world(mode=mode)
    columns = ", ".join(f"c{place} integer" for place in range(500))
    world.run(f"create table wide(id integer primary key, {columns})")
    world.htap.sync_now()
    world.run("insert into wide(id, c0, c499) values (1, 2, 3)", "update wide set c250 = 7")
    world.htap.sync_now()
    world.assert_equal("wide")


@BOTH_MODES
def test_without_rowid_composite_keys_and_generated_columns(
    make_world: MakeWorld, mode: str
) -> None:
    world = make_world(mode=mode)
    world.run(
        "create table t(a text, b blob, n integer,"
        " twice integer generated always as (n * 2) stored,"
        " thrice integer as (n * 3), primary key (a, b)) without rowid",
        "insert into t(a, b, n) values ('x', x'00', 1), ('x', x'00ff', 2)",
    )
    world.htap.sync_now()
    world.run("update t set n = 5 where b = x'00'", "update t set b = x'01' where b = x'00ff'")
    world.htap.sync_now()
    world.assert_equal("t")


@BOTH_MODES
def test_a_writer_in_another_process_and_an_older_python(users: World) -> None:
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
        "c.execute(\"insert into users values (50, 'z', 0)\"); c.commit()"
    )
    subprocess.run([sys.executable, "-c", code, str(users.path)], check=True)
    users.htap.sync_now()
    users.assert_equal("users")


@BOTH_MODES
def test_an_update_that_changes_nothing_counts_nothing(users: World) -> None:
    users.run("update users set n = n")
    report = users.htap.sync_now()
    assert report.events == 3
    assert (report.inserted, report.updated, report.deleted) == (0, 0, 0)


@BOTH_MODES
def test_counts_are_of_rows_that_really_changed(users: World) -> None:
    users.run(
        "insert into users values (4, 'd', 4)",
        "update users set n = 20 where id = 2",
        "delete from users where id = 3",
        "insert into users values (5, 'e', 5)",
    )
    report = users.htap.sync_now()
    assert (report.inserted, report.updated, report.deleted) == (2, 1, 1)
    assert users.htap.sync_now().events == 0


@BOTH_MODES
def test_vacuum_does_not_move_rows(make_world: MakeWorld, mode: str) -> None:
    world = make_world(mode=mode)
    world.run(
        "create table t(k text primary key, v)", "insert into t values ('a', 1), ('b', 2), ('c', 3)"
    )
    world.htap.sync_now()
    world.run("delete from t where k = 'b'", "vacuum", "update t set v = 9 where k = 'c'")
    world.htap.sync_now()
    world.assert_equal("t")


def test_a_table_without_a_primary_key_is_refused_with_the_way_out(make_world: MakeWorld) -> None:
    world = make_world(tables=[{"name": "t"}, {"name": "good"}])
    world.run("create table t(a, b)")
    assert_left_out(world, "t", r"no primary key.*'primary_key'")


def test_a_unique_key_without_nulls_may_stand_in(make_world: MakeWorld) -> None:
    world = make_world(tables=[{"name": "t", "primary_key": ["a"]}])
    world.run("create table t(id integer primary key, a text not null unique, b int)")
    world.htap.sync_now()
    world.run("insert into t values (1, 'x', 1)", "replace into t values (1, 'y', 2)")
    world.htap.sync_now()
    world.assert_equal("t")


def test_partial_replication_still_sees_evictions_by_columns_left_out(
    make_world: MakeWorld,
) -> None:
    world = make_world(tables=[{"name": "t", "columns": ["id", "b"]}])
    world.run(
        "create table t(id integer primary key, a text unique, b int)",
        "insert into t values (1, 'x', 1)",
    )
    world.htap.sync_now()
    world.run("replace into t values (2, 'x', 2)")
    world.htap.sync_now()
    assert world.htap.query("select * from t", hint="olap").to_pylist() == [{"id": 2, "b": 2}]


def test_a_reserved_name_is_refused(make_world: MakeWorld) -> None:
    world = make_world()
    world.run("create table t(id integer primary key, _rhei_valid_to text)")
    assert_left_out(world, "t", "reserved prefix")


@pytest.mark.parametrize(
    "statement", ["create view v as select 1 as id", "create virtual table v using fts5(a)"]
)
def test_what_is_no_ordinary_table_is_refused(make_world: MakeWorld, statement: str) -> None:
    world = make_world(tables=[{"name": "v"}, {"name": "good"}])
    world.run(statement)
    assert_left_out(world, "v", "only ordinary tables")


@BOTH_MODES
def test_no_migration_fails_because_of_capture(users: World) -> None:
    users.run("create unique index by_n on users(n)")
    users.htap.sync_now()
    users.run(
        "drop index by_n",
        "alter table users drop column n",
        "insert into users values (60, 'm')",
        "alter table users add column born date default '2000-01-01'",
        "alter table users rename column email to mail",
        "insert into users values (61, 'n', '2001-01-01')",
    )
    users.htap.sync_now()
    assert users.htap.verify().equal
    assert users.htap.row_count("users") == 5


def test_capture_waits_for_nobody_and_nobody_for_it(world: World) -> None:
    world.htap.sync_now()
    world.run("begin immediate", "update orders set amount = 0")
    other = sqlite3.connect(world.path, timeout=0.0, isolation_level=None)
    assert world.htap.sync_now().events == 0
    world.run("commit")
    other.execute("update orders set status = 'x'")
    other.close()
    world.htap.sync_now()
    world.assert_equal("orders")


def test_touched_rows_are_read_in_the_order_of_their_keys(tmp_path: Path) -> None:
    """Each row is then beside the one read before; two spellings of a number are one key."""
    application = sqlite3.connect(tmp_path / "app.db", isolation_level=None)
    application.execute("create table t(k real primary key, v integer) without rowid")
    database = SqliteDatabase(tmp_path / "app.db")
    source = SqliteTriggerSource(database, "mirror")
    table = Table(source.describe("t"))
    source.install(table, 0)
    with source.snapshot() as before:
        after = before.head(table)
    keys = [7, 3, 9, 1, 8, 3.0, 2]
    application.executemany("replace into t values (?, 1)", [(key,) for key in keys])
    with source.snapshot() as snapshot:
        batches = list(snapshot.net_changes(table, after, limit=100))
    assert [batch.events["k"].to_pylist() for batch in batches] == [[1, 2, 3, 7, 8, 9]]
    assert sum(batch.count for batch in batches) == len(keys)
    source.close()
    database.close()
    application.close()


@BOTH_MODES
@pytest.mark.parametrize(("most", "transactions"), [(12, 1), (11, 3)])
def test_a_cycle_of_few_changes_takes_the_writers_lock_once(
    make_world: MakeWorld,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    most: int,
    transactions: int,
) -> None:
    """Where more is to be forgotten than one transaction may, each table has its own."""
    monkeypatch.setattr(trigger_source, "PRUNE_ROWS", most)
    world = make_world(mode=mode)
    world.run("create table a(id integer primary key)", "create table b(id integer primary key)")
    world.htap.sync_now()
    for name in "ab":
        for key in range(6):
            world.run(f"insert into {name} values ({key})")
    statements: list[str] = []
    connection = connection_of(engine_of(world.htap).source)
    connection.set_trace_callback(statements.append)
    report = world.htap.sync_now()
    connection.set_trace_callback(None)
    assert report.rows_pruned == report.events == 12
    assert statements.count("begin immediate") == transactions
    assert [world.app.execute(f"select count(*) from _rhei_log_{n}").fetchone() for n in "ab"] == [
        (1,),
        (1,),
    ]
    assert world.htap.verify().equal


@BOTH_MODES
def test_a_log_is_forgotten_with_its_acknowledgement_or_not_at_all(
    make_world: MakeWorld, mode: str
) -> None:
    world = make_world(mode=mode)
    world.run("create table t(id integer primary key)")
    world.htap.sync_now()
    world.run("insert into t values (1), (2)")
    noted = "select seq from _rhei_consumer union all select count(*) from _rhei_log_t"
    before = world.app.execute(noted).fetchall()
    world.run(
        "create trigger full before delete on _rhei_log_t"
        " begin select raise(abort, 'the disk is full'); end"
    )
    with pytest.raises(RheiError, match="the disk is full"):
        world.htap.sync_now()
    assert world.app.execute(noted).fetchall() == before
    world.run("drop trigger full")
    assert world.htap.sync_now().rows_pruned == 2
    assert world.htap.verify().equal
