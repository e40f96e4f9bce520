"""One log that all tables share is deleted up to where all of them have it, and no further.

Whatever happens between writes and syncs, each version that was written is in the history.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from rhei_pipeline.buffer import source as buffer_source
from rhei_pipeline.buffer.log import ChangeLog
from rhei_pipeline.buffer.source import BufferedSource, BufferOptions
from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.blame import Blame
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.schema import Mode, TableSchema
from rhei_pipeline.protocols import ChangeSource, Step
from rhei_pipeline.testing import FaultIn, StubSource
from tests.unit.stub_world import StubWorld, schema

TABLES, HISTORIES = "abc", "ab"
SEEDS = (2, 3, 4, 5, 94)
STEPS = [Step.SNAPSHOT, Step.CAPTURED, Step.RECORDED, Step.COMMITTED, Step.ACKNOWLEDGED]
BUFFER_STEPS = [Step.BUFFERING, Step.BRIDGED, Step.BRIDGE_ACKNOWLEDGED]


class SlotSource(StubSource):
    """A source whose tables share a log, as they do a replication slot."""

    def __init__(self) -> None:
        super().__init__(shares_log=True)
        self.refused: str | None = None

    def describe(self, name: str) -> TableSchema:
        if name == self.refused:
            raise SchemaError("it cannot be mirrored as it stands", table=name)
        return super().describe(name)

    def acknowledge(self, needed_from: Mapping[str, Position], *, prune: bool) -> int:
        """Forget what is before all positions, of all tables."""
        if not prune or not needed_from:
            return 0
        end = min(position.order for position in needed_from.values())
        for name, state in self._states.items():
            kept = tuple(entry for entry in state.log if entry.sequence > end)
            self._states[name] = replace(state, log=kept, forgotten=max(state.forgotten, end))
        return 0


class SlotWorld(StubWorld):
    """Three tables over one log, with or without a buffer between; the last is no history."""

    def __init__(self, buffer: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(*TABLES)
        self.slot = self.source = SlotSource()
        for name in TABLES:
            self.source.create(schema(name))
        self._buffer = buffer
        self._log: ChangeLog | None = None
        self.fault = FaultIn("b")
        monkeypatch.setattr(Blame, "of", self.fault.patched(Blame.of))
        self._on_step = self._step
        self.written: dict[str, list[str]] = {name: [] for name in TABLES}

    def mode_of(self, table: str) -> Mode:
        return Mode.TEMPORAL if table in HISTORIES else Mode.DESTRUCTIVE

    def _step(self, step: Step) -> None:
        self.fault(step)
        self.faults(step)

    def capture(self) -> ChangeSource:
        if self._buffer is None:
            return self.source
        self._log = log = ChangeLog(self._buffer)
        return BufferedSource(self.source, log, BufferOptions(2), self._step)

    def restart(self) -> None:
        super().restart()
        if self._log is not None:
            self._log.close()

    def write(self, table: str) -> None:
        value = f"{table}{len(self.written[table])}"
        self.written[table].append(value)
        self.source.put(table, k=1, v=value)

    def try_to_sync(self) -> None:
        self.surviving(self.sync)

    def drain(self) -> None:
        self.restart()
        drained = self.capture()
        if isinstance(drained, BufferedSource):
            self.surviving(drained.drain)
        self.restart()

    def fail(self, draw: random.Random) -> None:
        self.fault.arm(draw.randrange(1, 6), RuntimeError)
        self.try_to_sync()
        self.fault.disarm()

    def crash(self, draw: random.Random) -> None:
        steps = STEPS if self._buffer is None else STEPS + BUFFER_STEPS
        self.faults.arm(draw.choice(steps), draw.randrange(1, 3))
        self.try_to_sync()
        self.faults.disarm()

    def refuse(self, draw: random.Random) -> None:
        self.slot.refused = None if self.slot.refused else draw.choice(TABLES)
        self.source._version += 1

    def widen(self, draw: random.Random) -> None:
        name = draw.choice(TABLES)
        columns = self.source._states[name].schema.names
        own = {column: pa.string() for column in columns if column != "k"}
        self.source.create(schema(name, **own, **{f"w{len(columns)}": pa.string()}))

    def histories(self) -> dict[str, list[str]]:
        return {name: [value for _, value, _ in self.versions(name)] for name in HISTORIES}


@pytest.mark.parametrize(
    ("is_buffered", "follows"), [(False, 0), (True, 0), (True, 1)], ids=["", "at once", "later"]
)
@pytest.mark.parametrize("seed", SEEDS)
def test_no_version_is_lost_whatever_happens_between(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    follows: float,
    *,
    is_buffered: bool,
) -> None:
    """Tables without changes follow a log at once, or later than all that happens here."""
    monkeypatch.setattr(buffer_source, "FOLLOWS_SECONDS", 3600 * follows)
    world = SlotWorld(tmp_path / "buffer" if is_buffered else None, monkeypatch)
    draw = random.Random(seed)
    for name in TABLES:
        world.write(name)
    world.sync()
    acts: list[Callable[[], None]] = [
        world.try_to_sync,
        world.try_to_sync,
        world.restart,
        world.drain,
        lambda: world.fail(draw),
        lambda: world.crash(draw),
        lambda: world.refuse(draw),
        lambda: world.widen(draw),
    ]
    for _ in range(25):
        for _ in range(draw.randrange(3)):
            world.write(draw.choice(TABLES))
        draw.choice(acts)()
    if world.slot.refused:
        world.refuse(draw)
    world.sync()
    world.sync()
    assert world.equal()
    assert world.histories() == {name: world.written[name] for name in HISTORIES}
    world.restart()
