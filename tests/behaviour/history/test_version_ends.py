"""Versions that end where their rows stand, in mirrors of files: as if they had been moved."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.fix_world import World
from tests.support.model import instant_between
from tests.support.parts import engine_of, manifest_of

Make = Callable[..., World]
STORAGES = ["ipc", "parquet"]


@pytest.fixture(params=STORAGES)
def made(make_world: Make, request: pytest.FixtureRequest) -> World:
    world = make_world(mode="temporal", storage=request.param)
    world.run("create table t(k integer primary key, v int, w text)")
    world.app.executemany("insert into t values (?, 0, 'w')", ((key,) for key in range(900)))
    world.htap.sync_now()
    return world


def segments(world: World) -> Any:
    mirror: Any = engine_of(world.htap).mirror
    return manifest_of(mirror).tables['"t"'].segments


def versions(world: World, key: int) -> list[tuple[Any, ...]]:
    found = world.htap.query(
        "select v, _rhei_operation as o, _rhei_valid_to is null as still from t"
        f" where k = {key} order by _rhei_valid_from",
        hint="olap",
    )
    return [tuple(row.values()) for row in found.to_pylist()]


def test_a_small_change_moves_no_row(made: World) -> None:
    base = segments(made)[0]
    made.run("update t set v = 1 where k < 10", "delete from t where k = 10")
    made.htap.sync_now()
    kept = next(segment for segment in segments(made) if segment.name == base.name)
    assert (kept.ended_rows, kept.present_rows) == (11, 889)
    assert not any(segment.past for segment in segments(made))
    assert versions(made, 3) == [(0, "I", False), (1, "U", True)]
    assert versions(made, 10) == [(0, "D", False)]


@pytest.mark.long
def test_many_small_changes_leave_few_files_and_every_version(made: World) -> None:
    instants = []
    for number in range(1, 31):
        made.run(f"update t set v = {number} where k in ({number}, 777)")
        made.htap.sync_now()
        instants.append(instant_between())
    assert max(len(segment.ended) for segment in segments(made)) < 10
    assert [version[0] for version in versions(made, 777)] == list(range(31))
    for number, instant in enumerate(instants, start=1):
        found = made.htap.as_of("t", instant)
        assert found.num_rows == 900
        alive = {row["k"]: row["v"] for row in found.to_pylist()}
        assert (alive[777], alive[number], alive[30 if number < 30 else 0]) == (
            number,
            number,
            0,
        )
    made.crash()
    assert [version[0] for version in versions(made, 777)] == list(range(31))


def test_a_key_that_comes_back_starts_behind_the_version_that_ended_in_place(made: World) -> None:
    made.run("delete from t where k = 5")
    made.htap.sync_now()
    made.run("insert into t values (5, 7, 'again')")
    made.htap.sync_now()
    assert versions(made, 5) == [(0, "D", False), (7, "I", True)]
    rows = made.versions("t", "k, _rhei_valid_from")
    ours = [row for row in rows if row["k"] == 5]
    assert ours[0]["_rhei_valid_to"] < ours[1]["_rhei_valid_from"]


def test_a_row_written_as_it_was_begins_no_version_also_without_a_column(made: World) -> None:
    made.run("update t set v = v, w = w where k < 20")
    assert made.htap.sync_now().updated == 0
    made.run("alter table t drop column w")
    made.htap.sync_now()
    made.run("update t set v = v where k < 20", "update t set v = 9 where k = 1")
    assert made.htap.sync_now().updated == 1
    assert versions(made, 0) == [(0, "I", True)]
    assert versions(made, 1) == [(0, "I", False), (9, "U", True)]


def test_folding_moves_what_has_ended(made: World) -> None:
    made.run("update t set v = 1 where k < 300", "delete from t where k = 500")
    made.htap.sync_now()
    expected = made.versions("t", "k, _rhei_valid_from")
    assert sum(segment.ended_rows for segment in segments(made)) == 301
    assert made.htap.maintain().rows_written
    assert sum(segment.ended_rows for segment in segments(made)) == 0
    assert {segment.past for segment in segments(made)} == {True, False}
    assert made.versions("t", "k, _rhei_valid_from") == expected
    made.run("insert into t values (500, 2, 'w')")
    made.htap.sync_now()
    assert versions(made, 500) == [(0, "D", False), (2, "I", True)]


@pytest.mark.long
def test_versions_end_in_every_part_of_a_large_segment(make_world: Make) -> None:
    world = make_world(mode="temporal", storage="parquet")
    world.run(
        "create table t(k integer primary key, v int, w text)",
        "with recursive n(i) as (select 0 union all select i + 1 from n where i < 149999)"
        " insert into t select i, 0, 'w' from n",
    )
    world.htap.sync_now()
    world.run("update t set v = 1 where k % 50000 = 7")
    world.htap.sync_now()
    world.run("alter table t add column x int", "update t set v = 2 where k = 50007")
    world.htap.sync_now()
    assert versions(world, 50007) == [(0, "I", False), (1, "U", False), (2, "U", True)]
    assert versions(world, 100007) == [(0, "I", False), (1, "U", True)]
    counted = "select count(*) as n from t where _rhei_valid_to is not null"
    assert world.htap.query(counted, hint="olap")["n"].to_pylist() == [4]
    before = world.htap.as_of("t", datetime.now(UTC))
    assert (before.num_rows, sum(before["v"].to_pylist())) == (150_000, 4)
