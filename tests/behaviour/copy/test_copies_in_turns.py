"""Tables are copied in turns: in between, those in place are synced, and others are answered."""

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from rhei_pipeline.errors import RheiError
from rhei_pipeline.mirrors.datafusion.copy_ranges import CopyRanges
from rhei_pipeline.model.progress import TableState
from rhei_pipeline.protocols import Step
from rhei_pipeline.sync import copy_ranges as sharing
from rhei_pipeline.sync import pipeline
from rhei_pipeline.testing.oracle import arrow_rows
from tests.support.declared_worlds import CAPTURES, MODES
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.parts import connection_of, engine_of, manifest_of

pytestmark = pytest.mark.turns

if TYPE_CHECKING:
    from rhei_pipeline.model.reports import SyncReport

AnyWorld = World | PostgresWorld
Make = Callable[..., AnyWorld]
BATCH, PARTS = 10, 6
POLLED = {"polling": {"updated_at": "at", "deletes": "reconcile", "reconcile_seconds": 0}}


@pytest.fixture
def in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn is one batch."""
    monkeypatch.setattr(pipeline, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(pipeline, "COPYING_SHARE", 0)


@pytest.fixture
def make(request: pytest.FixtureRequest, in_turns: None) -> Make:
    """Make a world with `small`, which is in place, and `big`, which was never copied."""

    def made(
        capture: str = "sqlite-trigger", *more: str, ranges: int = 1, **options: Any
    ) -> AnyWorld:
        polled = POLLED if "polling" in capture else {}
        tables: list[dict[str, Any]] = [
            {"name": name, **polled} for name in ("big", *more, "small")
        ]
        tables[0] |= {"copy_ranges": ranges}
        given = {"tables": tables, "batch_rows": BATCH, **options}
        fixture = "make_world" if capture.startswith("sqlite") else "make_postgres"
        if fixture == "make_world":
            given |= CAPTURES[capture]
        else:
            given["capture"] = CAPTURES[capture]
        world: AnyWorld = request.getfixturevalue(fixture)(**given)
        create(world, "small")
        put(world, "small", 1, 3)
        assert world.htap.sync_now().errors.keys() == {"big", *more}
        create(world, "big")
        put(world, "big", 0, BATCH * PARTS)
        return world

    return made


def create(world: AnyWorld, name: str) -> None:
    world.run(
        f"create table {name}(id integer primary key, v text, at integer default 0)",
        f"create index {name}_at on {name}(at, id)",
    )


def put(world: AnyWorld, table: str, first: int, count: int, at: int = 0) -> None:
    rows = ", ".join(f"({n}, 'v{n}', {at})" for n in range(first, first + count))
    world.run(f"insert into {table} values {rows}")


def copies_in(world: AnyWorld) -> list[str]:
    """Return the tables of copies in the mirror, whether they are recorded or not."""
    mirror: Any = engine_of(world.htap).mirror
    if world.storage is not None:
        return sorted(manifest_of(mirror).copies)
    found = connection_of(mirror).execute("select table_name from duckdb_tables()").fetchall()
    return [name for (name,) in found if name.startswith("_rhei_copy_")]


class Writes:
    """Writes into both tables at each step, and looks at what the mirror shows of the last time."""

    def __init__(self, world: AnyWorld) -> None:
        self._world, self.times, self.seen = world, 0, 0

    def __call__(self) -> None:
        self._look()
        self.times += 1
        n = self.times
        put(self._world, "small", 1000 * n, 2, at=n)
        self._world.run(
            f"update small set v = 'new{n}', at = {n} where id = 1",
            f"update big set v = 'new{n}', at = {n} where id % 7 = {n % 7}",
            f"delete from big where id = {n * 13}",
        )

    def _look(self) -> None:
        mirror = engine_of(self._world.htap).mirror
        if self.times and mirror.ledger().state("small") is TableState.READY:
            found = mirror.query(f"select count(*) as n from small where id >= {1000 * self.times}")
            self.seen += found["n"][0].as_py() == 2


@pytest.mark.long
@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("storage", [None, "parquet", "delta"])
def test_tables_in_place_are_synced_while_another_is_copied(
    make: Make, capture: str, mode: str, storage: str | None
) -> None:
    world = make(capture, mode=mode, storage=storage)
    writes = Writes(world)
    world.faults.do_at(Step.COPY_BATCH, writes, times=99)
    reports: list[SyncReport] = []
    world.htap.watch(reports.append, lambda *_: None)
    report = world.htap.sync_now()
    assert writes.times == writes.seen + 1 >= PARTS - 1
    assert report.copying == ()
    assert report.tables["big"].copied_rows >= BATCH * PARTS - PARTS
    # Each of the changes was told once, in one round or another.
    assert sum(each.tables["small"].events for each in reports) == report.tables["small"].events
    assert report.tables["small"].inserted == 2 * writes.times
    assert [each.copying for each in reports] == [("big",)] * writes.times + [()]
    assert ["big" in each.tables for each in reports] == [False] * writes.times + [True]
    world.assert_equal("big", "small")
    assert world.htap.verify().equal


@pytest.mark.long
@pytest.mark.parametrize("capture", ["sqlite-trigger", "postgres-trigger", "postgres-logical"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("storage", [None, "parquet"])
@pytest.mark.parametrize("asked", ["copy", "repair"])
def test_a_copy_that_is_asked_for_keeps_nobody_waiting(
    make: Make, capture: str, mode: str, storage: str | None, asked: str
) -> None:
    world = make(capture, mode=mode, storage=storage)
    world.htap.sync_now()
    writes = Writes(world)
    world.faults.do_at(Step.COPY_BATCH, writes, times=99)
    if asked == "copy":
        report = world.htap.initial_sync("big")
        assert not report.resumed
        assert report.rows >= BATCH * PARTS - PARTS
    else:
        world.htap.repair("big")
    # It is begun, and goes on at once.
    assert writes.times == writes.seen + 2 >= PARTS - 1
    world.htap.sync_now()
    world.assert_equal("big", "small")
    assert world.htap.verify().equal


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("storage", [None, "parquet"])
def test_a_table_that_is_copied_again_stays_as_it_was_meanwhile(
    make: Make, mode: str, storage: str | None
) -> None:
    world = make(mode=mode, storage=storage)
    assert isinstance(world, World)
    world.htap.sync_now()
    before, shown = world.mirror_rows("big"), list[Any]()
    sides = list[tuple[str, TableState]]()
    mirror = engine_of(world.htap).mirror

    def look() -> None:
        world.run("update big set v = 'new' where id = 3")
        shown.append(arrow_rows(mirror.query(f'select id, v, "at" from big{present}')))
        route = world.htap.explain_route("select count(*) from big group by v")
        sides.append((route.engine, mirror.ledger().state("big")))

    present = " where _rhei_valid_to is null" if mode == "temporal" else ""
    world.faults.do_at(Step.COPY_BATCH, look, times=99)
    world.htap.initial_sync("big")
    assert len(shown) == PARTS
    assert set(shown) == {before}
    assert set(sides) == {("oltp", TableState.COPYING)}
    world.assert_equal("big", "small")


@pytest.fixture
def one_batch_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "PART_BATCHES", 1)
    monkeypatch.setattr(sharing, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(sharing, "_LOOK_SECONDS", 0.01)


@pytest.mark.long
@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.usefixtures("one_batch_a_part")
def test_tables_in_place_are_synced_while_ranges_of_another_are_copied(
    make: Make, capture: str, mode: str
) -> None:
    world = make(capture, mode=mode, storage="parquet", ranges=3)
    writes = Writes(world)
    world.faults.do_at(Step.RANGE_RECORDED, writes, times=99)
    report = world.htap.sync_now()
    assert writes.times == writes.seen + 1 >= PARTS
    assert report.copying == ()
    world.assert_equal("big", "small")
    assert world.htap.verify().equal


@pytest.mark.usefixtures("one_batch_a_part")
def test_tables_in_place_are_synced_while_others_copy_ranges(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds the mirror leaves ranges on which somebody works to them."""
    world = make(storage="parquet", ranges=3)
    writes, idle = Writes(world), sharing.RangeMemory.idle

    def looked(memory: sharing.RangeMemory, *standing: Any) -> list[int]:
        if writes.times == 4:
            return idle(memory, *standing)
        writes()
        return []

    monkeypatch.setattr(sharing.RangeMemory, "idle", looked)
    world.htap.sync_now()
    assert writes.seen == 3
    world.assert_equal("big", "small")


@pytest.mark.usefixtures("one_batch_a_part")
def test_ranges_that_are_lost_each_time_are_not_copied_for_ever(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CopyRanges, "lost", lambda *_: ["data/gone.parquet"])
    world = make(storage="parquet", ranges=3)
    world.htap.sync_now()
    assert world.faults.seen.count(Step.RANGES_PLANNED) == sharing.ATTEMPTS
    world.assert_equal("big", "small")


@pytest.mark.parametrize("mode", MODES)
def test_a_small_table_does_not_wait_for_a_large_one(make: Make, mode: str) -> None:
    world = make("sqlite-trigger", "late", mode=mode)

    def add() -> None:
        create(world, "late")
        put(world, "late", 0, 3)

    reports: list[SyncReport] = []
    world.htap.watch(reports.append, lambda *_: None)
    world.faults.do_at(Step.COPY_BATCH, add)
    world.htap.sync_now()
    copied = [name for each in reports for name, table in each.tables.items() if table.copied_rows]
    assert copied == ["late", "big"]
    world.assert_equal("big", "late", "small")


def test_progress_goes_on_from_turn_to_turn(make: Make) -> None:
    world, seen = make(), list[int]()
    world.htap.sync_now(lambda name, rows, _of: seen.append(rows) if name == "big" else None)
    assert seen == [BATCH * part for part in range(1, PARTS + 1)] + [BATCH * PARTS]


def test_the_background_goes_on_turn_by_turn_and_stops_between_two(make: Make) -> None:
    world = make()
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert go_on.wait(30)

    world.faults.do_at(Step.COPY_BATCH, hold, times=99)
    background = world.htap.start_sync(3600)  # it rests between no two turns
    assert begun.wait(30)
    begun.clear()
    go_on.set()
    assert begun.wait(30)
    world.htap.stop_sync()
    assert world.faults.seen.count(Step.COPY_COMPLETE) == 1  # that of `small`
    status = world.htap.sync_status()
    assert status.tables["big"].state is TableState.COPYING
    assert status.copying.keys() == {"big"}
    assert status.copying["big"].rows % BATCH == 0
    assert background.last_error is None
    later = world.htap.start_sync(3600)
    while world.htap.sync_status().copying:
        pass
    world.htap.stop_sync()
    reports = [*background.take_reports(), *later.take_reports()]
    told = [table for report in reports for table in report.tables.values()]
    assert sum(table.copied_rows for table in told if table.table == "big") == BATCH * PARTS
    world.assert_equal("big", "small")


@pytest.mark.long
def test_others_are_answered_between_two_turns(make: Make) -> None:
    """A status, a query that wants the present state, a sync, a verification of another table."""
    world = make()
    assert isinstance(world, World)
    asked: list[Any] = []

    def ask() -> None:
        status = world.htap.sync_status()
        with closing(sqlite3.connect(world.path)) as app, app:
            app.execute("insert into small values (500, 'x', 0)")
        fresh = world.htap.query("select count(*) as n from small", hint="olap", max_staleness=0)
        asked.extend([status, fresh["n"][0].as_py(), world.htap.verify("small").equal])
        asked.append(engine_of(world.htap).mirror.ledger().state("big"))

    other = threading.Thread(target=ask)
    world.faults.do_at(Step.COPY_BATCH, other.start)
    world.faults.do_at(Step.COPY_BATCH, lambda: time.sleep(0.2), times=99)
    world.htap.sync_now()
    other.join()
    status, count, equal, state = asked
    assert status.tables["big"].state is TableState.COPYING
    assert (count, equal, state) == (4, True, TableState.COPYING)
    world.assert_equal("big", "small")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("change", ["alter table small add column c text default 'x'", "drop"])
def test_another_table_is_migrated_or_dropped_while_one_is_copied(
    make: Make, mode: str, change: str
) -> None:
    world = make(mode=mode)
    world.faults.do_at(
        Step.COPY_BATCH, lambda: world.run("drop table small" if change == "drop" else change)
    )
    report = world.htap.sync_now()
    world.assert_equal("big")
    assert report.tables["big"].copied_rows == BATCH * PARTS
    if change == "drop":
        assert "small" in report.errors
    else:
        world.assert_equal("small")


# In PostgreSQL a copy has the table open at that step: no migration comes between.
@pytest.mark.long
@pytest.mark.parametrize("capture", [name for name in CAPTURES if name.startswith("sqlite")])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("storage", [None, "parquet"])
def test_a_table_migrated_as_its_copy_ends_is_copied_again_in_turns(
    make: Make, capture: str, mode: str, storage: str | None
) -> None:
    world = make(capture, mode=mode, storage=storage)
    world.faults.do_at(
        Step.COPY_COMPLETE, lambda: world.run("alter table big add column c text default 'x'")
    )
    report = world.htap.sync_now()
    assert report.tables["big"].copied_rows == BATCH * PARTS
    world.assert_equal("big", "small")
    assert world.htap.verify().equal


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", [Step.COPY_BATCH, Step.COMMITTED, Step.ACKNOWLEDGED])
@pytest.mark.parametrize("occurrence", [1, 3])
def test_a_crash_between_turns_loses_nothing(
    make: Make, mode: str, step: Step, occurrence: int
) -> None:
    world = make(mode=mode)
    writes = Writes(world)
    world.faults.do_at(Step.COPY_BATCH, writes, times=99)
    world.faults.arm(step, occurrence)
    assert world.surviving(world.htap.sync_now)
    writes()
    report = world.htap.sync_now()
    assert 0 < report.tables["big"].copied_rows < BATCH * PARTS
    world.assert_equal("big", "small")
    assert world.htap.verify().equal


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("storage", [None, "parquet"])
@pytest.mark.parametrize(
    "column", ["v text", "v text, w integer default 5 not null", "v text, at integer default 0"]
)
def test_tables_that_wait_for_their_turn_take_no_part_in_a_cycle(
    make: Make, mode: str, storage: str | None, column: str
) -> None:
    """They have the shape of before; one that is copied in one turn is in place between two."""
    names = ("big", "late", "small")
    world = make("sqlite-trigger", "late", mode=mode, storage=storage)
    create(world, "late")
    world.htap.sync_now()
    world.run("delete from big", "delete from small")
    world.htap.sync_now()
    for name in names:
        world.run(f"drop table {name}", f"create table {name}(id integer primary key, {column})")
    engine = engine_of(world.htap)
    left = []
    for number in range(9):
        report = engine.pipeline.sync_round()
        left.append(len(report.copying))
        ledger = engine.mirror.ledger()
        assert not report.errors
        assert {name for name in names if not engine.pipeline.holds(name, ledger)} == {
            *report.copying
        }
        if number == 1:
            for name in names:
                world.run(f"insert into {name}(id, v) values (1, 'x')")
    goes_on = mode == "temporal" and "at integer" in column  # its history needs no copy
    assert left[0] == (0 if goes_on else 2)
    assert left[-1] == 0
    world.assert_equal(*names)
    assert world.htap.verify().equal


@pytest.mark.parametrize(("storage", "ranges"), [(None, 1), ("parquet", 1), ("parquet", 3)])
@pytest.mark.usefixtures("one_batch_a_part")
def test_a_table_that_leaves_in_the_middle_of_its_copy_leaves_nothing(
    make: Make, storage: str | None, ranges: int
) -> None:
    world = make(storage=storage, ranges=ranges)
    create(world, "late")
    put(world, "late", 0, 60)
    world.htap.register_table("late")
    engine = engine_of(world.htap)
    while engine.mirror.ledger().state("late") is not TableState.COPYING:
        engine.pipeline.sync_round()
    world.htap.unregister_table("late")
    assert "late" not in engine.mirror.ledger().copies
    assert "late" not in world.htap.sync_status().copying
    world.htap.sync_now()
    world.assert_equal("big", "small")
    world.htap.register_table("late")
    world.htap.sync_now()
    world.assert_equal("late")


@pytest.mark.long
@pytest.mark.each
@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("storage", [None, "parquet", "delta"])
@pytest.mark.parametrize("case", ["first", "again", "ranges"])
@pytest.mark.usefixtures("one_batch_a_part")
def test_a_table_taken_out_of_the_declaration_in_the_middle_of_its_copy_leaves_none_of_it(
    make: Make, capture: str, storage: str | None, case: str
) -> None:
    ranges = 3 if case == "ranges" and storage else 1
    world = make(capture, storage=storage, ranges=ranges)
    assert world.tables is not None
    world.tables[0]["mirror_name"] = "grand"  # no name of a copy tells whose it is
    world.crash()
    if case == "again":
        world.htap.sync_now()
    world.faults.arm(Step.COPY_BATCH if ranges == 1 else Step.RANGE_RECORDED)
    assert world.surviving(lambda: world.htap.initial_sync("big"))
    big = world.tables.pop(0)
    world.htap.sync_now()
    engine = engine_of(world.htap)
    assert copies_in(world) == []
    assert not engine.mirror.ledger().copies
    assert ("big" in world.htap.sync_status().not_followed) is (case == "again")
    world.assert_equal("small")
    world.tables.append(big)
    world.crash()
    world.htap.sync_now()
    assert world.htap.verify().equal


def test_a_table_dropped_in_the_middle_of_its_copy_leaves_none_of_it(make: Make) -> None:
    world = make()
    assert world.tables is not None
    world.tables[0]["mirror_name"] = "grand"
    world.crash()
    engine_of(world.htap).pipeline.sync_round()
    world.htap.drop_table("big")
    assert copies_in(world) == []
    world.htap.sync_now()
    assert world.htap.verify().equal


def test_a_copy_that_fails_leaves_out_its_own_table(make: Make) -> None:
    world = make()

    def spoil() -> None:
        world.run("drop table big")
        put(world, "small", 700, 1)

    world.faults.do_at(Step.COPY_BATCH, spoil)
    report = world.htap.sync_now()
    assert report.errors.keys() == {"big"}
    assert report.copying == ()
    assert not world.htap.sync_status().copying
    world.assert_equal("small")
    with pytest.raises(RheiError):
        world.htap.initial_sync("big")
