"""A renamed column of PostgreSQL is the same one: no row is read, and a history goes on in it."""

import random
from collections.abc import Callable
from typing import Any

import duckdb
import pytest

from rhei_pipeline.errors import ChangesLostError
from rhei_pipeline.protocols import Step
from tests.support.altered_tables import STEPS, STORAGES, Way
from tests.support.consumer import Consumer
from tests.support.fix_postgres import PostgresWorld

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., PostgresWorld]

_CREATE = (
    "create table t (id integer primary key, a integer, b text, c integer)",
    "insert into t values (1, 10, 'one', 7), (2, 20, 'two', 7), (3, 30, null, 7), (4, 40, 'x', 7)",
)
#: What is written before, between and after.
_WORK = (
    "update t set a = 11, b = 'eins' where id = 1",
    "delete from t where id = 4",
    "alter table t rename a to passing",
    "update t set passing = 21 where id = 2",
    "alter table t rename passing to amount",
    "alter table t rename b to name",
    "insert into t (id, amount, name, c) values (5, 50, 'five', 8)",
    "update t set amount = 12 where id = 1",
)
WAYS = [Way("logical", storage) for storage in STORAGES]


@pytest.fixture
def make(make_postgres: Callable[..., PostgresWorld]) -> MakeWorld:
    """Make a world of a way, with what was in it synced."""

    def made(way: Way, *create: str, **options: Any) -> PostgresWorld:
        world = make_postgres(capture={"method": way.capture}, storage=way.storage, **options)
        world.run(*(create or _CREATE))
        assert not world.htap.sync_now().errors
        return world

    return made


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_no_row_is_read_for_a_column_that_was_renamed(make: MakeWorld, way: Way) -> None:
    world = make(way)
    world.run(*_WORK)
    report = world.htap.sync_now().tables["t"]
    assert (report.copied_rows, report.inserted, report.updated, report.deleted) == (0, 1, 3, 1)
    found = world.htap.query("select * from t", hint="olap")
    assert found.column_names == ["id", "amount", "name", "c"]
    world.assert_equal("t")
    assert world.htap.sync_now().events == 0
    world.run("update t set amount = 1 where id = 3", "delete from t where id = 2")
    report = world.htap.sync_now().tables["t"]
    assert (report.inserted, report.updated, report.deleted) == (0, 1, 1)
    world.htap.maintain()
    world.assert_equal("t")
    assert world.htap.verify("t").equal
    (change,) = world.htap.schema_log("t")
    assert change.what == "renamed 'a' to 'amount', 'b' to 'name'"
    assert (change.rows_read, change.old, change.new) == (
        *(0, ("a int32", "b string")),
        ("amount int32", "name string"),
    )


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_history_has_all_its_versions_under_the_new_name(make: MakeWorld, way: Way) -> None:
    world, consumer = make(way, mode="temporal"), Consumer("t", ["id"])
    consumer.read(world.htap)
    world.run(*_WORK)
    assert world.htap.sync_now().tables["t"].copied_rows == 0
    with pytest.raises(ChangesLostError, match="a column was renamed"):
        world.htap.changes("t", consumer.position)
    consumer.read(world.htap)
    world.run("update t set name = 'later' where id = 3")
    world.htap.sync_now()
    consumer.read(world.htap)
    consumer.check(world.present("t"))
    history = [
        (row["id"], row["amount"], row["name"], row["c"], row["_rhei_valid_to"] is None)
        for row in world.versions("t", "id, _rhei_valid_from")
    ]
    assert history == [
        (1, 10, "one", 7, False),
        (1, 11, "eins", 7, False),
        (1, 12, "eins", 7, True),
        (2, 20, "two", 7, False),
        (2, 21, "two", 7, True),
        (3, 30, None, 7, False),
        (3, 30, "later", 7, True),
        (4, 40, "x", 7, False),
        (5, 50, "five", 8, True),
    ]
    own = world.versions("t")[0].keys()
    assert {name for name in own if not name.startswith("_rhei_")} == {"id", "amount", "name", "c"}
    world.assert_equal("t")
    assert world.htap.verify("t").equal
    assert "renamed 'a' to 'amount'" in world.htap.schema_log("t")[0].what


@pytest.mark.long
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("way", [Way("logical", None), Way("logical", "parquet")], ids=str)
def test_a_crash_while_a_column_is_renamed_loses_and_doubles_nothing(
    make: MakeWorld, way: Way, step: Step, mode: str
) -> None:
    world = make(way, mode=mode)
    world.run(*_WORK)
    world.faults.arm(step)
    assert world.surviving(world.htap.sync_now)
    world.run("update t set amount = 1 where id = 3")
    report = world.htap.sync_now()
    assert (report.errors, report.tables["t"].copied_rows) == ({}, 0)
    world.assert_equal("t")
    assert world.htap.verify("t").equal
    assert "renamed 'a' to 'amount'" in world.htap.schema_log("t")[0].what
    if mode == "temporal":
        told = [(v["id"], v["amount"], v["name"]) for v in world.versions("t", "id, amount desc")]
        assert told == [
            *((1, 12, "eins"), (1, 11, "eins"), (1, 10, "one"), (2, 21, "two"), (2, 20, "two")),
            *((3, 30, None), (3, 1, None), (4, 40, "x"), (5, 50, "five")),
        ]


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("way", [Way("logical", None), Way("logical", "parquet")], ids=str)
def test_the_key_may_be_renamed_and_a_name_may_have_another_case(
    make: MakeWorld, way: Way, mode: str
) -> None:
    world = make(way, mode=mode)
    world.run(
        "update t set a = 11 where id = 1",
        'alter table t rename id to number; alter table t rename c to "C"',
        "update t set a = 12 where number = 1",
        'update t set number = 9, "C" = 1 where number = 2',
        "delete from t where number = 4",
    )
    report = world.htap.sync_now()
    assert (report.errors, report.tables["t"].copied_rows) == ({}, 0)
    world.run("update t set a = 31 where number = 3", "delete from t where number = 9")
    later = world.htap.sync_now().tables["t"]
    assert (later.updated, later.deleted) == (1, 1)
    world.assert_equal("t")
    assert world.htap.verify("t").equal
    if mode == "temporal":
        told = sorted((v["number"], v["a"], v["C"]) for v in world.versions("t"))
        assert told == [
            *((1, 10, 7), (1, 11, 7), (1, 12, 7), (2, 20, 7), (3, 30, 7), (3, 31, 7)),
            *((4, 40, 7), (9, 20, 1)),
        ]


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_what_was_written_while_a_column_had_another_name_is_its_own(
    make: MakeWorld, mode: str
) -> None:
    world = make(Way("logical", None), mode=mode)
    world.run(
        "alter table t rename a to x; alter table t rename c to a; alter table t rename x to c",
        "update t set a = 70, c = 11 where id = 1",
        "alter table t rename a to x; alter table t rename c to a; alter table t rename x to c",
        "update t set b = 'zwei' where id = 2",
    )
    report = world.htap.sync_now()
    assert (report.errors, report.tables["t"].copied_rows) == ({}, 0)
    world.assert_equal("t")
    assert world.htap.verify("t").equal
    if mode == "temporal":
        told = sorted((v["id"], v["a"], v["b"], v["c"]) for v in world.versions("t") if v["id"] < 3)
        assert told == [
            *((1, 10, "one", 7), (1, 11, "one", 70)),
            *((2, 20, "two", 7), (2, 20, "zwei", 7)),
        ]


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_polled_table_goes_on_under_a_new_name(
    make_postgres: Callable[..., PostgresWorld], mode: str
) -> None:
    polled = {"name": "t", "polling": {"deletes": "disabled", "clock": "database"}}
    world = make_postgres(capture={"method": "polling"}, mode=mode, tables=[polled])
    world.run(
        "create table t (id integer primary key, a integer, updated_at timestamptz)",
        "insert into t values (1, 10, now()), (2, 20, now())",
    )
    world.htap.sync_now()
    world.run("alter table t rename a to b", "update t set b = 11, updated_at = now() where id = 1")
    assert world.htap.sync_now().tables["t"].copied_rows == 0
    world.assert_equal("t")
    if mode == "temporal":
        assert sorted(version["b"] for version in world.versions("t")) == [10, 11, 20]


#: Where a name alone would lie: the column of it is another one by then, or may be.
_OTHERWISE = {
    "swapped": "alter table t rename a to x; alter table t rename c to a; alter table t rename x"
    " to c",
    "reused": "alter table t drop a; alter table t rename c to a",
    "dropped_and_added": "alter table t drop a; alter table t add amount integer default 3",
    "narrower": "alter table t rename a to amount; alter table t alter amount type smallint",
    "one_more": "alter table t rename a to amount; alter table t add a integer",
}


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("case", _OTHERWISE)
def test_a_table_is_copied_where_a_name_does_not_prove_its_column(
    make: MakeWorld, case: str, mode: str
) -> None:
    world = make(Way("logical", None), mode=mode)
    world.run("update t set c = 70, b = 'eins' where id = 1")
    world.run(*_OTHERWISE[case].split("; "))
    world.run("update t set b = 'zwei' where id = 2", "delete from t where id = 3")
    report = world.htap.sync_now()
    assert not report.errors
    assert report.tables["t"].copied_rows == 3
    world.assert_equal("t")
    assert world.htap.verify("t").equal
    assert not any("renamed" in change.what for change in world.htap.schema_log("t"))


@pytest.mark.long
def test_a_history_that_kept_a_column_of_the_new_name_keeps_it_apart(make: MakeWorld) -> None:
    world = make(Way("logical", None), mode="temporal")
    world.run("alter table t drop a")
    world.htap.sync_now()
    world.run("alter table t rename c to a", "update t set a = 70 where id = 1")
    assert not world.htap.sync_now().errors
    world.assert_equal("t")
    assert not any("renamed" in change.what for change in world.htap.schema_log("t"))
    ended = [v for v in world.versions("t") if v["_rhei_valid_to"] is not None]
    assert {v["a"] for v in ended} >= {10, 20, 30, 40}


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_table_with_somebodys_index_goes_on_under_a_new_name(make: MakeWorld, mode: str) -> None:
    world = make(Way("logical", None), mode=mode)
    world.crash()
    with duckdb.connect(world.directory / "mirror.duckdb") as mirror:
        mirror.execute("create index own on public.t(c)")
    world.run("alter table t rename a to amount", "update t set amount = 8 where id = 1")
    report = world.htap.sync_now()
    assert (report.errors, report.tables["t"].copied_rows) == ({}, 0)
    world.assert_equal("t")
    assert world.htap.verify("t").equal


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_histories_at_random_lose_nothing_to_columns_that_are_renamed(
    make: MakeWorld, storage: str | None
) -> None:
    lot = random.Random(f"renamed {storage}")
    world = make(Way("logical", storage), mode="temporal")
    names = ["a", "b", "c"]
    present: dict[int, list[Any]] = {1: [10, "one", 7], 2: [20, "two", 7], 3: [30, None, 7]}
    world.run("delete from t where id = 4")
    told = [(4, "40", "x", "7"), *((key, *map(str, row)) for key, row in present.items())]
    for turn in range(3):
        for number in range(8):
            key, value, place = lot.choice([*present]), lot.randrange(10**6), lot.randrange(3)
            if lot.random() < 0.4:
                world.run(f"alter table t rename {names[place]} to n{turn}_{number}")
                names[place] = f"n{turn}_{number}"
            new: Any = str(value) if place == 1 else value
            world.run(f"update t set {names[place]} = {new!r} where id = {key}")
            present[key][place] = new
            told.append((key, *map(str, present[key])))
        report = world.htap.sync_now()
        assert (report.errors, report.tables["t"].copied_rows) == ({}, 0)
        world.assert_equal("t")
        found = world.versions("t")
        assert sorted(told) == sorted((v["id"], *(str(v[name]) for name in names)) for v in found)
    assert world.htap.verify("t").equal
