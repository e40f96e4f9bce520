"""Tables whose names an engine would take for a file, a view of its own, or a word of its SQL."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from rhei_pipeline.errors import QueryError
from rhei_pipeline.sql.text import quote
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

if TYPE_CHECKING:
    from rhei_pipeline.holder.held import Hint

STORAGES = pytest.mark.parametrize("storage", [None, "parquet"])
MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])
NAMES = (
    *("a/b", "../up", "a*b", "a\\b", "x.csv", "data.parquet", "s3://b/k.parquet", "c:x"),
    *("duckdb_databases", "pragma_database_list", "information_schema"),
    *("select", "user", 'a "quoted" one', "new\nline", "n" * 63),
)
#: What our own statements ask SQLite with, and modules of its own that a query may not read.
OF_SQLITE = (
    *("pragma_table_info", "pragma_table_xinfo", "pragma_table_list", "PRAGMA_INDEX_LIST"),
    *("pragma_index_xinfo", "pragma_page_count", "pragma_page_size", "pragma_schema_version"),
    *("json_each", "dbstat", "rtree", "fts5", "temp", "main"),
)
#: A table of PostgreSQL is not found under such a name: the server's own comes first.
OF_POSTGRES = ("pg_settings", "pg_class")
AnyWorld = World | PostgresWorld


def follows(world: AnyWorld, mode: str, names: Sequence[str] = NAMES) -> None:
    """Each table is copied, synced, compared, repaired and read, by its quoted name."""
    tables = [quote(name) for name in names]
    for table in tables:
        world.run(
            f"create table {table}(id integer primary key, v text)",
            f"insert into {table} values (1, 'a'), (2, 'b')",
        )
    assert world.htap.sync_now().errors == {}
    for table in tables:
        world.run(f"update {table} set v = 'c' where id = 1", f"delete from {table} where id = 2")
    report = world.htap.verify()
    assert report.errors == {}
    assert report.equal
    present = " where _rhei_valid_to is null" if mode == "temporal" else ""
    sides: list[tuple[Hint, str]] = [("olap", present), ("oltp", ""), ("auto", "")]
    for name, table in zip(names, tables, strict=True):
        for hint, where in sides:
            found = world.htap.query(f"select max(v) as v from {table} t{where}", hint=hint)
            assert found.to_pylist() == [{"v": "c"}], (name, hint)
        explained = world.htap.query(f"explain select * from {table}", hint="olap")
        assert explained.num_rows
        if mode == "temporal":
            assert world.htap.as_of(name, datetime.now(UTC)).num_rows == 1
    world.htap.repair(NAMES[0])
    assert world.htap.left_out == {}


@pytest.mark.long
@pytest.mark.each
@MODES
@STORAGES
def test_tables_of_sqlite_are_followed_whatever_their_names_look_like(
    make_world: Callable[..., World], mode: str, storage: str | None
) -> None:
    world = make_world(mode=mode, storage=storage)
    follows(world, mode, (*NAMES, *OF_POSTGRES, *OF_SQLITE))
    for asked in ("other/b", "x.tsv"):
        with pytest.raises(QueryError, match="a file instead of a table"):
            world.htap.query(f"select * from {quote(asked)}", hint="olap")


@pytest.mark.long
@pytest.mark.parametrize(("storage", "mode"), [(None, "temporal"), ("parquet", "destructive")])
def test_tables_of_postgres_are_followed_whatever_their_names_look_like(
    make_postgres: Callable[..., PostgresWorld], mode: str, storage: str | None
) -> None:
    tables = [{"name": name} for name in NAMES]
    follows(make_postgres(tables=tables, mode=mode, storage=storage), mode)


def test_a_view_of_duckdb_stays_refused_beside_a_table_of_its_name(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.run("create table pg_settings(id integer primary key)")
    world.htap.sync_now()
    for own in ("pg_settings", "main.pg_settings"):
        assert world.htap.query(f"select * from {own}", hint="olap").num_rows == 0
    for other in ("pg_catalog.pg_settings", "system.pg_catalog.pg_settings", "duckdb_databases"):
        with pytest.raises(QueryError, match="tells of the server"):
            world.htap.query(f"select * from {other}", hint="olap")
