"""Whatever happens to the source behind our back is noticed, named, and made good."""

import sqlite3
from collections.abc import Callable

import pyarrow as pa
import pytest

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.wiring.engine import unseen_events
from tests.support.fix_postgres import PostgresWorld, drop_slots
from tests.support.fix_world import World
from tests.support.other_process import copy
from tests.support.refusals import refused

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]


@pytest.fixture(params=["destructive", "temporal"])
def orders(request: pytest.FixtureRequest, make_world: MakeWorld) -> World:
    world = make_world(mode=request.param)
    world.run(
        "create table orders(id integer primary key, status text)",
        "create table other(id integer primary key, n integer)",
        "insert into orders values (1, 'a'), (2, 'b')",
        "insert into other values (1, 1)",
    )
    world.htap.sync_now()
    return world


def test_a_rebuilt_table(orders: World) -> None:
    orders.run(
        "update orders set status = 'before' where id = 1",
        "create table new(id integer primary key, status text, extra text)",
        "insert into new select id, status, 'x' from orders",
        "drop table orders",
        "alter table new rename to orders",
        "delete from orders where id = 2",
    )
    orders.htap.sync_now()
    assert orders.htap.verify().equal


def test_changes_before_a_migration_are_counted_and_stay_one_state(make_world: MakeWorld) -> None:
    world = make_world(tables=[{"name": "kept", "mode": "temporal"}, {"name": "plain"}])
    world.run(
        "create table kept(id integer primary key, v integer)",
        "create table plain(id integer primary key, v integer)",
    )
    world.htap.sync_now()
    world.crash()
    world.run("insert into kept values (1, 1)", "insert into plain values (1, 1)")
    world.run("alter table kept add column w")
    # Opening has to take the versions before the log is made again, and the other table with them.
    assert world.htap.query("select id from plain", hint="olap").num_rows == 1
    report = world.htap.sync_now()
    assert report.tables["kept"].inserted == 1
    assert report.tables["plain"].inserted == 1
    assert report.tables["plain"].events == 1


@pytest.mark.long
def test_versions_before_a_migration_are_kept(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal")
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    world.run(
        "update t set v = 'b'",
        "update t set v = 'c'",
        "alter table t add column w integer",
        "update t set v = 'd', w = 1",
        "alter table t rename column v to x",
        "update t set x = 'e'",
    )
    world.crash()
    world.htap.sync_now()
    old = [version["v"] for version in world.versions("t") if version["v"] is not None]
    assert old[:4] == ["a", "b", "c", "d"]
    assert world.versions("t")[-1]["x"] == "e"
    assert world.htap.verify().equal


def test_dropped_triggers_are_noticed(orders: World) -> None:
    orders.run("drop trigger _rhei_update_orders", "update orders set status = 'unseen'")
    orders.htap.sync_now()
    orders.assert_equal("orders")


#: Schema changes that need no copy where every change of rows was logged, and the columns then.
CHANGES = {
    "alter table orders add column extra text": "id, status, extra",
    "alter table orders add column extra text default 'x'": "id, status, extra",
    "alter table orders rename column status to state": "id, state",
    "alter table orders drop column status": "id",
    "pragma user_version = 1": "id, status",
}


def rebuild(world: World, columns: str) -> None:
    """Make the table again, as an application's migrations do: its triggers go with it."""
    world.run(
        "begin",
        f"create table new({columns.replace('id', 'id integer primary key')})",
        f"insert into new select {columns} from orders",
        "drop table orders",
        "alter table new rename to orders",
        "commit",
    )


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("lost", ["dropped", "rebuilt", "rebuilt twice"])
def test_what_no_trigger_logged_beside_a_schema_change_is_found(
    orders: World, make_world: MakeWorld, change: str, lost: str, *, is_last: bool
) -> None:
    """What no trigger saw is neither told by a log of before nor by the columns that are kept."""
    if lost == "rebuilt twice":
        rebuild(orders, "id, status")  # from here on the table's text only grows, as by a statement
        orders.htap.sync_now()
    late = make_world(mode=orders.mode)
    late.app.close()
    late.app, late.path = orders.app, orders.path
    late.htap.sync_now()
    if is_last:
        orders.run(change)
    columns = CHANGES[change] if is_last else "id, status"
    if lost == "dropped":
        for event in ("insert", "update", "delete"):
            orders.run(f"drop trigger _rhei_{event}_orders")
    else:
        rebuild(orders, columns)
    orders.run(
        "insert into orders(id) values (99)",
        "update orders set id = 100 where id = 1",
        "delete from orders where id = 2",
    )
    if not is_last:
        orders.run(change)
    for each in (orders, late):
        each.htap.sync_now()
        assert each.htap.verify().equal
    orders.run("insert into orders(id) values (7)")
    for each in (orders, late):
        each.htap.sync_now()
        assert each.htap.verify().equal


def test_a_dropped_table_is_named_and_the_others_go_on(orders: World) -> None:
    orders.run("drop table orders", "update other set n = 2")
    report = orders.htap.sync_now()
    assert "no such table" in report.errors["orders"]
    orders.assert_equal("other")
    assert "no such table" in (orders.htap.sync_status().tables["orders"].error or "")
    orders.run("create table orders(id integer primary key, status text)")
    orders.run("insert into orders values (9, 'back')")
    assert not orders.htap.sync_now().errors
    orders.assert_equal("orders", "other")


def test_a_cleared_log(orders: World) -> None:
    orders.run("update orders set status = 'unseen'", "delete from _rhei_log_orders")
    orders.htap.sync_now()
    orders.assert_equal("orders")


def _assert_lag_is_unknown_until_synced(world: World | PostgresWorld, table: str) -> None:
    status = world.htap.sync_status()
    found = status.tables[table]
    assert (found.lag_events, found.lag_seconds) == (None, None)
    assert "no longer tells" in (found.doubt or "")
    assert table in {each.table for each in status.unmeasured}
    world.htap.sync_now()
    found = world.htap.sync_status().tables[table]
    assert (found.lag_events, found.lag_seconds, found.doubt) == (0, 0, None)
    world.assert_equal(table)


def test_no_lag_is_told_of_a_log_that_was_cleared(orders: World) -> None:
    orders.crash()
    orders.run("insert into orders values (3, 'c')", "delete from _rhei_log_orders")
    assert orders.htap.sync_status().tables["other"].lag_events == 0
    _assert_lag_is_unknown_until_synced(orders, "orders")


@pytest.mark.parametrize("method", ["logical", "trigger"])
def test_no_lag_is_told_of_a_slot_or_log_of_postgres_that_was_lost(
    make_postgres: Callable[..., PostgresWorld], method: str
) -> None:
    world = make_postgres(capture={"method": method})
    world.run("create table t(id int primary key)")
    world.htap.sync_now()
    world.crash()
    world.run("insert into t values (1)")
    if method == "logical":
        drop_slots(world.app, world.app.info.dbname)
    else:
        logs = "select format('%I.%I', schemaname, tablename) from pg_tables"
        mine = f"{logs} where schemaname = '_rhei' and tablename like 'log%'"
        for (log,) in world.app.execute(mine).fetchall():
            world.app.execute(f"truncate {log}".encode())
    _assert_lag_is_unknown_until_synced(world, "t")


#: Ways in which capture ends with nothing pending, after which rows are written.
ENDED = {
    "logical: taken out": "alter publication {slot} drop table t",
    "logical: no publication": "drop publication {slot}",
    "trigger: disabled": "alter table t disable trigger all",
    "trigger: dropped": "drop trigger _rhei_insert on t",
    "trigger: no function": "drop function _rhei.capture_{oid} cascade",
}


@pytest.mark.parametrize("case", ENDED)
def test_no_lag_is_told_where_postgres_captures_a_table_no_more(
    make_postgres: Callable[..., PostgresWorld], case: str
) -> None:
    world = make_postgres(capture={"method": case.partition(":")[0]})
    world.run("create table t(id int primary key)", "create table u(id int primary key)")
    world.htap.sync_now()
    slots = world.app.execute(
        "select slot_name from pg_replication_slots where database = current_database()"
    ).fetchall()
    oids = world.app.execute("select 't'::regclass::oid").fetchall()
    world.run(ENDED[case].format(slot=slots[0][0] if slots else "", oid=oids[0][0]))
    world.run("insert into t values (1)")
    if case != "logical: no publication":
        assert world.htap.sync_status().tables["u"].lag_events == 0
    _assert_lag_is_unknown_until_synced(world, "t")
    world.assert_equal("t")


def test_no_lag_is_told_of_a_table_without_its_trigger(orders: World) -> None:
    orders.htap.sync_now()
    orders.run("drop trigger _rhei_insert_orders", "insert into orders values (3, 'c')")
    assert orders.htap.sync_status().tables["other"].lag_events == 0
    _assert_lag_is_unknown_until_synced(orders, "orders")


def test_no_lag_is_told_of_a_table_that_loses_its_trigger_after_another(orders: World) -> None:
    orders.htap.sync_now()
    lost = []
    for name in ("orders", "other"):
        orders.run(f"drop trigger _rhei_insert_{name}")
        lost.append(name)
        for _ in range(2):
            tables = orders.htap.sync_status().tables
            assert [each for each in tables if tables[each].lag_events is None] == lost
    orders.htap.sync_now()
    assert {each.lag_events for each in orders.htap.sync_status().tables.values()} == {0}


@pytest.mark.parametrize("is_applied", [True, False])
def test_a_log_of_postgres_that_was_emptied_is_seen_from_outside(
    make_postgres: Callable[..., PostgresWorld], *, is_applied: bool
) -> None:
    world = make_postgres(capture={"method": "trigger"})
    world.run("create table t(id int primary key)")
    world.htap.sync_now()
    world.run("insert into t values (1)")
    if is_applied:
        world.htap.sync_now()
        assert unseen_events(world.settings) == 0
    for emptied in ("truncate", "delete from"):
        world.run(f"{emptied} _rhei.log_{world.app.execute(OID).fetchall()[0][0]}")
        assert unseen_events(world.settings) == 1
        world.htap.sync_now()
        assert unseen_events(world.settings) == 0
        world.assert_equal("t")
        world.run("insert into t select max(id) + 1 from t")
        world.htap.sync_now()
        assert unseen_events(world.settings) == 0


OID = "select 't'::regclass::oid"


def test_a_dropped_log(orders: World) -> None:
    orders.run("drop trigger _rhei_insert_orders", "drop trigger _rhei_update_orders")
    orders.run("drop trigger _rhei_delete_orders", "drop table _rhei_log_orders")
    orders.run("delete from orders where id = 1")
    orders.htap.sync_now()
    orders.assert_equal("orders")


def restore(world: World, write_before_sync: int) -> None:
    """Put the source back to an older state, on which it then lives on."""
    world.crash()
    world.run("pragma wal_checkpoint(truncate)")
    backup = world.directory / "backup.db"
    copy(world.path, backup)
    world.run("update orders set status = 'lost'", "insert into orders values (7, 'lost')")
    world.htap.sync_now()
    world.crash()
    world.app.close()
    for suffix in ("-wal", "-shm"):
        world.path.with_name(world.path.name + suffix).unlink(missing_ok=True)
    copy(backup, world.path)
    world.app = sqlite3.connect(world.path, isolation_level=None)
    for turn in range(write_before_sync):
        world.run(f"update orders set status = 'other life {turn}' where id = 1")


@pytest.mark.parametrize("writes", [0, 1, 3, 10])
def test_an_older_backup_put_back(orders: World, writes: int) -> None:
    restore(orders, writes)
    orders.htap.sync_now()
    orders.assert_equal("orders", "other")
    assert orders.htap.verify().equal
    orders.run("update orders set status = 'and on'")
    orders.htap.sync_now()
    orders.assert_equal("orders")


def test_a_deleted_mirror_is_made_anew(orders: World) -> None:
    orders.crash()
    (orders.directory / "mirror.duckdb").unlink()
    orders.run("update orders set status = 'meanwhile'")
    orders.htap.sync_now()
    orders.assert_equal("orders", "other")


@pytest.mark.long
def test_an_older_mirror_put_back(orders: World) -> None:
    orders.crash()
    mirror = orders.directory / "mirror.duckdb"
    copy(mirror, orders.directory / "old.duckdb")
    orders.run("update orders set status = 'x'", "delete from orders where id = 2")
    orders.htap.sync_now()
    orders.crash()
    copy(orders.directory / "old.duckdb", mirror)
    orders.htap.sync_now()
    orders.assert_equal("orders")


def test_a_deleted_registry_is_made_anew(orders: World) -> None:
    orders.crash()
    (orders.directory / "registry.json").unlink()
    orders.run("alter table orders add column extra text default 'x'")
    orders.htap.sync_now()
    orders.assert_equal("orders")


def test_a_table_that_becomes_temporal(make_world: MakeWorld) -> None:
    world = make_world(mode="destructive")
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    world.crash()
    world.mode = "temporal"
    world.run("update t set v = 'b'")
    world.htap.sync_now()
    world.assert_equal("t")
    world.run("update t set v = 'c'")
    world.htap.sync_now()
    assert [version["v"] for version in world.versions("t")] == ["b", "c"]


def test_a_type_that_its_past_does_not_fit_is_named(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal")
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    world.run("create table u(id integer primary key)", "insert into u values (1)")
    world.htap.sync_now()
    world.run("drop table t", "create table t(id integer primary key, v date)")
    world.run("insert into u values (2)")
    report = world.htap.sync_now()
    assert "its history does not fit" in report.errors["t"]
    world.assert_equal("u")


def test_columns_are_added_and_dropped_by_call(orders: World) -> None:
    orders.htap.add_column("orders", "extra", pa.int64())
    orders.htap.add_column("orders", "Extra", pa.int64())
    orders.htap.execute("update orders set extra = 5")
    orders.htap.sync_now()
    orders.assert_equal("orders")
    orders.run("alter table orders drop column extra")  # a call that was cut short did as much
    orders.htap.drop_column("orders", "extra")
    orders.assert_equal("orders")
    kept = "extra" in orders.htap.query("select * from orders", hint="olap").column_names
    assert kept is (orders.mode == "temporal")
    with pytest.raises(SchemaError, match=r"no column 'statis' \(did you mean 'status'\?\)"):
        orders.htap.drop_column("orders", "statis")
    with pytest.raises(Exception, match="part of the primary key"):
        orders.htap.drop_column("orders", "id")


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_column_of_another_type_or_beside_the_declared_ones_is_not_added(
    kind: str, request: pytest.FixtureRequest
) -> None:
    make = request.getfixturevalue("make_world" if kind == "sqlite" else "make_postgres")
    world = make(tables=[{"name": "t"}, {"name": "part", "columns": ["id"]}])
    bigint = "integer" if kind == "sqlite" else "bigint"
    for name in ("t", "part"):
        world.run(f"create table {name}(id {bigint} primary key, n {bigint})")
    world.htap.sync_now()
    way_out = (
        "add a column of another name; or change the type in the source, and the next sync follows"
    )
    with refused(way_out, SchemaError) as met:
        world.htap.add_column("t", "n", pa.string())
    assert "'n' already, of type int64, not string" in met.error.message
    world.htap.add_column("t", "n_text", pa.string())
    assert "n_text" in world.htap.query("select * from t", hint="olap").column_names
    way_out = "add it to 'columns' in the declaration, and to the table in the source"
    with refused(way_out, SchemaError):
        world.htap.add_column("part", "more", pa.int64())
    world.crash()
    world.tables = [{"name": "t"}, {"name": "part", "columns": ["id", "more"]}]
    world.run(f"alter table part add column more {bigint}")
    world.htap.sync_now()
    found = world.htap.query("select * from part", hint="olap").column_names
    assert found == ["id", "more"]
