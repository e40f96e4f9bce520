"""`dropped_columns` says what becomes of a column that the source has no more."""

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import duckdb
import pytest

from rhei_pipeline.protocols import Step
from tests.support.altered_tables import STEPS, STORAGES, Way
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

pytestmark = pytest.mark.turns

AnyWorld = World | PostgresWorld
MakeWorld = Callable[..., AnyWorld]

_CREATE = (
    "create table t (id integer primary key, a integer, b text, c integer)",
    "insert into t values (1, 10, 'one', 7), (2, 20, 'two', 7), (3, 30, null, 7), (4, 40, 'x', 7)",
)
#: What is written before the column goes, and after.
_WORK = (
    "update t set a = 11, b = 'eins' where id = 1",
    "alter table t drop column b",
    "update t set a = 21 where id = 2",
    "delete from t where id = 4",
    "insert into t (id, a, c) values (6, 60, null)",
)
WAYS = [
    Way(capture, storage) for capture in ("logical", "trigger", "sqlite") for storage in STORAGES
]
SOME = [Way(capture, None) for capture in ("logical", "sqlite")] + [
    Way("logical", "parquet"),
    Way("sqlite", "ipc"),
]


@pytest.fixture
def make(request: pytest.FixtureRequest) -> MakeWorld:
    """Make a world of a way, in which a setting counts, with what was in it synced."""

    def made(way: Way, dropped: str | None, **options: Any) -> AnyWorld:
        options["storage"] = way.storage
        fixture = "make_world" if way.capture == "sqlite" else "make_postgres"
        if way.capture != "sqlite":
            options["capture"] = {"method": way.capture}
        options["tables"] = [{"name": "t", "dropped_columns": dropped}]
        world: AnyWorld = request.getfixturevalue(fixture)(**options)
        world.run(*_CREATE)
        assert not world.htap.sync_now().errors
        return world

    return made


def _rows(world: AnyWorld, names: str = "id, a, b, c") -> list[tuple[object, ...]]:
    found = world.htap.query(f"select {names} from t order by id", hint="olap")
    return [tuple(row.values()) for row in found.to_pylist()]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_plain_mirror_keeps_a_dropped_column_with_the_last_values(
    make: MakeWorld, way: Way
) -> None:
    world = make(way, "keep")
    world.run(*_WORK)
    assert not world.htap.sync_now().errors
    assert _rows(world)[0] == (1, 11, "one", 7)  # as the sync before had it
    rest = [(2, 21, "two", 7), (3, 30, None, 7), (6, 60, None, None)]
    assert _rows(world)[1:] == rest
    world.assert_equal("t")
    assert world.htap.verify("t").equal
    world.run("update t set c = 8 where id = 2", "insert into t (id) values (7)")
    report = world.htap.sync_now().tables["t"]
    assert (report.inserted, report.updated, report.deleted) == (1, 1, 0)
    world.htap.maintain()
    assert _rows(world)[1:] == [(2, 21, "two", 8), *rest[1:], (7, None, None, None)]
    assert world.htap.sync_now().tables["t"].updated == 0
    assert world.htap.verify("t").equal


@pytest.mark.parametrize("way", SOME, ids=str)
def test_a_copy_and_a_repair_keep_what_a_plain_mirror_has_in_a_dropped_column(
    make: MakeWorld, way: Way
) -> None:
    world = make(way, "keep")
    world.run(*_WORK[1:])
    world.htap.sync_now()
    before = _rows(world)
    world.htap.initial_sync("t")
    assert _rows(world) == before
    world.htap.repair("t")
    assert _rows(world) == before
    # The key's rows are written anew in another shape.
    if way.capture == "sqlite":
        world.run("create table n (id integer primary key, a integer, c text)")
        world.run("insert into n select id, a, c from t", "drop table t")
        world.run("alter table n rename to t")
    else:
        world.run("alter table t alter column c type text using c::text")
    world.htap.sync_now()
    assert [row[:3] for row in _rows(world)] == [row[:3] for row in before]
    assert world.htap.verify("t").equal


@pytest.mark.parametrize("way", SOME, ids=str)
def test_a_kept_column_is_the_sources_again_when_it_comes_back(make: MakeWorld, way: Way) -> None:
    world = make(way, "keep")
    world.run("alter table t drop column c", "update t set a = 21 where id = 2")
    world.htap.sync_now()
    world.run("alter table t add column c integer", "update t set c = 3 where id = 1")
    world.htap.sync_now()
    assert _rows(world, "id, c") == [(1, 3), (2, None), (3, None), (4, None)]
    world.run("alter table t drop column b")
    world.htap.sync_now()
    world.run("alter table t add column b integer default 5")
    world.htap.sync_now()
    assert _rows(world, "id, b, c") == [(1, 5, 3), (2, 5, None), (3, 5, None), (4, 5, None)]
    world.assert_equal("t")
    assert world.htap.verify("t").equal


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_history_drops_a_column_where_that_is_said(make: MakeWorld, way: Way) -> None:
    world = make(way, "drop", mode="temporal")
    now = datetime.now(UTC)
    world.htap.snapshot("t", {now.date(): now})
    world.run(*_WORK)
    assert not world.htap.sync_now().errors
    shown = world.htap.query("select * from t", hint="olap").column_names
    assert [name for name in shown if not name.startswith("_rhei_")] == ["id", "a", "c"]
    days = world.htap.query("select * from snapshot.t", hint="olap")
    assert (sorted(days.column_names), days.num_rows) == (["a", "c", "id", "snapshot_date"], 4)
    versions = [(v["id"], v["a"], v["c"]) for v in world.versions("t", "id, _rhei_valid_from")]
    assert versions == [
        *[(1, 10, 7), (1, 11, 7), (2, 20, 7), (2, 21, 7), (3, 30, 7), (4, 40, 7), (6, 60, None)]
    ]
    world.assert_equal("t")
    world.run("alter table t add column b text", "update t set b = 'new' where id = 3")
    world.htap.sync_now()
    assert {v["b"] for v in world.versions("t")} == {None, "new"}
    world.assert_equal("t")
    assert world.htap.verify("t").equal


@pytest.mark.parametrize("way", SOME, ids=str)
@pytest.mark.parametrize("dropped", ["keep", "drop"])
def test_a_column_that_is_left_out_of_the_mirror_is_kept_or_dropped_as_well(
    make: MakeWorld, way: Way, dropped: str
) -> None:
    world = make(way, dropped, mode="destructive" if dropped == "keep" else "temporal")
    world.crash()
    world.tables = [{"name": "t", "dropped_columns": dropped, "columns": ["id", "a", "c"]}]
    world.run("update t set a = 21, b = 'hidden' where id = 2")
    assert not world.htap.sync_now().errors
    if dropped == "keep":
        assert _rows(world)[:2] == [(1, 10, "one", 7), (2, 21, "two", 7)]
    else:
        assert "b" not in world.htap.query("select * from t", hint="olap").column_names
    assert world.htap.verify("t").equal


@pytest.mark.parametrize("source", ["sqlite", "postgres"])
def test_a_polled_table_keeps_and_drops_columns(
    request: pytest.FixtureRequest, source: str
) -> None:
    for mode, dropped in (("destructive", "keep"), ("temporal", "drop")):
        kind, now = ("integer", "unixepoch()") if source == "sqlite" else ("timestamptz", "now()")
        polled: dict[str, Any] = {"deletes": "disabled"}
        polled |= {"clock": "database"} if source == "postgres" else {}
        table = {"name": "t", "dropped_columns": dropped, "polling": polled}
        how = {"method": "polling"} if source == "sqlite" else {"capture": {"method": "polling"}}
        fixture = "make_world" if source == "sqlite" else "make_postgres"
        world = request.getfixturevalue(fixture)(mode=mode, tables=[table], **how)
        world.run(
            "drop table if exists t",
            f"create table t (id integer primary key, a integer, b text, updated_at {kind})",
            f"insert into t values (1, 10, 'one', {now}), (2, 20, 'two', {now})",
        )
        world.htap.sync_now()
        world.run("alter table t drop column b", f"update t set a = 11, updated_at = {now}")
        assert not world.htap.sync_now().errors
        assert (dropped == "keep") is ("b" in world.htap.query("select * from t").column_names)
        if dropped == "keep":
            assert _rows(world, "id, a, b") == [(1, 11, "one"), (2, 11, "two")]
        world.assert_equal("t")


@pytest.mark.long
@pytest.mark.parametrize("way", SOME, ids=str)
def test_another_setting_counts_for_the_columns_that_were_kept(make: MakeWorld, way: Way) -> None:
    for mode, before in (("destructive", "keep"), ("temporal", None)):
        world = make(way, before, mode=mode)
        world.run(*_WORK[1:])
        world.htap.sync_now()
        assert "b" in world.htap.query("select * from t", hint="olap").column_names
        world.crash()
        world.tables = [{"name": "t", "dropped_columns": "drop"}]
        world.htap.sync_now()
        assert "b" not in world.htap.query("select * from t", hint="olap").column_names
        assert world.htap.sync_now().events == 0
        world.assert_equal("t")
        world.run("drop table t")
        world.close()


@pytest.mark.long
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("way", SOME, ids=str)
def test_a_crash_while_a_column_is_kept_or_dropped_loses_and_doubles_nothing(
    make: MakeWorld, way: Way, step: Step, mode: str
) -> None:
    world = make(way, "keep" if mode == "destructive" else "drop", mode=mode)
    world.run(*_WORK[1:])
    world.faults.arm(step)
    assert world.surviving(world.htap.sync_now)
    world.run("update t set c = 1 where id = 3")
    assert not world.htap.sync_now().errors
    world.assert_equal("t")
    if mode == "destructive":
        assert _rows(world, "id, b")[:3] == [(1, "one"), (2, "two"), (3, None)]
    assert world.htap.verify("t").equal


@pytest.mark.long
def test_a_table_with_somebodys_index_keeps_and_drops_columns(make: MakeWorld) -> None:
    for mode, dropped in (("destructive", "keep"), ("temporal", "drop")):
        world = make(Way("sqlite", None), dropped, mode=mode)
        world.crash()
        with duckdb.connect(world.directory / "mirror.duckdb") as mirror:
            mirror.execute("create index own on t(c)")
        world.run(*_WORK[1:])
        assert not world.htap.sync_now().errors
        shown = world.htap.query("select * from t", hint="olap").column_names
        assert ("b" in shown) is (dropped == "keep")
        world.assert_equal("t")


@pytest.mark.parametrize("way", [Way("logical", None), Way("sqlite", "parquet")], ids=str)
def test_kept_values_are_those_that_rows_had_last_in_columns_that_come_and_go(
    make: MakeWorld, way: Way
) -> None:
    lot = random.Random(str(way))
    world = make(way, "keep")
    model: dict[int, dict[str, Any]] = {
        1: {"b": "one"},
        2: {"b": "two"},
        3: {"b": None},
        4: {"b": "x"},
    }
    world.run("alter table t drop column b")
    for turn in range(6):
        if turn % 2:
            world.run(f"alter table t drop column n{turn - 1}")
        else:
            world.run(f"alter table t add column n{turn} integer")
            for row in model.values():
                row[f"n{turn}"] = None
        world.htap.sync_now()
        for _ in range(4):
            key, value = lot.randrange(1, 8), lot.randrange(100)
            if key in model and lot.random() < 0.2:
                world.run(f"delete from t where id = {key}")
                del model[key]
                world.htap.sync_now()  # or it is another row of that key
            elif turn % 2:
                world.run(
                    f"insert into t (id, a) values ({key}, {value}) on conflict (id)"
                    " do update set a = excluded.a"
                )
                model.setdefault(key, {})
            else:
                world.run(
                    f"insert into t (id, n{turn}) values ({key}, {value}) on conflict (id)"
                    f" do update set n{turn} = excluded.n{turn}"
                )
                model.setdefault(key, {})[f"n{turn}"] = value
        assert not world.htap.sync_now().errors
        world.assert_equal("t")
    names = ("b", "n0", "n2", "n4")
    found = _rows(world, ", ".join(("id", *names)))
    assert found == [(k, *(row.get(n) for n in names)) for k, row in sorted(model.items())]
    assert world.htap.verify("t").equal
