"""The least and greatest reals of groups, in the mirror's own SQL, where some are infinite."""

from collections.abc import Callable

import pytest

from rhei_pipeline.errors import QueryError
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

pytestmark = pytest.mark.turns

_REFUSED = (
    "select g, min(r) as x from t group by g order by g",
    "select g, max(r) filter (where r < 0) as x from t group by g order by g",
    "select g, min(r + 1) as x from t where g < 3 group by g, n order by g",
    "select max(x) as x from (select g, min(r) as x from t group by g) y",
    "select id as x from t where r = (select min(r) from t u where u.g = t.g) order by id",
)
_ANSWERED = (
    "select min(r) as x, max(r) as y from t",
    "select g, min(n) as x from t group by g order by g",
    "select g, max(r) as x from t where g >= 3 group by g order by g",
    "select id, min(r) over (partition by g) as x from t order by id",
    "select g, min(r) as x from t where abs(r) < 'infinity' group by g order by g",
)


@pytest.mark.parametrize("storage", ["memory", "parquet"])
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_the_extremes_of_groups_are_refused_where_reals_are_infinite(
    make_world: Callable[..., World], storage: str, mode: str
) -> None:
    world = make_world(storage=storage, mode=mode)
    world.run(
        "create table t(id integer primary key, g integer, r real, n integer)",
        "insert into t values (1, 1, 9e999, 1), (2, 1, 9e999, 2), (3, 2, -9e999, null),"
        " (4, 3, 2.5, 4), (5, 3, null, 5), (6, 4, -1.5, 6)",
    )
    world.htap.sync_now()
    for sql in _REFUSED:
        with pytest.raises(QueryError, match="where a real is infinite or NaN"):
            world.htap.query(sql, hint="olap")
        expected = world.htap.query(sql, hint="oltp").to_pylist()
        assert world.htap.query(sql).to_pylist() == expected
    for sql in _ANSWERED:
        plain = sql.replace("'infinity'", "9e999")
        expected = world.htap.query(plain, hint="oltp").to_pylist()
        assert world.htap.query(sql, hint="olap").to_pylist() == expected, sql


def test_the_extremes_of_groups_are_refused_beside_nan(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres(storage="ipc")
    world.run(
        "create table t(id integer primary key, g integer, r float8)",
        "insert into t values (1, 1, 1.0), (2, 1, 'nan'), (3, 2, 0.5)",
    )
    world.htap.sync_now()
    sql = "select g, min(r) as x from t group by g order by g"
    with pytest.raises(QueryError, match="where a real is infinite or NaN"):
        world.htap.query(sql, hint="olap")
    assert world.htap.query(sql)["x"].to_pylist() == [1.0, 0.5]
    kept = sql.replace("group", "where abs(r) < 'infinity' group")
    assert world.htap.query(kept, hint="olap")["x"].to_pylist() == [1.0, 0.5]
