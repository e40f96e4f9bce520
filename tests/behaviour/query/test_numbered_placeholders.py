"""A placeholder with a number has the value of that number, whichever side answers."""

from collections.abc import Callable

import pytest

from rhei_pipeline.errors import QueryError
from tests.support.fix_world import World


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    world = make_world(storage="parquet")
    world.run("create table t(id integer primary key, v integer, [$2] text)")
    world.run("insert into t values (1, 10, '$1'), (2, 20, ':1')")
    world.htap.sync_now()
    return world


@pytest.mark.parametrize(
    ("sql", "params", "expected"),
    [
        ("select $2-$1 as x from t where id = $1", (1, 9), [8]),
        ("select ?2 - ?1 as x from t where id = ?1", (1, 9), [8]),
        ("select $2 - $1 as x from t /* $3 */ where id = $1 -- $4", (1, 9), [8]),
        ("select sum(v) as x from t where v >= $2 and v < $1", (15, 5), [10]),
        ("select $10 as x, $1, $2, $3, $4, $5, $6, $7, $8, $9", tuple(range(1, 11)), [10]),
        ("select id as x from t where \"$2\" = '$1' and id < $1", (2,), [1]),
        ("select $a - $b as x", {"b": 1, "a": 3}, [2]),
        ("select $2 - $1 as x", {"1": 1, "2": 3}, [2]),
    ],
)
def test_values_are_those_of_their_numbers(
    world: World, sql: str, params: tuple[object, ...], expected: list[int]
) -> None:
    for hint in ("oltp", "auto", "olap"):
        assert world.htap.query(sql, params, hint=hint)["x"].to_pylist() == expected, hint
    streamed = world.htap.stream(sql, params).batches
    assert [value for batch in streamed for value in batch["x"].to_pylist()] == expected


@pytest.mark.parametrize("mark", ["$", ":", "@"])
def test_a_write_has_its_values_by_number_in_each_form_of_sqlite(world: World, mark: str) -> None:
    written = f"update t set v = {mark}2, [$2] = {mark}3 where id = {mark}1"
    assert world.htap.execute(written, (1, 11, "new")) == 1
    assert world.htap.execute_batch([(written, (2, 22, "$1"))]) == 1
    changed = world.htap.execute_returning(f"{written} returning v", (1, 12, "newer"))
    assert changed["v"].to_pylist() == [12]
    assert world.app.execute("select * from t").fetchall() == [(1, 12, "newer"), (2, 22, "$1")]
    with pytest.raises(QueryError, match="number of bindings"):
        world.htap.execute(written, (1, 13))
    assert world.app.execute("select v from t where id = 1").fetchall() == [(12,)]


def test_a_row_that_is_no_utf8_is_read_by_the_same_numbers(world: World) -> None:
    world.run("update t set [$2] = cast(x'ff' as text) where id = 2")
    with pytest.raises(QueryError, match="not UTF-8"):
        world.htap.query('select "$2" as s from t where id >= $2', (9, 2), hint="oltp")
    found = world.htap.query("select v from t where id >= $2", (9, 2), hint="oltp")
    assert found["v"].to_pylist() == [20]
