"""A table's declaration holds however its name is spelled, there and in what is asked of it."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rhei_pipeline import declared_schemas
from rhei_pipeline.wiring.source import validate
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.parts import engine_of

OPTIONS: dict[str, Any] = {
    "columns": ["code", "id", "made", "at", "gone"],
    "primary_key": ["code"],
    "types": {"made": "timestamp_s"},
    "mode": "temporal",
    "mirror_name": "sold",
}
POLLING = {"updated_at": "at", "deletes": "soft_delete:gone"}
SOURCE = (
    "create table orders(code text not null unique, id int, made bigint, secret text,"
    " at timestamptz not null default clock_timestamp(), gone bool not null default false)",
    "create index on orders(at)",
    "alter table orders replica identity full",
    "insert into orders(code, id, made, secret) values ('a', 1, 0, 's'), ('b', 2, 60, 's')",
)


@pytest.mark.parametrize(
    ("method", "buffered"),
    [("logical", False), ("logical", True), ("trigger", False), ("polling", False)],
)
def test_what_is_declared_of_a_table_in_public_holds_under_both_names(
    make_postgres: Callable[..., PostgresWorld], tmp_path: Path, method: str, *, buffered: bool
) -> None:
    own = {**OPTIONS, "name": "public.orders"}
    if method == "polling":
        own["polling"] = POLLING
    capture = {"method": method} | ({"buffer": {"path": tmp_path / "cdc"}} if buffered else {})
    world = make_postgres(tables=[own], capture=capture)
    world.run(*SOURCE)
    assert not world.htap.sync_now().errors
    table = engine_of(world.htap).pipeline.table("public.orders")
    assert table is engine_of(world.htap).pipeline.table("orders")
    assert (table.mode, table.schema.primary_key) == ("temporal", ("code",))
    assert table.schema.names == tuple(OPTIONS["columns"])
    assert table.schema.arrow.field("made").type == pa.timestamp("us", tz="UTC")
    world.crash()
    world.run(
        "update orders set id = 3, at = clock_timestamp() where code = 'a'",
        "update orders set gone = true, at = clock_timestamp() where code = 'b'",
    )
    world.htap.register_table("public.orders")
    report = world.htap.sync_now().tables["orders"]
    assert (report.error, report.copied_rows) == (None, 0)
    held = world.htap.query("select code, id from sold order by 1, 2", hint="olap").to_pylist()
    assert [tuple(row.values()) for row in held][:2] == [("a", 1), ("a", 3)]
    assert world.htap.verify("public.orders").equal
    if method != "polling":  # a source that is polled answers no queries
        # It is a number in the source, and an instant in the mirror.
        assert world.htap.query("select max(made) as m from orders").to_pylist() == [{"m": 60}]
    world.crash()
    found = declared_schemas(world.settings)
    tables, left_out = found.tables, found.faults
    assert ([table.schema for table in tables], left_out) == ([table.schema], {})
    assert not [found for found in validate(world.settings) if found.severity == "error"]


@pytest.mark.parametrize("method", ["trigger", "polling"])
def test_what_is_declared_of_a_table_of_sqlite_holds_in_any_case(
    make_world: Callable[..., World], method: str
) -> None:
    polling = {"updated_at": "at", "deletes": "reconcile"}
    own = {"name": "ORDERS", "types": {"MADE": "timestamp_s"}, "mirror_name": "sold"}
    world = make_world(tables=[own | ({"polling": polling} if method == "polling" else {})])
    world.method = method
    world.run(
        "create table orders(id integer primary key, made integer, at integer not null)",
        "insert into orders values (1, 0, 1000), (2, 60, 1000)",
    )
    assert not world.htap.sync_now().errors
    world.htap.register_table("Orders")
    assert world.htap.query("select count(*) as n from sold", hint="olap")["n"].to_pylist() == [2]
    if method == "trigger":
        # The column is an instant by its declaration, on either side; so is its maximum.
        at = datetime(1970, 1, 1, 0, 1, tzinfo=UTC)
        assert world.htap.query("select max(made) as m from orders").to_pylist() == [{"m": at}]
