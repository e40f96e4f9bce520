"""A history whose local times become instants, or the other way, goes on; its past stays as it was.

Which instant a local time was, nobody recorded. So the former values are kept beside the column.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import permutations
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from rhei_pipeline.cli.differences import show_differences
from rhei_pipeline.errors import ChangesLostError
from rhei_pipeline.protocols import Step
from tests.support.altered_tables import STORAGES, Way
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

pytestmark = pytest.mark.turns

AnyWorld = World | PostgresWorld
MakeWorld = Callable[..., AnyWorld]

WAYS = [
    Way(capture, storage)
    for capture in ("logical", "trigger", "polling", "sqlite", "sqlite-polling")
    for storage in STORAGES
    if storage != "memory" or not capture.startswith("sqlite")  # it is opened again there
]
#: A type, a value of it, another type of another meaning, and a value of that.
MEANINGS = (
    ("timestamp", "2026-01-05 12:30:00.5", "timestamptz", "2026-02-06 10:00:00+00"),
    ("timestamptz", "2026-01-05 12:30:00+00", "timestamp", "2026-02-06 10:00:00.25"),
    ("date", "2026-01-05", "timestamptz", "2026-02-06 10:00:00+00"),
    ("timestamptz", "2026-01-05 12:30:00+00", "date", "2026-02-06"),
)
_STEPS = (Step.SNAPSHOT, Step.PROMOTED, Step.RECORDED, Step.COMMITTED)
_WAS = "_rhei_was_1_v"


@pytest.fixture
def make(request: pytest.FixtureRequest) -> MakeWorld:
    """Make a world of a way whose history has columns of these types."""

    def make_one(way: Way, kind: str, **table: Any) -> AnyWorld:
        is_postgres = not way.capture.startswith("sqlite")
        entry: dict[str, Any] = {"name": "t", "types": {} if is_postgres else {"v": kind}}
        method = "polling" if way.capture.endswith("polling") else way.capture
        if method == "polling":
            entry["polling"] = {"updated_at": "at", "deletes": "reconcile"}
        options = {"mode": "temporal", "storage": way.storage, "tables": [entry | table]}
        world: AnyWorld
        if is_postgres:
            made = request.getfixturevalue("make_postgres")
            world = made(**options, capture={"method": method})
        else:
            made = request.getfixturevalue("make_world")
            world = made(**options, method="polling" if method == "polling" else "trigger")
        at = "timestamptz default clock_timestamp()" if is_postgres else "integer default 0"
        world.run(f"create table t (id integer primary key, v {_declared(world, kind)}, at {at})")
        return world

    return make_one


def _declared(world: AnyWorld, kind: str) -> str:
    return kind if isinstance(world, PostgresWorld) else "text"


def _put(world: AnyWorld, row: int, value: str | None) -> None:
    text = "null" if value is None else f"'{value}'"
    later = "(select coalesce(max(at), 0) + 1 from t)"
    now = "clock_timestamp()" if isinstance(world, PostgresWorld) else later
    world.run(f"insert into t (id, v) values ({row}, {text}) on conflict (id) do nothing")
    world.run(f"update t set v = {text}, at = {now} where id = {row}")


def _give_type(world: AnyWorld, kind: str, values: dict[int, str]) -> None:
    """Give the column another type, and these rows their values in it."""
    if isinstance(world, PostgresWorld):
        cases = " ".join(f"when {row} then '{value}'::{kind}" for row, value in values.items())
        world.run(f"alter table t alter v type {kind} using case id {cases} end")
        return
    world.crash()
    world.tables = [{**(world.tables or [])[0], "types": {"v": kind}}]
    for row, value in values.items():
        _put(world, row, value)


def _drop(world: AnyWorld) -> None:
    """Drop the column in the source, and what is declared of it."""
    world.crash()
    world.tables = [{**(world.tables or [])[0], "types": {}}]
    world.run("alter table t drop column v")


def _of(world: AnyWorld, instant: datetime) -> list[tuple[object, ...]]:
    found = world.htap.as_of("t", instant).select(["id", "v"])
    return sorted(tuple(row.values()) for row in found.to_pylist())


def _now(world: AnyWorld) -> datetime:
    """Return an instant at which the mirror has what it has."""
    found = world.versions("t")
    names = ("_rhei_valid_from", "_rhei_valid_to")
    latest: datetime = max(v[name] for v in found for name in names if v[name])
    return latest


@pytest.mark.parametrize("meaning", MEANINGS, ids=lambda m: f"{m[0]}-{m[2]}")
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_history_goes_on_and_its_past_stays_as_it_was(
    make: MakeWorld, way: Way, meaning: tuple[str, str, str, str]
) -> None:
    kind, value, other, news = meaning
    world = make(way, kind)
    _put(world, 1, value)
    _put(world, 2, value)
    _put(world, 3, None)
    assert not world.htap.sync_now().errors
    _put(world, 1, None)
    _put(world, 1, value)
    world.htap.sync_now()
    before, then = world.versions("t", "id, _rhei_valid_from"), _now(world)
    rows = _of(world, then)
    assert all(version[1] is not None for version in rows[:2])
    _give_type(world, other, {1: news, 2: news})
    report = world.htap.sync_now()
    assert (report.errors, report.dead_letters) == ({}, 0)
    assert world.htap.verify().equal
    for _ in range(2):
        assert _of(world, then) == rows
        assert world.htap.as_of("t", then).column_names == ["id", "v", "at"]
        after = world.versions("t", "id, _rhei_valid_from")
        past = [v for v in after if v["_rhei_valid_from"] <= then]
        assert [(v["id"], v[_WAS], v["_rhei_valid_from"]) for v in past] == [
            (v["id"], v["v"], v["_rhei_valid_from"]) for v in before
        ]
        assert all(v["v"] is None for v in past)
        present = [v for v in after if v["_rhei_valid_to"] is None]
        assert all(v[_WAS] is None for v in present if v["id"] != 3)
        assert _of(world, _now(world)) == sorted((v["id"], v["v"]) for v in present)
        world.htap.sync_now()
        if way.storage == "memory":
            return
        world.crash()


@pytest.mark.long
@pytest.mark.parametrize("way", [w for w in WAYS if w.storage != "memory"], ids=str)
def test_a_column_may_be_set_aside_again(make: MakeWorld, way: Way) -> None:
    """Each instant has the column as it was then."""
    world = make(way, "timestamp")
    values = ("2026-01-05 12:30:00", "2026-02-05 12:30:00+00", "2026-03-05 12:30:00")
    seen: list[tuple[datetime, list[tuple[object, ...]]]] = []
    for kind, value in zip(("timestamp", "timestamptz", "timestamp"), values, strict=True):
        if seen:
            _give_type(world, kind, {1: value})
        else:
            _put(world, 1, value)
        assert not world.htap.sync_now().errors
        seen.append((_now(world), _of(world, _now(world))))
        for instant, rows in seen:
            assert _of(world, instant) == rows
    aside = {"_rhei_was_1_v", "_rhei_was_2_v"}
    assert aside <= set(world.versions("t")[0])
    assert world.htap.verify().equal
    # The column goes: what it was goes with it only where the past is not kept.
    _drop(world)
    assert not world.htap.sync_now().errors
    for instant, rows in seen[:-1]:
        assert _of(world, instant) == rows
    assert aside <= set(world.versions("t")[0])


@pytest.mark.long
@pytest.mark.parametrize("way", [w for w in WAYS if w.storage != "memory"], ids=str)
def test_what_is_to_be_dropped_is_the_column_and_not_its_past(make: MakeWorld, way: Way) -> None:
    world = make(way, "timestamp", dropped_columns="drop")
    _put(world, 1, "2026-01-05 12:30:00")
    world.htap.sync_now()
    then = _now(world)
    rows = _of(world, then)
    _give_type(world, "timestamptz", {1: "2026-02-05 12:30:00+00"})
    for statement in ("insert into t (id) values (7)", "alter table t add column w integer"):
        assert not world.htap.sync_now().errors
        assert _of(world, then) == rows
        world.run(statement)
    assert not world.htap.sync_now().errors
    assert _of(world, then) == rows
    _drop(world)
    assert not world.htap.sync_now().errors
    assert not {"v", _WAS} & set(world.versions("t")[0])


@pytest.mark.parametrize("dropped", ["keep", "drop"])
@pytest.mark.parametrize("way", [Way("logical", None), Way("logical", "ipc")], ids=str)
def test_what_a_column_was_is_renamed_with_it(make: MakeWorld, way: Way, dropped: str) -> None:
    world = make(way, "timestamp", dropped_columns=dropped)
    seen: list[tuple[datetime, list[tuple[object, ...]]]] = []
    for kind in ("timestamp", "timestamptz", "timestamp"):
        if seen:
            _give_type(world, kind, {1: "2026-02-05 12:30:00"})
        else:
            _put(world, 1, "2026-01-05 12:30:00")
        assert not world.htap.sync_now().errors
        seen.append((_now(world), _of(world, _now(world))))
    world.htap.snapshot("t", {date(2026, 1, 1): seen[0][0]})
    world.run("alter table t rename v to shipped")
    assert not world.htap.sync_now().errors
    for instant, rows in seen:
        found = world.htap.as_of("t", instant)
        assert found.column_names == ["id", "shipped", "at"]
        assert [(r["id"], r["shipped"]) for r in found.to_pylist()] == rows
    aside = {"_rhei_was_1_shipped", "_rhei_was_2_shipped"}
    days = world.htap.query("select * from snapshot.t", hint="olap").column_names
    for names in (days, world.versions("t")[0]):
        assert {name for name in names if "was" in name} == aside
    assert world.htap.verify().equal


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_snapshots_and_consumers_are_told(make: MakeWorld, way: Way) -> None:
    world = make(way, "timestamp")
    _put(world, 1, "2026-01-05 12:30:00")
    world.htap.sync_now()
    today, then = date(2026, 1, 1), _now(world)
    world.htap.snapshot("t", {today: then})
    position = world.htap.changes("t").position
    _give_type(world, "timestamptz", {1: "2026-02-05 12:30:00+00"})
    world.htap.sync_now()
    days = {today + timedelta(1): then, today + timedelta(2): _now(world)}
    world.htap.snapshot("t", days)
    found = world.htap.query("select * from snapshot.t order by snapshot_date", hint="olap")
    local = datetime(2026, 1, 5, 12, 30)  # noqa: DTZ001
    assert found[_WAS].to_pylist() == [local, local, None]
    assert found["v"].to_pylist() == [None, None, datetime(2026, 2, 5, 12, 30, tzinfo=UTC)]
    with pytest.raises(ChangesLostError):
        world.htap.changes("t", after=position)
    with pytest.raises(ChangesLostError, match="the values of 'v' meant something else"):
        world.htap.changes("t", after=then)
    assert world.htap.changes("t", after=then, on_lost="snapshot").snapshot
    assert not world.htap.changes("t", after=datetime.now(UTC)).rows.num_rows
    change = world.htap.schema_log("t")[-1]
    assert "'v' (former values are kept beside it)" in change.what


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_difference_has_the_column_of_each_instant(make: MakeWorld, way: Way) -> None:
    world = make(way, "timestamp")
    seen: list[tuple[datetime, dict[int, object]]] = []
    for day in (5, 6):
        _put(world, 1, f"2026-01-0{day} 12:30:00")
        _put(world, 2, "2026-01-01 00:00:00")
        world.htap.sync_now()
        seen.append((_now(world), dict(_of(world, _now(world)))))  # type: ignore[arg-type]
    _give_type(world, "timestamptz", dict.fromkeys((1, 2), "2026-02-05 12:30:00+00"))
    assert not world.htap.sync_now().errors
    seen.append((_now(world), dict(_of(world, _now(world)))))  # type: ignore[arg-type]
    for (a, was), (b, became) in permutations(seen, 2):
        found = world.htap.diff("t", a, b)
        assert not any("_rhei_was_" in name for name in found.column_names)
        changes = {r["id"]: (r["_rhei_old_v"], r["v"]) for r in found.to_pylist()}
        both = {key: (was[key], became[key]) for key in was}
        assert {k: v for k, v in changes.items() if v[0] != v[1]} == {
            k: v for k, v in both.items() if v[0] != v[1]
        }


def test_the_command_shows_a_difference_of_what_a_column_was(
    make: MakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make(Way("sqlite", None), "timestamp")
    instants = []
    for day in (5, 6):
        _put(world, 1, f"2026-01-0{day} 12:30:00")
        world.htap.sync_now()
        instants.append(_now(world))
    _give_type(world, "timestamptz", {1: "2026-02-05 12:30:00+00"})
    world.htap.sync_now()
    show_differences(world.htap.diff("t", *instants))
    assert "v: 2026-01-05 12:30:00 -> 2026-01-06 12:30:00" in capsys.readouterr().out
    either = {"v": [8], _WAS: [None], f"_rhei_old_{_WAS}": [7], "_rhei_old_v": [None]}
    show_differences(pa.table({"_rhei_operation": ["U"], "id": [1], **either}))
    assert f"{_WAS}: 7 -> null" in capsys.readouterr().out


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_column_without_values_takes_any_type(make: MakeWorld, way: Way) -> None:
    world = make(way, "timestamp")
    _put(world, 1, None)
    world.htap.sync_now()
    _give_type(world, "timestamptz", {1: "2026-02-05 12:30:00+00"})
    assert not world.htap.sync_now().errors
    assert _WAS not in world.versions("t")[0]
    assert world.htap.verify().equal


@pytest.mark.long
@pytest.mark.parametrize("step", _STEPS)
@pytest.mark.parametrize("way", [w for w in WAYS if w.storage != "memory"], ids=str)
def test_a_crash_sets_nothing_aside_twice(make: MakeWorld, way: Way, step: Step) -> None:
    world = make(way, "timestamp")
    _put(world, 1, "2026-01-05 12:30:00")
    world.htap.sync_now()
    then = _now(world)
    rows = _of(world, then)
    _give_type(world, "timestamptz", {1: "2026-02-05 12:30:00+00"})
    world.faults.arm(step)
    assert world.surviving(lambda: world.htap.sync_now())  # noqa: PLW0108  (opening may crash)
    assert not world.htap.sync_now().errors
    assert _of(world, then) == rows
    assert [name for name in world.versions("t")[0] if name.startswith("_rhei_was")] == [_WAS]
    assert world.htap.verify().equal


@pytest.mark.long
def test_one_index_of_somebodys_and_one_row_that_does_not_fit(make: MakeWorld) -> None:
    """The row's last good version stays, with what the column was."""
    world = make(Way("sqlite", None), "timestamp")
    _put(world, 1, "2026-01-05 12:30:00")
    _put(world, 2, "2026-01-05 12:30:00")
    world.htap.sync_now()
    then = _now(world)
    world.crash()
    with duckdb.connect(world.directory / "mirror.duckdb") as mirror:
        mirror.execute("create index own on t(v)")
    rows = _of(world, then)
    _give_type(world, "timestamptz", {1: "2026-02-05 12:30:00+00", 2: "soon"})
    report = world.htap.sync_now()
    assert not report.errors
    assert world.htap.dead_letters().num_rows == 1
    local = datetime(2026, 1, 5, 12, 30)  # noqa: DTZ001
    kept = [v for v in world.versions("t", "id") if v["_rhei_valid_to"] is None]
    assert [(v["id"], v[_WAS]) for v in kept] == [(1, None), (2, local)]
    _put(world, 2, "2026-03-05 12:30:00+00")
    report = world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    assert world.htap.verify().equal
    assert _of(world, then) == rows


def test_the_router_finds_what_a_column_was(make: MakeWorld) -> None:
    world = make(Way("sqlite", "ipc"), "timestamp")
    _put(world, 1, "2026-01-05 12:30:00")
    world.htap.sync_now()
    _give_type(world, "timestamptz", {1: "2026-02-05 12:30:00+00"})
    world.htap.sync_now()
    local = datetime(2026, 1, 5, 12, 30)  # noqa: DTZ001
    for statement in (f"select max({_WAS}) from t", f"select {_WAS} from t where id = 1"):
        assert local in world.htap.query(statement)[0].to_pylist()


def test_a_key_that_would_change_is_refused(make_postgres: Callable[..., PostgresWorld]) -> None:
    world = make_postgres(mode="temporal")
    world.run(
        "create table t (v timestamp primary key, w int)",
        "insert into t values ('2026-01-05 12:30', 1)",
    )
    world.htap.sync_now()
    world.run("alter table t alter v type timestamptz")
    assert "its history does not fit" in world.htap.sync_now().errors["t"]
    assert pa.types.is_timestamp(world.htap.query("select v from t", hint="olap")["v"].type)


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_nothing_is_set_aside_where_another_column_does_not_fit(
    make_postgres: Callable[..., PostgresWorld], storage: str | None
) -> None:
    world = make_postgres(mode="temporal", storage=storage)
    world.run(
        "create table t (id int primary key, v timestamp, w text)",
        "create table u (id int primary key)",
        "insert into t values (1, '2026-01-05 12:30', '007')",
    )
    world.htap.sync_now()
    before = world.versions("t")
    world.run(
        "alter table t alter v type timestamptz, alter w type int using w::int",
        "insert into u values (1)",
    )
    for _ in range(2):
        assert "column 'w' became int32" in world.htap.sync_now().errors["t"]
        assert world.versions("t") == before
    world.assert_equal("u")


def test_a_name_that_changes_its_case_keeps_its_past(make: MakeWorld) -> None:
    world = make(Way("sqlite", None), "timestamp")
    _put(world, 1, "2026-01-05 12:30:00")
    world.htap.sync_now()
    then = _now(world)
    _give_type(world, "timestamptz", {1: "2026-02-05 12:30:00+00"})
    world.htap.sync_now()
    world.crash()
    world.tables = [{**(world.tables or [])[0], "types": {"V": "timestamptz"}}]
    world.run("alter table t rename v to V")
    assert not world.htap.sync_now().errors
    found = world.htap.as_of("t", then).select(["id", "V"])
    local = datetime(2026, 1, 5, 12, 30)  # noqa: DTZ001
    assert found.to_pylist() == [{"id": 1, "V": local}]
