"""A table's copy in ranges of keys, which several processes share."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from rhei_pipeline import Settings
from rhei_pipeline.errors import (
    MirrorError,
    MirrorOwnerError,
    RheiError,
    SchemaError,
    SettingsError,
)
from rhei_pipeline.mirrors.datafusion.copy_ranges import CopyRanges
from rhei_pipeline.mirrors.datafusion.manifest import sealed
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.copy_plan import CopyPlan, RangeReport, RangeStanding
from rhei_pipeline.model.schema import TableSchema
from rhei_pipeline.protocols import Step
from rhei_pipeline.sync import copy_ranges as sharing
from rhei_pipeline.testing.faults import Crash, CrashAt
from rhei_pipeline.wiring.copy_ranges import copy_range
from tests.support.declared_worlds import CAPTURES
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_ranges import (
    BATCH,
    RANGES,
    ROWS,
    Make,
    Writes,
    assert_whole,
    begin,
    copied,
    left,
    root,
)
from tests.support.fix_world import World
from tests.support.parts import engine_of

pytestmark = pytest.mark.turns

FILES = ("ipc", "parquet", "delta")
WRITER_STEPS = [
    Step.COPY_BEGUN,
    Step.RANGES_PLANNED,
    Step.RANGE_WRITTEN,
    Step.RANGE_RECORDED,
    Step.COPY_COMPLETE,
    Step.PROMOTED,
    Step.COMMITTED,
]


@pytest.mark.long
@pytest.mark.parametrize("storage", FILES)
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("capture", CAPTURES)
def test_the_mirror_equals_the_source_whoever_copied_which_range_and_whatever_was_written(
    make: Make, capture: str, mode: str, storage: str
) -> None:
    world = make(capture, storage, mode=mode)
    write = Writes(world)
    reports = []

    def help_with(number: int) -> Callable[[], None]:
        def help_() -> None:
            write()
            reports.append(copied(world, number))
            write()

        return help_

    world.faults.do_at(Step.RANGES_PLANNED, help_with(2))
    world.faults.do_at(Step.RANGE_RECORDED, help_with(4))
    world.faults.do_at(Step.RANGE_WRITTEN, write, 3)
    world.htap.sync_now()
    assert [(r.of, r.ranges) for r in reports] == [(RANGES, (2,)), (RANGES, (4,))]
    assert all(r.rows > 2 * BATCH for r in reports), "its range has several parts"
    assert_whole(world)
    if mode == "temporal" and "polling" not in capture:
        versions = world.versions("t")
        assert len({v["_rhei_valid_from"] for v in versions}) == 1
        assert {v["_rhei_operation"] for v in versions} == {"I"}
    write()
    world.htap.sync_now()
    assert_whole(world)


@pytest.mark.long
@pytest.mark.parametrize("capture", ["sqlite-trigger", "postgres-logical"])
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("storage", FILES)
@pytest.mark.parametrize("step", WRITER_STEPS)
def test_a_crash_of_the_writer_costs_one_part_at_most(
    make: Make, capture: str, mode: str, storage: str, step: Step
) -> None:
    world = make(capture, storage, mode=mode)
    write = Writes(world)
    world.faults.arm(step, 3 if "range_" in step else 1)
    assert world.surviving(world.htap.sync_now)
    recorded = len(left(world, "ranges")) - 1
    write()
    world.faults.seen.clear()
    world.htap.sync_now()
    assert_whole(world)
    again = world.faults.seen.count(Step.RANGE_RECORDED)
    if step in {Step.RANGE_WRITTEN, Step.RANGE_RECORDED}:
        assert recorded == (2 if step is Step.RANGE_WRITTEN else 3)
        assert RANGES * 3 <= again + recorded <= RANGES * 5, "ranges of 30 rows, parts of 8"
    elif step in {Step.COPY_COMPLETE, Step.PROMOTED}:
        assert not again
    world.crash()
    assert world.htap.verify().equal
    named = len(left(world, "data"))
    world.crash()
    assert world.htap.tables()
    assert len(left(world, "data")) == named


@pytest.mark.parametrize("step", [Step.RANGE_WRITTEN, Step.RANGE_RECORDED])
def test_a_worker_that_dies_goes_on_behind_what_it_has_recorded(make: Make, step: Step) -> None:
    world = make()
    begin(world)
    faults = CrashAt()
    faults.arm(step, 2)
    with pytest.raises(Crash):
        copied(world, 3, on_step=faults)
    recorded = 1 if step is Step.RANGE_WRITTEN else 2
    assert len(left(world, "ranges")) == 1 + recorded
    report = copied(world, 3)
    assert report.rows == 30 - 8 * recorded
    assert report.missing == (1, 2, 4)
    assert copied(world, 3).parts == 0
    world.htap.sync_now()
    assert_whole(world)


@pytest.mark.long
def test_the_writer_that_comes_back_keeps_what_workers_are_writing(make: Make) -> None:
    world = make()
    begin(world)

    plan = left(world, "ranges")[0].partition(".")[0]
    about_to_be_created = root(world) / "ranges" / f"{plan}.1.1.json.of_a_worker.partial"

    def reopened(step: Step) -> None:
        if step is Step.RANGE_WRITTEN:
            about_to_be_created.write_text("half a rec")
            world.crash()
            assert world.htap.sync_status().tables["t"].state == "copying"
            world.crash()
            assert about_to_be_created.exists()

    report = copied(world, on_step=reopened)
    assert report.missing == ()
    world.faults.seen.clear()
    world.htap.sync_now()
    assert Step.RANGE_RECORDED not in world.faults.seen, "nothing was read twice"
    assert_whole(world)


def test_what_workers_are_writing_is_kept_while_old_states_are_erased(make: Make) -> None:
    """Nobody but the worker knows of it until it is recorded."""
    world = make(capture="sqlite-trigger")
    begin(world)
    erased = list[tuple[str, ...]]()

    def erase(step: Step) -> None:
        if step is Step.RANGE_WRITTEN and not erased:
            mirror = engine_of(world.htap).mirror
            assert isinstance(mirror, DataFusionMirror)
            erased.append(mirror.erase())

    assert copied(world, on_step=erase).missing == ()
    assert len(erased) == 1
    world.faults.seen.clear()
    world.htap.sync_now()
    assert Step.RANGE_RECORDED not in world.faults.seen, "nothing was read twice"
    assert_whole(world)


def test_of_two_workers_on_one_range_one_records_each_part(make: Make) -> None:
    world = make()
    begin(world)
    others: list[RangeReport] = []

    def other(step: Step) -> None:
        if step is Step.RANGE_WRITTEN and not others:
            others.append(copied(world, 2))

    report = copied(world, 2, on_step=other)
    assert (report.rows, others[0].rows) == (0, 30)
    both = [copied(world, n) for n in (1, 3, 4)]
    assert sum(r.rows for r in (report, *others, *both)) == ROWS
    world.htap.sync_now()
    assert_whole(world)
    world.crash()
    assert world.htap.verify().equal


def test_a_worker_reads_one_part_while_it_writes_the_one_before(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make()
    begin(world)
    begun = {place: threading.Event() for place in range(1, ROWS)}
    is_last: list[bool] = []
    read = sharing.RangeWork._read

    def noted(work: sharing.RangeWork, *asked: Any) -> Any:
        begun[asked[2]].set()
        part, rows = read(work, *asked)
        is_last.append(part is not None and part.is_last)
        return part, rows

    written: list[int] = []

    def look(step: Step) -> None:
        if step is Step.RANGE_WRITTEN:
            written.append(place := len(written) + 1)
            assert is_last[place - 1] or begun[place + 1].wait(60)
            assert not begun[place + 2].is_set()

    monkeypatch.setattr(sharing.RangeWork, "_read", noted)
    report = copied(world, 2, on_step=look)
    assert (report.rows, report.parts) == (ROWS // RANGES, len(written))
    assert report.parts > 3
    world.htap.sync_now()
    assert_whole(world)


def test_a_worker_takes_whatever_nobody_works_on(make: Make) -> None:
    world = make("postgres-logical")
    begin(world)
    seen: list[tuple[int, int]] = []
    report = copied(world, on_rows=lambda rows, of: seen.append((rows, of)))
    assert report.ranges == (1, 2, 3, 4)
    assert (report.rows, report.missing) == (ROWS, ())
    assert seen[-1] == (ROWS, ROWS)
    world.htap.sync_now()
    assert_whole(world)
    assert copied(world).of == 0, "the copy is in place"


def test_a_range_that_does_not_go_on_is_taken_over(make: Make) -> None:
    world = make()

    def cut_off() -> None:
        faults = CrashAt()
        faults.arm(Step.RANGE_RECORDED)
        with pytest.raises(Crash):
            copied(world, 1, on_step=faults)

    world.faults.do_at(Step.RANGE_RECORDED, cut_off)
    world.htap.sync_now()
    assert_whole(world)


@pytest.mark.long
@pytest.mark.parametrize("ranges", [2, 7, ROWS, 3 * ROWS])
@pytest.mark.parametrize("capture", ["sqlite-trigger", "postgres-logical"])
def test_there_are_as_many_ranges_as_are_declared_and_keys_allow(
    make: Make, capture: str, ranges: int
) -> None:
    world = make(capture, ranges=ranges)
    begin(world)
    report = copied(world, 1)
    assert report.of == min(ranges, ROWS)
    assert abs(report.rows - ROWS / report.of) <= 1, "they are as large as each other"
    world.htap.sync_now()
    assert_whole(world)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_table_without_keys_to_share_is_copied_as_ever(make: Make, rows: int) -> None:
    world = make(rows=1)
    if not rows:
        world.run("delete from t")
    world.htap.sync_now()
    assert Step.RANGES_PLANNED not in world.faults.seen
    assert_whole(world)


@pytest.mark.long
@pytest.mark.parametrize("how", ["declared no more", "dropped"])
def test_a_plan_is_given_up_where_ranges_are_declared_no_more(make: Make, how: str) -> None:
    world = make(mode="temporal")
    world.htap.sync_now()
    world.faults.arm(Step.RANGES_PLANNED)
    assert world.surviving(lambda: world.htap.initial_sync("t"))
    copied(world, 2)
    plan = left(world, "ranges")[0].partition(".")[0]
    assert [name for name in left(world, "data") if name.startswith(plan)]
    world.faults.seen.clear()
    if how == "dropped":
        world.htap.drop_table("t", discard_history=True)
        assert not left(world, "ranges")
    else:
        world.tables = [{"name": "t"}]
    world.htap.sync_now()
    assert_whole(world)
    assert (Step.RANGE_RECORDED in world.faults.seen) is (how == "dropped")
    world.crash()
    assert world.htap.verify().equal
    assert not [name for name in left(world, "data") if name.startswith(plan)]


def test_a_worker_without_a_plan_says_who_makes_one(make: Make) -> None:
    world = make()
    with pytest.raises(SchemaError, match="no copy of it in ranges is under way") as caught:
        copied(world, 1)
    assert "run 'rhei sync' or 'rhei copy' beside" in str(caught.value)
    begin(world)
    assert copied(world, 1, wait_seconds=1).rows


@pytest.mark.parametrize("declared", ["columns", "where", "mask"])
def test_another_declaration_begins_again_and_workers_refuse_it(make: Make, declared: str) -> None:
    others: dict[str, dict[str, Any]] = {
        "columns": {"columns": ["a", "b", "v"]},
        "where": {"where": "b < 50"},
        "mask": {"mask": {"v": "redact"}},
    }
    said = others[declared]
    world = make()
    begin(world)
    copied(world, 2)
    world.tables = [{"name": "t", "copy_ranges": RANGES, **said}]
    with pytest.raises(SchemaError, match="of another declaration") as caught:
        copied(world, 1)
    assert "give this process the declaration" in str(caught.value)
    world.faults.do_at(Step.RANGES_PLANNED, lambda: copied(world, 3))
    world.htap.sync_now()
    assert world.htap.verify().equal
    assert world.htap.query("select count(*) n from t", hint="olap")["n"][0].as_py() == (
        50 if declared == "where" else ROWS
    )
    assert not left(world, "ranges")


@pytest.mark.parametrize("capture", ["sqlite-trigger", "sqlite-polling", "postgres-logical"])
def test_a_worker_refuses_to_read_another_source(make: Make, capture: str) -> None:
    """What it read would be in the mirror as if it were this source's, and nothing would tell."""
    world = make(capture)
    begin(world)
    source: dict[str, Any]
    if isinstance(world, PostgresWorld):
        source = {"kind": "postgres", "dsn": make_conninfo(world.dsn, dbname="postgres")}
    else:
        source = {"path": str(world.directory / "copied.db")}
        world.run(f"vacuum into '{source['path']}'")
    other = Settings(**{**world.settings.model_dump(), "source": source})
    with pytest.raises(MirrorOwnerError, match="belongs to another source"):
        copy_range(other, "t", 1)
    assert len(left(world, "ranges")) == 1
    assert copied(world, 1).rows


@pytest.mark.long
@pytest.mark.parametrize("capture", ["sqlite-trigger", "postgres-logical"])
def test_a_migration_begins_the_copy_again(make: Make, capture: str) -> None:
    world = make(capture)
    world.faults.do_at(Step.RANGE_RECORDED, lambda: world.run("alter table t add column w text"))
    failed = []

    def late_worker() -> None:
        world.run("alter table t add column x integer")
        try:
            copied(world, 1)
        except SchemaError as error:
            failed.append(str(error))

    world.faults.do_at(Step.RANGES_PLANNED, lambda: None)
    world.faults.do_at(Step.RANGES_PLANNED, late_worker)
    world.htap.sync_now()
    assert len(failed) == 1
    assert "of another declaration" in failed[0]
    assert_whole(world)
    assert world.faults.seen.count(Step.RANGES_PLANNED) == 3


def test_a_range_of_which_nobody_has_copied_anything_is_taken_whatever_the_clock_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a clock in seconds since the start, what is added and taken away again is not the same."""
    plan = CopyPlan("p", TableSchema("t", (), ()), Position(0, ""), "", (), 0)
    standing = RangeStanding(plan, {})
    for seconds in (0.0, 1.3, 700.1, 9983.739165648, 1e6 / 3, 1e8 / 7):
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: seconds)
        assert sharing.RangeMemory().idle(standing, [1]) == [1]
    monkeypatch.undo()


@pytest.mark.long
def test_what_is_lost_each_time_is_copied_without_ranges(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CopyRanges, "lost", lambda *_: ["data/gone.parquet"])
    world = make()
    world.htap.sync_now()
    assert world.faults.seen.count(Step.RANGES_PLANNED) == sharing.ATTEMPTS
    assert_whole(world)


@pytest.mark.parametrize("what", ["record", "plan", "segment"])
def test_what_was_damaged_is_copied_again(make: Make, what: str) -> None:
    world = make(storage="ipc")
    begin(world)
    copied(world, 2)
    pattern = {
        "record": "ranges/*.2.1.json",
        "plan": "ranges/*.plan.json",
        "segment": "data/*.arrow",
    }
    file = next(iter(sorted(root(world).glob(pattern[what]))))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content) if what != "segment" else b"")
    if what != "segment":
        with pytest.raises(RheiError) as caught:
            copied(world, 2)
        assert "run 'rhei copy' with the table" in str(caught.value)
    world.htap.initial_sync("t")
    assert_whole(world)


@pytest.mark.parametrize("ranges", [1, RANGES])
def test_a_segment_that_changed_before_its_copy_was_in_place_is_not_believed(
    make: Make, ranges: int
) -> None:
    world = make(storage="ipc", ranges=ranges)
    if ranges == 1:
        world.faults.arm(Step.COPY_BATCH, 12)
        assert world.surviving(world.htap.sync_now)
    else:
        begin(world)
        copied(world, 2)
    for file in (root(world) / "data").glob("*.arrow"):
        content = bytearray(file.read_bytes())
        content[len(content) // 3] ^= 1
        file.write_bytes(bytes(content))
    error = world.htap.sync_now().errors["t"]
    assert "its content is not what was written (run 'rhei repair t'" in error
    world.htap.repair("t")
    assert_whole(world)


def test_a_plan_of_a_newer_version_is_begun_again_and_no_worker_takes_it(make: Make) -> None:
    world = make()
    begin(world)
    copied(world, 2)
    for file in (root(world) / "ranges").glob("*.json"):
        form = json.loads(file.read_text()) | {"format": 2}
        del form["crc32"]
        file.write_text(sealed(json.dumps(form).encode()).decode())
    with pytest.raises(MirrorError, match="use the newer version of rhei-pipeline"):
        copied(world, 3)
    world.htap.sync_now()
    assert_whole(world)


def test_only_mirrors_of_files_take_ranges(make_world: Callable[..., World]) -> None:
    world = make_world(tables=[{"name": "t", "copy_ranges": 2}])
    world.run("create table t(id integer primary key)", "insert into t values (1), (2), (3)")
    with pytest.raises(SettingsError, match="table 't' is copied in ranges into files alone"):
        _ = world.settings
    world.storage = "parquet"
    assert world.settings.tables
    world.storage, world.tables = None, [{"name": "t"}]
    with pytest.raises(SettingsError, match="only a mirror of files"):
        copied(world, 1)
    assert world.htap.initial_sync("t").rows == 3


def test_a_range_that_there_is_not_is_refused(make: Make) -> None:
    world = make()
    begin(world)
    with pytest.raises(SchemaError, match=f"no range 9 .give a range from 1 to {RANGES}"):
        copied(world, 9)
    assert copied(world, RANGES).rows
