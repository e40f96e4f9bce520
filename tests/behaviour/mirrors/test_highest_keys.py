"""New rows above all keys of a DuckDB mirror are not searched for, and every other row is."""

from collections.abc import Callable
from contextlib import closing, suppress

import duckdb
import pyarrow as pa
import pytest

from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.mirrors.duckdb.statements import Statements
from rhei_pipeline.model.changes import NetChanges
from rhei_pipeline.model.schema import Column, Table, TableSchema
from rhei_pipeline.protocols import Step
from rhei_pipeline.testing.mirror_work import NOW, copy
from tests.support.fix_world import World

Make = Callable[..., World]
#: So many keys that go are not put behind rows that come: the table is not asked for them.
MANY_DELETED = 2**19 + 1
MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])


def assert_once(world: World, *tables: str) -> None:
    """Each row is there as in the source, and only once."""
    world.htap.sync_now()
    for table in tables:
        world.assert_equal(table)
        count = world.app.execute(f"select count(*) from {table}").fetchone()[0]
        assert len(world.present(table)) == count, table


@MODES
def test_keys_come_in_any_order_and_come_again(make_world: Make, mode: str) -> None:
    world = make_world(mode=mode, tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, v text)", "insert into t values (5, 'a')")
    assert_once(world, "t")
    for statement in (
        "insert into t values (10, 'b'), (11, 'b')",
        "update t set v = 'c' where id = 10",
        "delete from t where id = 11",
        "insert into t values (11, 'd')",
        "insert into t values (-3, 'e'), (7, 'e'), (20, 'e')",
        "update t set v = v || id",
        "update t set id = 9223372036854775807 where id = 20",
        "delete from t",
        "insert into t values (9223372036854775807, 'f'), (-9223372036854775808, 'g')",
        "update t set v = 'h'",
    ):
        world.run(statement)
        assert_once(world, "t")
    if mode == "temporal":
        spans = [(row["id"], row["_rhei_valid_from"]) for row in world.versions("t")]
        assert len(spans) == len(set(spans)) == 19


@MODES
def test_a_table_that_becomes_another_one_is_asked_again(make_world: Make, mode: str) -> None:
    world = make_world(mode=mode, tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, n integer)", "insert into t values (5, 900)")
    # While it is copied, there is only the copy to ask.
    world.faults.do_at(Step.COPY_COMPLETE, lambda: world.run("update t set n = 899"))
    another = "drop table t", "create table t(id integer primary key, n integer)"
    renamed = "alter table t rename column id to k", "alter table t rename column k to id"
    for statements in (
        ["insert into t values (6, 901)"],
        [*another, "insert into t values (50, 902)"],
        ["update t set n = 903 where id = 50", "insert into t values (51, 904)"],
        [renamed[0]] * (mode == "destructive"),  # a history would lack its key
        ["insert into t values (100, 905)"],
        [renamed[1]] * (mode == "destructive"),
        ["update t set n = 906 where id = 100"],
        ["insert into t values (101, 907)"],
        [another[0], "create table t(id integer primary key, n integer, more text)"],
        ["insert into t values (200, 908, 'a'), (201, 908, 'b')"],
        ["update t set n = 909 where id = 201"],
    ):
        world.run(*statements)
        assert_once(world, "t")
    world.htap.initial_sync("t")
    world.run("update t set n = 0", "insert into t values (202, 0, 'c')")
    assert_once(world, "t")


@pytest.mark.parametrize("how", ["copied anew", "renamed and back"])
def test_what_a_table_got_otherwise_is_sought(how: str) -> None:
    table, other = numbers("t", "id", "n"), numbers("t", "k", "n")
    if how == "copied anew":
        table = other = numbers("t", "id", "n", "more")
    with closing(DuckDBMirror(":memory:")) as mirror:
        copy(mirror, numbers("t", "id", "n"), of(numbers("t", "id", "n"), 5))
        write(mirror, numbers("t", "id", "n"), 6)  # all keys are up to 6 by now
        if how == "copied anew":
            copy(mirror, table, of(table, 5, 9))
        else:
            with mirror.transaction() as transaction:
                transaction.reshape(other, NOW, {"k": "id"})
            write(mirror, other, 9)
            with mirror.transaction() as transaction:
                transaction.reshape(table, NOW, {"id": "k"})
        write(mirror, table, 9, value=1)
        found = mirror.query("select id, n from t where id = 9").to_pylist()
        assert found == [{"id": 9, "n": 1}]


@pytest.mark.parametrize("trial", [True, False])
def test_what_a_transaction_deleted_and_rolled_back_is_sought(*, trial: bool) -> None:
    table, count = numbers("t", "id", "n"), MANY_DELETED
    with closing(DuckDBMirror(":memory:")) as mirror:
        copy(mirror, table, of(table, *range(count)))
        with suppress(RuntimeError), mirror.transaction(trial=trial) as transaction:
            nothing, keys = of(table), of(table, *range(count)).select(["id"])
            assert transaction.merge(table, NetChanges(nothing, keys)).deleted == count
            rows = NetChanges(of(table, 5), keys.slice(0, 0))
            assert transaction.merge(table, rows).inserted == 1
            if not trial:
                raise RuntimeError
        write(mirror, table, count - 1, value=1)
        found = mirror.query(f"select id, n from t where id = {count - 1}").to_pylist()
        assert found == [{"id": count - 1, "n": 1}]


def numbers(name: str, *columns: str) -> Table:
    """Return a table of numbers, the first of which is its key."""
    return Table(TableSchema(name, tuple(Column(c, pa.int64()) for c in columns), columns[:1]))


def of(table: Table, *keys: int, value: int = 0) -> pa.Table:
    """Return rows of these keys."""
    rest = [[value] * len(keys) for _ in table.schema.value_columns]
    return pa.table([keys, *rest], schema=table.schema.arrow)


def write(mirror: DuckDBMirror, table: Table, key: int, *, value: int = 0) -> None:
    """Bring a row to a table, and commit."""
    rows = of(table, key, value=value)
    with mirror.transaction() as transaction:
        transaction.merge(table, NetChanges(rows, rows.slice(0, 0).select([table.schema.names[0]])))


@MODES
def test_a_cycle_that_fails_leaves_no_row_unsought(make_world: Make, mode: str) -> None:
    world = make_world(mode=mode, tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    assert_once(world, "t")
    for key in (10, 20):
        world.run(f"insert into t values ({key}, 'b')")
        world.faults.arm(Step.RECORDED)
        assert world.surviving(world.htap.sync_now)
        assert_once(world, "t")
        world.run(f"update t set v = 'c' where id = {key}", f"insert into t values ({key + 1}, '')")
        assert_once(world, "t")


@MODES
def test_new_rows_alone_are_joined_to_nothing(
    make_world: Make, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    world = make_world(mode=mode, tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    found: list[str] = []

    def noted(statements: Statements, sql: str) -> duckdb.Statement:
        found.append(sql)
        return statements.connection.extract_statements(sql)[0]

    monkeypatch.setattr(Statements, "_statement", noted)
    for key, joins in ((2, 0), (3, 0), (3, 1)):
        found.clear()
        world.run(f"insert or replace into t values ({key}, 'b' || random())")
        world.htap.sync_now()
        assert sum(" join " in sql for sql in found) == joins, found
    world.assert_equal("t")


def test_a_statement_that_was_parsed_before_sees_the_tables_as_they_are() -> None:
    with closing(duckdb.connect()) as connection:
        statements = Statements(connection)
        for columns in ("1 as a", "1 as a, 2 as b"):
            statements.run(f"create or replace table t as select {columns}")
            assert len(statements.asked("select * from t").columns) == columns.count("as")
            assert statements.run("from t").fetchall() == [(1, 2)[: columns.count("as")]]
            statements.run("alter table t add column c integer")
            assert statements.run("from t").fetchall()[0][-1] is None
        assert statements.changed("delete from t where a = $1", [1]) == 1
        with pytest.raises(duckdb.Error, match="does not exist"):
            statements.run("from u")
