"""Statements in the mirror's own SQL: decimals without room are refused, and never wrap around."""

from collections.abc import Callable
from decimal import Decimal

import pytest

from rhei_pipeline.errors import QueryError
from tests.support.fix_postgres import PostgresWorld

_ROWS = (
    "create table t (id int primary key, g int, d numeric(38, 2), m numeric(15, 2))",
    f"insert into t values (1, 1, {9 * 10**35}.5, 1.5), (2, 1, {9 * 10**35}, 99999.99),"
    f" (3, 2, -{9 * 10**35}, 0.25), (4, 3, 2, null)",
)
_WITHOUT_ROOM = (
    "select sum(d) as x from t where g = 1",
    "select g, sum(d) as x from t group by g",
    "select sum(distinct d + id) as x from t where g = 1",
    "select sum(d) filter (where g = 1) as x from t",
    "select id, sum(d) over (order by id) as x from t",
    "select id from t where d + 1 > (select sum(d) from t where g = 1)",
    "select id from t a where d > (select sum(d) from t b where b.g = a.g)",
    "with s as (select d from t union all select d from t) select sum(d) as x from s where d < 0",
    "select avg(d) as x from t where g = 1",
    "select d + d as x from t where g = 1",
    "select d * d as x from t where g = 1",
    "select cast(d as decimal(10, 2)) as x from t where g = 1",
)
_WITH_ROOM = (
    "select sum(d) as x from t where g = 3",
    "select sum(d) as x from t where g = 4",
    "select sum(m * m) as x, sum(m) as y from t",
    "select id, sum(m) over (order by id) as x from t order by id",
    "select (select sum(d) from t where g = 2) as x, sum(id) as y from t",
)


@pytest.mark.parametrize("storage", [None, "ipc"])
def test_decimals_without_room_are_refused_in_the_mirrors_own_sql(
    make_postgres: Callable[..., PostgresWorld], storage: str | None
) -> None:
    world = make_postgres(mode="temporal", storage=storage)
    world.run(*_ROWS)
    world.htap.sync_now()
    for sql in _WITHOUT_ROOM:
        with pytest.raises(QueryError):
            world.htap.query(sql, hint="olap")
    with pytest.raises(QueryError):
        world.htap.query("select sum(d * ?) as x from t", (Decimal("0.999"),), hint="olap")
    with pytest.raises(QueryError):
        list(world.htap.stream("select sum(d) from t where _rhei_valid_to is null").batches)
    for sql in _WITH_ROOM:
        expected = world.htap.query(sql, hint="oltp").to_pylist()
        assert world.htap.query(sql, hint="olap").to_pylist() == expected, sql


def test_a_sum_without_room_is_exact_where_its_decimals_are_widened(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres(storage="ipc")
    world.run(*_ROWS)
    world.htap.sync_now()
    with pytest.raises(QueryError, match=r"more than 38 digits .*'Decimal256\(76, 2\)'"):
        world.htap.query("select sum(d) as x from t where g = 1", hint="olap")
    wide = "select sum(arrow_cast(d, 'Decimal256(76, 2)')) as x from t where g = 1"
    expected = Decimal(f"{18 * 10**35}.50")
    assert world.htap.query(wide, hint="olap")["x"].to_pylist() == [expected]
    found = world.htap.query("select sum(d) as x from t where g = 1")
    assert found["x"].to_pylist() == [str(expected)]
