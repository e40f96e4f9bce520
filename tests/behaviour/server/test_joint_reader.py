"""Several mirrors are read by one statement, each at its own watermark, beside their writers."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import rhei_pipeline as rhei
from rhei_pipeline import Settings
from rhei_pipeline.errors import MirrorBusyError, QueryError, SettingsError
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.holding import holding

MakeWorld = Callable[..., World]
#: The same statement in DuckDB, in DataFusion, and in SQLite over the two sources themselves.
SQL = (
    "select o.status, count(*) as orders, sum(i.amount) as amount from shop.orders o"
    " join bills.orders i on i.id = o.id where o.id <> {} group by o.status order by o.status"
)
HISTORY = "select count(*) as versions from bills.orders"


def two_worlds(make_world: MakeWorld, storage: str | None) -> tuple[World, World]:
    """Make a shop and its bills: their tables have one name, and one keeps its history."""
    shop = make_world(storage=storage)
    bills = make_world(storage=storage, mode="temporal")
    shop.run("create table orders(id integer primary key, status text)")
    bills.run("create table orders(id integer primary key, amount integer)")
    shop.run("insert into orders values (1, 'new'), (2, 'new'), (3, 'sent'), (4, 'gone')")
    bills.run("insert into orders values (1, 10), (2, 20), (3, 30), (9, 90)")
    for world in (shop, bills):
        world.htap.sync_now()
    shop.run("update orders set status = 'sent' where id = 2", "delete from orders where id = 4")
    bills.run("update orders set amount = 21 where id = 2", "delete from orders where id = 9")
    return shop, bills


def of_sources(shop: World, bills: World, sql: str) -> list[dict[str, Any]]:
    """Return what the two databases themselves answer."""
    with sqlite3.connect(":memory:") as both:
        both.row_factory = sqlite3.Row
        both.execute("attach ? as shop", (str(shop.path),))
        both.execute("attach ? as bills", (str(bills.path),))
        return [dict(row) for row in both.execute(sql)]


def told(found: pa.Table, label: str) -> Any:
    return json.loads((found.schema.metadata or {})[f"rhei.{label}".encode()])


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_one_statement_reads_two_mirrors_each_at_its_watermark(
    make_world: MakeWorld, storage: str | None
) -> None:
    shop, bills = two_worlds(make_world, storage)
    marks = {
        f"{name}.orders": world.htap.sync_now().watermark
        for name, world in (("shop", shop), ("bills", bills))
    }
    shop.run("update orders set status = 'late' where id = 1")  # is not synced yet
    for world in (shop, bills):
        world.crash()
    current = SQL.format("?").replace("where", "where i._rhei_valid_to is null and")
    with rhei.reader({"shop": shop.settings, "bills": bills.settings}) as reader:
        found = reader.query(current, [7])
        assert found.to_pylist() == [
            {"status": "new", "orders": 1, "amount": 10},
            {"status": "sent", "orders": 2, "amount": 51},
        ]
        assert told(found, "watermark") == marks
        assert told(found, "recorded_at").keys() == {"shop", "bills"}
        assert told(found, "read_from") == {"shop": "file", "bills": "file"}
        assert reader.query(HISTORY).to_pylist() == [{"versions": 5}]
        shop.htap.sync_now()
        shop.crash()
        after = reader.query(current, [7])
        assert after.to_pylist() == of_sources(shop, bills, SQL.format(7))
        assert told(after, "watermark")["shop.orders"] > marks["shop.orders"]
        assert told(after, "watermark")["bills.orders"] == marks["bills.orders"]
        for refused in (
            "delete from shop.orders",
            "select * from 'orders.csv'",
            "attach 'x.db' as x",
            "select * from shop._rhei_watermark",
        ):
            with pytest.raises(QueryError):
                reader.query(refused)


@pytest.mark.long
def test_files_are_read_beside_writers_and_duckdb_from_its_copy(make_world: MakeWorld) -> None:
    files, _ = two_worlds(make_world, "parquet")
    held, other = two_worlds(make_world, None)
    for world in (held, other):
        world.htap.sync_now()
        world.crash()
    with holding(files.settings), rhei.reader({"shop": files.settings}) as reader:
        found = reader.query("select status from shop.orders order by id")
        assert found["status"].to_pylist() == ["new", "sent", "sent"]
    sql = "select count(*) as n from shop.orders, bills.orders"
    both = {"shop": held.settings, "bills": other.settings}
    with (
        holding(held.settings),
        rhei.reader(both) as reader,
        pytest.raises(MirrorBusyError, match=r"declare 'mirror\.published'"),
    ):
        reader.query(sql)
    held.published = {"path": held.directory / "copy.duckdb", "interval_seconds": 0}
    held.run("insert into orders values (5, 'new')")
    with (
        holding(held.settings),
        rhei.reader({**both, "shop": held.settings}) as reader,
    ):
        found = reader.query(sql)
        assert found["n"].to_pylist() == [4 * 5]
        assert told(found, "read_from") == {"shop": "published copy", "bills": "file"}


@pytest.mark.long
def test_pipelines_are_told_apart_by_their_names(make_world: MakeWorld, tmp_path: Path) -> None:
    shop, files = make_world(), make_world(storage="parquet")
    for world in (shop, files):
        world.run("create table orders(id integer primary key)")
        world.htap.sync_now()
        world.crash()
    named = shop.settings.model_copy(update={"name": "shop"})
    with pytest.raises(SettingsError, match=r"need a name each.*declare 'name' for each"):
        rhei.reader([shop.settings])
    with pytest.raises(SettingsError, match=r"cannot have 'shop'.*or give names"):
        rhei.reader([named, named])
    with pytest.raises(SettingsError, match="give one or more declarations"):
        rhei.reader([])
    with rhei.reader([named]) as reader:
        assert reader.query("select count(*) as n from shop.orders")["n"].to_pylist() == [0]
    sql = "select count(*) as n from {}.orders"
    for settings in (named, files.settings):
        with rhei.reader({"one": settings}) as alone:
            assert alone.query(sql.format("one")).num_rows == 1
    mixed = rhei.reader({"shop": named, "files": files.settings})
    with pytest.raises(SettingsError, match=r"give all of them one 'mirror\.kind', or ask each"):
        mixed.query(sql.format("shop"))


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_schemas_of_postgres_stand_between_pipeline_and_table(
    make_postgres: Callable[..., PostgresWorld], tmp_path: Path, storage: str | None
) -> None:
    shop = make_postgres(storage=storage)
    shop.run("create schema sales", "create table sales.orders(id int primary key)")
    shop.run("create table orders(id int primary key)", "insert into orders values (1), (2)")
    shop.run("insert into sales.orders values (2), (3), (4)")
    shop.htap.sync_now()
    shop.crash()
    with closing(World(tmp_path / "bills", storage=storage)) as bills:
        bills.run("create table orders(id integer primary key)", "insert into orders values (2)")
        bills.htap.sync_now()
        bills.crash()
        with rhei.reader({"shop": shop.settings, "bills": bills.settings}) as reader:
            found = reader.query(
                "select (select count(*) from shop.public.orders) as a,"
                " (select count(*) from shop.sales.orders s join bills.orders b on s.id = b.id)"
                " as b"
            )
    assert found.to_pylist() == [{"a": 2, "b": 1}]


def test_what_a_declaration_says_can_be_read_from_its_file(make_world: MakeWorld) -> None:
    shop, bills = two_worlds(make_world, "parquet")
    files = []
    for name, world in (("shop", shop), ("bills", bills)):
        world.htap.sync_now()
        world.crash()
        settings = world.settings.model_copy(update={"name": name})
        files.append(world.directory / f"{name}.yaml")
        files[-1].write_text(json.dumps(settings.model_dump(mode="json")))
        assert Settings.load(files[-1]).name == name
    with rhei.reader(list(files)) as reader:
        assert told(reader.query(HISTORY), "watermark").keys() == {"shop.orders", "bills.orders"}
