"""A name means the column that the source takes it for, be that one the mirror does not have."""

from collections.abc import Callable, Sequence

import pytest

from rhei_pipeline import HTAP
from rhei_pipeline.errors import QueryError
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

#: What both sources have; the mirror has neither `x.state` nor the rows' own numbers.
_TABLES = (
    "create table x(id integer primary key, n integer, state integer, count integer)",
    "create table y(id integer primary key, state integer, length integer, t varchar(9))",
    *(f"insert into x values ({n}, {n % 3}, {n % 2}, {n * 3 % 5})" for n in range(1, 8)),
    *(f"insert into y values ({n}, {9 - n}, {n}, '{'ab' * (n % 4)}')" for n in range(1, 6)),
)
_DECLARED = [{"name": "x", "columns": ["id", "n", "count"]}, {"name": "y"}]
_QUERIES = (
    "select id, (select count(*) from x where state = 1) as k from y order by id",
    "select count(*) from y where exists (select 1 from x where state = 7)",
    "select count(*) from y where id in (select state from x)",
    "select count(*) from y where id in (select id from x where n = state)",
    "select n as state, count(*) as k from x group by n, state order by 1, 2",
    "select id, (select sum(count) from (select n, count(*) from x group by n) q) as k from"
    " (select id, 7 as count from y) o order by id",
    "select id, (select max(k.id) from x k where k.n = 0) as m from y k order by id",
    "select id, exists (select n + 1 as length from x group by length having count(*) > 2) as k"
    " from y order by id",
    "select id, (select count(*) from x where n = length) as k from y order by id",
    "select count(*) from y natural join (select id, n as m from x) z",
    "select y.state, count(*) as k from y join (select id, n from x) z using (id)"
    " group by y.state order by k, state",
)


def _assert_alike(htap: HTAP, sql: str) -> None:
    expected, found = (htap.query(sql, hint=hint) for hint in ("oltp", "auto"))
    assert found.schema.names == expected.schema.names, sql
    assert found.to_pydict() == expected.to_pydict(), sql


def _assert_refused(htap: HTAP, statements: Sequence[str]) -> None:
    for sql in statements:
        for hint in ("oltp", "auto"):
            with pytest.raises(QueryError):
                htap.query(sql, hint=hint)


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_a_column_that_only_postgres_has_is_none_of_a_query_around(
    make_postgres: Callable[..., PostgresWorld], storage: str | None
) -> None:
    world = make_postgres(tables=_DECLARED, storage=storage)
    world.run(*_TABLES)
    world.htap.sync_now()
    for sql in _QUERIES:
        _assert_alike(world.htap, sql)
    # Functions and computed columns of a table within have names of theirs, too.
    grouped = "(select n, count(*) from x group by n) q"
    counts = f"(select count(*) from {grouped} where count > 2)"
    for sql in (
        f"select id, {counts} as k from (select id, 7 as count from y) o order by id",
        f"select 5 as count, count(*) as k from {grouped} group by count order by k",
        "select id, exists (select abs(n) from x group by abs having count(*) > 3) as k"
        " from (select id, 1 as abs from y) o order by id",
    ):
        _assert_alike(world.htap, sql)
    # It is looked for in the next table of its name, and nowhere further out.
    further = "select id, exists (select 1 from x k where k.length > 2) as m from y k"
    aggregate = "exists (select max(n) from x group by max having count(*) > 3)"
    _assert_refused(world.htap, [further, f"select {aggregate} from (select 1 as max) o"])
    for column in ("ctid", "xmin"):
        inner = f"select count(*) from x where {column} is null"
        sql = f"select id, ({inner}) as k from (select id, null as {column} from y) o order by id"
        _assert_alike(world.htap, sql)


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_a_column_that_only_sqlite_has_is_none_of_a_query_around(
    make_world: Callable[..., World], storage: str | None
) -> None:
    world = make_world(tables=_DECLARED, storage=storage)
    for statement in _TABLES:
        world.run(statement)
    world.htap.sync_now()
    for sql in _QUERIES:
        _assert_alike(world.htap, sql)
    for column in ("rowid", "oid", "_rowid_"):
        inner = f"select count(*) from x where {column} = 2"
        sql = f"select id, ({inner}) as k from (select id, 99 as {column} from y) o order by id"
        _assert_alike(world.htap, sql)
    # An alias stands before the columns of the queries around, in WHERE, too.
    alias = "select id, exists (select n + 1 as length from x where length > 4) as k from y"
    _assert_alike(world.htap, f"{alias} order by id")
    # A column without an alias is no output's name: this orders by the table's on the left.
    joined = "select y.state, x.id from (select id, n, id % 5 as state from x) x left join y"
    _assert_alike(world.htap, f"{joined} using (state) order by state, x.id")
    # One of a star is.
    starred = "select z.* from y z join y k on z.state = k.id order by id"
    _assert_alike(world.htap, starred)
    assert world.htap.explain_route(starred).engine == "olap"


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_columns_are_joined_whose_names_postgres_holds_equal(
    make_postgres: Callable[..., PostgresWorld], storage: str | None
) -> None:
    world = make_postgres(storage=storage)
    world.run(
        'create table x(id integer primary key, "N" integer)',
        "create table y(id integer primary key, n integer)",
        'create table z("Id" integer primary key, n integer)',
        "insert into x select i, i % 3 from generate_series(1, 9) i",
        "insert into y select i, i % 2 from generate_series(1, 7) i",
        "insert into z select i + 3, i from generate_series(1, 7) i",
    )
    world.htap.sync_now()
    for sql in (
        "select count(*) from x natural join y",
        "select count(*) from z natural join y",
        "select count(*) from z natural join x",
        "select count(*), sum(n) from (select * from z natural left join y) q",
        'select count(*), sum("N") from (select * from y join (select id, n as "N" from y) q'
        " using (id)) q",
        "select count(*) from (select n as count from y) a natural join"
        " (select n, count(*) from z group by n) b",
        "select count(*) from (select n, 1 as count from y) a natural join"
        " (select n, count(*) from z where n > 9 or n = 1 group by n) b",
        "select count(*) from (select n, 2 as count from y) a natural join"
        " (select n, count(*) from z group by n) b",
        'select * from y join (select id, id + 1 as "ID" from y) q using (id) order by id',
    ):
        _assert_alike(world.htap, sql)
    wrong = (
        "select count(*) from z join y using (id)",
        'select count(*) from x join y using ("N")',
    )
    _assert_refused(world.htap, wrong)


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_an_order_is_by_the_output_that_postgres_names_for_its_function(
    make_postgres: Callable[..., PostgresWorld], storage: str | None
) -> None:
    world = make_postgres(storage=storage)
    world.run(
        "create table t(id integer primary key, n integer, count integer, sum integer, max integer,"
        ' length integer, "case" integer, t varchar(9), int8 integer)',
        *(
            f"insert into t values ({i}, {i % 2}, {i * 7 % 5}, {-i}, {9 - i}, {-i}, {i % 5},"
            f" '{'ab' * (i % 3)}', {i % 4})"
            for i in range(1, 12)
        ),
    )
    world.htap.sync_now()
    for sql in (
        "select count(*) from t group by count order by count",
        "select count(*), n from t group by n, count order by count, n",
        "select n, sum(id) from t group by n, sum order by sum",
        "select max(n), sum(id) over () from t group by id, max order by max, id",
        "select length(t), id from t where exists (select 1 from t) order by length, id",
        'select case when id > 4 then -id end, n from t group by id, n, "case" order by "case", id',
        "select -id, count(*) from t group by id, n order by n, id",
        "select sum(n) from (select (-id)::bigint, n from t order by int8, id limit 3) q",
        'select -id from (select id, id as "?column?" from t) q order by "?column?"',
    ):
        _assert_alike(world.htap, sql)
    _assert_refused(world.htap, ["select count, count(*) from t group by count order by count"])
    for by_column in (
        "select n, count(*), sum(id) from t group by n order by n",
        "select sum(id) over (), id from t where exists (select 1 from t) order by id",
        "select count(*) from (select n::bigint, id from t order by id limit 3) q",
    ):
        _assert_alike(world.htap, by_column)
        assert world.htap.explain_route(by_column).engine == "olap", by_column
