"""A column that is dropped takes no copy: a plain mirror drops it, and a history keeps its past."""

import random
from collections.abc import Callable
from typing import Any

import duckdb
import pytest

from rhei_pipeline.protocols import Step
from tests.support.altered_tables import STEPS, STORAGES, Way, put_back_after
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

pytestmark = pytest.mark.turns

AnyWorld = World | PostgresWorld
MakeWorld = Callable[..., AnyWorld]
Version = dict[str, Any]

_CREATE = (
    "create table t (id integer primary key, a integer, b text, c integer)",
    "insert into t values (1, 10, 'one', 7), (2, 20, 'two', 7), (3, 30, null, 7), (4, 40, 'x', 7)",
)
#: What is written before the column goes, and after.
_WORK = (
    "update t set a = 11, b = 'eins' where id = 1",
    "delete from t where id = 4",
    "insert into t values (5, 50, 'five', 8)",
    "alter table t drop column b",
    "update t set a = 21 where id = 2",
    "insert into t (id, a, c) values (6, 60, null)",
    "alter table t drop column a",
    "update t set c = 9 where id = 5",
)
_POLLING = {"deletes": "disabled", "clock": "database"}


WAYS = [Way("logical", storage) for storage in STORAGES]


@pytest.fixture
def make(request: pytest.FixtureRequest) -> MakeWorld:
    """Make a world of a way, with what was in it synced."""

    def made(way: Way, **options: Any) -> AnyWorld:
        options["storage"] = way.storage
        if way.capture == "sqlite":
            world: AnyWorld = request.getfixturevalue("make_world")(**options)
        else:
            options["capture"] = {"method": way.capture}
            world = request.getfixturevalue("make_postgres")(**options)
        world.run(*_CREATE)
        assert not world.htap.sync_now().errors
        return world

    return made


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_no_row_is_read_for_a_column_that_was_dropped(make: MakeWorld, way: Way) -> None:
    world = make(way)
    world.run(*_WORK)
    report = world.htap.sync_now().tables["t"]
    assert (report.copied_rows, report.inserted, report.deleted) == (0, 2, 1)
    world.assert_equal("t")
    assert world.htap.query("select * from t", hint="olap").column_names == ["id", "c"]
    assert world.htap.sync_now().events == 0
    world.run("update t set c = 1 where id = 3", "delete from t where id = 2")
    report = world.htap.sync_now().tables["t"]
    assert (report.inserted, report.updated, report.deleted) == (0, 1, 1)
    world.htap.maintain()
    world.assert_equal("t")
    assert world.htap.verify("t").equal
    (change,) = world.htap.schema_log("t")
    assert (change.rows_read, change.new) == (0, ())
    assert [told.partition(" ")[0] for told in change.old] == ["a", "b"]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_history_keeps_a_dropped_column_and_has_null_in_it_from_then_on(
    make: MakeWorld, way: Way
) -> None:
    world = make(way, mode="temporal")
    world.run(*_WORK[:6])
    assert world.htap.sync_now().tables["t"].copied_rows == 0
    world.run("update t set c = 9 where id = 5")
    world.htap.sync_now()
    history = [
        (row["id"], row["a"], row["b"], row["c"], row["_rhei_valid_to"] is None)
        for row in world.versions("t", "id, _rhei_valid_from")
    ]
    assert history == [
        (1, 10, "one", 7, False),
        (1, 11, "eins", 7, True),
        (2, 20, "two", 7, False),
        (2, 21, None, 7, True),
        (3, 30, None, 7, True),
        (4, 40, "x", 7, False),
        (5, 50, "five", 8, False),
        (5, 50, None, 9, True),
        (6, 60, None, None, True),
    ]
    world.assert_equal("t")
    assert world.htap.verify("t").equal


@pytest.mark.long
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("way", [Way("logical", None), Way("logical", "parquet")], ids=str)
def test_a_crash_while_a_column_is_dropped_loses_and_doubles_nothing(
    make: MakeWorld, way: Way, step: Step, mode: str
) -> None:
    world = make(way, mode=mode)
    world.run(*_WORK)
    world.faults.arm(step)
    assert world.surviving(world.htap.sync_now)
    world.run("update t set c = 1 where id = 3")
    report = world.htap.sync_now()
    assert (report.errors, report.tables["t"].copied_rows) == ({}, 0)
    world.assert_equal("t")
    assert world.htap.verify("t").equal


#: What is done besides: the column of a name is another one by then.
_OTHERWISE = {
    "renamed_to_it": ["alter table t drop column a", "alter table t rename c to a"],
    "there_again": [
        "alter table t drop column b",
        "alter table t drop column c",
        "alter table t add column c integer default 3",
    ],
    "narrower": ["alter table t drop column b, alter column c type smallint using c + 1"],
}


@pytest.mark.parametrize("case", _OTHERWISE)
@pytest.mark.parametrize("capture", ["logical", "trigger"])
def test_a_table_is_copied_where_more_was_done_than_columns_dropped(
    make: MakeWorld, capture: str, case: str
) -> None:
    world = make(Way(capture, None))
    world.run(*_OTHERWISE[case])
    assert world.htap.sync_now().tables["t"].copied_rows > 0
    world.assert_equal("t")
    assert world.htap.verify("t").equal


def test_a_row_that_did_not_fit_for_a_dropped_column_is_read(make: MakeWorld) -> None:
    world = make(Way("logical", None))
    world.run("alter table t add column n numeric(10, 2)", "update t set n = 'NaN' where id = 1")
    assert world.htap.sync_now().dead_letters == 1
    world.run("alter table t drop column n")
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    world.assert_equal("t")


def test_a_polled_table_goes_on_without_a_column(make_postgres: MakeWorld) -> None:
    world = make_postgres(
        capture={"method": "polling"}, tables=[{"name": "t", "polling": _POLLING}]
    )
    world.run(
        "create table t (id integer primary key, a integer, b text, updated_at timestamptz)",
        "insert into t values (1, 10, 'one', now()), (2, 20, 'two', now())",
    )
    world.htap.sync_now()
    world.run("alter table t drop column b", "update t set a = 11, updated_at = now() where id = 1")
    assert world.htap.sync_now().tables["t"].copied_rows == 0
    world.assert_equal("t")
    found = world.htap.query("select * from t", hint="olap")
    assert found.column_names == ["id", "a", "updated_at"]


def test_a_table_with_somebodys_index_goes_on_without_a_column(make: MakeWorld) -> None:
    world = make(Way("logical", None))
    world.crash()
    with duckdb.connect(world.directory / "mirror.duckdb") as mirror:
        mirror.execute("create index own on public.t(c)")
    world.run("alter table t drop column a", "update t set c = 8 where id = 1")
    assert world.htap.sync_now().tables["t"].copied_rows == 0
    world.assert_equal("t")
    assert world.htap.verify("t").equal


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_a_mirror_put_back_from_before_a_column_was_dropped_lacks_it_again(
    make: MakeWorld, storage: str | None
) -> None:
    world = make(Way("sqlite", storage))
    put_back_after(world, storage, "alter table t drop column b")
    world.htap.sync_now()
    assert world.htap.query("select * from t", hint="olap").column_names == ["id", "a", "c"]
    world.assert_equal("t")


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_column_that_is_not_to_be_mirrored_any_more_takes_no_copy(
    make: MakeWorld, mode: str
) -> None:
    world = make(Way("logical", None), mode=mode, tables=[{"name": "t"}])
    world.crash()
    world.tables = [{"name": "t", "columns": ["id", "a", "c"]}]
    world.run("update t set b = 'new' where id = 1", "update t set a = 21 where id = 2")
    report = world.htap.sync_now()
    assert (report.errors, report.tables["t"].copied_rows) == ({}, 0)
    assert world.htap.verify("t").equal


@pytest.mark.long
@pytest.mark.parametrize("capture", ["logical", "trigger"])
@pytest.mark.parametrize("storage", [None, "parquet"])
def test_histories_at_random_lose_nothing_to_columns_that_come_and_go(
    make: MakeWorld, capture: str, storage: str | None
) -> None:
    lot = random.Random(f"{capture}{storage}")
    world = make(Way(capture, storage), mode="temporal")
    present: dict[int, dict[str, Any]] = {key: {"a": 10 * key, "c": 7} for key in range(1, 5)}
    kept: set[tuple[object, ...]] = set()
    for turn in range(6):
        for _ in range(5):
            _write(world, lot, present)
        name = f"n{turn}"
        if turn % 2:
            world.run(f"alter table t drop column n{turn - 1}")
            for row in present.values():
                row.pop(f"n{turn - 1}", None)
        else:
            world.run(f"alter table t add column {name} integer")
            for row in present.values():
                row[name] = None
        _write(world, lot, present)
        assert not world.htap.sync_now().errors
        world.assert_equal("t")
        versions = world.versions("t")
        standing = {v["id"]: v for v in versions if v["_rhei_valid_to"] is None}
        assert {key: {n: standing[key][n] for n in row} for key, row in present.items()} == present
        assert standing.keys() == present.keys()
        ended = {_told(v) for v in versions if v["_rhei_valid_to"] is not None}
        assert kept <= ended
        kept = ended
    assert world.htap.verify("t").equal


def _write(world: AnyWorld, lot: random.Random, present: dict[int, dict[str, Any]]) -> None:
    key, value = lot.randrange(1, 8), lot.randrange(100, 1000)
    if key not in present:
        names = list(next(iter(present.values())))
        world.run(f"insert into t (id, a) values ({key}, {value})")
        present[key] = dict.fromkeys(names) | {"a": value}
    elif lot.random() < 0.2 and len(present) > 2:
        world.run(f"delete from t where id = {key}")
        del present[key]
    else:
        name = lot.choice(list(present[key]))
        world.run(f"update t set {name} = {value} where id = {key}")
        present[key][name] = value


def _told(version: Version) -> tuple[object, ...]:
    """Return an ended version's values that are known: a column that came later is null in it."""
    return tuple(sorted((n, str(v)) for n, v in version.items() if v is not None))
