"""Each way to capture, in each mode, into each mirror, for a declaration that changes."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg

from tests.support.declarations import CREATE, Play
from tests.support.fix_postgres import PostgresWorld, drop_slots
from tests.support.fix_world import World

MODES = ("destructive", "temporal")
STORAGES = (None, "memory", "ipc", "parquet", "delta")
CAPTURES: dict[str, dict[str, Any]] = {
    "sqlite-trigger": {},
    "sqlite-trigger-buffer": {"buffered": True},
    "sqlite-polling": {"method": "polling"},
    "postgres-trigger": {"method": "trigger"},
    "postgres-polling": {"method": "polling"},
    "postgres-logical": {"method": "logical"},
    "postgres-stream": {"method": "logical", "streaming": True},
    "postgres-trigger-buffer": {"method": "trigger"},
    "postgres-logical-buffer": {"method": "logical"},
    "postgres-stream-buffer": {"method": "logical", "streaming": True},
}
#: A polled table says when its rows were written, and is compared whole at every change.
_POLLED = {"polling": {"updated_at": "at", "deletes": "reconcile", "reconcile_seconds": 0}}
_POLLED_SQLITE = (
    "create table people(id integer primary key, name text, age integer, city text, at integer)",
    "create table ticks(n integer)",
    "insert into ticks values (1)",
    *(
        f"create trigger people_{event} after {event} on people begin"
        " update ticks set n = n + 1;"
        " update people set at = (select n from ticks) where id = new.id; end"
        for event in ("insert", "update")
    ),
    "create index people_at on people(at, id)",
)
_POLLED_POSTGRES = (
    "create table people(id integer primary key, name text, age integer, city text,"
    " at timestamptz not null)",
    "create or replace function written() returns trigger language plpgsql as"
    " $$ begin new.at = clock_timestamp(); return new; end $$",
    "create trigger people_written before insert or update on people"
    " for each row execute function written()",
    "create index people_at on people(at, id)",
)

Databases = Callable[[], AbstractContextManager[str]]


@dataclass(frozen=True)
class Cell:
    """A way to capture, a mode, and a mirror."""

    capture: str
    mode: str
    storage: str | None

    def __str__(self) -> str:
        return f"{self.capture} {self.mode} {self.storage or 'duckdb'}"

    def play(self, dsn: str | None, actions: Sequence[Any], done: Counter[str]) -> None:
        """Play a history; `dsn` is of a database for it alone, where its source is PostgreSQL."""
        is_polled = self.capture.endswith("polling")
        options = _POLLED if is_polled else {}
        with TemporaryDirectory() as directory:
            if dsn is None:
                self._play_sqlite(Path(directory), actions, options, done)
            else:
                self._play_postgres(dsn, Path(directory), actions, options, done)

    def _play_sqlite(
        self, directory: Path, actions: Sequence[Any], options: dict[str, Any], done: Counter[str]
    ) -> None:
        how = CAPTURES[self.capture]
        world = World(directory, mode=self.mode, batch_rows=2, storage=self.storage, **how)
        try:
            Play(world, _POLLED_SQLITE if options else CREATE, options, done).run([*actions])
        finally:
            world.close()

    def _play_postgres(
        self,
        dsn: str,
        directory: Path,
        actions: Sequence[Any],
        options: dict[str, Any],
        done: Counter[str],
    ) -> None:
        how = CAPTURES[self.capture]
        if self.capture.endswith("buffer"):
            how = {**how, "buffer": {"path": directory / "cdc"}}
        world = PostgresWorld(dsn, directory, None, self.mode, 3, how, storage=self.storage)
        try:
            world.run("drop table if exists people", "drop schema if exists _rhei cascade")
            Play(world, _POLLED_POSTGRES if options else CREATE, options, done).run([*actions])
        finally:
            world.close()
            with psycopg.connect(dsn, autocommit=True) as other:
                drop_slots(other, other.info.dbname)
