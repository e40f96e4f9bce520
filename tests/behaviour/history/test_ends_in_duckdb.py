"""Versions that end in a DuckDB mirror: written again beside the new ones, or changed in place."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import duckdb
import pytest

from rhei_pipeline.mirrors.duckdb import versions as ending
from tests.support.fix_world import World

pytestmark = pytest.mark.turns

#: How many bytes a vector is worth: then no version is written again, or each. What few keys are.
#: Where rows are taken for large ones, nobody has what they held at hand.
WAYS = {"in place": (0, 0), "written again": (2**40, 250), "large": (2**40, 250)}


@pytest.fixture(params=[*WAYS])
def made(
    make_world: Callable[..., World],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> World:
    worth, few = WAYS[request.param]
    monkeypatch.setattr(ending, "_VECTOR_BYTES", worth)
    monkeypatch.setattr(ending, "_FEW", few)
    if request.param == "large":
        monkeypatch.setattr(ending, "are_large", lambda _: True)
    # Few rows at once, so that a version ends in the transaction in which it began.
    world = make_world(mode="temporal", batch_rows=2, tables=[{"name": "t"}])
    world.run(
        "create table t(k integer primary key, v real, w text, b blob, d date, j json, gone text)",
        "insert into t select value, 0.5, 'w' || value, x'00ff', '2026-01-01', '{\"a\": 1}', 'g'"
        " from json_each('[1, 2, 3, 4]')",
    )
    world.htap.sync_now()
    return world


def of(world: World, key: int) -> list[tuple[Any, ...]]:
    found = world.htap.query(
        "select v, w, b, d::varchar, j::varchar, gone, _rhei_operation, _rhei_valid_to is null"
        f" from t where k = {key} order by _rhei_valid_from",
        hint="olap",
    )
    return [tuple(row.values()) for row in found.to_pylist()]


def test_a_version_that_ends_keeps_what_it_held(made: World) -> None:
    held = ("w1", b"\x00\xff", "2026-01-01", '{"a": 1}')
    made.run("update t set v = 1e300 where k = 1")
    made.htap.sync_now()
    made.run("alter table t drop column gone", "delete from t where k = 1")
    made.run("update t set w = null where k = 2")
    made.htap.sync_now()
    assert of(made, 1) == [
        (0.5, *held, "g", "I", False),
        (1e300, *held, "g", "D", False),
    ]
    made.run("update t set w = 'x' where k = 3")
    made.htap.sync_now()
    assert [version[-3:] for version in of(made, 3)] == [("g", "I", False), (None, "U", True)]
    told = [(version[1], *version[-3:]) for version in of(made, 2)]
    assert told[0] == ("w2", "g", "I", False)
    assert told[-1] == (None, None, "U", True)
    assert made.htap.verify().equal


def test_versions_of_one_cycle_end_in_their_order(made: World) -> None:
    for turn in range(1, 6):
        made.run(f"update t set v = {turn} where k < 3", "delete from t where k = 4")
        made.run("insert into t(k, v) values (4, 9)")
    report = made.htap.sync_now()
    assert (report.updated, report.deleted) == (10, 5)
    assert [version[0] for version in of(made, 1)] == [0.5, 1, 2, 3, 4, 5]
    assert [version[-2:] for version in of(made, 4)] == [*[("D", False)] * 5, ("I", True)]
    found = made.versions("t", "k, _rhei_valid_from")
    for before, after in pairwise(found):
        if before["k"] == after["k"]:
            assert before["_rhei_valid_to"] <= after["_rhei_valid_from"]
    assert made.htap.verify().equal


@pytest.mark.parametrize(
    "value",
    [
        "to_hours(9000000)",
        "[to_hours(9000000)]",
        "'12:00:00+02'::timetz",
        "(2::hugeint ** 120)::hugeint",
        "'0101'::bit",
        "'2020-01-01 00:00:00.123456789'::timestamp_ns",
    ],
)
def test_a_version_that_ends_keeps_what_somebody_else_put_beside_it(
    made: World, value: str
) -> None:
    """Arrow has no such interval, and takes some types for others."""
    made.crash()
    with duckdb.connect(made.directory / "mirror.duckdb") as connection:
        (kind,) = connection.sql(f"select {value}").types
        connection.execute(f"alter table t add column beside {kind}")
        connection.execute(f"update t set beside = {value}")
    made.run("update t set w = 'x' where k = 1", "delete from t where k = 2")
    made.htap.sync_now()
    made.crash()
    with duckdb.connect(made.directory / "mirror.duckdb", read_only=True) as connection:
        found = connection.execute(
            f"select k, beside is not distinct from {value}, typeof(beside) from t"
            " where _rhei_valid_to is not null order by k"
        ).fetchall()
    assert found == [(1, True, str(kind)), (2, True, str(kind))]
