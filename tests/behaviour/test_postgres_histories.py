"""Whatever an application does to PostgreSQL and wherever the engine dies: the mirror is exact."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings

from tests.fix_postgres import PostgresWorld
from tests.postgres_histories import CLEAR, SCHEMA, TABLES, Play, calm, stormy

EXAMPLES = 12
SOAK_EXAMPLES = 400

MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])
WAYS = pytest.mark.parametrize(("batch_rows", "streaming"), [(2, True), (50_000, False)])
STREAMING = pytest.mark.parametrize("streaming", [False, True])


def play(
    dsn: str,
    actions: Sequence[Any],
    mode: str,
    batch_rows: int,
    *,
    dated: bool,
    streaming: bool,
) -> None:
    tables = [{"name": name} for name in TABLES]
    with TemporaryDirectory() as directory, psycopg.connect(dsn) as other:
        other.execute("set lock_timeout = '5ms'")
        capture = {"streaming": streaming}
        world = PostgresWorld(dsn, Path(directory), tables, mode, batch_rows, capture)
        try:
            world.run("set lock_timeout = '5ms'", *CLEAR, *SCHEMA)
            Play(world, dated, other).run(list(actions))
        finally:
            world.close()
            other.rollback()
            other.execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
                " where database = current_database()"
            )


@WAYS
@settings(max_examples=EXAMPLES)
@given(actions=calm)
def test_a_temporal_mirror_equals_the_source_at_every_instant(
    dsn: str, actions: Sequence[Any], batch_rows: int, *, streaming: bool
) -> None:
    play(dsn, actions, "temporal", batch_rows, dated=True, streaming=streaming)


@MODES
@WAYS
@settings(max_examples=EXAMPLES)
@given(actions=stormy)
def test_a_mirror_survives_crashes_migrations_and_lost_slots(
    dsn: str, actions: Sequence[Any], mode: str, batch_rows: int, *, streaming: bool
) -> None:
    play(dsn, actions, mode, batch_rows, dated=False, streaming=streaming)


@pytest.mark.soak
@STREAMING
@MODES
@settings(max_examples=SOAK_EXAMPLES)
@given(actions=stormy)
def test_many_stormy_histories(
    dsn: str, actions: Sequence[Any], mode: str, *, streaming: bool
) -> None:
    play(dsn, actions, mode, 3, dated=False, streaming=streaming)


@pytest.mark.soak
@STREAMING
@settings(max_examples=SOAK_EXAMPLES)
@given(actions=calm)
def test_many_dated_histories(dsn: str, actions: Sequence[Any], *, streaming: bool) -> None:
    play(dsn, actions, "temporal", 3, dated=True, streaming=streaming)
