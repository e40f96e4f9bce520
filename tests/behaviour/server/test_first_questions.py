"""What tools ask before anybody has written a query: answered, or refused in plain words."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import adbc_driver_flightsql.dbapi as flight_sql
import pytest

from rhei_pipeline import HTAP
from rhei_pipeline.errors import QueryError
from rhei_pipeline.server.flight.server import FlightSqlServer
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

_MADE = (
    "create table orders (id integer primary key, status varchar(20), made date)",
    "insert into orders values (1, 'new', '2026-01-31'), (2, 'paid', null)",
    "create view open_orders as select id, upper(status) as shown from orders where id < 2",
)
#: Of every engine.
_ALIVE = (
    "select 1",
    "SELECT 1;",
    "/* ping */ select 1 as one",
    "select 1 where 1 = 0",
    "values (1)",
)
_SESSIONS = ("begin", "commit", "rollback", "set x = 1", "use main")

#: Of DBeaver, Metabase's and other JDBC drivers, psql, SQLAlchemy (Superset), Grafana and dbt.
_POSTGRES = (
    *("select version()", "select pg_catalog.version()", "select current_database()"),
    *("select current_schema()", "select current_user, session_user", "select current_catalog"),
    *("show server_version", "SHOW TRANSACTION ISOLATION LEVEL", "show search_path", "show all"),
    *("show standard_conforming_strings", "SHOW max_identifier_length", "table open_orders"),
    "select current_setting('server_version_num')::int / 100 as version",
    "select table_schema, table_name, table_type from information_schema.tables order by 1, 2",
    "select column_name, data_type from information_schema.columns where table_name = 'orders'",
    "select * from information_schema.schemata",
    "select * from information_schema.key_column_usage",
    "SELECT db.oid, db.* FROM pg_catalog.pg_database db WHERE datallowconn AND NOT datistemplate",
    "SELECT n.oid, n.*, d.description FROM pg_catalog.pg_namespace n LEFT OUTER JOIN"
    " pg_catalog.pg_description d ON d.objoid = n.oid AND d.objsubid = 0"
    " AND d.classoid = 'pg_namespace'::regclass ORDER BY nspname",
    "SELECT c.oid, c.*, d.description, pg_catalog.pg_get_expr(c.relpartbound, c.oid),"
    " pg_catalog.pg_get_partkeydef(c.oid) FROM pg_catalog.pg_class c LEFT OUTER JOIN"
    " pg_catalog.pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass"
    " WHERE c.relnamespace = 2200 AND c.relkind NOT IN ('i', 'I', 'c')",
    "SELECT t.oid, t.*, format_type(nullif(t.typbasetype, 0), t.typtypmod) FROM pg_type t",
    "SELECT typcategory FROM pg_catalog.pg_type WHERE 1 <> 1 LIMIT 1",
    "select * from pg_catalog.pg_settings",
    "select string_agg(word, ',') from pg_catalog.pg_get_keywords()",
    "SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n"
    " ON n.oid = c.relnamespace WHERE c.relkind = ANY (ARRAY['r', 'p'])"
    " AND pg_catalog.pg_table_is_visible(c.oid) AND n.nspname != 'pg_catalog'",
    "SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), pg_get_expr(d.adbin,"
    " d.adrelid), a.attnotnull FROM pg_catalog.pg_attribute a LEFT JOIN pg_attrdef d"
    " ON a.attrelid = d.adrelid AND a.attnum = d.adnum WHERE a.attrelid = 'orders'::regclass"
    " AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
    "SELECT quote_ident(table_name) FROM information_schema.tables WHERE table_schema = 'public'",
    "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'",
    "select distinct nspname from pg_namespace",
    "select 'x' as database, tablename as name, schemaname as schema, 'table' as type"
    " from pg_tables union all select 'x', viewname, schemaname, 'view' from pg_views"
    " union all select 'x', matviewname, schemaname, 'materialized view' from pg_matviews",
    "SELECT NULL AS TABLE_CAT, n.nspname AS TABLE_SCHEM, c.relname AS TABLE_NAME,"
    " CASE n.nspname ~ '^pg_' WHEN true THEN 'SYSTEM' ELSE 'TABLE' END AS TABLE_TYPE"
    " FROM pg_catalog.pg_namespace n, pg_catalog.pg_class c WHERE c.relnamespace = n.oid",
    "select has_table_privilege('orders', 'select'), pg_total_relation_size('orders')",
    "select pg_is_in_recovery(), pg_backend_pid(), now(), pg_postmaster_start_time()",
    "select pg_size_pretty(pg_database_size(current_database()))",
    "select obj_description('orders'::regclass), col_description('orders'::regclass, 1)",
    "select pg_get_viewdef('open_orders'::regclass), to_regclass('nothing')",
    "select i.relname, pg_get_indexdef(x.indexrelid) from pg_index x join pg_class i"
    " on i.oid = x.indexrelid where x.indrelid = 'orders'::regclass",
    "select count(*) from pg_stat_activity",
    "explain select * from orders",
)
_POSTGRES_REFUSES = (
    *_SESSIONS,
    *("SET extra_float_digits = 3", "set application_name = 'DBeaver'", "DISCARD ALL"),
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SELECT set_config('bytea_output', 'hex', false) FROM pg_settings",
    *("show tables", "describe orders", "select txid_current()", "select nothing.version()"),
)
_SQLITE = (
    *("select sqlite_version()", "select current_timestamp", "select * from sqlite_schema"),
    "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'",
    'SELECT name, sql FROM "main".sqlite_master',
    *('PRAGMA main.table_info("orders")', "PRAGMA table_list", "PRAGMA foreign_key_list('orders')"),
    *("PRAGMA index_list('orders')", "PRAGMA encoding", "PRAGMA user_version"),
    "select m.name, p.name from sqlite_master m join pragma_table_info(m.name) p",
    *("explain query plan select * from orders", "select * from open_orders"),
)
_SQLITE_REFUSES = (
    *_SESSIONS,
    *("select version()", "select current_database()", "show tables", "show server_version"),
    *("describe orders", "select * from information_schema.tables", "select * from pg_class"),
    *("pragma foreign_keys = on", "pragma journal_mode = delete", "PRAGMA database_list"),
    "attach ':memory:' as x",
)
_DUCKDB = (
    *("select version()", "select current_database()", "select current_schema()"),
    *("select current_user", "show tables", "show all tables", "describe orders", "from orders"),
    "select table_schema, table_name from information_schema.tables",
    "select column_name, data_type from information_schema.columns where table_name = 'orders'",
    *("select * from information_schema.schemata", "select * from pg_catalog.pg_tables"),
    *("select * from duckdb_tables()", "select * from duckdb_columns()", "summarize orders"),
    "explain select * from orders",
)
_DUCKDB_REFUSES = (
    *_SESSIONS,
    *("pragma version", "pragma database_list", "select * from duckdb_settings()"),
    *("call pragma_version()", "show columns from orders", "select current_setting('threads')"),
    *("attach ':memory:' as x", "install httpfs", "select * from _rhei_progress"),
)
_DATAFUSION = ("select version()", "describe orders", "explain select * from orders")
_DATAFUSION_REFUSES = (
    *_SESSIONS,
    *("select current_database()", "show tables", "show all", "show search_path"),
    *("select * from information_schema.tables", "select * from pg_catalog.pg_tables"),
)
_SENTINEL = "select count(*) as n from orders"


@contextmanager
def _client(htap: HTAP) -> Iterator[Any]:
    with FlightSqlServer(htap) as server:
        address = f"grpc://127.0.0.1:{server.port}"
        with flight_sql.connect(address, autocommit=True) as client, client.cursor() as cursor:
            yield cursor


def _asked(cursor: Any, sql: str) -> Any:
    cursor.execute(sql)
    return cursor.fetch_arrow_table()


def _assert_refused(sql: str, text: str, world: World | PostgresWorld) -> None:
    assert len(text) > 10, sql
    # An error that is none of ours is a number that stands in the server's log.
    assert not any(odd in text for odd in ("Traceback", "in its log", str(world.directory))), text


def _check_mirror(world: World, answered: Sequence[str], refused: Sequence[str]) -> None:
    for sql in answered:
        assert world.htap.query(sql, hint="olap").num_columns, sql
    for sql in refused:
        with pytest.raises(QueryError) as raised:
            world.htap.query(sql, hint="olap")
        _assert_refused(sql, str(raised.value), world)
    assert world.htap.query(_SENTINEL, hint="olap")["n"].to_pylist() == [2]


def _check_source(
    world: World | PostgresWorld, answered: Sequence[str], refused: Sequence[str]
) -> None:
    with _client(world.htap) as cursor:
        for sql in answered:
            found = world.htap.query(sql)
            over = _asked(cursor, sql)
            assert over.schema.names == found.schema.names, sql
            assert found.num_columns, sql
        for sql in refused:
            with pytest.raises(QueryError) as raised:
                world.htap.query(sql)
            _assert_refused(sql, str(raised.value), world)
            with pytest.raises(flight_sql.Error) as over_wire:
                _asked(cursor, sql)
            _assert_refused(sql, str(over_wire.value), world)
        assert _asked(cursor, _SENTINEL)["n"].to_pylist() == [2]
        assert {("TABLE", "orders"), ("VIEW", "open_orders")} <= _shown(cursor)


def _shown(cursor: Any) -> set[tuple[str, str]]:
    objects = cursor.connection.adbc_get_objects(depth="tables").read_all().to_pylist()
    return {
        (table["table_type"], table["table_name"])
        for catalog in objects
        for schema in catalog["catalog_db_schemas"]
        for table in schema["db_schema_tables"]
    }


def test_a_sqlite_source_and_a_duckdb_mirror_know_what_tools_ask(world: World) -> None:
    world.run("drop table orders", *_MADE)
    world.htap.sync_now()
    _check_source(world, (*_ALIVE, *_SQLITE), _SQLITE_REFUSES)
    _check_mirror(world, (*_ALIVE, *_DUCKDB), _DUCKDB_REFUSES)


def test_a_datafusion_mirror_knows_what_tools_ask(make_world: Callable[..., World]) -> None:
    world = make_world(storage="ipc")
    world.run(*_MADE)
    world.htap.sync_now()
    _check_mirror(world, (*_ALIVE, *_DATAFUSION), _DATAFUSION_REFUSES)


@pytest.mark.long
def test_a_postgres_source_knows_what_tools_ask(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres()
    world.run(*_MADE)
    world.htap.sync_now()
    _check_source(world, (*_ALIVE, *_POSTGRES), _POSTGRES_REFUSES)


def test_views_are_shown_with_their_columns(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.run(*_MADE, "create view broken as select * from no_table")
    world.htap.sync_now()
    with _client(world.htap) as cursor:
        found = cursor.connection.adbc_get_objects(
            depth="all", table_name_filter="%o%", table_types_filter=["VIEW"]
        ).read_all()
    tables = found.to_pylist()[0]["catalog_db_schemas"][0]["db_schema_tables"]
    named = {
        table["table_name"]: [column["column_name"] for column in table["table_columns"]]
        for table in tables
    }
    assert named == {"broken": [], "open_orders": ["id", "shown"]}
