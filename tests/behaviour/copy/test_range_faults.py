"""What befalls a copy in ranges: files, disks, sources, declarations, and workers that are late."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import (
    MirrorDamagedError,
    MirrorError,
    RheiError,
    SchemaError,
    SettingsError,
)
from rhei_pipeline.mirrors.datafusion.local_files import LocalFiles
from rhei_pipeline.model.copy_plan import RangeReport
from rhei_pipeline.protocols import Step
from rhei_pipeline.sync import copy_ranges as sharing
from rhei_pipeline.testing.faults import Crash, CrashAt
from rhei_pipeline.wiring.copy_ranges import copy_range
from tests.support.declared_worlds import CAPTURES
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_ranges import (
    BATCH,
    ROWS,
    AnyWorld,
    Make,
    Writes,
    assert_whole,
    begin,
    copied,
    left,
    put,
    root,
)
from tests.support.fix_world import World

pytestmark = pytest.mark.turns

MODES = ["destructive", "temporal"]


def record(world: AnyWorld, number: int, place: int) -> Path:
    (found,) = (root(world) / "ranges").glob(f"*.{number}.{place}.json")
    return found


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_first(world: AnyWorld) -> None:
    record(world, 2, 1).unlink()


def lose_middle(world: AnyWorld) -> None:
    record(world, 2, 2).unlink()


def swap_ranges(world: AnyWorld) -> None:
    record(world, 2, 1).write_bytes(record(world, 3, 1).read_bytes())


def swap_places(world: AnyWorld) -> None:
    record(world, 2, 2).write_bytes(record(world, 2, 1).read_bytes())


def put_back_shorter(world: AnyWorld) -> None:
    """A backup of a part that somebody else has recorded since, and read further."""
    place = record(world, 2, 1)
    kept = place.read_bytes()
    place.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "PART_BATCHES", 1)
        copied(world, 2)
    place.write_bytes(kept)


#: What a folder that is put back from a backup may show, or a store that lists late.
ODD_RECORDS: dict[str, Callable[[AnyWorld], None]] = {
    "first lost": lose_first,
    "one between lost": lose_middle,
    "another range's": swap_ranges,
    "another part's": swap_places,
}


@pytest.mark.parametrize("parts", ["some", "all"])
@pytest.mark.parametrize("odd", ODD_RECORDS)
def test_records_that_do_not_go_on_from_each_other_are_not_believed(
    make: Make, odd: str, parts: str
) -> None:
    """Rows of a record that is gone would be lost, and those of one put twice would be double."""
    world = make()
    begin(world)
    copied(world, 3)
    faults = CrashAt()
    if parts == "some":
        faults.arm(Step.RANGE_RECORDED, 3)
        with pytest.raises(Crash):
            copied(world, 2, on_step=faults)
    else:
        copied(world)
    ODD_RECORDS[odd](world)
    with pytest.raises(MirrorDamagedError, match="is missing, or is another one's") as caught:
        copied(world, 2)
    assert "run 'rhei copy' with the table" in str(caught.value)
    world.htap.sync_now()
    assert_whole(world)


def test_a_part_that_was_recorded_twice_is_not_believed(make: Make) -> None:
    world = make()
    begin(world)
    faults = CrashAt()
    faults.arm(Step.RANGE_RECORDED)
    with pytest.raises(Crash):
        copied(world, 2, on_step=faults)
    put_back_shorter(world)
    with pytest.raises(MirrorDamagedError, match="is missing, or is another one's"):
        copied(world, 2)
    world.htap.sync_now()
    assert_whole(world)


def test_the_last_record_that_is_lost_is_read_again(make: Make) -> None:
    world = make()
    begin(world)
    report = copied(world, 2)
    record(world, 2, report.parts).unlink()
    assert copied(world, 2).parts == 1
    world.faults.seen.clear()
    world.htap.sync_now()
    assert Step.RANGES_PLANNED not in world.faults.seen
    assert_whole(world)


def test_what_is_damaged_each_time_is_named_and_the_way_out_leads_on(make: Make) -> None:
    world = make()

    def damaged() -> None:
        for file in (root(world) / "ranges").glob("*.1.json"):
            damage(file)

    world.faults.do_at(Step.RANGE_RECORDED, damaged, sharing.ATTEMPTS)
    with pytest.raises(MirrorDamagedError, match="is damaged, which says what was") as caught:
        world.htap.sync_now()
    assert world.faults.seen.count(Step.RANGES_PLANNED) == sharing.ATTEMPTS
    assert "run 'rhei copy' with the table: it begins the ranges again" in str(caught.value)
    world.htap.initial_sync("t")
    assert_whole(world)


def test_what_is_damaged_of_another_tables_plan_keeps_nobody_from_work(make: Make) -> None:
    world = make()
    world.run("create table u(id integer primary key)")
    world.run(f"insert into u values {', '.join(f'({n})' for n in range(ROWS))}")
    world.tables = [{"name": "t", "copy_ranges": 4}, {"name": "u", "copy_ranges": 3}]
    world.faults.arm(Step.RANGES_PLANNED, 2)

    def worked() -> None:
        """The other table's plan is here alone, as this copy's is read from memory."""
        (own,) = (root(world) / "ranges").glob("*.plan.json")
        other = own.with_name(f"{'0' * 32}.plan.json")
        other.write_text("not a plan")
        assert copied(world, 2).rows == ROWS // 4
        damage(own)
        with pytest.raises(MirrorDamagedError, match="which says what was copied"):
            copied(world, 3)
        other.unlink()

    world.faults.do_at(Step.RANGES_PLANNED, worked)
    assert world.surviving(world.htap.sync_now)
    world.htap.sync_now()
    assert_whole(world)
    world.assert_equal("u")


@pytest.mark.parametrize("kind", ["arrow", "index"])
def test_files_of_two_parts_that_were_swapped_are_not_believed(make: Make, kind: str) -> None:
    world = make(storage="ipc")
    begin(world)
    copied(world)
    by_size: dict[int, list[Path]] = {}
    for file in sorted((root(world) / "data").glob(f"*.{kind}")):
        by_size.setdefault(file.stat().st_size, []).append(file)
    one, other = next(files for files in by_size.values() if len(files) > 1)[:2]
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    world.run("update t set v = 'changed' where b % 3 = 0")
    # A cycle reads only those that it merges.
    said = world.htap.sync_now().errors.get("t") or world.htap.verify().tables["t"].damage
    assert "its content is not what was written (run 'rhei repair t'" in str(said)
    world.htap.repair("t")
    assert_whole(world)


def test_a_worker_whose_disk_is_full_leaves_nothing_there(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make()
    begin(world)
    before = left(world, "data")

    def full(_files: LocalFiles, _folder: str = "") -> None:
        raise MirrorError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "flush", full)
        with pytest.raises(MirrorError, match="no space left"):
            copied(world, 2)
    assert left(world, "data") == before
    assert copied(world, 2).rows == ROWS // 4
    world.htap.sync_now()
    assert_whole(world)


def migrate(world: AnyWorld) -> None:
    world.run("alter table t add column w text")


@pytest.mark.parametrize("mode", MODES)
def test_a_plan_that_is_given_up_leaves_no_segment(make: Make, mode: str) -> None:
    """A session goes on for days, and what was written may be as much as the mirror."""
    world = make(mode=mode)
    begin(world)
    copied(world, 2)
    plan = left(world, "ranges")[0].partition(".")[0]
    migrate(world)
    world.htap.sync_now()
    assert_whole(world)
    assert not [name for name in left(world, "data") if name.startswith(plan)]


@pytest.mark.parametrize("step", [Step.RANGE_WRITTEN, Step.RANGE_RECORDED])
def test_a_worker_whose_plan_was_replaced_and_completed_meanwhile_changes_nothing(
    make: Make, step: Step
) -> None:
    world = make()
    begin(world)
    done: list[bool] = []

    def late(reached: Step) -> None:
        if reached is step and not done:
            done.append(True)
            migrate(world)
            world.htap.sync_now()
            world.run("update t set w = 'x' where b % 2 = 0")
            world.htap.sync_now()

    copied(world, 2, on_step=late)
    world.htap.sync_now()
    world.assert_equal("t")
    assert world.htap.verify().equal
    world.crash()
    world.htap.sync_now()
    assert_whole(world)


def test_a_worker_goes_on_with_the_plan_that_took_the_place_of_its_own(make: Make) -> None:
    """It would say that nothing is missing: of a plan that is no more."""
    world = make()
    begin(world)
    done: list[bool] = []

    def again(step: Step) -> None:
        if step is Step.RANGE_RECORDED and not done:
            done.append(True)
            damage(record(world, 2, 1))
            world.faults.arm(Step.RANGES_PLANNED)
            assert world.surviving(world.htap.sync_now)

    report = copied(world, 2, on_step=again)
    assert (report.ranges, report.rows, report.missing) == ((2,), ROWS // 4, (1, 3, 4))
    world.htap.sync_now()
    assert_whole(world)


@pytest.fixture
def polled(request: pytest.FixtureRequest) -> Callable[[str, str], AnyWorld]:
    """Make a polled table of which a third is marked as deleted."""

    def made(source: str, mode: str) -> AnyWorld:
        given = {"storage": "parquet", "batch_rows": BATCH, "mode": mode}
        world: AnyWorld
        if source == "sqlite":
            world = request.getfixturevalue("make_world")(method="polling", **given)
            at, gone, value = "integer", "integer", "5"
        else:
            how = {"method": "polling"}
            world = request.getfixturevalue("make_postgres")(capture=how, **given)
            at, gone, value = "timestamptz", "timestamptz", "'2026-01-01'"
        world.run(f"create table t(id integer primary key, at {at}, gone {gone})")
        world.run("create index t_at on t(at)")
        rows = (f"({n}, {value}, {'null' if n % 3 else value})" for n in range(ROWS))
        world.run(f"insert into t values {', '.join(rows)}")
        return world

    return made


def deleted_by(way: str, **more: Any) -> list[dict[str, Any]]:
    polling = {"updated_at": "at", "deletes": way, "reconcile_seconds": 0}
    return [{"name": "t", "polling": polling, **more}]


def alive(world: AnyWorld) -> int:
    query = "select count(*) as n from t"
    return int(world.htap.query(query, hint="olap")["n"][0].as_py())


@pytest.mark.parametrize("source", ["sqlite", "postgres"])
@pytest.mark.parametrize("worker", ["disabled", "reconcile", "trigger"])
def test_a_worker_to_which_other_rows_count_as_deleted_is_refused(
    polled: Callable[[str, str], AnyWorld], source: str, worker: str
) -> None:
    world = polled(source, "destructive")
    world.tables = deleted_by("soft_delete:gone", copy_ranges=4)
    begin(world)
    other = world.settings.model_dump()
    if worker == "trigger":
        other |= {"capture": {"method": "trigger"}, "tables": [{"name": "t", "copy_ranges": 4}]}
    else:
        other |= {"tables": deleted_by(worker, copy_ranges=4)}
    with pytest.raises(SchemaError, match="of another declaration"):
        copy_range(Settings(**other), "t", 2)
    assert copied(world, 2).rows
    world.htap.sync_now()
    assert alive(world) == ROWS * 2 // 3


@pytest.mark.parametrize("source", ["sqlite", "postgres"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", ["disabled", "soft_delete:gone", "reconcile"])
@pytest.mark.parametrize("when", ["in a copy", "in ranges", "afterwards"])
def test_rows_that_count_as_deleted_by_another_declaration_leave_or_come(
    polled: Callable[[str, str], AnyWorld],
    caplog: pytest.LogCaptureFixture,
    source: str,
    mode: str,
    first: str,
    when: str,
) -> None:
    """Nobody writes them then, so no change tells."""
    ranges = {"copy_ranges": 4} if when == "in ranges" else {}
    world = polled(source, mode)
    world.tables = deleted_by(first, **ranges)
    if when == "afterwards":
        world.htap.sync_now()
    else:
        step = Step.RANGE_RECORDED if ranges else Step.COPY_BATCH
        world.faults.arm(step, 4)
        assert world.surviving(world.htap.sync_now)
    world.crash()
    second = "disabled" if first == "soft_delete:gone" else "soft_delete:gone"
    world.tables = deleted_by(second, **ranges)
    world.htap.sync_now()
    if when == "afterwards" and "soft_delete:gone" in {first, second}:
        assert "is read by another condition on its rows" in caplog.text
    now = " where _rhei_valid_to is null" if mode == "temporal" else ""
    found = world.htap.query(f"select count(*) as n from t{now}", hint="olap")["n"][0].as_py()
    assert found == (ROWS if second == "disabled" else ROWS * 2 // 3)
    assert world.htap.verify().equal


CREATE = "create table t(a text, b integer, v text, at integer default 0, primary key(a, b))"
DDL: dict[str, tuple[str, ...]] = {
    "dropped and made again": ("drop table t", CREATE),
    "renamed, and another one has its name": ("alter table t rename to t_old", CREATE),
    "a column renamed": ("alter table t rename column v to w",),
    "a column dropped": ("alter table t drop column v",),
    "another key": (
        "alter table t rename to t_old",
        "create table t(a text, b integer primary key, v text, at integer)",
        "insert into t select * from t_old",
    ),
    "emptied": ("delete from t",),
    "truncated": ("truncate t",),
}


@pytest.mark.long
@pytest.mark.parametrize("capture", ["sqlite-trigger", "postgres-trigger", "postgres-logical"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", [Step.RANGES_PLANNED, Step.RANGE_RECORDED])
@pytest.mark.parametrize("ddl", DDL)
def test_whatever_becomes_of_the_table_meanwhile(
    make: Make, capture: str, mode: str, step: Step, ddl: str
) -> None:
    if ddl == "truncated" and capture.startswith("sqlite"):
        ddl = "emptied"  # which is how SQLite truncates a table
    world = make(capture, mode=mode)

    def changed() -> None:
        world.run(*DDL[ddl])
        if "column" not in ddl and "key" not in ddl:
            put(world, range(10, 60), "second")
        work_if_it_may(world)

    world.faults.do_at(step, changed)
    world.htap.sync_now()
    world.htap.sync_now()
    assert_whole(world)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_rows_read_before_and_after_another_order_of_keys_are_there_once(
    make: Make, mode: str, number: int
) -> None:
    """Ranges are no parts of a table whose keys are ordered otherwise by now."""
    world = make(mode=mode)
    begin(world)
    copied(world, number)
    world.run("drop table t", CREATE)
    put(world, range(10, 110), "second")
    world.htap.sync_now()
    assert len(world.present("t")) == 100
    assert_whole(world)


def work_if_it_may(world: AnyWorld) -> RangeReport | None:
    try:
        return copied(world, 3)
    except RheiError as error:
        assert "of another declaration, or of another shape" in str(error)  # noqa: PT017
        return None


def lose_capture(world: AnyWorld) -> None:
    if isinstance(world, World):
        found = world.app.execute("select name from sqlite_master where type = 'trigger'")
        world.run(*(f'drop trigger "{name}"' for (name,) in found.fetchall()))
        return
    with psycopg.connect(world.dsn, autocommit=True) as connection:
        own = "from pg_replication_slots where database = current_database()"
        connection.execute(f"select pg_terminate_backend(active_pid) {own}")
        triggers = (
            "select tgname from pg_trigger where tgrelid = 't'::regclass and not tgisinternal"
        )
        for (name,) in connection.execute(triggers).fetchall():
            connection.execute(f'drop trigger "{name}" on t')
        free = f"select pg_drop_replication_slot(slot_name) {own} and not active and not temporary"
        connection.execute(free)


@pytest.mark.long
@pytest.mark.parametrize(
    "capture", ["sqlite-trigger", "sqlite-trigger-buffer", "postgres-trigger", "postgres-logical"]
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", [Step.RANGES_PLANNED, Step.RANGE_RECORDED])
def test_a_log_that_is_lost_meanwhile_begins_the_copy_again(
    make: Make, capture: str, mode: str, step: Step
) -> None:
    world = make(capture, mode=mode)
    write = Writes(world)

    def lost() -> None:
        lose_capture(world)
        write()
        work_if_it_may(world)

    world.faults.do_at(step, lost)
    for _ in range(2):
        try:
            world.htap.sync_now()
        except RheiError:
            world.crash()
    assert_whole(world)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("capture", ["sqlite-trigger", "sqlite-polling"])
def test_a_source_that_is_put_back_meanwhile_is_copied_again(
    make: Make, mode: str, capture: str
) -> None:
    world = make(capture, mode=mode)
    assert isinstance(world, World)
    write, older = Writes(world), world.directory / "older.db"
    world.htap.sync_now()
    world.run(f"vacuum into '{older}'")
    write()
    world.faults.arm(Step.RANGES_PLANNED)
    assert world.surviving(lambda: world.htap.initial_sync("t"))
    write()
    copied(world, 2)
    world.app.close()
    for file in world.directory.glob("app.db*"):
        file.unlink()
    shutil.copy(older, world.path)
    world.app = sqlite3.connect(world.path, isolation_level=None)
    world.run("pragma journal_mode = wal", "update t set v = 'third', at = 9 where b % 5 = 0")
    copied(world, 3)
    world.htap.sync_now()
    world.htap.sync_now()
    assert_whole(world)


@pytest.mark.parametrize("place", ["its own", "another"])
def test_a_mirror_put_back_in_mid_copy_goes_on_with_its_plan(make: Make, place: str) -> None:
    world = make(mode="temporal")
    write = Writes(world)
    begin(world)
    copied(world, 2)
    backup = world.directory / "backup"
    shutil.copytree(root(world), backup)
    write()
    copied(world, 3)
    world.htap.sync_now()
    write()
    world.htap.sync_now()
    world.crash()
    if place == "another":
        assert isinstance(world, World)
        world.mirror_path = str(backup)
    else:
        shutil.rmtree(root(world))
        shutil.copytree(backup, root(world))
    copied(world, 1)
    world.htap.sync_now()
    assert_whole(world)


def test_a_worker_is_told_to_take_a_shard(make: Make) -> None:
    world = make()
    whole = Settings(**{**world.settings.model_dump(), "name": "shop", "shards": [["t"], []]})
    with pytest.raises(SettingsError, match=r"take one: rhei\.open"):
        copy_range(whole, "t", 1)
    own = whole.of_shard(1)
    with HTAP(own) as htap:
        assert htap.initial_sync("t").rows == ROWS
    assert copy_range(own, "t", 1).of == 0


@pytest.mark.parametrize("ranges", [2, 3, 40])
def test_another_number_of_ranges_is_that_of_the_next_copy(make: Make, ranges: int) -> None:
    world = make()
    begin(world)
    copied(world, 2)
    world.tables = [{"name": "t", "copy_ranges": ranges}]
    assert copied(world, ranges).of == 4
    world.htap.sync_now()
    assert_whole(world)


@pytest.mark.parametrize("first", MODES)
def test_another_mode_goes_on_with_the_ranges(make: Make, first: str) -> None:
    world = make(mode=first)
    begin(world)
    copied(world, 2)
    world.mode = next(mode for mode in MODES if mode != first)
    copied(world, 3)
    world.htap.sync_now()
    assert_whole(world)


@pytest.mark.long
@pytest.mark.parametrize("capture", [name for name in CAPTURES if name.startswith("postgres")])
def test_a_worker_needs_no_more_than_to_read_the_table(make: Make, capture: str) -> None:
    world = make(capture)
    assert isinstance(world, PostgresWorld)
    begin(world)
    role = f"range_reader_{capture.removeprefix('postgres-').replace('-', '_')}"
    world.run(f"create role {role} login", f"grant select on t to {role}")
    dsn = make_conninfo(world.dsn, user=role)
    other = Settings(**{**world.settings.model_dump(), "source": {"kind": "postgres", "dsn": dsn}})
    try:
        assert copy_range(other, "t", 2).rows == ROWS // 4
    finally:
        world.run(f"drop owned by {role}", f"drop role {role}")
    world.htap.sync_now()
    assert_whole(world)
