"""The cycle over stubs: one source state, rows and watermark together, acknowledged last."""

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pytest

from rhei_pipeline.errors import CaptureError, SchemaError
from rhei_pipeline.model.blame import Blame
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.progress import TableState
from rhei_pipeline.model.schema import Mode
from rhei_pipeline.protocols import Step
from rhei_pipeline.testing import Crash, FaultIn
from tests.unit.stub_world import StubWorld, schema

BOTH = pytest.mark.parametrize("mode", list(Mode))


@BOTH
def test_a_sync_shows_the_rows_of_the_snapshot_it_began_with(mode: Mode) -> None:
    """What is written while it works waits for the next one, in all tables."""
    world: StubWorld

    def write_meanwhile(step: Step) -> None:
        if step is Step.CAPTURED:
            world.fill(9, table="a")
            world.fill(9, table="b")

    world = StubWorld("a", "b", mode=mode, on_step=write_meanwhile)
    world.fill(1, 2, table="a")
    world.pipeline.sync()
    world.fill(3, table="a")
    world.fill(1, table="b")
    before = {name: world.source.rows(name) for name in "ab"}
    report = world.pipeline.sync()
    assert {name: world.present(name) for name in "ab"} == before
    assert (report.events, report.inserted) == (2, 2)
    assert not world.equal()


@BOTH
def test_a_report_counts_rows_that_really_changed(mode: Mode) -> None:
    world = StubWorld(mode=mode)
    world.fill(1, 2, 3)
    world.pipeline.sync()
    world.source.put("t", k=1, v="v1")  # written again as it was
    world.source.put("t", k=2, v="x")
    world.source.delete("t", 3)
    world.fill(4)
    report = world.pipeline.sync()
    assert (report.inserted, report.updated, report.deleted) == (1, 1, 1)
    assert report.events == 4
    assert world.equal()


@pytest.mark.parametrize("shares_log", [False, True])
def test_a_table_without_changes_moves_on_where_all_share_a_log(*, shares_log: bool) -> None:
    world = StubWorld("a", "b", shares_log=shares_log)
    world.pipeline.sync()
    before = world.mirror.ledger().watermarks
    world.fill(1, table="a")
    world.pipeline.sync()
    after = world.mirror.ledger().watermarks
    assert after["a"].position.order > before["a"].position.order
    assert (after["b"].position.order == after["a"].position.order) == shares_log
    assert (after["b"] == before["b"]) == (not shares_log)


def test_a_cycle_with_nothing_to_do_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = StubWorld()
    world.fill(1)
    world.pipeline.sync()

    def refuse(**_: object) -> None:
        raise AssertionError("a transaction was opened")

    monkeypatch.setattr(world.mirror, "transaction", refuse)
    assert world.pipeline.sync().events == 0


@BOTH
@pytest.mark.parametrize(
    "step",
    [Step.SNAPSHOT, Step.CAPTURED, Step.APPLIED, Step.RECORDED, Step.COMMITTED, Step.ACKNOWLEDGED],
)
@pytest.mark.parametrize("occurrence", [1, 2])
def test_a_crash_leaves_all_of_a_cycle_or_nothing_and_it_goes_on(
    mode: Mode, step: Step, occurrence: int
) -> None:
    world = StubWorld("a", "b", mode=mode, batch_rows=1)
    for name in "ab":
        world.fill(1, 2, table=name)
    world.pipeline.sync()
    before = {name: world.present(name) for name in "ab"}
    marks = world.mirror.ledger().watermarks
    for name in "ab":
        world.fill(3, 4, table=name)
        world.source.delete(name, 1)
    world.faults.arm(step, occurrence)
    crashed = world.surviving(world.pipeline.sync)
    is_committed = step in {Step.COMMITTED, Step.ACKNOWLEDGED} or not crashed
    assert world.equal() == is_committed
    if not is_committed:
        assert {name: world.present(name) for name in "ab"} == before
        assert world.mirror.ledger().watermarks == marks
    world.faults.disarm()
    world.pipeline.sync()
    assert world.equal()
    assert all(world.pipeline.verify().tables[name].equal for name in "ab")


def test_nothing_is_acknowledged_before_it_is_committed() -> None:
    world = StubWorld()
    world.fill(1)
    world.pipeline.sync()
    acknowledged: list[Mapping[str, Position]] = []
    real = world.source.acknowledge

    def spy(needed_from: Mapping[str, Position], *, prune: bool) -> int:
        acknowledged.append(dict(needed_from))
        for name, position in needed_from.items():
            assert world.mirror.ledger().watermarks[name].position.order >= position.order
        return real(needed_from, prune=prune)

    world.source.acknowledge = spy  # type: ignore[method-assign]
    world.fill(2, 3)
    world.faults.arm(Step.COMMITTED)
    assert world.surviving(world.pipeline.sync)
    assert acknowledged == []
    table = world.pipeline.table("t")
    with world.source.snapshot() as snapshot:
        assert snapshot.pending(table, Position(0, "")) == 2
    world.pipeline.sync()
    assert acknowledged == [{"t": world.mirror.ledger().watermarks["t"].position}]
    with world.source.snapshot() as snapshot:
        assert snapshot.pending(table, Position(0, "")) == 0


def test_a_lost_log_is_noticed_and_the_table_copied_anew() -> None:
    world = StubWorld(mode=Mode.TEMPORAL)
    world.fill(1, 2)
    world.pipeline.sync()
    world.source.delete("t", 1)
    world.source.put("t", k=2, v="x")
    world.source.lose_log("t")
    report = world.pipeline.sync()
    assert report.tables["t"].copied_rows == 1
    assert world.equal()
    assert world.versions() == [(1, "v1", False), (2, "v2", False), (2, "x", True)]


ERRORS: list[Callable[[], Exception]] = [
    lambda: RuntimeError("a row's value: 4711"),
    lambda: pa.ArrowInvalid("a row's value: 4711"),
    lambda: CaptureError("its log cannot be read"),
]


@BOTH
@pytest.mark.parametrize("error", ERRORS)
def test_a_table_that_fails_at_any_piece_of_work_is_left_out_alone(
    mode: Mode, error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = FaultIn("b")
    monkeypatch.setattr(Blame, "of", fault.patched(Blame.of))
    world = StubWorld("a", "b", "c", mode=mode, on_step=fault)
    world.pipeline.sync()
    fault.begin()
    for name in "abc":
        world.fill(0, table=name)
    world.pipeline.sync()
    pieces = fault.pieces
    assert pieces >= 3
    faults: list[Step | int] = [*range(1, pieces + 1), Step.CAPTURED, Step.APPLIED]
    for round_, at in enumerate(faults, 1):
        for name in "abc":
            world.source.put(name, k=1, v=f"{round_}")
        fault.arm(at, error)
        report = world.pipeline.sync()
        fault.disarm()
        assert fault.fired
        assert report.tables["b"].error is not None
        assert "4711" not in report.tables["b"].error
        assert world.equal("ac")
        assert not world.equal("b")
        assert world.pipeline.sync().tables["b"].error is None
        assert world.equal()


def test_a_table_that_is_not_in_the_source_is_left_out_until_it_is() -> None:
    world = StubWorld("a", "b")
    world.pipeline.sync()
    world.source.drop("b")
    world.fill(1, table="a")
    report = world.pipeline.sync()
    assert report.tables["b"].error is not None
    assert world.equal("a")
    with pytest.raises(SchemaError, match="'b'"):
        world.pipeline.table("b")
    world.source.create(schema("b"))
    world.fill(7, table="b")
    assert world.pipeline.sync().tables["b"].error is None
    assert world.equal()


class TestCopies:
    """The first copy, one that was cut off, and a repeated one."""

    @BOTH
    def test_a_first_sync_copies(self, mode: Mode) -> None:
        world = StubWorld(mode=mode)
        world.fill(*range(5))
        report = world.pipeline.sync()
        assert report.tables["t"].copied_rows == report.inserted == 5
        assert world.equal()
        assert world.mirror.ledger().copies == {}

    @BOTH
    @pytest.mark.parametrize("step", [Step.COPY_BATCH, Step.COPY_COMPLETE, Step.PROMOTED])
    def test_a_copy_that_was_cut_off_goes_on_where_it_ended(self, mode: Mode, step: Step) -> None:
        world = StubWorld(mode=mode)
        world.fill(*range(5))
        world.faults.arm(step)
        assert world.surviving(world.pipeline.sync)
        copied = step is not Step.COPY_BATCH
        state = TableState.COPIED if copied else TableState.COPYING
        assert world.mirror.ledger().state("t") is state
        assert world.mirror.tables() == {}
        world.source.delete("t", 0)  # read already
        world.source.put("t", k=1, v="x")
        world.fill(9)
        report = world.pipeline.sync()
        assert report.tables["t"].copied_rows in ({0, None} if copied else {4})
        assert world.equal()

    @BOTH
    def test_rows_that_change_while_they_are_copied_are_those_of_the_end(self, mode: Mode) -> None:
        world: StubWorld
        changed: list[Step] = []

        def change(step: Step) -> None:
            if step is Step.COPY_BATCH and not changed:
                changed.append(step)
                world.source.put("t", k=0, v="changed")
                world.source.delete("t", 1)
                world.fill(8)

        world = StubWorld(mode=mode, on_step=change)
        world.fill(*range(5))
        world.pipeline.sync()
        assert changed
        assert world.equal()
        assert world.pipeline.verify().equal

    def test_a_repeated_copy_of_a_history_adds_what_no_event_told(self) -> None:
        world = StubWorld(mode=Mode.TEMPORAL)
        world.fill(1, 2)
        world.pipeline.sync()
        before = world.versions()
        report = world.pipeline.copy("t")
        assert (report.rows, report.inserted, report.updated, report.deleted) == (2, 0, 0, 0)
        assert world.versions() == before

    @BOTH
    def test_repair_mends_what_was_done_to_the_mirror(self, mode: Mode) -> None:
        world = StubWorld(mode=mode)
        world.fill(1, 2, 3)
        world.pipeline.sync()
        standing = world.mirror._content.tables['"t"']
        standing.rows = [standing.rows[0], {**standing.rows[1], "v": "wrong"}]
        standing.rows.append({**standing.rows[0], "k": 9})
        found = world.pipeline.verify().tables["t"]
        assert not found.equal
        assert (found.missing, found.extra, found.different) == (1, 1, 1)
        assert found.samples["missing"] == ('{"k": 3}',)
        repaired = world.pipeline.repair("t")
        assert (repaired.inserted, repaired.updated, repaired.deleted) == (1, 1, 1)
        assert world.equal()
        assert world.pipeline.verify().equal


class TestSchemaChanges:
    """What a migration leaves in the log is applied in its own shape first."""

    def test_versions_of_before_a_migration_keep_the_column_that_it_drops(self) -> None:
        world = StubWorld(mode=Mode.TEMPORAL)
        world.fill(1)
        world.pipeline.sync()
        world.source.put("t", k=1, v="before")
        world.source.create(schema("t", w=pa.int64()))
        world.source.put("t", k=1, w=7)
        world.pipeline.sync()
        rows = [{name: row[name] for name in "kvw"} for row in world.mirror.rows("t")]
        assert rows == [
            {"k": 1, "v": "v1", "w": None},
            {"k": 1, "v": "before", "w": None},
            {"k": 1, "v": None, "w": 7},
        ]

    def test_versions_of_a_shape_in_between_are_in_the_history(self) -> None:
        world = StubWorld(mode=Mode.TEMPORAL)
        world.fill(1)
        world.pipeline.sync()
        world.source.create(schema("t", v=pa.string(), w=pa.int64()))
        world.source.put("t", k=1, v="between", w=5)
        world.source.create(schema("t", x=pa.string()))
        world.source.put("t", k=1, x="now")
        world.pipeline.sync()
        rows = [tuple(row[name] for name in "kvwx") for row in world.mirror.rows("t")]
        assert (1, "between", 5, None) in rows
        assert rows[-1] == (1, None, None, "now")

    def test_a_destructive_table_takes_the_new_shape_whole(self) -> None:
        world = StubWorld()
        world.fill(1)
        world.pipeline.sync()
        world.source.create(schema("t", v=pa.string(), w=pa.int64()))
        world.source.put("t", k=2, v="x", w=5)
        world.pipeline.sync()
        assert world.equal()

    def test_a_type_that_the_past_does_not_fit_leaves_the_table_out_and_its_past_alone(
        self,
    ) -> None:
        world = StubWorld(mode=Mode.TEMPORAL)
        world.source.put("t", k=1, v="text")
        world.pipeline.sync()
        before = world.mirror.rows("t")
        world.source.delete("t", 1)
        world.source.create(schema("t", v=pa.int64()))
        report = world.pipeline.sync()
        error = report.tables["t"].error
        assert error is not None
        assert "its history does not fit" in error
        assert len(world.mirror.rows("t")) == len(before)

    def test_a_migration_in_the_midst_of_a_copy_has_it_begun_anew(self) -> None:
        world: StubWorld
        migrated: list[Step] = []

        def migrate(step: Step) -> None:
            if step is Step.COPY_BATCH and not migrated:
                migrated.append(step)
                world.source.create(schema("t", v=pa.string(), w=pa.int64()))

        world = StubWorld(on_step=migrate)
        world.fill(*range(12))
        world.pipeline.sync()
        assert migrated
        assert world.equal()


class TestDeadLetters:
    """A row that does not fit is named, keeps its last good version, and comes back."""

    @BOTH
    def test_a_row_that_does_not_fit_is_named_and_the_others_go_on(self, mode: Mode) -> None:
        world = StubWorld(mode=mode)
        world.source.create(schema("t", n=pa.int64()))
        world.source.put("t", k=1, n=1)
        world.pipeline.sync()
        with world.source.transaction() as writes:
            writes.put("t", k=1, n="unfit")
            writes.put("t", k=2, n=2)
        report = world.pipeline.sync()
        assert report.dead_letters == 1
        assert world.present() == {(1,): {"k": 1, "n": 1}, (2,): {"k": 2, "n": 2}}
        letter = world.mirror.dead_letters().to_pylist()[0]
        assert (letter["key"], letter["column_name"]) == ('{"k": 1}', "n")
        assert "unfit" not in letter["reason"]
        found = world.pipeline.verify().tables["t"]
        assert (found.equal, found.dead_letters, found.different) == (False, 1, 0)

    @BOTH
    @pytest.mark.parametrize("mended", [{"k": 1, "n": 5}, None])
    def test_a_row_that_fits_again_or_is_gone_resolves_its_letter(
        self, mode: Mode, mended: dict[str, Any] | None
    ) -> None:
        world = StubWorld(mode=mode)
        world.source.create(schema("t", n=pa.int64()))
        world.source.put("t", k=1, n=1)
        world.pipeline.sync()
        world.source.put("t", k=1, n="unfit")
        world.pipeline.sync()
        if mended:
            world.source.put("t", **mended)
        else:
            world.source.delete("t", 1)
        world.pipeline.sync()
        assert world.equal()
        assert world.mirror.dead_letters().num_rows == 0

    @BOTH
    @pytest.mark.parametrize(
        ("values", "letters"),
        [(("unfit", 3), 0), ((3, "unfit"), 1), (("unfit", 3, "unfit"), 1), (("unfit", None), 0)],
    )
    def test_only_the_last_state_of_a_batch_leaves_a_letter(
        self, mode: Mode, values: tuple[Any, ...], letters: int
    ) -> None:
        world = StubWorld(mode=mode, batch_rows=10)
        world.source.create(schema("t", n=pa.int64()))
        world.source.put("t", k=1, n=1)
        world.pipeline.sync()
        for value in values:
            world.source.put("t", k=1, n=value)
        world.pipeline.sync()
        assert world.mirror.dead_letters().num_rows == letters

    def test_letters_met_by_a_copy_are_replayed(self) -> None:
        world = StubWorld()
        world.source.create(schema("t", n=pa.int64()))
        world.source.put("t", k=1, n="unfit")
        world.source.put("t", k=2, n=2)
        report = world.pipeline.sync()
        assert (report.dead_letters, report.tables["t"].copied_rows) == (1, 1)
        world.pipeline.dead_letters.read_again("t", [(1,)])
        assert world.pipeline.sync().events == 1
        assert world.mirror.dead_letters().num_rows == 1


def test_a_crash_is_no_fault_of_a_table() -> None:
    world = StubWorld("a", "b")
    world.fill(1, table="a")
    world.faults.arm(Step.COPY_BATCH)
    with pytest.raises(Crash):
        world.pipeline.sync()
    assert world.pipeline.left_out == {}
