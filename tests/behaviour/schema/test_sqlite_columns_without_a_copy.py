"""A column of SQLite that is renamed, dropped or added takes no copy, where that is proved."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from rhei_pipeline.protocols import Step
from tests.support.altered_tables import STEPS, Way
from tests.support.fix_world import World

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]

_COLUMNS = "id integer primary key, a integer, b text, c integer, at integer not null"
_ROWS = "(1, 10, 'one', 7, 1), (2, 20, 'two', 7, 1), (3, 30, null, 7, 1), (4, 40, 'x', 7, 1)"
WAYS = [Way(capture, storage) for capture in ("trigger", "polling") for storage in (None, "ipc")]
MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])


@pytest.fixture
def make(make_world: MakeWorld) -> MakeWorld:
    """Make a world of a way, with what was in it synced."""

    def made(way: Way, columns: str = _COLUMNS, **options: Any) -> World:
        polled = {"polling": {"updated_at": "at", "deletes": "disabled"}}
        own = {"name": "t"} | (polled if way.capture == "polling" else {})
        tables = options.pop("tables", [own])
        world = make_world(method=way.capture, storage=way.storage, tables=tables, **options)
        world.run(f"create table t ({columns})", "create index t_at on t(at, id)")
        world.run(f"insert into t values {_ROWS}")
        assert not world.htap.sync_now().errors
        return world

    return made


def follow(world: World, *statements: str) -> None:
    """Run statements; the sync after them copies no row."""
    world.run(*statements)
    report = world.htap.sync_now()
    assert (report.errors, report.tables["t"].copied_rows) == ({}, 0), statements
    world.assert_equal("t")


#: What is written around each change: before it, and after it.
_CHANGES = (
    ("update t set a = 11, at = 2 where id = 1", "rename column a to amount"),
    ("update t set amount = 12, at = 4 where id = 1", "drop column b"),
    ("update t set c = 8, at = 6 where id = 2", "add column d integer default 5"),
    ("update t set d = 6, at = 8 where id = 3", "rename column id to number"),
    ("update t set d = 9, at = 10 where number = 4", "rename column d to 'last one'"),
)
_TOLD = (
    ("renamed 'a' to 'amount'", 0),
    ("dropped 'b'", 0),
    ("added 'd'", None),
    ("renamed 'id' to 'number'", 0),
    ("renamed 'd' to 'last one'", 0),
)


@MODES
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_no_row_is_copied_for_columns_that_are_renamed_dropped_and_added(
    make: MakeWorld, way: Way, mode: str
) -> None:
    world = make(way, mode=mode)
    for number, (written, change) in enumerate(_CHANGES):
        key = "number" if number > 2 else "id"
        later = f"update t set c = {number}, at = {3 + 2 * number} where {key} = 1"
        follow(world, written, f"alter table t {change}", later)
        if number % 2:
            world.crash()  # what is known of columns outlives the process
    follow(world, "insert into t values (5, 50, 1, 20, null)", "update t set at = 21")
    world.htap.maintain()
    assert world.htap.verify("t").equal
    for noted, (what, rows) in zip(world.htap.schema_log("t"), _TOLD, strict=True):
        kept = " (kept in the mirror)" if what == "dropped 'b'" and mode == "temporal" else ""
        assert noted.what == what + kept
        assert rows is None or noted.rows_read == rows
    if mode == "temporal":
        first = [(v["amount"], v["b"], v["c"]) for v in world.versions("t") if v["number"] == 1]
        assert first[0] == (10, "one", 7)
        assert (12, None, 1) in first


@MODES
@pytest.mark.parametrize("storage", [None, "parquet"])
def test_every_version_that_triggers_log_beside_a_change_is_kept(
    make: MakeWorld, storage: str | None, mode: str
) -> None:
    world = make(Way("trigger", storage), mode=mode)
    names, told = {"a": "a"}, [10]

    def write() -> None:
        told.append(told[-1] + 1)
        world.run(f"update t set {names['a']} = {told[-1]} where id = 1")

    for number, change in enumerate(("rename column a to x0", "drop column c", "add column n")):
        write()
        world.run(f"alter table t {change}")
        names["a"] = "x0"
        write()
        world.faults.do_at((Step.ACKNOWLEDGED, Step.SNAPSHOT, Step.COMMITTED)[number], write)
        world.htap.sync_now()
        write()
    follow(world)
    if mode == "temporal":
        found = [v["x0"] for v in world.versions("t") if v["id"] == 1]
        assert list(dict.fromkeys(found)) == told
    assert world.htap.verify("t").equal


@pytest.mark.long
@MODES
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("change", ["rename column a to amount", "drop column b", "add column n"])
def test_a_crash_while_a_column_changes_loses_and_doubles_nothing(
    make: MakeWorld, change: str, step: Step, mode: str
) -> None:
    world = make(Way("trigger", None), mode=mode)
    world.run("update t set c = 8 where id = 1", f"alter table t {change}")
    world.run("update t set c = 9 where id = 1")
    world.faults.arm(step)
    assert world.surviving(world.htap.sync_now)
    follow(world, "update t set c = 10 where id = 1")
    if mode == "temporal":
        found = [v["c"] for v in world.versions("t") if v["id"] == 1]
        assert list(dict.fromkeys(found)) == [7, 8, 9, 10]
    assert world.htap.verify("t").equal


#: Where a name alone would lie: the column of it is another one by then, or may be.
_OTHERWISE = {
    "swapped": ["rename a to x", "rename c to a", "rename x to c"],
    "made again at the end": ["add column d integer default 3", "drop column d", "add column e"],
    "in the place of another": ["drop column c", "rename b to c"],
    "there again": ["drop column c", "add column c integer default 3"],
    "renamed twice": ["rename a to x", "rename x to amount"],
    "renamed and added": ["rename a to amount", "add column a integer default 3"],
}


@MODES
@pytest.mark.parametrize("case", _OTHERWISE)
def test_what_is_not_sure_is_read_again(make: MakeWorld, case: str, mode: str) -> None:
    world = make(Way("trigger", None), mode=mode)
    world.run("update t set c = 70, b = 'eins' where id = 1")
    world.run(*(f"alter table t {change}" for change in _OTHERWISE[case]))
    world.run("delete from t where id = 3")
    assert not world.htap.sync_now().errors
    world.assert_equal("t")
    assert world.htap.verify("t").equal
    assert not any("renamed" in change.what for change in world.htap.schema_log("t"))


def _rebuilt(*again: str) -> list[str]:
    return [
        "create table other (id integer primary key, amount integer, b text, c integer, at integer"
        " not null)",
        "insert into other select id, a + 1, b, c, at from t",
        "drop table t",
        "alter table other rename to t",
        *again,
    ]


@MODES
@pytest.mark.parametrize("way", [Way("trigger", None), Way("polling", None)], ids=str)
def test_a_table_that_was_made_again_under_its_name_is_no_renaming(
    make: MakeWorld, way: Way, mode: str
) -> None:
    world = make(way, mode=mode)
    kept = world.app.execute(
        "select sql from sqlite_master where type in ('trigger', 'index') and tbl_name = 't'"
    ).fetchall()
    world.run(*_rebuilt(*(sql for (sql,) in kept)))  # as some tools do, with our triggers
    world.htap.sync_now()
    world.assert_equal("t")
    assert world.htap.verify("t").equal
    assert not any("renamed" in change.what for change in world.htap.schema_log("t"))


@MODES
def test_a_file_that_was_made_again_with_as_many_statements_is_no_renaming(
    make: MakeWorld, mode: str
) -> None:
    world = make(Way("polling", None), mode=mode)
    follow(world, "update t set at = 2 where id = 4")  # the others are not read again
    (count,) = world.app.execute("pragma schema_version").fetchone()
    world.crash()
    world.run(*_rebuilt("create index t_at on t(at, id)"), f"pragma schema_version = {count}")
    assert not world.htap.sync_now().errors
    world.assert_equal("t")
    assert world.htap.verify("t").equal


@pytest.mark.parametrize("way", [Way("trigger", None), Way("polling", None)], ids=str)
def test_another_column_of_a_name_that_one_had_is_met_by_a_mirror_of_some_columns(
    make: MakeWorld, make_world: MakeWorld, way: Way
) -> None:
    whole = make(way)
    polled = {"updated_at": "at", "deletes": "disabled"} if way.capture == "polling" else None
    own = {"name": "t", "columns": ["id", "a", "at"]} | ({"polling": polled} if polled else {})
    some = make_world(method=way.capture, tables=[own])
    some.path = whole.path
    some.app.close()
    some.app = whole.app
    some.htap.sync_now()
    for change in ("rename column a to x", "rename column c to a"):
        whole.run(f"alter table t {change}")
        whole.htap.sync_now()
        if way.capture == "polling":
            some.htap.sync_now()
    some.htap.sync_now()
    rows = some.htap.query("select id, a from t order by id", hint="olap").to_pylist()
    assert [row["a"] for row in rows] == [7, 7, 7, 7]
    whole.assert_equal("t")


def test_each_mirror_of_a_table_follows_a_renaming_however_late(
    make: MakeWorld, make_world: MakeWorld
) -> None:
    first = make(Way("trigger", None), mode="temporal")
    late = [make_world(mode=mode, tables=[{"name": "t"}]) for mode in ("temporal", "destructive")]
    for other in late:
        other.path, app = first.path, other.app
        other.app = first.app
        app.close()
        other.htap.sync_now()
    for value, change in ((11, "rename a to x"), (12, "rename b to y"), (13, "rename x to z")):
        names = [name for name in first.columns("t") if name in "axz"]
        follow(first, f"update t set {names[0]} = {value} where id = 1", f"alter table t {change}")
    for other in late:
        follow(other)
        assert other.htap.verify("t").equal
    told = [[v["z"] for v in w.versions("t") if v["id"] == 1] for w in (first, late[0])]
    assert told == [[10, 11, 12, 13]] * 2


@MODES
def test_what_an_older_version_captured_gets_identities_when_it_is_opened(
    make: MakeWorld, mode: str
) -> None:
    world = make(Way("trigger", None), mode=mode)
    world.crash()
    noted = "update _rhei_schema set version = (select schema_version from pragma_schema_version)"
    world.run("drop table _rhei_column", noted)  # as if it had never been
    follow(world, "update t set a = 11 where id = 1")
    follow(world, "alter table t rename column a to amount")
    assert "renamed" in world.htap.schema_log("t")[0].what


@pytest.mark.parametrize(
    "column", ["a integer", '"a" integer', "[a] integer", "`a` int check (`a` > 0)"]
)
@pytest.mark.parametrize("new", ["amount", '"an amount"', "[amount]"])
def test_a_name_may_be_written_in_any_way(make: MakeWorld, column: str, new: str) -> None:
    world = make(Way("trigger", None), _COLUMNS.replace("a integer", column))
    follow(world, f"alter table t rename column a to {new}", "update t set c = 1 where id = 2")
    assert "renamed" in world.htap.schema_log("t")[0].what


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("capture", ["trigger", "polling"])
def test_tables_at_random_lose_nothing_to_columns_that_change(
    make: MakeWorld, capture: str, mode: str
) -> None:
    lot = random.Random(f"{capture} {mode}")
    world = make(Way(capture, None), mode=mode)
    names, stamp = ["a", "c"], 2
    present: dict[int, list[Any]] = {key: [10 * key, 7] for key in range(1, 5)}
    told = {(key, *map(str, row)) for key, row in present.items()}
    for turn in range(12):
        for _ in range(2):
            key, place = lot.choice([*present]), lot.randrange(len(names))
            present[key][place] = stamp * 100
            world.run(f"update t set {names[place]} = {stamp * 100}, at = {stamp} where id = {key}")
            stamp += 1
        if lot.random() < 0.7:
            place = lot.randrange(2)
            world.run(f"alter table t rename column {names[place]} to n{turn}")
            names[place] = f"n{turn}"
        else:
            world.run(f"alter table t add column m{turn} integer")
        if lot.random() < 0.7:
            assert not world.htap.sync_now().errors
            told |= {(key, *map(str, row)) for key, row in present.items()}
            world.assert_equal("t")
    world.htap.sync_now()
    world.assert_equal("t")
    assert world.htap.verify("t").equal
    if mode == "temporal":
        kept = {_named(v) for v in world.versions("t")}
        assert all(any({*row[1:]} <= had[1] for had in kept if had[0] == row[0]) for row in told)


def _named(version: dict[str, Any]) -> tuple[int, frozenset[str]]:
    """Return a version's key and its values, under whatever names they are kept."""
    return version["id"], frozenset(str(v) for v in version.values())
