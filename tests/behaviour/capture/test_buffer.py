"""Changes that go through a buffer: what limits, damage, kills and an absent mirror do to it."""

import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from rhei_pipeline import HTAP
from rhei_pipeline.buffer import writer as log_writer
from rhei_pipeline.buffer.layout import PART
from rhei_pipeline.buffer.log import BufferLimits, ChangeLog
from rhei_pipeline.errors import (
    BufferBusyError,
    BufferDamagedError,
    BufferFullError,
    MissingExtraError,
    PositionLostError,
    RheiError,
    SettingsError,
    TransientError,
)
from rhei_pipeline.model.changes import SEQUENCE
from rhei_pipeline.protocols import Step
from rhei_pipeline.testing.faults import Crash, CrashAt
from rhei_pipeline.wiring.engine import bridge, unseen_events
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.forked import Forked, run
from tests.support.other_process import copy

MakeWorld = Callable[..., World]

KILLS = 4
APPENDERS_KILLED = 3


@pytest.fixture(params=["destructive", "temporal"])
def either(request: pytest.FixtureRequest, make_world: MakeWorld) -> World:
    """A pipeline of any mode that goes through a buffer, synced and closed."""
    return synced(make_world(mode=request.param, buffered=True))


@pytest.fixture
def buffered(make_world: MakeWorld) -> World:
    """A pipeline that goes through a buffer, synced and closed."""
    return synced(make_world(mode="temporal", buffered=True))


def synced(world: World) -> World:
    world.run("create table t(id integer primary key, v integer, w blob)")
    world.run("create table u(id integer primary key, t integer)")
    world.run("insert into t values (1, 0, null)")
    world.htap.sync_now()
    world.crash()
    return world


def source_log(world: World) -> int:
    return int(world.app.execute("select count(*) from _rhei_log_t").fetchone()[0])


def values_of_row_one(world: World) -> list[int]:
    return [row["v"] for row in world.versions("t") if row["id"] == 1]


# An absent mirror


def test_history_is_complete_though_the_mirror_was_away_for_days(either: World) -> None:
    for day in range(1, 6):
        for hour in range(10):
            either.run(f"update t set v = {day * 100 + hour} where id = 1")
        either.run(f"insert into u values ({day}, 1)", f"delete from u where id = {day - 1}")
        assert bridge(either.settings) == (12 if day > 1 else 11)
        assert source_log(either) == 1  # the source may forget at once
        assert unseen_events(either.settings)
    report = either.htap.sync_now()
    assert report.tables["t"].copied_rows == 0
    assert report.tables["t"].events == 50
    either.assert_equal("t", "u")
    if either.mode == "temporal":
        wanted = [0, *(day * 100 + hour for day in range(1, 6) for hour in range(10))]
        assert values_of_row_one(either) == wanted
    assert unseen_events(either.settings) == 0


def test_keys_touched_in_many_drains_are_merged_once(make_world: MakeWorld) -> None:
    world = make_world(buffered=True)
    world.run("create table t(id integer primary key, v integer)", "insert into t values (1, 0)")
    world.htap.sync_now()
    world.crash()
    for turn in range(4):
        world.run(f"update t set v = {turn + 10}", "replace into t values (2, 1)")
        bridge(world.settings)
    world.run("delete from t where id = 2")
    report = world.htap.sync_now().tables["t"]
    assert (report.inserted, report.updated, report.deleted) == (0, 1, 0)
    world.assert_equal("t")


def test_lag_counts_what_is_buffered_and_what_is_not(buffered: World) -> None:
    buffered.run("update t set v = 1", "update t set v = 2")
    bridge(buffered.settings)
    buffered.run("update t set v = 3")
    assert unseen_events(buffered.settings) == 3
    status = buffered.htap.sync_status().tables["t"]
    assert status.lag_events == 3
    assert (status.lag_seconds or 0) > 0
    buffered.htap.sync_now()
    assert buffered.htap.sync_status().tables["t"].lag_events == 0
    assert unseen_events(buffered.settings) == 0


@pytest.mark.long
@pytest.mark.parametrize(
    "step", [step for step in Step if "copy" not in step and "range" not in step]
)
def test_a_sensor_never_says_in_step_when_the_mirror_lacks_changes(
    buffered: World, step: Step
) -> None:
    buffered.run("update t set v = 7")
    buffered.htap.sync_status()  # opening installs; what follows is the sync alone
    buffered.faults.arm(step)
    buffered.surviving(buffered.htap.sync_now)
    if unseen_events(buffered.settings) == 0:
        buffered.assert_equal("t")
    buffered.htap.sync_now()
    assert unseen_events(buffered.settings) == 0


def test_verify_compares_at_the_rows_state_and_records_nothing(buffered: World) -> None:
    buffered.htap.sync_now()

    def write_late() -> None:
        buffered.run("update t set v = v + 1", "insert into u values (99, 1)")

    buffered.run("insert into u values (1, 1)")
    buffered.faults.do_at(Step.COMMITTED, write_late)
    assert buffered.htap.verify().equal
    buffered.htap.sync_now()
    buffered.assert_equal("t", "u")


def test_bridging_needs_a_buffer(world: World) -> None:
    with pytest.raises(SettingsError, match="no buffer"):
        bridge(world.settings)


def test_without_its_package_a_buffer_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rocksdict", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rhei-pipeline\[rocksdb\]'"):
        ChangeLog(tmp_path / "cdc")


# Limits


def fill(world: World, rows: int, first: int) -> None:
    blobs = ((n, n, random.randbytes(1000)) for n in range(first, first + rows))
    world.app.executemany("insert into t values (?, ?, ?)", blobs)


def test_a_buffer_takes_no_more_than_its_limit_and_the_mirror_makes_room(either: World) -> None:
    either.limits = {"max_bytes": 150_000}
    fill(either, 100, first=10)
    bridge(either.settings)
    fill(either, 100, first=200)
    with pytest.raises(BufferFullError, match=r"max_bytes is 150,000 \(let the mirror catch up"):
        bridge(either.settings)
    assert source_log(either) == 101  # nothing was lost to the refusal
    assert either.htap.sync_status().tables["t"].lag_events == 200
    report = either.htap.sync_now().tables["t"]
    assert (report.events, report.inserted) == (200, 200)
    either.assert_equal("t")


def test_a_backlog_larger_than_the_limit_goes_through_while_the_mirror_is_there(
    either: World,
) -> None:
    either.limits = {"max_bytes": 50_000}
    fill(either, 100, first=10)
    either.run(*(f"update t set v = {v} where id = 1" for v in range(1, 4)))
    for _ in range(2):
        with pytest.raises(BufferFullError, match=r"raise capture\.buffer\.max_bytes"):
            bridge(either.settings)
        assert either.htap.sync_status().tables["t"].lag_events == 103
        either.crash()
    assert either.htap.sync_now().tables["t"].events == 103
    either.assert_equal("t")
    if either.mode == "temporal":
        assert values_of_row_one(either) == [0, 1, 2, 3]
    assert either.htap.sync_status().held_bytes["buffer"] == 0


def test_a_full_buffer_that_keeps_all_is_named_at_each_sync_and_hides_no_status(
    buffered: World,
) -> None:
    buffered.limits, buffered.prune = {"max_bytes": 50_000}, False
    fill(buffered, 100, first=10)
    for _ in range(2):
        with pytest.raises(BufferFullError, match=r"raise capture\.buffer\.max_bytes"):
            buffered.htap.sync_now()
        assert buffered.htap.sync_status().tables["t"].lag_events == 100
    buffered.crash()
    buffered.limits = {}
    buffered.htap.sync_now()
    buffered.assert_equal("t")


def test_changes_that_wait_too_long_stop_the_bridging(buffered: World) -> None:
    buffered.limits = {"max_age_seconds": 0.02}
    buffered.run("update t set v = 1")
    bridge(buffered.settings)
    buffered.run("update t set v = 2")
    time.sleep(0.03)
    with pytest.raises(BufferFullError, match="max_age_seconds"):
        bridge(buffered.settings)
    buffered.htap.sync_now()
    buffered.assert_equal("t")


def test_a_disk_with_little_room_left_is_not_filled(
    buffered: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(buffered.directory).free
    monkeypatch.setattr(log_writer, "RESERVE_BYTES", free * 2)
    buffered.run("update t set v = 1")
    with pytest.raises(BufferFullError, match=r"bytes left, and [0-9,]+ are needed"):
        bridge(buffered.settings)
    with pytest.raises(BufferFullError, match=r"bytes left, and [0-9,]+ are needed"):
        buffered.htap.sync_now()
    assert buffered.htap.sync_status().tables["t"].lag_events == 1


def test_what_the_mirror_has_makes_room(buffered: World) -> None:
    buffered.limits = {"max_bytes": 200_000}
    for turn in range(5):
        fill(buffered, 100, first=1000 * (turn + 1))
        assert buffered.htap.sync_now().rows_pruned == 100
    buffered.assert_equal("t")
    buffered.crash()
    with ChangeLog(buffered.buffer) as log:
        assert log.held_bytes == 0


# Kills


_BRIDGE_FOR_EVER = """
import json, sys
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.wiring.engine import bridge
settings = Settings(**json.loads(sys.argv[1]))
print("going", flush=True)
while True:
    for _ in range(5):
        bridge(settings)
    with HTAP(settings) as htap:
        htap.sync_now()
"""


def test_a_process_killed_while_bridging_loses_and_doubles_nothing(either: World) -> None:
    random.seed(11)
    count = 0
    for _ in range(KILLS):
        with started(_BRIDGE_FOR_EVER, either.settings.model_dump_json()):
            until = time.monotonic() + 0.1 + random.random() * 0.3
            while time.monotonic() < until:
                count += 1
                either.run("begin immediate", f"update t set v = {count} where id = 1")
                either.run(f"replace into u values ({count % 50}, {count})", "commit")
    either.htap.sync_now()
    either.assert_equal("t", "u")
    if either.mode == "temporal":
        assert values_of_row_one(either) == list(range(count + 1))
    assert either.htap.verify().equal


_DIE_AT_A_PART = """
import json, os, sys
from rhei_pipeline import Settings
from rhei_pipeline.buffer import writer as log_writer
from rhei_pipeline.protocols import Step
from rhei_pipeline.wiring.engine import bridge
log_writer.PART_BYTES = 10_000
def on_step(step):
    if step is Step.BUFFERING:
        os._exit(9)
bridge(Settings(**json.loads(sys.argv[1])), on_step)
"""


def test_parts_of_a_drain_that_was_cut_off_never_show(either: World) -> None:
    either.batch_rows = 20
    with ChangeLog(either.buffer) as log:
        head, held = log.head("t"), log.held_bytes
    fill(either, 100, first=10)
    assert died(_DIE_AT_A_PART, either) == 9
    with ChangeLog(either.buffer) as log:
        assert (log.head("t"), log.held_bytes) == (head, held)
    either.run("delete from t where id between 20 and 60")
    either.htap.sync_now()
    either.assert_equal("t")
    assert either.htap.verify().equal


def test_a_large_drain_comes_in_parts(buffered: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "PART_BYTES", 10_000)
    buffered.batch_rows = 20
    fill(buffered, 100, first=10)
    faults = CrashAt()
    faults.arm(Step.BUFFERING, 3)
    with pytest.raises(Crash):
        bridge(buffered.settings, faults)
    assert bridge(buffered.settings, faults) == 100
    assert faults.seen.count(Step.BUFFERING) > 5
    buffered.htap.sync_now()
    buffered.assert_equal("t")


# Damage


def test_a_buffer_opens_once(buffered: World) -> None:
    with started(_HOLD, str(buffered.buffer)):
        for work in (HTAP.sync_now, HTAP.verify, HTAP.sync_status):
            with pytest.raises(BufferBusyError, match="held by another process"):
                work(buffered.htap)
        with pytest.raises(BufferBusyError, match="held by another process"):
            bridge(buffered.settings)
    buffered.htap.sync_now()
    with pytest.raises(BufferBusyError, match="held"):
        ChangeLog(buffered.buffer)
    buffered.assert_equal("t")


_HOLD = """
import sys
from rhei_pipeline.buffer.log import ChangeLog
log = ChangeLog(sys.argv[1])
print("going", flush=True)
sys.stdin.read()
"""


_BRIDGE_AND_DIE = """
import json, os, sys
from rhei_pipeline import Settings
from rhei_pipeline.protocols import Step
from rhei_pipeline.wiring.engine import bridge
seen = []
def on_step(step):
    seen.append(step)
    if seen[-2:] == [Step.BRIDGED, Step.BRIDGE_ACKNOWLEDGED]:
        os._exit(9)
bridge(Settings(**json.loads(sys.argv[1])), on_step)
"""


def newest(directory: Path, pattern: str) -> Path:
    return max(directory.glob(pattern), key=lambda path: path.name)


def cut(share: float) -> Callable[[Path], None]:
    def damage(buffer: Path) -> None:
        file = newest(buffer, "*.log")
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])

    return damage


def flip(pattern: str, share: float) -> Callable[[Path], None]:
    def damage(buffer: Path) -> None:
        file = newest(buffer, pattern)
        content = bytearray(file.read_bytes())
        content[int(len(content) * share)] ^= 0xFF
        file.write_bytes(content)

    return damage


def remove(pattern: str) -> Callable[[Path], None]:
    def damage(buffer: Path) -> None:
        for file in buffer.glob(pattern):
            file.unlink()

    return damage


@pytest.fixture(scope="module")
def left_by_a_process_that_died(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's files, where changes are in *.sst and, as its process died, in *.log."""
    directory = tmp_path_factory.mktemp("died")
    world = synced(World(directory / "world", mode="temporal", buffered=True))
    fill(world, 20, first=100)
    bridge(world.settings)  # closing puts it into *.sst
    fill(world, 20, first=200)
    assert died(_BRIDGE_AND_DIE, world) == 9
    world.close()
    return Path(shutil.copytree(world.directory, directory / "left"))


@pytest.mark.parametrize(
    "damage",
    [
        *(cut(share) for share in (0.0, 0.3, 0.6, 0.99)),
        *(flip("*.log", share) for share in (0.1, 0.5, 0.9, 0.999)),
        flip("*.sst", 0.2),
        flip("MANIFEST-*", 0.5),
        remove("CURRENT"),
        remove("*.sst"),
        remove("*.log"),
        remove("MANIFEST-*"),
    ],
)
def test_damaged_files_are_named_or_made_good(
    left_by_a_process_that_died: Path, damage: Callable[[Path], None]
) -> None:
    home = left_by_a_process_that_died.with_name("world")
    shutil.rmtree(home)
    shutil.copytree(left_by_a_process_that_died, home)
    with closing(World(home, mode="temporal", buffered=True)) as buffered:
        damage(buffered.buffer)
        try:
            buffered.htap.sync_now()
        except BufferDamagedError as error:
            assert "move it away" in str(error)  # noqa: PT017
            shutil.rmtree(buffered.buffer)
            buffered.htap.sync_now()
        buffered.assert_equal("t", "u")
        assert buffered.htap.verify().equal
        buffered.run("update t set v = v + 1")
        buffered.htap.sync_now()
        buffered.assert_equal("t")


def test_a_file_in_its_place_is_named(buffered: World) -> None:
    shutil.rmtree(buffered.buffer)
    buffered.buffer.write_text("not a directory")
    with pytest.raises(BufferDamagedError, match="a file, not a directory"):
        buffered.htap  # noqa: B018


@pytest.mark.parametrize("prune", [True, False])
def test_an_older_buffer_put_back_is_noticed(either: World, *, prune: bool) -> None:
    older = either.directory / "older"
    copy(either.buffer, older)
    either.prune = prune  # otherwise the source still has what the older one lacks
    for turn in range(3):
        either.run(f"update t set v = {turn + 1}", f"insert into u values ({turn}, 1)")
        reached = either.htap.sync_now().watermark
    either.crash()
    if prune:
        either.run("update t set v = 50")
    shutil.rmtree(either.buffer)
    older.rename(either.buffer)
    assert either.htap.sync_now().watermark > reached
    either.assert_equal("t", "u")
    assert either.htap.verify().equal


def test_changes_the_source_lost_before_they_were_bridged_are_copied(either: World) -> None:
    either.run("update t set v = 1", "delete from _rhei_log_t", "update t set v = 2")
    bridge(either.settings)
    assert unseen_events(either.settings)
    report = either.htap.sync_now()
    assert report.tables["t"].copied_rows == 1
    assert report.tables["u"].copied_rows == 0
    either.assert_equal("t", "u")


def test_a_migration_while_the_mirror_is_away(either: World) -> None:
    either.run("update t set v = 1 where id = 1")
    bridge(either.settings)
    either.run("update t set v = 2 where id = 1", "alter table t add column x integer")
    either.run("insert into u values (1, 1)")
    bridge(either.settings)
    either.run("update t set v = 3, x = 4 where id = 1")
    bridge(either.settings)
    either.htap.sync_now()
    either.assert_equal("t", "u")
    if either.mode == "temporal":
        assert values_of_row_one(either)[:4] == [0, 1, 2, 3]


def test_a_table_no_longer_declared_fills_nothing(buffered: World) -> None:
    buffered.tables = [{"name": "u"}]
    fill(buffered, 50, first=10)
    buffered.run("insert into u values (1, 1)")
    assert bridge(buffered.settings) == 1
    buffered.tables = None
    buffered.htap.sync_now()
    buffered.assert_equal("t", "u")


def test_the_buffer_of_a_mirror_made_anew(buffered: World) -> None:
    buffered.run("update t set v = 1")
    bridge(buffered.settings)
    (buffered.directory / "mirror.duckdb").unlink()
    buffered.htap.sync_now()
    buffered.assert_equal("t", "u")
    assert unseen_events(buffered.settings) == 0


# A log that applications append to


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ChangeLog]:
    with ChangeLog(tmp_path / "log") as opened:
        yield opened


def events(*values: Any) -> pa.Table:
    return pa.table({"v": list(values)})


def read(log: ChangeLog, after: int = 0, until: int | None = None) -> list[tuple[int, Any]]:
    batches = list(log.read(after, until))
    return [(row[SEQUENCE], row["v"]) for batch in batches for row in batch.to_pylist()]


def test_a_range_is_replayed_exactly(log: ChangeLog) -> None:
    for first in range(0, 12, 4):
        log.append(events(*range(first, first + 4)))
    assert log.head().order == 12
    for after in range(13):
        for until in range(13):
            wanted = [(n + 1, n) for n in range(after, until)]
            assert read(log, after, until) == wanted
    assert read(log) == read(log, 0, None) == [(n + 1, n) for n in range(12)]
    assert len([*log.read(until=4)]) == 1  # nothing of what is behind
    place = log.head()
    assert log.append(events()) == 12
    assert log.head() == place


def test_what_was_pruned_is_not_replayed_as_nothing(log: ChangeLog) -> None:
    log.append(events(1, 2))
    log.append(events(3))
    assert log.prune(2) == 2
    assert log.prune(2) == 0
    with pytest.raises(PositionLostError, match="events 2 to 2 have been pruned"):
        read(log, 1)
    assert read(log, 2) == [(3, 3)]
    assert len(log._rocks.scan(PART, PART)) == 1
    assert log.append(events(4)) == 4
    under_way = log.read(2)
    next(under_way)
    log.prune(4)
    with pytest.raises(PositionLostError, match="events 4 to 4 have been pruned"):
        next(under_way)


def test_a_write_that_failed_may_be_there_and_is_not_written_over(
    log: ChangeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append(events(1))
    write = log._rocks.write

    def fail(batch: Any, *, sync: bool) -> None:
        write(batch, sync=sync)
        log._rocks.is_given_up = True
        raise TransientError("the disk failed")

    with monkeypatch.context() as patch, pytest.raises(TransientError):
        patch.setattr(log._rocks, "write", fail)
        log.append(events(2))
    assert log.append(events(3)) == 3
    assert read(log) == [(1, 1), (2, 2), (3, 3)]
    held = log.held_bytes
    log.close()
    with ChangeLog(log.path) as again:
        assert again.held_bytes == held


def test_what_was_written_ahead_of_a_refusal_takes_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "PART_BYTES", 1_000)
    with ChangeLog(tmp_path / "log", BufferLimits(max_bytes=5_000)) as log:
        log.append(events(1))
        with pytest.raises(BufferFullError), log.writing() as writer:
            for _ in range(5):
                writer.put("events", events(random.randbytes(1500)), 1)
        assert len(log._rocks.scan(PART, PART)) == 1
        assert read(log) == [(1, 1)]


def test_a_range_of_a_buffer_that_keeps_all_is_replayed(buffered: World) -> None:
    buffered.prune = False
    for turn in range(3):
        buffered.run(f"update t set v = {turn + 1}")
        buffered.htap.sync_now()
    buffered.crash()
    with ChangeLog(buffered.buffer) as log:
        low = log.low("t")
        found = [row["v"] for batch in log.read(low, stream="t") for row in batch.to_pylist()]
        later = [row["v"] for batch in log.read(low + 2, stream="t") for row in batch.to_pylist()]
    assert found == [1, 2, 3]
    assert later == [3]


_APPEND_FOR_EVER = """
import sys
import pyarrow as pa
from rhei_pipeline.buffer.log import ChangeLog
log = ChangeLog(sys.argv[1])
print("going", flush=True)
n = log.head().order
while True:
    n += 3
    print(log.append(pa.table({"v": [n - 3, n - 2, n - 1]})), flush=True)
"""


@pytest.mark.long
def test_what_was_appended_outlives_kills_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(APPENDERS_KILLED):
        with started(_APPEND_FOR_EVER, str(path)) as process:
            told = [process.stdout.readline() for _ in range(random.randint(1, 200))]
            process.kill()
            told += process.stdout.read().split()
        promised = int(told[-1]) if told else 0
        with ChangeLog(path) as log:
            assert log.head().order >= promised
            assert read(log) == [(n + 1, n) for n in range(log.head().order)]


def test_a_log_refuses_what_is_beyond_its_limits(tmp_path: Path) -> None:
    with ChangeLog(tmp_path / "log", BufferLimits(max_bytes=5_000)) as log:
        log.append(events(random.randbytes(3000)))
        with pytest.raises(BufferFullError, match="max_bytes"):
            log.append(events(random.randbytes(3000)))
        assert log.head().order == 1
        log.prune(1)
        assert log.append(events(random.randbytes(3000))) == 2
    with ChangeLog(tmp_path / "log", BufferLimits(max_age_seconds=0.0)) as log:
        with pytest.raises(BufferFullError, match="max_age_seconds"):
            log.append(events(3))
        log.prune(2)
        assert log.append(events(3)) == 3


def test_a_polling_source_keeps_its_place(tmp_path: Path) -> None:
    with ChangeLog(tmp_path / "log") as log:
        assert log.watermark("orders") is None
        log.append(events(1))
        log.set_watermark("orders", log.head())
        place = log.head()
    with ChangeLog(tmp_path / "log") as log:
        assert log.watermark("orders") == place
        assert log.holds("events", place)


def test_a_closed_log_says_so(log: ChangeLog) -> None:
    log.close()
    log.close()
    with pytest.raises(RheiError, match="closed"):
        log.append(events(1))


def test_what_fails_in_a_write_is_told_though_the_log_was_closed(log: ChangeLog) -> None:
    with pytest.raises(ZeroDivisionError), log.writing() as writer:
        writer.put("events", events(1), 1)
        log.close()
        raise ZeroDivisionError


def started(code: str, *arguments: str) -> Forked:
    process = Forked(code, *arguments)
    assert process.stdout.readline() == "going\n"
    return process


def died(code: str, world: World) -> int:
    return run(code, world.settings.model_dump_json()).returncode


#: What one transaction may do to a table whose keys are `a, k`.
_TURNS = (
    "update t set a = -a",
    "update t set a = -a, k = case k when 'a' then 'b' else 'a' end",
    "update t set a = a + 1 where k = 'a'",
    "update t set v = v + 1",
    "delete from t where a = 1",
    "insert into t values (7, 1, 'a') on conflict do nothing",
)


@pytest.mark.parametrize("storage", [None, "parquet"])
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("capture", ["logical", "streaming", "trigger"])
def test_what_came_to_the_buffer_at_several_times_is_applied_in_its_order(
    make_postgres: Callable[..., PostgresWorld],
    tmp_path: Path,
    capture: str,
    mode: str,
    storage: str | None,
) -> None:
    method = "trigger" if capture == "trigger" else "logical"
    options: dict[str, Any] = {"method": method, "buffer": {"path": tmp_path / "cdc"}}
    options |= {"streaming": True} if capture == "streaming" else {}
    world = make_postgres(mode=mode, storage=storage, capture=options, tables=[{"name": "t"}])
    world.run(
        "create table t(v int, a int, k text, primary key (a, k))",
        "insert into t values (10, 1, 'a'), (20, 1, 'b'), (30, 3, 'a'), (40, 5, 'b')",
    )
    world.htap.sync_now()
    settings, draw = world.settings, random.Random(f"{capture} {mode} {storage}")
    # A key goes, and comes again; then it goes.
    first: list[Sequence[str]] = [_TURNS[:2], _TURNS[2:3]]
    rounds = [first]
    rounds += [[draw.choices(_TURNS, k=3) for _ in range(4)] for _ in range(3)]
    for turns in rounds:
        world.crash()
        for statements in turns:
            with suppress(psycopg.errors.UniqueViolation), world.app.transaction():
                world.run(*statements)
            bridge(settings)
        world.htap.sync_now()
        world.assert_equal("t")
    assert world.htap.verify().equal
