"""Whatever an application does to PostgreSQL and wherever the engine dies: the mirror is exact."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings

from tests.support.fix_postgres import PostgresWorld, drop_slots
from tests.support.postgres_histories import (
    BUSY,
    CLEAR,
    PARTITIONED,
    SCHEMA,
    TABLES,
    Play,
    Write,
    calm,
    stormy,
    triggers_stormy,
)

pytestmark = pytest.mark.turns

EXAMPLES = 2
SOAK_EXAMPLES = 500
TRIGGERS = {"method": "trigger"}

MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])
WAYS = pytest.mark.parametrize(("batch_rows", "streaming"), [(2, True), (50_000, False)])
STREAMING = pytest.mark.parametrize("streaming", [False, True])


def play(
    dsn: str,
    actions: Sequence[Any],
    mode: str,
    batch_rows: int,
    capture: dict[str, Any],
    *,
    dated: bool = False,
) -> None:
    tables = [{"name": name} for name in TABLES]
    pairs = BUSY if capture == TRIGGERS else PARTITIONED
    with TemporaryDirectory() as directory, psycopg.connect(dsn) as other:
        other.execute("set lock_timeout = '5ms'")
        world = PostgresWorld(dsn, Path(directory), tables, mode, batch_rows, capture)
        try:
            world.run("set lock_timeout = '5ms'", *CLEAR, *SCHEMA, *pairs)
            Play(world, dated, other).run(list(actions))
        finally:
            world.close()
            other.rollback()
            other.autocommit = True  # a slot that is still in use ends a transaction
            drop_slots(other, other.info.dbname)


def by_log(*, streaming: bool) -> dict[str, Any]:
    return {"method": "logical", "streaming": streaming}


@WAYS
@settings(max_examples=EXAMPLES)
@given(actions=calm)
def test_a_temporal_mirror_equals_the_source_at_every_instant(
    dsn: str, actions: Sequence[Any], batch_rows: int, *, streaming: bool
) -> None:
    play(dsn, actions, "temporal", batch_rows, by_log(streaming=streaming), dated=True)


@pytest.mark.long
@MODES
@WAYS
@settings(max_examples=EXAMPLES)
@given(actions=stormy)
def test_a_mirror_survives_crashes_migrations_and_lost_slots(
    dsn: str, actions: Sequence[Any], mode: str, batch_rows: int, *, streaming: bool
) -> None:
    play(dsn, actions, mode, batch_rows, by_log(streaming=streaming))


@pytest.mark.long
@settings(max_examples=EXAMPLES)
@given(actions=calm)
def test_triggers_tell_every_instant_where_the_server_dates_commits(
    dating_dsn: str, actions: Sequence[Any]
) -> None:
    play(dating_dsn, actions, "temporal", 2, TRIGGERS, dated=True)


@pytest.mark.long
@settings(max_examples=EXAMPLES)
@given(actions=calm)
def test_triggers_tell_every_instant_between_transactions(dsn: str, actions: Sequence[Any]) -> None:
    """Dated by statements, one that is open for long would show before its commit."""
    alone = [a for a in actions if not (isinstance(a, Write) and a.elsewhere)]
    play(dsn, alone, "temporal", 50_000, TRIGGERS, dated=True)


@pytest.mark.long
@MODES
@pytest.mark.parametrize("batch_rows", [2, 50_000])
@settings(max_examples=EXAMPLES)
@given(actions=triggers_stormy)
def test_a_mirror_survives_crashes_migrations_and_lost_triggers(
    dsn: str, actions: Sequence[Any], mode: str, batch_rows: int
) -> None:
    play(dsn, actions, mode, batch_rows, TRIGGERS)


@pytest.mark.soak
@STREAMING
@MODES
@settings(max_examples=SOAK_EXAMPLES)
@given(actions=stormy)
def test_many_stormy_histories(
    dsn: str, actions: Sequence[Any], mode: str, *, streaming: bool
) -> None:
    play(dsn, actions, mode, 3, by_log(streaming=streaming))


@pytest.mark.soak
@STREAMING
@settings(max_examples=SOAK_EXAMPLES)
@given(actions=calm)
def test_many_dated_histories(dsn: str, actions: Sequence[Any], *, streaming: bool) -> None:
    play(dsn, actions, "temporal", 3, by_log(streaming=streaming), dated=True)


@pytest.mark.soak
@MODES
@settings(max_examples=SOAK_EXAMPLES)
@given(actions=triggers_stormy)
def test_many_stormy_histories_of_triggers(dsn: str, actions: Sequence[Any], mode: str) -> None:
    play(dsn, actions, mode, 3, TRIGGERS)


@pytest.mark.soak
@settings(max_examples=SOAK_EXAMPLES)
@given(actions=calm)
def test_many_dated_histories_of_triggers(dating_dsn: str, actions: Sequence[Any]) -> None:
    play(dating_dsn, actions, "temporal", 3, TRIGGERS, dated=True)
