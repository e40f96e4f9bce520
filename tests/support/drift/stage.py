"""What a cell of the drift matrix is played on: a real source, a pipeline, and an oracle."""

import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import psycopg
from psycopg.conninfo import make_conninfo

from examples.postgres_server import Server
from rhei_pipeline import HTAP, Settings
from tests.support.drift import drifts
from tests.support.drift.matrix import Cell
from tests.support.fix_postgres import drop_slots

Row = dict[str, Any]

ROLE = "drifter"
TEMPLATE = "drift_template"
_POLLING = {"deletes": "reconcile", "clock": "database", "reconcile_seconds": 0}


@dataclass
class Stage:
    """A source with an application, and a pipeline that comes and goes."""

    cell: Cell
    directory: Path
    app: Any
    #: Sees all rows, whatever the source's row security says.
    oracle: Any
    source: dict[str, Any]
    declared: dict[str, Any] = field(default_factory=dict)
    _htap: HTAP | None = None

    @property
    def tables(self) -> list[str]:
        """The tables mirrored."""
        return ["t", *self.cell.drifts.also, "other"]

    @property
    def settings(self) -> Settings:
        """The declaration."""
        capture, mirror = self.cell.captures, self.cell.mirror
        polling = {"polling": _POLLING} if capture.method == "polling" else {}
        declared: list[Row] = [{"name": name, **polling} for name in self.tables]
        declared[0] |= self.declared
        kind = {"kind": "duckdb"} if mirror == "duckdb" else {"kind": "datafusion"}
        storage = {} if mirror == "duckdb" else {"storage": mirror}
        return Settings(
            source=self.source,
            capture={
                "method": capture.method,
                "buffer": {"path": self.directory / "cdc"} if capture.buffered else None,
            },
            mirror={**kind, **storage, "path": self.mirror_path, "lock_timeout_seconds": 0.5},
            registry={"path": self.directory / "registry.json"},
            tables=declared,
            mode=self.cell.mode,
        )

    @property
    def mirror_path(self) -> Path:
        """Where the mirror is."""
        return self.directory / f"mirror.{self.cell.mirror}"

    @property
    def htap(self) -> HTAP:
        """The engine, opened when it is not open."""
        if self._htap is None:
            self._htap = HTAP(self.settings)
        return self._htap

    def close(self) -> None:
        """Close the pipeline."""
        if self._htap is not None:
            self._htap.close()
            self._htap = None

    def run(self, *statements: str) -> None:
        """Run each statement in a transaction of its own."""
        for statement in drifts.written(self.cell.captures.source, *statements):
            self.app.execute(statement)

    def run_together(self, *statements: str) -> None:
        """Run statements in one transaction."""
        self.run("begin", *statements, "commit")

    def sync(self) -> dict[str, str]:
        """Sync; return the tables left out, each with the reason."""
        return self.htap.sync_now().errors

    def source_rows(self, table: str) -> list[Row]:
        """Return what the source holds, by a connection of the oracle's own."""
        found = self.oracle.execute(f"select * from {table}")
        names = [column[0] for column in found.description]
        return [_told(zip(names, row, strict=True)) for row in found.fetchall()]

    def versions(self, table: str) -> list[Row]:
        """Return all that the mirror holds of a table."""
        found = self.htap.query(f"select * from {table}", hint="olap").to_pylist()
        return [_told(row.items()) for row in found]

    def at_rest(self) -> dict[str, list[Row]]:
        """Let go of a DuckDB mirror, and return what its file holds of each table."""
        self.close()
        with duckdb.connect(str(self.mirror_path), read_only=True) as mirror:
            found = {
                table: mirror.sql(f'select * from {self._schema}."{table}"').to_arrow_table()
                for table in self.tables
            }
        return {
            table: [_told(row.items()) for row in rows.to_pylist()] for table, rows in found.items()
        }

    @property
    def _schema(self) -> str:
        return "main" if self.cell.captures.source == "sqlite" else "public"

    def begin_anew(self) -> None:
        """Drop the mirror's table, as an administrator does who gives its history up."""
        self.htap.drop_table("t", discard_history=True)


def _told(items: Iterable[tuple[str, Any]]) -> Row:
    """Write values so that those of one meaning are equal."""
    return {name: _value(value) for name, value in items}


def _value(value: Any) -> Any:
    if isinstance(value, bool | int | float | Decimal):
        # A number kept as text still tells the same.
        return f"{Decimal(str(value)).normalize():f}"
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    return value


@contextmanager
def staged(cell: Cell, directory: Path, server: Server | None) -> Iterator[Stage]:
    """Make the source of a cell, and take it away again."""
    if cell.captures.source == "sqlite":
        stage = _sqlite(cell, directory)
        stage.run(*drifts.SOURCE)
        yield from _used(stage)
    else:
        assert server is not None
        with _database(server) as name:
            yield from _used(_postgres(cell, directory, server.dsn(name)))


def _used(stage: Stage) -> Iterator[Stage]:
    try:
        yield stage
    finally:
        stage.close()
        stage.app.close()
        stage.oracle.close()


def _sqlite(cell: Cell, directory: Path) -> Stage:
    path = directory / "app.db"
    app, oracle = (sqlite3.connect(path, isolation_level=None) for _ in range(2))
    app.execute("pragma journal_mode = wal")
    return Stage(cell, directory, app, oracle, {"path": path})


def _postgres(cell: Cell, directory: Path, dsn: str) -> Stage:
    mine = make_conninfo(dsn, user=ROLE)
    # A statement kept prepared would not survive what is done to its table.
    app, oracle = (
        psycopg.connect(name, autocommit=True, prepare_threshold=None) for name in (mine, dsn)
    )
    return Stage(cell, directory, app, oracle, {"kind": "postgres", "dsn": mine})


@contextmanager
def _database(server: Server) -> Iterator[str]:
    """Make a database from the template, and drop it and its slots at the end."""
    name = f"drift_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        _make_template(server, admin)
        admin.execute(f"create database {name} template {TEMPLATE} owner {ROLE}".encode())
        try:
            yield name
        finally:
            drop_slots(admin, name)
            admin.execute(f"drop database {name} with (force)".encode())


def _make_template(server: Server, admin: psycopg.Connection[Any]) -> None:
    known = admin.execute("select from pg_database where datname = %s", (TEMPLATE,)).fetchone()
    if known is not None:
        return
    # No superuser: what is hidden from it, and what it may not do, is to be seen.
    admin.execute(f"create role {ROLE} login replication".encode())
    admin.execute(f"grant pg_read_all_stats to {ROLE}".encode())
    admin.execute(f"create database {TEMPLATE} owner {ROLE}".encode())
    with psycopg.connect(server.dsn(TEMPLATE), user=ROLE, autocommit=True) as made:
        for statement in drifts.written("postgres", *drifts.SOURCE):
            made.execute(statement.encode())
