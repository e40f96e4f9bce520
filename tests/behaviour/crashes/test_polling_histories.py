"""Whatever is written and wherever the engine dies: a polled mirror equals its source."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings

from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.polled_histories import POSTGRES_NOW, SQLITE_NOW, TABLES, Play, drawn, schema

pytestmark = pytest.mark.turns

EXAMPLES = 2
SOAK_EXAMPLES = 400

MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])


def _tables(policy: str) -> list[dict[str, Any]]:
    polling = {"deletes": policy, "clock": "database", "reconcile_seconds": 0}
    return [{"name": name, "polling": polling} for name in TABLES]


def play_sqlite(policy: str, actions: Sequence[Any], mode: str) -> None:
    with TemporaryDirectory() as directory:
        world = World(Path(directory), _tables(policy), mode=mode, batch_rows=2, method="polling")
        other = sqlite3.connect(world.path, isolation_level=None, timeout=0)
        try:
            world.run("pragma busy_timeout = 0", *schema("text", "integer", "text"))
            Play(world, policy, SQLITE_NOW, other).run(actions)
        finally:
            other.close()
            world.close()


def play_postgres(dsn: str, policy: str, actions: Sequence[Any], mode: str) -> None:
    with TemporaryDirectory() as directory, psycopg.connect(dsn, autocommit=True) as other:
        world = PostgresWorld(
            dsn, Path(directory), _tables(policy), mode, 2, capture={"method": "polling"}
        )
        try:
            for connection in (world.app, other):
                connection.execute("set lock_timeout = '5ms'")
            world.run("drop table if exists items, pairs", *schema("text", "int", "timestamptz"))
            Play(world, policy, POSTGRES_NOW, other).run(actions)
        finally:
            world.close()


@MODES
@settings(max_examples=EXAMPLES)
@given(history=drawn)
def test_a_polled_mirror_of_sqlite_equals_its_source_at_every_sync(
    history: tuple[str, Sequence[Any]], mode: str
) -> None:
    play_sqlite(*history, mode)


@MODES
@settings(max_examples=EXAMPLES)
@given(history=drawn)
def test_a_polled_mirror_of_postgres_equals_its_source_at_every_sync(
    dsn: str, history: tuple[str, Sequence[Any]], mode: str
) -> None:
    play_postgres(dsn, *history, mode)


@pytest.mark.soak
@MODES
@settings(max_examples=SOAK_EXAMPLES)
@given(history=drawn)
def test_hundreds_of_polled_histories_of_sqlite(
    history: tuple[str, Sequence[Any]], mode: str
) -> None:
    play_sqlite(*history, mode)


@pytest.mark.soak
@MODES
@settings(max_examples=SOAK_EXAMPLES)
@given(history=drawn)
def test_hundreds_of_polled_histories_of_postgres(
    dsn: str, history: tuple[str, Sequence[Any]], mode: str
) -> None:
    play_postgres(dsn, *history, mode)
