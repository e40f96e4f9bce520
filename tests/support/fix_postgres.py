"""Real PostgreSQL servers, from a wheel or as installed, with a database for each test."""

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from examples.postgres_server import Server
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.model.schema import Mode
from rhei_pipeline.testing.faults import Crash, CrashAt
from rhei_pipeline.testing.oracle import Row, arrow_rows, exact
from tests.support.installed_postgres import InstalledServer, Pooler, binaries, missing
from tests.support.parts import engine_of

#: The version whose installed programs all tests use: `make test-postgres PG=15`.
CHOSEN = os.environ.get("RHEI_TEST_POSTGRES")
#: The version that tests of older servers use where it is installed.
INSTALLED = CHOSEN or "15"

AnyServer = Server | InstalledServer

#: The first version that can be told how to copy a new database's files; those before copy files.
_CHOOSES_COPY = 150000

#: A copy waits until the log is on disk; a quiet server writes it there only that often.
_QUICK_LOG = {"wal_writer_delay": "10ms"}


@contextmanager
def started(
    version: str | None, settings: Mapping[str, str] | None = None, **how: Any
) -> Iterator[AnyServer]:
    """Start a server of an installed version; without one, of the wheel's."""
    # Not in pytest's own directory: another session starting there shuts other users out of it.
    settings = {**_QUICK_LOG, **(settings or {})}
    with TemporaryDirectory(prefix="rhei-postgres-") as directory:
        if version is None:
            made: AnyServer = Server(Path(directory), settings=settings)
        else:
            made = InstalledServer(version, Path(directory), settings, **how)
        # Who connects first has the server write what each later session in a copy of it reads.
        psycopg.connect(made.dsn("template1")).close()
        try:
            yield made
        finally:
            made.stop()


def skip_without(*programs: Path | str) -> None:
    """Skip a test whose programs are not installed; say which."""
    absent = missing(*programs)
    if absent:
        pytest.skip(f"{', '.join(absent)} not installed")


@pytest.fixture(scope="session")
def server() -> Iterator[AnyServer]:
    """Start a server for the whole session."""
    with started(CHOSEN) as made:
        yield made


@pytest.fixture(scope="session")
def installed_server() -> Iterator[AnyServer]:
    """Start an older server than the wheel's for the whole session."""
    skip_without(binaries(INSTALLED) / "initdb")
    with started(INSTALLED) as made:
        yield made


@pytest.fixture
def installed_dsn(installed_server: AnyServer) -> Iterator[str]:
    """Make an empty database on the older server."""
    yield from database(installed_server)


@pytest.fixture
def make_pooler(installed_dsn: str) -> Iterator[Callable[..., Pooler]]:
    """Make poolers before an empty database on the older server."""
    skip_without("pgbouncer")
    poolers: list[Pooler] = []

    def make(mode: str, size: int = 12, wait: int = 20) -> Pooler:
        # Its user reads there, and pytest lets no other one in.
        directory = Path(mkdtemp(prefix="rhei-pooler-"))
        poolers.append(Pooler(directory, installed_dsn, mode, size, wait))
        return poolers[-1]

    yield make
    for pooler in poolers:
        pooler.stop()
        shutil.rmtree(pooler.directory)


@pytest.fixture(scope="session")
def dating_server() -> Iterator[AnyServer]:
    """Start a server that keeps when transactions were committed, and logs no row changes."""
    with started(CHOSEN, {"track_commit_timestamp": "on", "wal_level": "replica"}) as made:
        yield made


@pytest.fixture
def dsn(server: AnyServer) -> Iterator[str]:
    """Make an empty database; drop it, and the slots in it, at the end."""
    yield from database(server)


@pytest.fixture
def dating_dsn(dating_server: AnyServer) -> Iterator[str]:
    """Make an empty database on the server that keeps when transactions were committed."""
    yield from database(dating_server)


def database(server: AnyServer, locale: str = "") -> Iterator[str]:
    """Make an empty database; drop it, and the slots in it, once it was used."""
    template = f"template template0 {locale}" if locale else ""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        # Not through the log, page by page: that takes the server a third more of the processor.
        copied = "strategy file_copy" if connection.info.server_version >= _CHOOSES_COPY else ""
        connection.execute(f"create database {name} {template} {copied}".encode())
    yield server.dsn(name)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        drop_slots(connection, name)
        connection.execute(f"drop database {name} with (force)".encode())


def drop_slots(connection: psycopg.Connection, name: str) -> None:
    """Drop a database's slots; a server may need a moment to see that a stream was closed."""
    until = time.monotonic() + 30
    while True:
        try:
            connection.execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
                " where database = %s",
                (name,),
            )
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


@dataclass
class PostgresWorld:
    """A source database with an application's connection, and a mirror that can die and return."""

    dsn: str
    directory: Path
    tables: list[dict[str, Any]] | None = None
    mode: str = "destructive"
    batch_rows: int = 50_000
    capture: dict[str, Any] = field(default_factory=dict)
    people: dict[str, dict[str, str]] = field(default_factory=dict)
    faults: CrashAt = field(default_factory=CrashAt)
    storage: str | None = None
    source: dict[str, Any] = field(default_factory=dict)
    _htap: HTAP | None = None

    def __post_init__(self) -> None:
        # Nothing prepared: the application may stand behind a pooler.
        self.app = psycopg.connect(self.dsn, autocommit=True, prepare_threshold=None)

    @property
    def settings(self) -> Settings:
        """The declaration."""
        return Settings(
            source={"kind": "postgres", "dsn": self.dsn, **self.source},
            capture=self.capture,
            mirror={
                "kind": "datafusion" if self.storage else "duckdb",
                "storage": self.storage,
                "path": self.directory / (self.storage or "mirror.duckdb"),
                "lock_timeout_seconds": 0.5,
            },
            registry={"path": self.directory / "registry.json"},
            tables=self.tables,
            people=self.people,
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
        known = engine_of(self.htap).pipeline.table(table)
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
    yield from _worlds(dsn, tmp_path)


@pytest.fixture
def make_installed(installed_dsn: str, tmp_path: Path) -> Iterator[Callable[..., PostgresWorld]]:
    """Make worlds over one database of the older server."""
    yield from _worlds(installed_dsn, tmp_path)


@pytest.fixture
def make_worlds(tmp_path: Path) -> Iterator[Callable[[str], Callable[..., PostgresWorld]]]:
    """Return what makes worlds over a database."""
    with ExitStack() as stack:
        yield lambda dsn: stack.enter_context(contextmanager(_worlds)(dsn, tmp_path))


def _worlds(dsn: str, tmp_path: Path) -> Iterator[Callable[..., PostgresWorld]]:
    worlds: list[PostgresWorld] = []

    def make(**options: Any) -> PostgresWorld:
        directory = tmp_path / f"world{len(worlds)}"
        directory.mkdir()
        worlds.append(PostgresWorld(options.pop("dsn", dsn), directory, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()
