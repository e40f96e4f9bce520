"""Rows that nearly fill a page of PostgreSQL: the log of a history has less room for them."""

from collections.abc import Callable

import pytest

from tests.support.fix_postgres import PostgresWorld

#: Numbers that lie in the row, and texts that are too short to be stored beside it.
WIDE = {"numbers": (998, "bigint", "7"), "texts": (336, "text", f"'{'x' * 23}'")}


def wide(kind: str) -> tuple[list[str], str]:
    """Return the names of a table's columns beside its key, and the statement that makes it."""
    number, type_, _ = WIDE[kind]
    names = [f"c{place}" for place in range(number)]
    return names, f"create table t(id int primary key, {', '.join(f'{n} {type_}' for n in names)})"


@pytest.mark.parametrize("kind", WIDE)
@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_a_row_that_fits_the_table_alone_is_written_and_keeps_its_history(
    make_postgres: Callable[..., PostgresWorld], kind: str, isolation: str
) -> None:
    world = make_postgres(capture={"method": "trigger"}, mode="temporal")
    names, table = wide(kind)
    value = WIDE[kind][2]
    row = ", ".join([value] * len(names))
    world.run(table, "create table u(id int primary key, v text)")
    assert not world.htap.sync_now().errors
    world.run(
        f"set default_transaction_isolation = '{isolation}'",
        f"insert into t values (1, {row}), (2, {row})",
        f"insert into t(id, c0) values (3, {value})",
        "update t set c1 = null where id = 1",
        f"update t set c1 = {value} where id = 1",
        "update t set id = 9 where id = 1",
        "delete from t where id = 2",
        f"insert into t values (2, {row})",
        "insert into u values (1, 'a')",
        "truncate t",
    )
    for change in (f"insert into t values (1, {row})", "update t set c2 = null"):
        world.run(change)
        assert not world.htap.sync_now().errors
        world.assert_equal("t", "u")
    assert world.htap.verify().equal
    told = [
        (version["id"], version["c1"] is None, version["_rhei_valid_to"] is None)
        for version in world.versions("t", "id, _rhei_valid_from")
    ]
    assert told == [
        *[(1, False, False), (1, True, False), (1, False, False)],
        *[(1, False, False), (1, False, True)],
        *[(2, False, False), (2, False, False), (3, True, False), (9, False, False)],
    ]


@pytest.mark.long
@pytest.mark.parametrize(
    "way",
    [
        {"tables": [{"name": "t", "columns": ["id", "c0"]}, {"name": "u"}]},
        {"mode": "destructive"},
        {"capture": {"method": "logical"}},
    ],
    ids=["columns", "mode", "capture"],
)
def test_a_history_of_too_many_columns_is_named_with_ways_out(
    make_postgres: Callable[..., PostgresWorld], way: dict[str, object]
) -> None:
    declared = {"capture": {"method": "trigger"}, "mode": "temporal"}
    world = make_postgres(**declared)
    columns = ", ".join(f"c{place} boolean" for place in range(1595))
    world.run(f"create table t(id int primary key, {columns})", "insert into t values (1, true)")
    world.run("create table u(id int primary key)", "insert into u values (1)")
    refused = world.htap.sync_now().errors
    assert refused.keys() == {"t"}
    assert "log of its 1596 columns and 5 more" in refused["t"]
    world.assert_equal("u")
    world.close()
    other = make_postgres(**{**declared, **way})
    assert not other.htap.sync_now().errors
    other.run("insert into t values (2, false)")
    assert not other.htap.sync_now().errors
    assert other.htap.verify().equal
