"""Which tables a cycle reads, which it leaves out, and what the source keeps for them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType

import pyarrow as pa
import pytest

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.blame import Blame
from rhei_pipeline.model.changes import ChangeBatch, Position
from rhei_pipeline.model.schema import Mode, Table, TableSchema
from rhei_pipeline.sync.due_tables import all_parted
from rhei_pipeline.testing import FaultIn
from rhei_pipeline.testing.stub_source import StubSnapshot
from tests.unit.stub_world import StubWorld, schema

BOTH = pytest.mark.parametrize("mode", list(Mode))


@BOTH
def test_a_log_that_turns_out_to_be_unreadable_while_it_is_counted_is_copied(
    monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    """Some sources only learn that a change cannot be read where they look at what is pending."""
    world = StubWorld(mode=mode)
    world.fill(1, 2)
    world.pipeline.sync()
    world.source.delete("t", 1)
    world.fill(3)
    count = StubSnapshot.pending

    def pending(snapshot: StubSnapshot, table: Table, after: Position) -> int:
        found = count(snapshot, table, after)
        if found:
            world.source.lose_log("t")
            snapshot._states = dict(world.source._states)
        return found

    monkeypatch.setattr(StubSnapshot, "pending", pending)
    world.pipeline.sync()
    assert world.equal()


def test_a_state_older_than_the_mirror_parts_no_changes() -> None:
    world = StubWorld()
    world.pipeline.sync()
    table = world.pipeline.table("t")
    with world.source.snapshot() as earlier:
        world.fill(1)
    world.pipeline.sync()
    ledger = world.mirror.ledger()
    with world.source.snapshot() as now:
        assert all_parted([table], now, ledger, Blame())
    assert not all_parted([table], earlier, ledger, Blame())


@pytest.mark.parametrize("shares_log", [False, True])
def test_nor_does_one_of_a_shared_log_that_has_more_behind_its_end(
    monkeypatch: pytest.MonkeyPatch, *, shares_log: bool
) -> None:
    world = StubWorld(shares_log=shares_log)
    world.pipeline.sync()
    table, ledger = world.pipeline.table("t"), world.mirror.ledger()
    with world.source.snapshot() as rows:
        world.fill(1)
    with world.source.snapshot() as log:
        monkeypatch.setattr(rows, "pending", log.pending)
    assert all_parted([table], rows, ledger, Blame()) == (not shares_log)


class RetainingSnapshot(StubSnapshot):
    """Of a source that keeps much for a position that is far behind."""

    def retains(self, position: Position) -> bool:
        return self._newest - position.order > 500


def test_a_table_without_changes_moves_on_where_much_is_kept_for_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = StubWorld(shares_log=True)
    world.pipeline.sync()
    before = world.mirror.ledger().watermarks["t"].position
    world.source._sequence += 1000  # of others, in the log that all share
    world.pipeline.sync()
    assert world.mirror.ledger().watermarks["t"].position == before
    snapshot = world.source.snapshot

    @contextmanager
    def retaining() -> Iterator[StubSnapshot]:
        with snapshot() as found:
            found.__class__ = RetainingSnapshot
            yield found

    monkeypatch.setattr(world.source, "snapshot", retaining)
    world.pipeline.sync()
    assert world.mirror.ledger().watermarks["t"].position.order == before.order + 1000


@BOTH
@pytest.mark.parametrize("fails_at", ["its description", "its changes"])
def test_the_source_keeps_what_a_table_needs_that_is_left_out(
    monkeypatch: pytest.MonkeyPatch, mode: Mode, fails_at: str
) -> None:
    fault = FaultIn("b")
    monkeypatch.setattr(Blame, "of", fault.patched(Blame.of))
    world = StubWorld("a", "b", mode=mode, on_step=fault)
    world.pipeline.sync()
    needed = world.mirror.ledger().watermarks["b"].position
    told: list[Position | None] = []
    acknowledge, describe = world.source.acknowledge, world.source.describe

    def note(needed_from: Mapping[str, Position], *, prune: bool) -> int:
        told.append(needed_from.get("b"))
        return acknowledge(needed_from, prune=prune)

    def refuse(name: str) -> TableSchema:
        if name == "b":
            raise SchemaError("it has no primary key", table=name)
        return describe(name)

    monkeypatch.setattr(world.source, "acknowledge", note)
    for name in "ab":
        world.fill(1, table=name)
    with monkeypatch.context() as meanwhile:
        if fails_at == "its description":
            meanwhile.setattr(world.source, "describe", refuse)
            world.restart()
        else:
            fault.arm(1, RuntimeError)
        assert world.pipeline.sync().tables["b"].error is not None
        assert world.equal("a")
    assert set(told) == {needed}
    fault.disarm()
    world.pipeline.sync()
    assert world.equal()


def test_nothing_is_kept_for_a_table_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for it in a log that all share would fill the source's disk."""
    world = StubWorld("a", "b", shares_log=True)
    world.pipeline.sync()
    world.source.drop("b")
    world.pipeline.sync()
    told: list[set[str]] = []
    acknowledge = world.source.acknowledge

    def note(needed_from: Mapping[str, Position], *, prune: bool) -> int:
        told.append({*needed_from})
        return acknowledge(needed_from, prune=prune)

    monkeypatch.setattr(world.source, "acknowledge", note)
    world.fill(1, table="a")
    assert list(world.pipeline.sync().errors) == ["b"]
    assert told == [{"a"}]


@BOTH
def test_a_value_that_was_not_sent_is_not_taken_from_a_row_that_a_letter_is_open_of(
    monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    """What the mirror has of such a row is what was there before the change that did not fit."""
    world = StubWorld(mode=mode)
    world.source.create(schema("t", n=pa.int64(), v=pa.string()))
    world.source.put("t", k=1, n=1, v="a")
    world.source.put("t", k=2, n=1, v="a")
    world.pipeline.sync()
    world.source.put("t", k=1, n="unfit", v="b")
    world.pipeline.sync()
    for key, value in ((1, "b"), (2, "a")):
        world.source.put("t", k=key, n=2, v=value)
    reads = {name: getattr(StubSnapshot, name) for name in ("changes", "net_changes")}

    def without_v(name: str) -> object:
        def read(*asked: object) -> Iterator[ChangeBatch]:
            for batch in reads[name](*asked):
                at, count = batch.events.schema.get_field_index("v"), batch.events.num_rows
                gone = batch.events.set_column(at, "v", pa.nulls(count, pa.string()))
                mask = MappingProxyType({"v": pa.array([True] * count)})
                yield replace(batch, events=gone, unchanged=mask)

        return read

    monkeypatch.setattr(StubSnapshot, "changes", without_v("changes"))
    monkeypatch.setattr(StubSnapshot, "net_changes", without_v("net_changes"))
    world.pipeline.sync()
    assert world.present() == {
        (1,): {"k": 1, "n": 1, "v": "a"},
        (2,): {"k": 2, "n": 2, "v": "a"},
    }
    assert world.mirror.dead_letters().num_rows > 0
