"""The cycle over stubs with a buffer between them: whatever ends a process, nothing is lost."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from rhei_pipeline.buffer.confirmation import unapplied_events
from rhei_pipeline.buffer.log import ChangeLog
from rhei_pipeline.buffer.snapshot import BufferedSnapshot, FollowedTable
from rhei_pipeline.buffer.source import BufferedSource, BufferOptions
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.protocols import Rescan, Step
from rhei_pipeline.testing import Crash, StubMirror
from rhei_pipeline.testing.stub_source import StubSnapshot
from tests.unit.stub_world import StubWorld, schema

BOTH = pytest.mark.parametrize("mode", list(Mode))


class BufferedWorld(StubWorld):
    """A stub world whose changes go through a buffer on the disk."""

    def __init__(
        self, directory: Path, *, mode: Mode = Mode.DESTRUCTIVE, prune: bool = True
    ) -> None:
        super().__init__(mode=mode)
        self.path = directory / "buffer"
        self._prune = prune
        self._log: ChangeLog | None = None

    def capture(self) -> BufferedSource:
        """Open the buffer, as a new process would."""
        self._log = ChangeLog(self.path)
        return BufferedSource(
            self.source, self._log, BufferOptions(2, prune=self._prune), self.faults
        )

    def restart(self) -> None:
        """Begin with a new process, for which the buffer is free."""
        super().restart()
        if self._log is not None:
            self._log.close()

    def unapplied(self) -> int:
        """Return how many events wait, as another process reads it."""
        found = unapplied_events(self.path)
        assert found is not None
        return found[1]


@pytest.fixture
def make_buffered(tmp_path: Path) -> Callable[..., BufferedWorld]:
    return lambda **options: BufferedWorld(tmp_path, **options)


@BOTH
@pytest.mark.parametrize(
    "step",
    [
        Step.BUFFERING,
        Step.BRIDGED,
        Step.BRIDGE_ACKNOWLEDGED,
        Step.SNAPSHOT,
        Step.CAPTURED,
        Step.APPLIED,
        Step.RECORDED,
        Step.COMMITTED,
        Step.ACKNOWLEDGED,
    ],
)
@pytest.mark.parametrize("occurrence", [1, 2])
def test_a_process_may_die_at_any_step(
    make_buffered: Callable[..., BufferedWorld],
    monkeypatch: pytest.MonkeyPatch,
    mode: Mode,
    step: Step,
    occurrence: int,
) -> None:
    monkeypatch.setattr("rhei_pipeline.buffer.writer.PART_BYTES", 1)
    world = make_buffered(mode=mode)
    world.fill(1, 2)
    world.pipeline.sync()
    for value in ("a", "b"):
        world.source.put("t", k=1, v=value)
    world.source.delete("t", 2)
    world.fill(3)
    world.faults.arm(step, occurrence)
    world.surviving(world.pipeline.sync)
    world.faults.disarm()
    world.fill(4)
    world.pipeline.sync()
    assert world.equal()
    if mode is Mode.TEMPORAL:
        assert world.versions() == [
            (1, "v1", False),
            (1, "a", False),
            (1, "b", True),
            (2, "v2", False),
            (3, "v3", True),
            (4, "v4", True),
        ]
    assert world.pipeline.sync().events == 0
    assert world.unapplied() == 0
    world.restart()


def test_what_the_source_may_delete_is_told_to_wait_before(
    make_buffered: Callable[..., BufferedWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_buffered()
    world.pipeline.sync()
    world.fill(1, 2)
    acknowledge = world.source.acknowledge

    def die_behind(needed_from: Mapping[str, Position], *, prune: bool) -> int:
        forgotten = acknowledge(needed_from, prune=prune)
        if forgotten:
            raise Crash
        return 0

    monkeypatch.setattr(world.source, "acknowledge", die_behind)
    assert world.surviving(world.pipeline.sync)
    assert world.unapplied() == 2
    monkeypatch.undo()
    world.pipeline.sync()
    assert world.equal()
    world.restart()


@pytest.mark.parametrize("prune", [True, False])
def test_the_source_keeps_its_log_where_nothing_is_to_be_pruned(
    make_buffered: Callable[..., BufferedWorld], *, prune: bool
) -> None:
    world = make_buffered(prune=prune)
    world.pipeline.sync()
    table = Table(world.source.describe("t"))
    with world.source.snapshot() as snapshot:
        begin = snapshot.head(table)
    world.fill(1, 2)
    world.pipeline.sync()
    with world.source.snapshot() as snapshot:
        assert snapshot.proves(table, begin) is not prune
    world.restart()


def drained_while_away(world: BufferedWorld) -> None:
    """Have another process take what is pending into the buffer."""
    world.restart()
    world.capture().drain()
    world.restart()


@BOTH
@pytest.mark.parametrize("is_away", [True, False], ids=["drained", "synced"])
def test_what_the_source_has_lost_is_copied_again(
    make_buffered: Callable[..., BufferedWorld], mode: Mode, *, is_away: bool
) -> None:
    world = make_buffered(mode=mode)
    world.fill(1, 2)
    world.pipeline.sync()
    world.source.put("t", k=1, v="a")
    world.source.lose_log("t")
    world.source.delete("t", 2)
    world.fill(3)
    if is_away:
        drained_while_away(world)
    world.pipeline.sync()
    assert world.equal()
    world.fill(4)
    world.restart()
    assert world.pipeline.sync().events == 1
    assert world.equal()
    world.restart()


@BOTH
@pytest.mark.parametrize("is_away", [True, False], ids=["drained", "synced"])
def test_a_table_of_another_shape_keeps_what_was_pending_before(
    make_buffered: Callable[..., BufferedWorld], mode: Mode, *, is_away: bool
) -> None:
    world = make_buffered(mode=mode)
    world.fill(1, 2)
    world.pipeline.sync()
    world.source.put("t", k=1, v="a")
    if is_away:
        drained_while_away(world)
    world.source.put("t", k=1, v="b")
    world.source.create(schema("t", v=pa.string(), w=pa.int64()))
    world.source.put("t", k=1, v="c", w=1)
    world.pipeline.sync()
    assert world.equal()
    if mode is Mode.TEMPORAL:
        values = [value for key, value, _ in world.versions() if key == 1]
        assert list(dict.fromkeys(values)) == ["v1", "a", "b", "c"]
    world.restart()
    assert world.pipeline.sync().events == 0
    world.restart()


@pytest.mark.parametrize("is_there", [True, False], ids=["older", "none"])
def test_no_change_is_lost_where_the_buffer_is_an_older_one_or_gone(
    make_buffered: Callable[..., BufferedWorld], tmp_path: Path, *, is_there: bool
) -> None:
    world = make_buffered()
    world.fill(1)
    world.pipeline.sync()
    world.restart()
    shutil.copytree(world.path, tmp_path / "older")
    for value in ("a", "b", "c"):
        world.source.put("t", k=1, v=value)
        world.pipeline.sync()
    reached = world.mirror.ledger().watermarks["t"].position.order
    world.source.put("t", k=1, v="d")
    world.fill(2)
    world.restart()
    shutil.rmtree(world.path)
    if is_there:
        (tmp_path / "older").rename(world.path)
    world.pipeline.sync()
    assert world.equal()
    assert world.mirror.ledger().watermarks["t"].position.order > reached
    world.fill(3)
    assert world.pipeline.sync().events == 1
    assert world.equal()
    world.restart()


@pytest.mark.parametrize("reads_former", [True, False], ids=["", "own shape alone"])
@pytest.mark.parametrize("is_drained", [True, False], ids=["drained", "pending"])
def test_a_version_of_right_before_a_migration_is_in_the_history(
    make_buffered: Callable[..., BufferedWorld],
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_drained: bool,
    reads_former: bool,
) -> None:
    """The table is found as it was, and described as it is then."""
    proves = StubSnapshot.proves

    def proves_own(snapshot: StubSnapshot, table: Table, position: Position) -> bool:
        """Return whether all that is pending is of the table's shape, too."""
        shapes = snapshot._states[table.name].shapes
        fits = [shapes[entry.shape] == table.schema for entry in snapshot._behind(table, position)]
        return proves(snapshot, table, position) and (reads_former or all(fits))

    monkeypatch.setattr(StubSnapshot, "proves", proves_own)
    world = make_buffered(mode=Mode.TEMPORAL)
    world.fill(1)
    world.pipeline.sync()
    if is_drained:
        for value in ("a", "b"):
            world.source.put("t", k=1, v=value)
        drained_while_away(world)
    is_installed, migrated = world.source.is_installed, list[Table]()

    def migrate(table: Table) -> bool:
        found = is_installed(table)
        if not migrated:
            migrated.append(table)
            for value in () if is_drained else ("a", "b"):
                world.source.put("t", k=1, v=value)
            world.source.create(schema("t", v=pa.string(), w=pa.int64()))
        return found

    monkeypatch.setattr(world.source, "is_installed", migrate)
    world.source.create(schema("other"))  # so that all are looked at again
    world.pipeline.sync()
    world.source.put("t", k=1, v="c", w=1)
    world.pipeline.sync()
    assert migrated
    assert world.equal()
    values = [value for key, value, _ in world.versions() if key == 1]
    assert list(dict.fromkeys(values)) == ["v1", "a", "b", "c"]
    world.restart()


def test_a_mirror_that_is_begun_again_waits_for_no_changes_of_a_former_shape(
    make_buffered: Callable[..., BufferedWorld],
) -> None:
    world = make_buffered(mode=Mode.TEMPORAL)
    world.fill(1)
    world.pipeline.sync()
    world.fill(2)
    drained_while_away(world)
    world.mirror = StubMirror()
    world.source.create(schema("t", v=pa.string(), w=pa.int64()))
    report = world.pipeline.sync()
    assert report.tables["t"].error is None
    assert world.equal()
    world.fill(3)
    assert world.pipeline.sync().events == 1
    assert world.equal()
    world.restart()


@pytest.mark.parametrize("step", [Step.BRIDGED, Step.CAPTURED, Step.RECORDED])
def test_versions_of_a_shape_that_the_mirror_never_had_are_in_the_history(
    make_buffered: Callable[..., BufferedWorld], step: Step
) -> None:
    """A process dies in the first sync after a migration, and another migration follows."""
    world = make_buffered(mode=Mode.TEMPORAL)
    world.fill(1)
    world.pipeline.sync()
    shapes = {"v": pa.string()}
    for column, values in (("w", "ab"), ("x", "cd")):
        shapes[column] = pa.string()
        world.source.create(schema("t", **shapes))
        for value in values:
            world.source.put("t", k=1, v=value)
        world.faults.arm(step)
        assert world.surviving(world.sync)
        world.faults.disarm()
    shapes["y"] = pa.string()
    world.source.create(schema("t", **shapes))
    world.source.put("t", k=1, v="e", w="w", x="x", y="y")
    world.pipeline.sync()
    assert world.equal()
    assert [value for _, value, _ in world.versions()] == ["v1", *"abcde"]
    assert world.pipeline.sync().events == 0
    world.restart()


def state(
    world: BufferedWorld, followed: FollowedTable, *, passes_on: bool = False, now: Table
) -> BufferedSnapshot:
    """Return a state in which the source describes the table as it is `now`."""
    assert world._log is not None
    with world.source.snapshot() as inner:
        return BufferedSnapshot(
            inner,
            world._log,
            {followed.table.name: followed},
            passes_on=passes_on,
            unreadable={},
            describe=lambda _name: now.schema,
        )


@pytest.mark.parametrize("why", ["", "pending in the source", "another shape there", "and here"])
def test_a_whole_comparison_waits_until_the_mirror_can_have_all_that_the_source_has(
    make_buffered: Callable[..., BufferedWorld], why: str
) -> None:
    """Rows that are ahead of the changes would be in the history before these."""
    world = make_buffered(mode=Mode.TEMPORAL)
    world.fill(1)
    world.pipeline.sync()
    table, other = (
        Table(of, Mode.TEMPORAL)
        for of in (world.source.describe("t"), schema("t", w=pa.int64(), v=pa.string()))
    )
    assert world._log is not None
    at = world._log.head("t")
    assert at.order > 0
    with world.source.snapshot() as before:
        followed = FollowedTable(table, before.head(table), 0, rescan=True)
    if why == "pending in the source":
        world.fill(2)
    if why == "and here":  # where the log goes on in another shape, at the mirror's position
        followed = replace(followed, table=other, begins=at.order, inner=None)
    now = other if why == "another shape there" else table
    found = state(world, followed, now=now)
    assert found.rescan(table, at) is (Rescan.NONE if why else Rescan.ALL)
    assert found.rescanned == (set() if why else {"t"})
    world.restart()


def test_a_state_of_rows_proves_no_position_behind_which_another_shape_is(
    make_buffered: Callable[..., BufferedWorld],
) -> None:
    """What is read of it is read in the table's own shape."""
    world = make_buffered(mode=Mode.TEMPORAL)
    world.fill(1)
    world.pipeline.sync()
    assert world._log is not None
    table, at = Table(world.source.describe("t"), Mode.TEMPORAL), world._log.head("t")
    other = Table(schema("t", w=pa.int64()), Mode.TEMPORAL)
    followed = FollowedTable(other, None, 0, begins=at.order)
    for passes_on in (False, True):
        found = state(world, followed, passes_on=passes_on, now=table)
        assert found.proves(table, at) is not passes_on
        assert (found.next_shape(table, at) is not None) is not passes_on
    world.restart()
