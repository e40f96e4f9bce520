"""Whatever an application does and wherever the engine dies: the mirror equals the source."""

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings

from rhei_pipeline.capture.buffer import change_log
from tests.fix_world import World
from tests.model import History, arrow_rows
from tests.strategies import (
    SCHEMA,
    TABLES,
    Copy,
    Statement,
    Sync,
    Transaction,
    Write,
    calm,
    stormy,
)

EXAMPLES = 60
BUFFERED_EXAMPLES = 24
STORAGE_EXAMPLES = 12
SOAK_EXAMPLES = 2_000
DURABLE = ("ipc", "parquet", "delta")
STORAGES = ("memory", *DURABLE)


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
        patch.setattr(change_log, "PART_BYTES", 300)  # a drain comes in several parts
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
            _play(world, actions, dated=dated)
        finally:
            world.close()


def _play(world: World, actions: Sequence[Any], *, dated: bool) -> None:
    world.htap.sync_now()
    history = History(world.app, TABLES)
    history.note()
    for action in actions:
        _act(world, action)
        if dated and isinstance(action, Write | Transaction):
            history.note()
    world.faults.disarm()
    world.htap.sync_now()
    world.assert_equal(*TABLES)
    assert world.htap.verify().equal
    if dated:
        _assert_history(world, history)


def _act(world: World, action: Any) -> None:
    world.faults.disarm()
    if isinstance(action, Copy):
        if action.crash_at:
            world.faults.arm(action.crash_at)
        world.surviving(lambda: world.htap.initial_sync(action.table))
    elif isinstance(action, Sync):
        if action.crash_at:
            world.faults.arm(action.crash_at, action.occurrence)
        if not world.surviving(lambda: _sync(world)):
            world.assert_equal(*TABLES)
    else:
        _write(world, action)


def _sync(world: World) -> None:
    # Opening belongs to what may crash: it drains and copies too.
    world.htap.sync_now()


def _write(world: World, action: Write | Transaction | Statement) -> None:
    # It may name a column that a migration dropped.
    with suppress(sqlite3.OperationalError):
        if isinstance(action, Statement):
            for sql in action.sql:
                world.app.execute(sql)
        else:
            action.run(world.app)
    if world.app.in_transaction:
        world.run("rollback")


def _assert_history(world: World, history: History) -> None:
    for instant, state in history.states:
        for table in TABLES:
            assert arrow_rows(world.htap.as_of(table, instant)) == state[table], (instant, table)
    for table, key in (("items", ("id",)), ("pairs", ("a", "b")), ("child", ("id",))):
        _assert_versions_are_disjoint(world, table, key)


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


@settings(max_examples=BUFFERED_EXAMPLES)
@given(actions=calm)
def test_a_buffered_temporal_mirror_equals_the_source_at_every_instant(
    actions: Sequence[Any],
) -> None:
    play(actions, "temporal", 3, dated=True, buffered=True)


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@settings(max_examples=BUFFERED_EXAMPLES)
@given(actions=stormy)
def test_a_buffered_mirror_equals_its_source_through_crashes_and_migrations(
    actions: Sequence[Any], mode: str
) -> None:
    play(actions, mode, 3, dated=False, buffered=True)


@pytest.mark.parametrize("storage", DURABLE)
@settings(max_examples=STORAGE_EXAMPLES)
@given(actions=calm)
def test_a_temporal_mirror_in_files_equals_the_source_at_every_instant(
    actions: Sequence[Any], storage: str
) -> None:
    play(actions, "temporal", 3, dated=True, storage=storage)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@settings(max_examples=STORAGE_EXAMPLES)
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
