"""Whatever is declared of a table while it is written, and wherever the engine dies."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings

from tests.support.declarations import Play, actions
from tests.support.fix_postgres import PostgresWorld, drop_slots
from tests.support.fix_world import World

pytestmark = pytest.mark.pairs

EXAMPLES = 2
SOAK_EXAMPLES = 300
MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])
STORAGES = pytest.mark.parametrize("storage", [None, "ipc", "parquet", "delta", "memory"])
#: Of SQLite: by triggers, with or without a buffer. Of PostgreSQL: by triggers, or by the log.
SQLITE = pytest.mark.parametrize("buffered", [False, True])
POSTGRES = pytest.mark.parametrize(
    "capture",
    [{"method": "trigger"}, {"method": "logical"}, {"method": "logical", "streaming": True}],
    ids=["trigger", "logical", "logical-stream"],
)


def of_sqlite(played: Sequence[Any], mode: str, storage: str | None, *, buffered: bool) -> None:
    with TemporaryDirectory() as directory:
        world = World(Path(directory), mode=mode, storage=storage, buffered=buffered)
        try:
            Play(world).run(list(played))
        finally:
            world.close()


def of_postgres(
    dsn: str, played: Sequence[Any], mode: str, storage: str | None, capture: dict[str, Any]
) -> None:
    with TemporaryDirectory() as directory:
        world = PostgresWorld(dsn, Path(directory), None, mode, 3, capture, storage=storage)
        try:
            world.run("drop table if exists people", "drop schema if exists _rhei cascade")
            Play(world).run(list(played))
        finally:
            world.close()
            with psycopg.connect(dsn, autocommit=True) as other:
                drop_slots(other, other.info.dbname)


@MODES
@STORAGES
@SQLITE
@settings(max_examples=EXAMPLES)
@given(played=actions)
def test_a_mirror_of_sqlite_is_as_declared(
    played: Sequence[Any], mode: str, storage: str | None, *, buffered: bool
) -> None:
    of_sqlite(played, mode, storage, buffered=buffered)


@MODES
@STORAGES
@POSTGRES
@settings(max_examples=EXAMPLES)
@given(played=actions)
def test_a_mirror_of_postgres_is_as_declared(
    dsn: str, played: Sequence[Any], mode: str, storage: str | None, capture: dict[str, Any]
) -> None:
    of_postgres(dsn, played, mode, storage, capture)


@pytest.mark.soak
@MODES
@STORAGES
@SQLITE
@settings(max_examples=SOAK_EXAMPLES)
@given(played=actions)
def test_a_mirror_of_sqlite_is_as_declared_many_times(
    played: Sequence[Any], mode: str, storage: str | None, *, buffered: bool
) -> None:
    of_sqlite(played, mode, storage, buffered=buffered)


@pytest.mark.soak
@MODES
@STORAGES
@POSTGRES
@settings(max_examples=SOAK_EXAMPLES)
@given(played=actions)
def test_a_mirror_of_postgres_is_as_declared_many_times(
    dsn: str, played: Sequence[Any], mode: str, storage: str | None, capture: dict[str, Any]
) -> None:
    of_postgres(dsn, played, mode, storage, capture)
