"""A person is found in every table that the declaration names, and forgotten in all of them."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rhei_pipeline.errors import SchemaError, SettingsError
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.testing.faults import Crash
from tests.behaviour.privacy.test_forgetting import MARK, holding
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.masking import KEY
from tests.support.refusals import refused, rhei

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
AnyWorld = World | PostgresWorld
PEOPLE = {
    "customer": {
        "customers": "id",
        "orders": "customer_id",
        "items": "order_id -> orders",
        "visits": "customer_id",
    }
}
TABLES = [
    {"name": "customers", "mode": "temporal"},
    {"name": "orders", "mode": "temporal"},
    {"name": "items", "mode": "destructive"},
    {"name": "visits", "mode": "temporal"},
]
HASHED = [
    {**TABLES[0], "mask": {"id": "hash"}},
    {**TABLES[1], "mask": {"customer_id": "hash", "id": "hash"}},
    {**TABLES[2], "mask": {"order_id": "hash"}},
    {**TABLES[3], "mask": {"customer_id": "hash"}},
]


def live(world: AnyWorld) -> None:
    """Two customers with orders, items and visits; the first is to be forgotten, and is gone."""
    world.run(
        "create table customers(id integer primary key, name text)",
        "create table orders(id integer primary key, customer_id integer, note text)",
        "create table items(order_id integer, n integer, what text, primary key (order_id, n))",
        "create table visits(customer_id integer, at text, page text,"
        " primary key (customer_id, at))",
        f"insert into customers values (42, '{MARK} of old'), (43, 'somebody else')",
        f"insert into orders values (1, 42, '{MARK} first'), (2, 42, '{MARK} second'),"
        " (3, 43, 'another note')",
        f"insert into items values (1, 1, '{MARK} item'), (3, 1, 'another item')",
        f"insert into visits values (42, '2026', '{MARK} page'), (43, '2026', 'another page')",
    )
    world.htap.sync_now()
    world.run(f"update customers set name = '{MARK} of late' where id = 42")
    world.htap.sync_now()


def gone(world: AnyWorld) -> None:
    world.run(
        "delete from items where order_id in (1, 2)",
        "delete from orders where customer_id = 42",
        "delete from visits where customer_id = 42",
        "delete from customers where id = 42",
    )


def left(world: AnyWorld) -> dict[str, int]:
    counted = {}
    for table in PEOPLE["customer"]:
        found = world.htap.query(f"select count(*) as n from {table}", hint="olap")
        counted[table] = found["n"][0].as_py()
    return counted


OTHERS = {"customers": 1, "orders": 1, "items": 1, "visits": 1}


@pytest.mark.long
@pytest.mark.parametrize(
    ("storage", "tables"), [(None, TABLES), ("parquet", TABLES), ("ipc", HASHED), (None, HASHED)]
)
def test_one_person_is_forgotten_in_all_tables_at_once(
    make_world: MakeWorld,
    monkeypatch: pytest.MonkeyPatch,
    storage: str | None,
    tables: list[dict[str, Any]],
) -> None:
    monkeypatch.setenv("RHEI__MASKING__KEY", KEY)
    world = make_world(storage=storage, tables=tables, people=PEOPLE)
    live(world)
    world.htap.snapshot("customers", {datetime.now(UTC).date(): datetime.now(UTC)})
    with pytest.raises(SchemaError, match="the source still has a row"):
        world.htap.forget_person("customer", 42)
    gone(world)
    planned = world.htap.forget_person("customer", 42, dry_run=True)
    assert planned.dry_run
    assert {name: found.keys for name, found in planned.tables.items()} == {
        "customers": 1,
        "orders": 2,
        "items": 1,
        "visits": 1,
    }
    report = world.htap.forget_person("customer", "42")
    assert report.is_clear, report.to_dict()
    # Without history their rows went with the sync before; the keys were found before that.
    rows = {name: found.rows for name, found in report.tables.items()}
    assert rows == {"customers": 3, "orders": 2, "items": 0, "visits": 1}
    assert report.tables["orders"].searched >= 2
    assert MARK not in repr(report.to_dict())
    assert left(world) == OTHERS
    assert world.htap.verify().equal
    assert [change.table for change in world.htap.schema_log()[-4:]] == [*PEOPLE["customer"]]
    world.crash()
    assert holding(world) == []


@pytest.mark.long
def test_postgres_people_are_found_by_their_columns(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres(tables=TABLES, people=PEOPLE)
    live(world)
    gone(world)
    report = world.htap.forget_person("customer", 42)
    assert report.tables["items"].keys == 1
    assert report.is_clear
    assert left(world) == OTHERS


@pytest.mark.long
def test_dead_letters_go_where_their_key_says_whose_they_are(make_world: MakeWorld) -> None:
    world = make_world(tables=TABLES, people=PEOPLE)
    live(world)
    world.run(
        "insert into visits values (42, x'00', 'no text'), (43, x'00', 'no text')",
        "update customers set name = x'ff' where id = 42",
        "insert into orders values (9, 42, x'ff')",
    )
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 4
    gone(world)
    report = world.htap.forget_person("customer", 42)
    assert world.htap.dead_letters()["table_name"].to_pylist() == ["visits"]
    assert report.is_clear


@pytest.mark.long
@pytest.mark.parametrize("storage", [None, "ipc"])
def test_what_somebody_else_has_by_now_is_neither_forgotten_nor_to_be_deleted(
    make_world: MakeWorld, storage: str | None
) -> None:
    """An order moves to another customer, a key is used again, a row is only a dead letter."""
    world = make_world(storage=storage, tables=TABLES, people=PEOPLE)
    live(world)
    world.run(
        "insert into orders values (4, 42, 'of 42 alone'), (5, 42, 'so is this')",
        "insert into items values (4, 1, 'of 42'), (2, 1, 'moves along')",
    )
    world.htap.sync_now()
    world.run(
        "delete from orders where id = 1",
        "insert into orders values (1, 43, 'used again')",
        "update orders set customer_id = 43 where id = 2",
        "delete from items where order_id = 4",
        "delete from orders where id in (4, 5)",
        "insert into orders values (5, 43, x'ff')",
        "delete from visits where customer_id = 42",
        "delete from customers where id = 42",
    )
    assert world.htap.forget_person("customer", 42, dry_run=True).tables["items"].keys == 3
    source = "select order_id, n, what from items order by order_id"
    report = world.htap.forget_person("customer", 42)
    keys = {name: found.keys for name, found in report.tables.items()}
    assert keys == {"customers": 1, "orders": 1, "items": 1, "visits": 1}
    assert not report.is_clear
    assert report.tables["orders"].kept[-1].startswith("3 keys of orders that others had")
    assert report.tables["items"].kept[-1].startswith("2 keys of items that others had")
    of_orders = "select id from orders where customer_id = 43 order by id"
    assert world.htap.query(of_orders, hint="olap")["id"].to_pylist() == [1, 2, 3]
    assert (
        world.htap.query(source, hint="olap").to_pylist()
        == world.htap.query(source, hint="oltp").to_pylist()
    )
    assert world.htap.dead_letters()["table_name"].to_pylist() == ["orders"]
    world.run("update orders set note = 'a text' where id = 5")
    world.htap.sync_now()
    assert world.htap.verify().equal


@pytest.mark.long
@pytest.mark.parametrize("storage", [None, "ipc"])
def test_what_was_cut_off_between_two_tables_is_finished(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, storage: str | None
) -> None:
    world = make_world(storage=storage, tables=TABLES, people=PEOPLE)
    live(world)
    gone(world)
    world.htap.sync_now()
    mirror: type[Any] = DataFusionMirror if storage else DuckDBMirror
    real = mirror.forget

    def dying(self: Any, table: Any, keys: Any, *, trial: bool = False) -> Any:
        if not trial and table.name == "orders":
            raise Crash
        return real(self, table, keys, trial=trial)

    with monkeypatch.context() as patched:
        patched.setattr(mirror, "forget", dying)
        assert world.surviving(lambda: world.htap.forget_person("customer", 42))
    assert left(world) == {**OTHERS, "customers": 3, "orders": 3}
    assert world.htap.forget_person("customer", 42).is_clear
    assert left(world) == OTHERS
    world.crash()
    assert holding(world) == []


@pytest.mark.long
def test_who_cannot_be_found_is_refused_with_the_way_out(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    world = make_world(tables=TABLES)

    def declared(**tables: str) -> None:
        world.crash()
        world.people = {"customer": tables}

    declared(items="order_id -> orders", orders="customer_id")
    with refused("name 'orders' above it", SettingsError):
        _ = world.settings
    world.people = {"customer": {}}
    with refused("names no column; write {table: column}", SettingsError):
        _ = world.settings
    world.people = {}
    live(world)
    gone(world)
    with refused("declare them under 'people': {}", SettingsError):
        world.htap.forget_person("customer", 42)
    declared(orders="customer")
    with refused("correct 'people' in the declaration: {}") as met:
        world.htap.forget_person("customer", 42)
    assert "'customer_id'" in met.told[0]
    declared(visits="customer_id", items="order_id -> visits")
    with refused("name a column that holds what names the person"):
        world.htap.forget_person("customer", 42)
    world.crash()
    world.people = PEOPLE
    with pytest.raises(SchemaError, match="this is no key of it"):
        world.htap.forget_person("customer", "nobody")
    world.crash()
    asked = ("forget", "--person", "customer=42")
    with pytest.raises(AssertionError, match="give '--table' and '--key', or '--person' alone"):
        rhei(world.settings, tmp_path, *asked, "--table", "orders")
    assert "holds" in rhei(world.settings, tmp_path, *asked, "--dry-run")
    done = json.loads(rhei(world.settings, tmp_path, *asked, "--json"))
    assert (done["is_clear"], done["tables"]["orders"]["rows"]) == (True, 2)


@pytest.mark.long
def test_a_history_is_not_found_by_a_table_whose_past_is_gone(make_world: MakeWorld) -> None:
    people = {"customer": {"orders": "customer_id", "items": "order_id -> orders"}}
    plain, kept = {"name": "orders", "mode": "destructive"}, {"name": "items", "mode": "temporal"}
    world = make_world(tables=[plain, kept], people=people)
    live(world)
    gone(world)
    world.htap.sync_now()
    with refused("mirror {} with 'mode: temporal', or find them by a column of its own"):
        world.htap.forget_person("customer", 42)
    other = make_world(tables=[{**plain, "mode": "temporal"}, kept], people=people)
    live(other)
    gone(other)
    other.htap.sync_now()
    assert other.htap.forget_person("customer", 42).tables["items"].rows == 1


@pytest.mark.long
def test_a_dry_run_leaves_what_it_has_found_to_be_found(make_world: MakeWorld) -> None:
    world = make_world(tables=TABLES, people=PEOPLE)
    live(world)
    gone(world)
    planned = [world.htap.forget_person("customer", 42, dry_run=True) for _ in range(2)]
    done = world.htap.forget_person("customer", 42)
    for report in (*planned, done):
        assert report.tables["items"].keys == 1
        assert report.tables["orders"].keys == 2
    assert done.is_clear


def test_a_column_that_holds_no_keys_of_the_other_table_is_named(make_world: MakeWorld) -> None:
    people = {"customer": {"labels": "customer_id", "items": "order_id -> labels"}}
    world = make_world(tables=[{"name": "labels"}, {"name": "items"}], people=people)
    world.run(
        "create table labels(id text primary key, customer_id integer)",
        f"insert into labels values ('{MARK}', 42)",
    )
    live(world)
    with refused("correct 'people' in the declaration: name a column that holds them") as met:
        world.htap.forget_person("customer", 42)
    assert MARK not in str(met.error)


@pytest.mark.long
def test_a_mask_under_which_nobody_is_found_is_named(make_world: MakeWorld) -> None:
    redacted = [TABLES[0], {**TABLES[1], "mask": {"customer_id": "redact"}}]
    world = make_world(tables=redacted, people={"customer": {"orders": "customer_id"}})
    live(world)
    with refused("mask it by 'hash', or name another column"):
        world.htap.forget_person("customer", 42)
    world.crash()
    world.people = {"customer": {"customers": "id"}}
    gone(world)
    assert world.htap.forget_person("customer", 42).tables["customers"].rows == 2
