"""A column whose values are known is added to the mirror, and no row of the source is read for it.

What must not be taken for such a column is in `test_added_columns.py`, and below.
"""

from collections.abc import Callable
from typing import Any

import pytest

from rhei_pipeline.errors import SourceUnreachableError
from rhei_pipeline.protocols import Step
from tests.support.altered_tables import STEPS, STORAGES, Way, put_back_after
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

pytestmark = pytest.mark.turns

AnyWorld = World | PostgresWorld
MakeWorld = Callable[..., AnyWorld]

_CREATE = (
    "create table {} (id integer primary key, a integer)",
    "insert into {} values (1, 10), (2, 20), (3, 30), (4, 40)",
)
#: Rows 1 to 4 stand; each is written before, between or behind the columns, or never.
_WORK = (
    "update {} set a = 11 where id = 1",
    "delete from {} where id = 4",
    "alter table {} add column c integer default 7",
    "alter table {} add column d text default 'it''s'",
    "insert into {} (id, a) values (5, 50)",
    "update {} set c = 8 where id = 2",
    "alter table {} add column e integer",
    "insert into {} (id, a, c, e) values (6, 60, null, 9)",
)


WAYS = [
    Way(capture, storage) for capture in ("sqlite", "logical", "trigger") for storage in STORAGES
]


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Callable[..., AnyWorld]:
    """Make a world of a way, with what was in it synced."""

    def made(way: Way, *names: str, **options: Any) -> AnyWorld:
        options["storage"] = way.storage
        if way.capture == "sqlite":
            world: AnyWorld = request.getfixturevalue("make_world")(**options)
        else:
            options["capture"] = {"method": way.capture}
            world = request.getfixturevalue("make_postgres")(**options)
        for name in names or ("t",):
            world.run(*(each.format(name) for each in _CREATE))
        assert not world.htap.sync_now().errors
        return world

    return made


def work(world: AnyWorld, name: str = "t") -> None:
    """Write, and add columns in between."""
    world.run(*(each.format(name) for each in _WORK))


@pytest.mark.pairs
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_no_row_is_read_for_columns_whose_values_are_known(make: MakeWorld, way: Way) -> None:
    world = make(way)
    work(world)
    report = world.htap.sync_now().tables["t"]
    assert (report.copied_rows, report.inserted, report.deleted) == (0, 2, 1)
    world.assert_equal("t")
    assert world.htap.sync_now().events == 0
    world.run("update t set c = null, d = 'x' where id = 3", "update t set c = 7 where id = 6")
    assert world.htap.sync_now().tables["t"].updated == 2
    world.htap.maintain()
    world.assert_equal("t")
    assert world.htap.verify("t").equal
    (change,) = world.htap.schema_log("t")
    assert change.rows_read == 0
    assert [told.partition(" ")[0] for told in change.new] == ["c", "d", "e"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "way", [Way("sqlite", "parquet"), Way("logical", None), Way("trigger", "delta")], ids=str
)
def test_a_crash_while_a_column_is_added_loses_and_doubles_nothing(
    make: MakeWorld, way: Way, step: Step
) -> None:
    world = make(way)
    work(world)
    world.faults.arm(step)
    assert world.surviving(world.htap.sync_now)
    world.run("update t set c = 1 where id = 3")
    assert not world.htap.sync_now().errors
    world.assert_equal("t")
    assert world.htap.verify("t").equal


def test_a_default_of_any_type_is_what_the_source_has_in_its_rows(make: MakeWorld) -> None:
    types = {
        "timestamptz": "'2020-01-01 00:00:00+02'",
        "timestamp": "'1969-12-31 23:59:59.999999'",
        "date": "'2020-02-29'",
        "date not null": "'infinity'",
        "time": "'12:30:00.5'",
        "bytea": r"'\x00ff'",
        "numeric(10, 2)": "-1.5",
        "numeric": "1.50",
        "float8": "-0.1",
        "float4": "'infinity'",
        "boolean": "true",
        "bigint": "-9007199254740993",
        "uuid": "'6f9619ff-8b86-d011-b42d-00cf4fc964ff'",
        "text": "E'it''s {\"odd\", \\\\ NULL}'",
    }
    for storage in (None, "parquet"):
        name = f"t_{storage}".lower()
        world = make(Way("logical", storage), name, tables=[{"name": name}])
        for place, (kind, default) in enumerate(types.items()):
            world.run(f"alter table {name} add column c{place} {kind} default {default}")
        assert world.htap.sync_now().tables[name].copied_rows == 0
        assert world.htap.verify(name).equal


_PARTS = (
    "create table p (id integer, a integer, primary key (id)) partition by range (id)",
    "create table low partition of p for values from (0) to (10)",
    "create table high partition of p for values from (10) to (20) partition by hash (id)",
    "create table high0 partition of high for values with (modulus 1, remainder 0)",
    "insert into p values (1, 10), (2, 20), (11, 110)",
)


@pytest.mark.long
def test_a_column_of_a_partitioned_table_is_added_unless_a_partition_was_written_again(
    make: MakeWorld,
) -> None:
    world = make(Way("logical", None))
    world.run(*_PARTS)
    world.htap.sync_now()
    world.run(
        "alter table p add column c integer default 7",
        "update p set c = 8 where id = 2",
        "insert into p values (12, 120, null)",
    )
    assert world.htap.sync_now().tables["p"].copied_rows == 0
    world.assert_equal("p")
    world.run("alter table p add column d integer default 9", "vacuum full low")
    assert world.htap.sync_now().tables["p"].copied_rows > 0
    world.assert_equal("p")
    assert world.htap.verify("p").equal


#: What is done, and in which way it is captured: a row may have what no log tells.
_OTHERWISE = {
    "renamed_since": (
        "logical",
        [
            "alter table t add column x integer default 7",
            "update t set x = 8 where id = 1",
            "alter table t rename x to c",
        ],
    ),
    "names_changed_places": (
        "logical",
        [
            "alter table t add column c integer default 7",
            "alter table t add column d integer default 7",
            "update t set c = 8 where id = 1",
            "alter table t rename c to x",
            "alter table t rename d to c",
            "alter table t rename x to d",
        ],
    ),
    "written_again": ("trigger", ["alter table t add column c int default 7", "vacuum full t"]),
    "new_and_dropped": (
        "sqlite",
        ["alter table t add column c integer default 7", "alter table t drop column a"],
    ),
}


@pytest.mark.parametrize("case", _OTHERWISE)
def test_a_table_is_copied_where_more_was_done_than_columns_added(
    make: MakeWorld, case: str
) -> None:
    capture, statements = _OTHERWISE[case]
    world = make(Way(capture, None))
    world.run(*statements)
    assert world.htap.sync_now().tables["t"].copied_rows > 0
    world.assert_equal("t")
    assert world.htap.verify("t").equal


@pytest.mark.long
@pytest.mark.parametrize("capture", ["sqlite", "logical"])
def test_a_column_that_was_there_while_its_table_was_frozen_is_read(
    make: MakeWorld, capture: str
) -> None:
    world = make(Way(capture, None))
    world.crash()
    world.tables = [{"name": "t", "schema_changes": "freeze"}]
    world.run("alter table t add column c integer default 7", "update t set c = 8 where id = 1")
    world.htap.sync_now()
    world.crash()
    world.tables = [{"name": "t"}]
    report = world.htap.sync_now().tables["t"]
    # SQLite's capture knows that no other column came or went, so this one is read alone.
    assert report.copied_rows == (4 if capture == "logical" else 0)
    assert report.updated + report.inserted == 4
    world.assert_equal("t")


@pytest.mark.parametrize("capture", ["sqlite", "logical", "trigger"])
def test_a_column_that_was_not_mirrored_when_a_sync_was_killed_is_read(
    make: MakeWorld, capture: str
) -> None:
    world = make(Way(capture, None))
    world.crash()
    world.tables = [{"name": "t", "columns": ["id", "a"]}]
    world.run("alter table t add column c integer default 7", "update t set c = 8 where id = 1")
    world.faults.arm(Step.COMMITTED)  # what was written of it is behind the mirror by then
    assert world.surviving(world.htap.sync_now)
    world.tables = [{"name": "t"}]
    assert not world.htap.sync_now().errors
    world.assert_equal("t")


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_a_mirror_put_back_from_before_a_column_has_it_again(
    make: MakeWorld, storage: str | None
) -> None:
    world = make(Way("sqlite", storage))
    put_back_after(world, storage, "alter table t add column c integer default 7")
    assert world.htap.sync_now().tables["t"].copied_rows == 4
    world.assert_equal("t")
    assert world.htap.verify("t").equal


def test_rows_that_did_not_fit_have_their_table_copied_for_a_column(make: MakeWorld) -> None:
    world = make(Way("sqlite", None))
    world.run("update t set a = 'odd' where id = 1")
    assert world.htap.sync_now().dead_letters == 1
    world.run("alter table t add column c integer default 7")
    assert world.htap.sync_now().tables["t"].copied_rows > 0


def test_a_default_that_does_not_fit_is_a_dead_letter_of_each_row(make: MakeWorld) -> None:
    world = make(Way("sqlite", None))
    world.run("alter table t add column c integer default '7x'")
    assert world.htap.sync_now().dead_letters == 4


def test_a_default_in_a_strict_table_is_as_sqlite_has_it(make: MakeWorld) -> None:
    world = make(Way("sqlite", None))
    world.run("create table s (id integer primary key) strict", "insert into s values (1)")
    world.htap.sync_now()
    world.run("alter table s add column c any default '7'")
    world.htap.sync_now()
    world.assert_equal("s")


def test_one_of_two_mirrors_that_comes_later_adds_the_column_too(make: MakeWorld) -> None:
    first = make(Way("sqlite", None))
    assert isinstance(first, World)
    second = World(first.directory / "other")
    second.app.close()
    second.path, second.app = first.path, first.app
    second.htap.sync_now()
    first.run("alter table t add column c integer default 7", "update t set c = 8 where id = 1")
    for world in (first, second):
        assert world.htap.sync_now().tables["t"].copied_rows == 0
        world.assert_equal("t")
    second.crash()


def test_a_source_that_is_away_once_a_column_was_added_has_nothing_added_twice(
    make: MakeWorld,
) -> None:
    world = make(Way("sqlite", None))
    work(world)
    world.faults.do_at(Step.COMMITTED, _fail)
    assert not world.htap.sync_now().errors
    world.assert_equal("t")
    assert world.htap.verify("t").equal


def _fail() -> None:
    raise SourceUnreachableError("it is away")


@pytest.mark.parametrize("storage", [None, "memory", "ipc", "parquet", "delta"])
def test_a_history_takes_a_column_without_default_and_keeps_each_version(
    make: MakeWorld, make_postgres: MakeWorld, storage: str | None
) -> None:
    world = make(Way("logical", storage), mode="temporal")
    copying = make_postgres(capture={"method": "trigger"}, mode="temporal")
    copying.htap.sync_now()
    world.run(
        "update t set a = 11 where id = 1",
        "alter table t add column c integer",
        "update t set c = 8 where id = 2",
        "alter table t add column d text",
        "update t set c = 9, d = 'x' where id = 2",
        "insert into t (id, a, d) values (5, 50, 'y')",
        "delete from t where id = 4",
    )
    assert world.htap.sync_now().tables["t"].copied_rows == 0
    assert copying.htap.sync_now().tables["t"].copied_rows > 0
    world.assert_equal("t")
    assert world.mirror_rows("t") == copying.mirror_rows("t")
    history = [
        (row["id"], row["a"], row["c"], row["d"], row["_rhei_valid_to"] is None)
        for row in world.versions("t", "id, _rhei_valid_from")
    ]
    assert history == [
        (1, 10, None, None, False),
        (1, 11, None, None, True),
        (2, 20, None, None, False),
        (2, 20, 8, None, False),
        (2, 20, 9, "x", True),
        (3, 30, None, None, True),
        (4, 40, None, None, False),
        (5, 50, None, "y", True),
    ]
    assert world.htap.verify("t").equal


def test_a_history_has_a_default_as_versions_and_its_past_as_it_was(make: MakeWorld) -> None:
    world = make(Way("logical", None), mode="temporal")
    world.run(
        "update t set a = 11 where id = 1",
        "alter table t add column c integer default 7",
        "update t set c = 8 where id = 2",
    )
    assert world.htap.sync_now().tables["t"].copied_rows == 0
    world.assert_equal("t")
    known = [(v["id"], v["a"], v["c"]) for v in world.versions("t", "id, _rhei_valid_from")]
    assert known == [
        *((1, 10, None), (1, 11, None), (1, 11, 7), (2, 20, None), (2, 20, 8)),
        *((3, 30, None), (3, 30, 7), (4, 40, None), (4, 40, 7)),
    ]
    assert [change.rows_read for change in world.htap.schema_log("t")] == [4]


@pytest.mark.long
def test_tables_without_history_keep_their_log_while_a_history_is_read(make: MakeWorld) -> None:
    tables = [{"name": "t"}, {"name": "h", "mode": "temporal"}]
    world = make(Way("logical", None), "t", "h", tables=tables)
    for name in ("t", "h"):
        world.run(
            f"update {name} set a = 11 where id = 1",
            f"alter table {name} add column c integer default 7",
            f"update {name} set c = 8 where id = 2",
        )
    report = world.htap.sync_now()
    assert (report.tables["t"].copied_rows, report.tables["h"].copied_rows) == (0, 0)
    world.assert_equal("t", "h")
