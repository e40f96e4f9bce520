"""Names that differ by case only: each table has one of its own in the mirror, or is left out."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.htap import HTAP
from rhei_pipeline.settings.sections import RegistrySettings
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

MakePostgres = Callable[..., PostgresWorld]
MakeWorld = Callable[..., World]
SOURCE = (
    'create table "Orders"(id int primary key, v text)',
    "create table orders(id int primary key, v text)",
    'create table c(id int primary key, "A" text, a text)',
    "insert into \"Orders\" values (1, 'upper')",
    "insert into orders values (1, 'lower'), (2, 'lower')",
)


def _rows(world: PostgresWorld | World, sql: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = world.htap.query(sql, hint="olap").to_pylist()
    return rows


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_name_that_is_taken_leaves_its_table_out_and_mirror_name_gives_it_one(
    make_postgres: MakePostgres, mode: str
) -> None:
    world = make_postgres(mode=mode)
    world.run(*SOURCE)
    errors = world.htap.sync_now().errors
    assert sorted(errors) == ["c", "orders"]
    assert "'Orders' has the name 'Orders' in the mirror" in errors["orders"]
    assert "give one of them another 'mirror_name'" in errors["orders"]
    assert "columns 'A' and 'a' differ by case only" in errors["c"]
    assert "leave one of them out with 'columns'" in errors["c"]
    assert [row["v"] for row in _rows(world, "select v from public.orders")] == ["upper"]
    world.crash()
    world.tables = [
        {"name": "Orders"},
        {"name": "orders", "mirror_name": "orders_lower"},
        {"name": "c", "columns": ["id", "a"]},
    ]
    assert not world.htap.sync_now().errors
    world.run("update orders set v = 'changed' where id = 2", "update \"Orders\" set v = 'UPPER'")
    world.htap.sync_now()
    assert world.htap.verify().equal
    present = " where _rhei_valid_to is null" if mode == "temporal" else ""
    for name, values in (("orders", ["UPPER"]), ("orders_lower", ["lower", "changed"])):
        found = _rows(world, f"select v from {name}{present} order by id")
        assert [row["v"] for row in found] == values
    answer = world.htap.query("select count(*) as n, sum(id) as s from orders")
    assert answer.schema.metadata[b"rhei.engine"] == b"olap", answer.schema.metadata
    assert answer["n"].to_pylist() == [2]


@pytest.mark.parametrize("storage", [None, "parquet", "delta"])
def test_a_table_keeps_its_name_in_the_mirror(make_world: MakeWorld, storage: str | None) -> None:
    world = make_world(
        mode="temporal", storage=storage, tables=[{"name": "t", "mirror_name": "sold things"}]
    )
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    world.run("update t set v = 'b'")
    world.htap.sync_now()
    assert len(_rows(world, 'select * from "sold things"')) == 2
    day = datetime.now(UTC)
    assert world.htap.as_of("t", day).num_rows == world.htap.as_of("sold things", day).num_rows == 1
    assert world.htap.snapshot("t", {day.date(): day}) == {day.date(): 1}
    assert len(_rows(world, 'select * from snapshot."sold things"')) == 1
    world.crash()
    world.tables = [{"name": "t", "mirror_name": "other"}]
    told = world.htap.sync_now().errors["t"]
    assert "mirrored as 'sold things', but is now declared as 'other'" in told
    with pytest.raises(SchemaError, match="now declared as 'other'"):
        world.htap.initial_sync("t")
    assert world.htap.as_of("t", day).num_rows == 1
    world.htap.drop_table("t", keep_as="past")
    assert not world.htap.sync_now().errors
    assert len(_rows(world, "select * from other")) == 1
    assert len(_rows(world, "select * from past")) == 2
    assert world.htap.verify().equal


def test_files_tell_names_apart(make_postgres: MakePostgres) -> None:
    world = make_postgres(storage="parquet")
    world.run(*SOURCE)
    assert not world.htap.sync_now().errors
    world.run("update orders set v = 'changed' where id = 2", "insert into c values (1, 'A', 'a')")
    world.htap.sync_now()
    assert world.htap.verify().equal
    assert [row["v"] for row in _rows(world, 'select v from "Orders"')] == ["upper"]


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_a_column_named_as_duckdb_finds_rows_leaves_its_table_out(
    make_world: Callable[..., World], storage: str | None
) -> None:
    world = make_world(storage=storage)
    world.run("create table t (id integer primary key, a integer)", "insert into t values (1, 1)")
    world.htap.sync_now()
    world.run("alter table t add column RowId integer default 7", "insert into t values (2, 2, 7)")
    errors = world.htap.sync_now().errors
    if storage is None:
        assert "column 'RowId' has the name by which DuckDB finds rows" in errors["t"]
        assert "leave it out with 'columns'" in errors["t"]
        world.crash()
        world.tables = [{"name": "t", "columns": ["id", "a"]}]
        assert not world.htap.sync_now().errors
    world.run("update t set a = 9 where id = 1")
    world.htap.sync_now()
    found = _rows(world, "select a from t order by id")
    assert [row["a"] for row in found] == [9, 2]
    assert world.htap.verify("t").equal


@pytest.mark.long
@pytest.mark.parametrize(
    ("storage", "taken"), [(None, "Mirror"), (None, "temp"), ("ipc", "snapshot")]
)
def test_a_schema_named_as_something_of_the_mirror_gives_way(
    make_postgres: MakePostgres, storage: str | None, taken: str
) -> None:
    """`mirror` is the name of its file; `temp` is DuckDB's own."""
    world = make_postgres(storage=storage)
    world.run(
        f'create schema "{taken}"',
        f'create table "{taken}".t(id int primary key)',
        f'insert into "{taken}".t values (1)',
        "create table good(id int primary key)",
    )
    assert list(world.htap.sync_now().errors) == [f"{taken}.t"]
    world.crash()
    if taken == "Mirror":
        mirror = world.settings.mirror.model_copy(update={"path": world.directory / "other.duckdb"})
        registry = RegistrySettings(path=world.directory / "other.json")
        other = {"mirror": mirror, "registry": registry}
        with HTAP(world.settings.model_copy(update=other)) as htap:
            assert htap.sync_now().errors == {}
            assert htap.query('select id from "Mirror".t', hint="olap").num_rows == 1
            assert htap.verify().equal
    world.tables = [{"name": "good"}]
    assert world.htap.sync_now().errors == {}
    world.crash()
    world.tables = None
    world.run(f'alter schema "{taken}" rename to s')
    assert world.htap.sync_now().errors == {}
    world.assert_equal("s.t")


def test_functions_of_sqlite_that_a_table_or_view_hides_are_asked_all_the_same(
    make_world: MakeWorld,
) -> None:
    polled = {"updated_at": "at", "clock": "database", "deletes": "reconcile"}
    name = "pragma_table_xinfo"
    world = make_world(method="polling", tables=[{"name": name, "polling": polled}])
    row = "insert into pragma_table_xinfo values ({}, strftime('%Y-%m-%d %H:%M:%f', 'now'))"
    world.run(
        f"create table {name}(id integer primary key, at text not null)",
        *(
            f"create view pragma_{hidden} as select 1 as x"
            for hidden in ("table_list", "page_count")
        ),
        "create view pragma_index_list as select 1 as x",
        row.format(1),
    )
    assert world.htap.sync_now().errors == {}
    world.run(row.format(2), f"delete from {name} where id = 1")
    assert world.htap.sync_now().errors == {}
    assert world.htap.verify(name).equal
