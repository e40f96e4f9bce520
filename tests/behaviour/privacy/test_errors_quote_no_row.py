"""What a query fails with quotes nothing of a row: not in its message, not by what caused it."""

import traceback
from collections.abc import Callable, Iterator
from typing import Literal

import duckdb
import pytest

from rhei_pipeline import HTAP, RheiError
from rhei_pipeline.errors import MirrorError
from rhei_pipeline.mirrors.duckdb.driver_errors import translated
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

#: Values of the one row, as they or their parts would be seen.
SECRETS = ("Hunter", "7771", "07:07")
ROW = (
    "insert into t values (1, 'Hunter2000', 777123, 777123.45, '2026-01-02 07:07:12', '$.[Hunter')"
)
HUNTER = "'Hunter2000'"
AGAIN = "insert into t(id, v) values (2, 'Hunter2000')"
DUCKDB = (
    *("v::int", "v::double", "v::boolean", "v::date", "v::timestamp", "v::interval", "v::uuid"),
    *("v::decimal(5, 2)", "p::decimal(3, 1)", "n::tinyint", "n::utinyint", "v::json"),
    *("n * 9223372036854775807", "substr(v, n * n * n * n)", "repeat(v, n * n)", "sqrt(-n)"),
    *("json_extract(v, '$.a')", "json_extract('{}', j)", "date_trunc(v, m)", "strftime(m, v)"),
    *("regexp_replace('a', v || '(', '')", "error(v)", "from_base64(v)", "unhex(v)"),
    *("make_date(n, 1, 1)", "printf(v || '%d %d', 1)", "format(v || '{', n)", "chr(n::int)"),
)
DATAFUSION = (
    *("cast(v as int)", "cast(v as double)", "cast(v as date)", "cast(v as timestamp)"),
    *("cast(v as interval)", "cast(v as decimal(5, 2))", "cast(p as decimal(3, 1))"),
    *("cast(n as tinyint)", "make_date(n, 1, 1)", "regexp_replace('a', v || '(', '')"),
    *("arrow_cast(v, 'Int32')", "to_timestamp(v)", "date_trunc(v, m)", "chr(n * 1000)"),
    *("decode(v, 'hex')", "to_date(v)", "to_char(m, v || '%')", "n % 0", "power(n, n)"),
)
SQLITE = (
    *("json_extract(v, '$.a')", "json_extract('{}', j)", "json_extract('{}', v)", "abs(-n)"),
    *("json_set('{}', v, 1)", "sum(n * 13000000000000)", "printf('%999999999d', v)"),
)
POSTGRES = (
    *("v::int", "v::date", "v::timestamp", "v::uuid", "v::json", "v::interval", "v::boolean"),
    *("n::smallint", "p::numeric(3, 1)", "make_date(n::int, 1, 1)", "chr(n::int)"),
    *("decode(v, 'hex')", "date_trunc(v, m::timestamp)", "v ~ (v || '(')", "j::jsonpath"),
    *("to_timestamp(v, v)", "encode(v::bytea, v)", "convert_from(v::bytea, v)", "n::money::int2"),
)


def told_of(
    htap: HTAP, hint: Literal["olap", "oltp"], asked: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """Yield each query that fails, and all that is shown of its error."""
    for expression in asked:
        sql = f"select {expression} as r from t"
        try:
            htap.query(sql, hint=hint)
        except RheiError as error:
            shown = "".join(traceback.format_exception(error))
            yield expression, shown.replace(sql, "").replace(expression, "")


@pytest.mark.parametrize("engine", ["duckdb", "datafusion", "sqlite"])
def test_an_error_of_a_query_quotes_no_row(make_world: Callable[..., World], engine: str) -> None:
    world = make_world(storage="parquet" if engine == "datafusion" else None)
    world.run(
        "create table t(id integer primary key, v text, n bigint, p decimal(20, 2), m timestamp,"
        " j text)",
        ROW,
    )
    world.htap.sync_now()
    asked = {"duckdb": DUCKDB, "datafusion": DATAFUSION, "sqlite": SQLITE}[engine]
    told = list(told_of(world.htap, "oltp" if engine == "sqlite" else "olap", asked))
    assert len(told) > len(asked) / 2
    for expression, shown in told:
        assert not any(secret in shown for secret in SECRETS), (expression, shown)


@pytest.mark.parametrize("expression", ["error(v)", "v::int", "regexp_replace('a', v || '(', '')"])
def test_an_error_of_what_is_written_quotes_no_row(expression: str) -> None:
    with duckdb.connect() as connection:
        connection.execute(f"create table t as select {HUNTER} as v")
        with pytest.raises(MirrorError) as met, translated("m"):
            connection.execute(f"create table u as select {expression} as r from t")
    assert "Hunter" not in "".join(traceback.format_exception(met.value))


def test_an_error_of_a_write_that_returns_a_text_quotes_no_row(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.run("create table t(id integer primary key, v text)")
    with pytest.raises(RheiError, match="Could not decode") as met:
        world.htap.execute("insert into t values (1, cast('Hunter' || x'ff' as text)) returning v")
    shown = "".join(traceback.format_exception(met.value))
    assert "Hunter" not in shown.replace("'Hunter' || x'ff'", "")


def test_an_error_of_postgres_quotes_no_row(make_postgres: Callable[..., PostgresWorld]) -> None:
    world = make_postgres()
    world.run(
        "create table t(id int primary key, v text unique, n bigint, p numeric(20, 2), m text,"
        " j text)",
        ROW,
    )
    told = list(told_of(world.htap, "oltp", POSTGRES))
    assert len(told) > len(POSTGRES) / 2
    with pytest.raises(RheiError) as met:
        world.htap.execute(AGAIN)
    told.append(("unique", "".join(traceback.format_exception(met.value))))
    for expression, shown in told:
        assert not any(secret in shown for secret in SECRETS), (expression, shown)


def test_an_error_behind_the_first_rows_quotes_no_row(make_world: Callable[..., World]) -> None:
    """It reaches us through Arrow, which keeps the text alone."""
    world = make_world()
    world.run(
        "create table t(id integer primary key, v text)",
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < 300000)"
        " insert into t select i, iif(i = 299999, 'Hunter2000', '1') from n",
    )
    world.htap.sync_now()
    with pytest.raises(RheiError) as met:
        world.htap.query("select v::int as r from t order by id", hint="olap")
    assert "Hunter" not in "".join(traceback.format_exception(met.value))
