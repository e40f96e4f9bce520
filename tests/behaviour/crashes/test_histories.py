"""Whatever an application does and wherever the engine dies: the mirror equals the source."""

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings

from rhei_pipeline.buffer import writer as log_writer
from rhei_pipeline.testing.oracle import State, by_key
from tests.support.fix_world import World
from tests.support.model import History
from tests.support.playing import Work, worked
from tests.support.strategies import (
    FITTING,
    KEYS,
    SCHEMA,
    TABLES,
    Spoiling,
    Statement,
    Transaction,
    Write,
    calm,
    stormy,
)

pytestmark = pytest.mark.turns

EXAMPLES = 2
SOAK_EXAMPLES = 2_500
DURABLE = ("ipc", "parquet", "delta")
STORAGES = ("memory", *DURABLE)
_PACES = (("items", 1), ("items", 3), ("pairs", 1), ("child", 2))


def play(
    actions: Sequence[Any],
    mode: str,
    batch_rows: int,
    *,
    dated: bool,
    buffered: bool = False,
    storage: str | None = None,
) -> None:
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_writer, "PART_BYTES", 300)  # a drain comes in several parts
        world = World(
            Path(directory),
            mode=mode,
            batch_rows=batch_rows,
            tables=[{"name": t} for t in TABLES],
            buffered=buffered,
            storage=storage,
        )
        try:
            world.run("pragma foreign_keys = on", *SCHEMA)
            Played(world, dated).run(actions)
        finally:
            world.close()


@dataclass
class Played:
    """A history being played: what was written, and what the mirror has to hold by then."""

    world: World
    dated: bool

    def __post_init__(self) -> None:
        self.mirror = worked(self.world, KEYS, _PACES)

    def run(self, actions: Sequence[Any]) -> None:
        """Play all; the mirror is as expected after each piece of work, and in the end."""
        self.mirror.do(_SYNC)
        history = History(self.world.app, self.mirror.expected)
        history.note()
        for action in actions:
            if isinstance(action, Work):
                self.mirror.do(action)
            else:
                self._write(action)
            if self.dated and isinstance(action, Write | Transaction):
                history.note()
        self.mirror.do(_SYNC)
        self.mirror.check_verification(self.world.htap.verify())
        if self.dated:
            self._check_history(history)

    def _write(self, action: Write | Transaction | Statement) -> None:
        app = self.world.app
        # It may name a column that a migration dropped.
        with suppress(sqlite3.OperationalError):
            if isinstance(action, Statement):
                for sql in action.sql:
                    app.execute(sql)
            else:
                action.run(app)
        if app.in_transaction:
            app.execute("rollback")
        for table, expected in self.mirror.expected.items():
            expected.saw(self._state(table), whole=isinstance(action, Spoiling))

    def _state(self, table: str) -> State:
        found = self.world.app.execute(f'select * from "{table}"')
        names = [column[0] for column in found.description]
        rows = by_key((dict(zip(names, row, strict=True)) for row in found), KEYS[table])
        return State(rows, {key for key, row in rows.items() if not _fits(row)})

    def _check_history(self, history: History) -> None:
        for instant, state in history.states:
            for table, dated in state.items():
                dated.check(by_key(self.world.htap.as_of(table, instant).to_pylist(), KEYS[table]))
        for table, key in KEYS.items():
            _assert_versions_are_disjoint(self.world, table, key)


_SYNC = Work("sync", TABLES[0], None)


def _fits(row: dict[str, Any]) -> bool:
    return all(
        value is None or isinstance(value, FITTING.get(name, (object,)))
        for name, value in row.items()
    )


def _assert_versions_are_disjoint(world: World, table: str, key: tuple[str, ...]) -> None:
    order = ", ".join([*key, "_rhei_valid_from"])
    for earlier, later in pairwise(world.versions(table, order)):
        same = all(earlier[part] == later[part] for part in key)
        if same:
            assert earlier["_rhei_valid_to"] is not None
            assert earlier["_rhei_valid_to"] <= later["_rhei_valid_from"]
    for version in world.versions(table):
        ends = version["_rhei_valid_to"]
        assert ends is None or ends > version["_rhei_valid_from"]


@pytest.mark.parametrize("batch_rows", [2, 50_000])
@settings(max_examples=EXAMPLES)
@given(actions=calm)
def test_a_temporal_mirror_equals_the_source_at_every_instant(
    actions: Sequence[Any], batch_rows: int
) -> None:
    play(actions, "temporal", batch_rows, dated=True)


@pytest.mark.parametrize("batch_rows", [2, 50_000])
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@settings(max_examples=EXAMPLES)
@given(actions=stormy)
def test_a_mirror_equals_its_source_through_crashes_and_migrations(
    actions: Sequence[Any], mode: str, batch_rows: int
) -> None:
    play(actions, mode, batch_rows, dated=False)


@pytest.mark.long
@settings(max_examples=EXAMPLES)
@given(actions=calm)
def test_a_buffered_temporal_mirror_equals_the_source_at_every_instant(
    actions: Sequence[Any],
) -> None:
    play(actions, "temporal", 3, dated=True, buffered=True)


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@settings(max_examples=EXAMPLES)
@given(actions=stormy)
def test_a_buffered_mirror_equals_its_source_through_crashes_and_migrations(
    actions: Sequence[Any], mode: str
) -> None:
    play(actions, mode, 3, dated=False, buffered=True)


@pytest.mark.long
@pytest.mark.parametrize("storage", DURABLE)
@settings(max_examples=EXAMPLES)
@given(actions=calm)
def test_a_temporal_mirror_in_files_equals_the_source_at_every_instant(
    actions: Sequence[Any], storage: str
) -> None:
    play(actions, "temporal", 3, dated=True, storage=storage)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@settings(max_examples=EXAMPLES)
@given(actions=stormy)
def test_a_mirror_in_files_equals_its_source_through_crashes_and_migrations(
    actions: Sequence[Any], mode: str, storage: str
) -> None:
    play(actions, mode, 3, dated=False, storage=storage)


@pytest.mark.soak
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@settings(max_examples=SOAK_EXAMPLES)
@given(actions=stormy)
def test_a_mirror_in_files_equals_its_source_through_thousands_of_histories(
    actions: Sequence[Any], mode: str, storage: str
) -> None:
    play(actions, mode, 3, dated=False, storage=storage)


@pytest.mark.soak
@pytest.mark.parametrize("way", ["direct", "buffered"])
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@settings(max_examples=SOAK_EXAMPLES)
@given(actions=stormy)
def test_a_mirror_equals_its_source_through_thousands_of_histories(
    actions: Sequence[Any], mode: str, way: str
) -> None:
    play(actions, mode, 3, dated=False, buffered=way == "buffered")


@pytest.mark.soak
@pytest.mark.parametrize("way", ["direct", "buffered"])
@settings(max_examples=SOAK_EXAMPLES)
@given(actions=calm)
def test_a_temporal_mirror_equals_the_source_through_thousands_of_histories(
    actions: Sequence[Any], way: str
) -> None:
    play(actions, "temporal", 3, dated=True, buffered=way == "buffered")
