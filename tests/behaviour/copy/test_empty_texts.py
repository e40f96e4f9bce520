"""A row of one column whose text is empty is a row like any other."""

from collections.abc import Callable

import pytest

from tests.support.fix_postgres import PostgresWorld


@pytest.mark.parametrize("method", ["trigger", "logical"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("mode", ["destructive", pytest.param("temporal", marks=pytest.mark.long)])
def test_an_empty_text_in_a_table_of_one_column_is_copied(
    make_postgres: Callable[..., PostgresWorld], method: str, rows: int, mode: str
) -> None:
    world = make_postgres(capture={"method": method}, mode=mode)
    world.run(
        "create table t(tag text primary key)",
        f"insert into t select case i when 1 then '' else 'x' || i end"
        f" from generate_series(1, {rows}) i",
    )
    assert world.htap.sync_now().tables["t"].copied_rows == rows
    world.assert_equal("t")
    assert world.htap.verify().equal
    world.htap.initial_sync("t")
    world.assert_equal("t")
    world.run("delete from t where tag = ''")
    world.htap.sync_now()
    world.run("insert into t values ('')")
    world.htap.sync_now()
    world.assert_equal("t")
    found = world.htap.verify()
    assert found.equal
    world.htap.repair("t")
    world.assert_equal("t")
