"""A real PostgreSQL server, made from a wheel, with a database for each test."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from examples.postgres_server import Server
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.schema import Mode
from tests.faults import Crash, CrashAt
from tests.model import Row, arrow_rows, exact


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Start a server for the whole session."""
    # Not in pytest's own directory: another session starting there shuts other users out of it.
    with TemporaryDirectory(prefix="rhei-postgres-") as directory:
        made = Server(Path(directory))
        yield made
        made.stop()


@pytest.fixture(scope="session")
def dating_server() -> Iterator[Server]:
    """Start a server that keeps when transactions were committed, and logs no row changes."""
    with TemporaryDirectory(prefix="rhei-postgres-") as directory:
        made = Server(
            Path(directory), settings={"track_commit_timestamp": "on", "wal_level": "replica"}
        )
        yield made
        made.stop()


@pytest.fixture
def dsn(server: Server) -> Iterator[str]:
    """Make an empty database; drop it, and the slots in it, at the end."""
    yield from database(server)


@pytest.fixture
def dating_dsn(dating_server: Server) -> Iterator[str]:
    """Make an empty database on the server that keeps when transactions were committed."""
    yield from database(dating_server)


def database(server: Server) -> Iterator[str]:
    """Make an empty database; drop it, and the slots in it, once it was used."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    yield server.dsn(name)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
            " where database = %s",
            (name,),
        )
        connection.execute(f"drop database {name} with (force)".encode())


@dataclass
class PostgresWorld:
    """A source database with an application's connection, and a mirror that can die and return."""

    dsn: str
    directory: Path
    tables: list[dict[str, Any]] | None = None
    mode: str = "destructive"
    batch_rows: int = 50_000
    capture: dict[str, Any] = field(default_factory=dict)
    faults: CrashAt = field(default_factory=CrashAt)
    storage: str | None = None
    _htap: HTAP | None = None

    def __post_init__(self) -> None:
        self.app = psycopg.connect(self.dsn, autocommit=True)

    @property
    def settings(self) -> Settings:
        """The declaration."""
        return Settings(
            source={"kind": "postgres", "dsn": self.dsn},
            capture=self.capture,
            mirror={
                "kind": "datafusion" if self.storage else "duckdb",
                "storage": self.storage,
                "path": self.directory / (self.storage or "mirror.duckdb"),
                "lock_timeout_seconds": 0.5,
            },
            registry={"path": self.directory / "registry.json"},
            tables=self.tables,
            mode=self.mode,
            sync={"batch_rows": self.batch_rows},
        )

    @property
    def htap(self) -> HTAP:
        """The engine, opened when it is not open."""
        if self._htap is None:
            self._htap = HTAP(self.settings, on_step=self.faults)
        return self._htap

    def run(self, *statements: str) -> None:
        """Write as the application does."""
        for statement in statements:
            self.app.execute(statement.encode())

    def crash(self) -> None:
        """Drop the engine as it is."""
        if self._htap is not None:
            self._htap.close()
            self._htap = None

    def surviving(self, work: Callable[[], object]) -> bool:
        """Do work that may crash; tell whether it did."""
        try:
            work()
        except Crash:
            self.crash()
            return True
        return False

    def source_rows(self, table: str) -> frozenset[Row]:
        """Return the source's rows, read with the driver's own types."""
        found = self.app.execute(f"select * from {table}".encode()).fetchall()
        return frozenset(map(exact, found))

    def mirror_rows(self, table: str) -> frozenset[Row]:
        """Return the mirror's rows that are valid now, with the source's columns."""
        return arrow_rows(self._present(table))

    def present(self, table: str) -> list[dict[str, Any]]:
        """Return the same, each row by its columns' names, and twice what stands twice."""
        rows: list[dict[str, Any]] = self._present(table).to_pylist()
        return rows

    def _present(self, table: str) -> pa.Table:
        known = self.htap._engine.pipeline.table(table)
        columns = ", ".join(f'"{name}"' for name in known.schema.names)
        where = " where _rhei_valid_to is null" if known.mode is Mode.TEMPORAL else ""
        return self.htap.query(f"select {columns} from {table}{where}", hint="olap")

    def assert_equal(self, *tables: str) -> None:
        """The mirror holds what the source holds."""
        for table in tables:
            assert self.mirror_rows(table) == self.source_rows(table), table

    def versions(self, table: str, order: str = "_rhei_valid_from") -> list[dict[str, Any]]:
        """Return a temporal table's versions."""
        rows: list[dict[str, Any]] = self.htap.query(
            f"select * from {table} order by {order}", hint="olap"
        ).to_pylist()
        return rows

    def close(self) -> None:
        """Close everything."""
        self.crash()
        self.app.close()


@pytest.fixture
def make_postgres(dsn: str, tmp_path: Path) -> Iterator[Callable[..., PostgresWorld]]:
    """Make worlds over one database that are closed at the end."""
    worlds: list[PostgresWorld] = []

    def make(**options: Any) -> PostgresWorld:
        directory = tmp_path / f"world{len(worlds)}"
        directory.mkdir()
        worlds.append(PostgresWorld(dsn, directory, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()
