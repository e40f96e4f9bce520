"""Every way to capture, side by side on the same table and the same changes."""

import sqlite3
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Protocol

import psycopg

import rhei_pipeline as rhei
from benchmarks.timing import timed
from examples.postgres_server import Server

#: Rows to begin with, and those inserted in a round, which also updates every fifth row.
ROWS, INSERTS, ROUNDS = 300_000, 40_000, 3
#: Commits of a live loop, rows of each, and the pause between two.
COMMITS, COMMIT_ROWS, PAUSE_SECONDS = 200, 10, 0.02
IDLE_CYCLES = 200

_COLUMNS = (
    "id {integer} primary key, batch {integer} not null, status text not null,"
    " amount {real} not null, note text, updated_at {stamp} not null"
)
_FILL = (
    "insert into orders select value, 0, 'paid', value / 100.0, 'note ' || value || ' of some"
    " length', {now} from {series}"
)
_UPDATE = (
    "update orders set amount = amount + 1, status = 'sent', updated_at = {now} where id % 5 = ?"
)
_COMMIT = "insert into orders select value, ?, 'new', 1.5, 'a new order', {now} from {series}"


class Application(Protocol):
    """An application with one table of orders, each stamped by its database's clock."""

    def run(self, sql: str, *params: object) -> int:
        """Run one statement as a transaction; return how many rows it changed.

        In it `{now}` is the clock, and `?` a value.
        """

    def series(self, first: int, count: int) -> str:
        """Return SQL of `count` integers, as a table with the column `value`."""

    def source(self) -> dict[str, Any]:
        """Return the declaration of the source."""

    def connect(self) -> "Application":
        """Return the same for another thread."""

    def close(self) -> None:
        """Close its connection."""


class SqliteApplication:
    """On a SQLite file."""

    TYPES: ClassVar = {"integer": "integer", "real": "real", "stamp": "text"}
    NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=10)
        self.run("pragma journal_mode = wal")
        self.run("pragma synchronous = normal")

    def run(self, sql: str, *params: object) -> int:
        """Run one statement as a transaction; return how many rows it changed."""
        return self._connection.execute(sql.format(now=self.NOW), params).rowcount

    def series(self, first: int, count: int) -> str:
        """Return SQL of consecutive integers."""
        return (
            f"(with recursive s(value) as (select {first} union all"
            f" select value + 1 from s where value < {first + count - 1}) select value from s)"
        )

    def source(self) -> dict[str, Any]:
        """Return the declaration of the source."""
        return {"path": self._path}

    def connect(self) -> "SqliteApplication":
        """Return the same for another thread."""
        return SqliteApplication(self._path)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class PostgresApplication:
    """In a PostgreSQL database."""

    TYPES: ClassVar = {"integer": "int", "real": "float8", "stamp": "timestamptz"}
    NOW = "now()"

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection = psycopg.connect(dsn, autocommit=True)

    def run(self, sql: str, *params: object) -> int:
        """Run one statement as a transaction; return how many rows it changed."""
        text = sql.format(now=self.NOW)
        if params:
            text = text.replace("%", "%%").replace("?", "%s")
        return self._connection.execute(text.encode(), params or None).rowcount

    def series(self, first: int, count: int) -> str:
        """Return SQL of consecutive integers."""
        return f"generate_series({first}, {first + count - 1}) value"

    def source(self) -> dict[str, Any]:
        """Return the declaration of the source."""
        return {"kind": "postgres", "dsn": self._dsn}

    def connect(self) -> "PostgresApplication":
        """Return the same for another thread."""
        return PostgresApplication(self._dsn)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


#: What is measured: a name, the kind of source, and how its changes are captured.
WAYS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("SQLite, triggers", "sqlite", {"method": "trigger"}),
    ("SQLite, triggers and buffer", "sqlite", {"method": "trigger", "buffer": {"path": "cdc"}}),
    ("SQLite, polling", "sqlite", {"method": "polling"}),
    ("PostgreSQL, its log", "postgres", {"method": "logical"}),
    ("PostgreSQL, triggers", "postgres", {"method": "trigger"}),
    ("PostgreSQL, polling", "postgres", {"method": "polling"}),
)


@dataclass
class Contender:
    """One way to capture, its application and its mirror, both open."""

    name: str
    application: Application
    htap: rhei.HTAP
    next: int = ROWS + 1

    def change(self, turn: int) -> tuple[float, float]:
        """Make many changes and sync them; return events per second of CPU and of wall time."""
        run, series = self.application.run, self.application.series
        count = run(_UPDATE, turn)
        count += run(_COMMIT.replace("{series}", series(self.next, INSERTS)), 0)
        self.next += INSERTS
        with timed() as timing:
            self.htap.sync_now()
        return count / timing.cpu_seconds, count / timing.wall_seconds

    def settle(self) -> None:
        """Leave the copy behind: a few small commits, so that its bulk is not the newest state."""
        for _ in range(3):
            self.application.run(
                _COMMIT.replace("{series}", self.application.series(self.next, 1)), 0
            )
            self.next += 1
            self.htap.sync_now()

    def live(self) -> list[float]:
        """Sync without a pause beside a writer; return each commit's milliseconds to the mirror."""
        committed: dict[int, float] = {}
        writer = threading.Thread(target=self._write, args=(committed,))
        writer.start()
        seen, waits = 0, []
        while seen < COMMITS:
            self.htap.sync_now()
            now = time.perf_counter()
            newest = self.htap.query("select max(batch) as batch from orders", hint="olap")
            newest = newest["batch"][0].as_py()
            waits += [(now - committed[batch]) * 1000 for batch in range(seen + 1, newest + 1)]
            seen = newest
        writer.join()
        return sorted(waits)

    def _write(self, committed: dict[int, float]) -> None:
        application = self.application.connect()
        for batch in range(1, COMMITS + 1):
            rows = application.series(self.next, COMMIT_ROWS)
            # Before it returns, for a sync may be that quick.
            committed[batch] = time.perf_counter()
            application.run(_COMMIT.replace("{series}", rows), batch)
            committed[batch] = time.perf_counter()
            self.next += COMMIT_ROWS
            time.sleep(PAUSE_SECONDS)
        application.close()

    def idle(self) -> tuple[float, float]:
        """Return milliseconds of CPU and of wall time of a cycle with nothing to do."""
        self.htap.sync_now()
        with timed() as timing:
            for _ in range(IDLE_CYCLES):
                self.htap.sync_now()
        each = 1000 / IDLE_CYCLES
        return timing.cpu_seconds * each, timing.wall_seconds * each


@contextmanager
def _contenders() -> Iterator[list[Contender]]:
    with ExitStack() as stack:
        data = stack.enter_context(TemporaryDirectory(prefix="rhei-postgres-"))
        server = Server(Path(data))
        stack.callback(server.stop)
        found = []
        for place, (name, kind, capture) in enumerate(WAYS):
            directory = Path(stack.enter_context(TemporaryDirectory()))
            application = _application(kind, directory, server, f"way{place}")
            stack.callback(application.close)
            htap = stack.enter_context(rhei.open(_settings(application, capture, directory)))
            htap.sync_now()
            found.append(Contender(name, application, htap))
            found[-1].settle()
        yield found


def new_application(
    kind: str, directory: Path, server: Server, name: str
) -> SqliteApplication | PostgresApplication:
    """Make an application with an empty database."""
    if kind == "sqlite":
        return SqliteApplication(directory / "app.db")
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    return PostgresApplication(server.dsn(name))


def _application(kind: str, directory: Path, server: Server, name: str) -> Application:
    made = new_application(kind, directory, server, name)
    made.run(f"create table orders({_COLUMNS.format(**made.TYPES)})")
    made.run("create index orders_updated on orders(updated_at, id)")
    made.run(_FILL.replace("{series}", made.series(1, ROWS)))
    made.run("analyze orders")
    return made


def _settings(application: Application, capture: dict[str, Any], directory: Path) -> rhei.Settings:
    return rhei.Settings(
        source=application.source(),
        capture=capture,
        mirror={"path": directory / "mirror.duckdb"},
        registry={"path": directory / "registry.json"},
        tables=[{"name": "orders", "polling": {"clock": "database"}}],
    ).anchored(directory)


def measure() -> Iterator[tuple[str, str]]:
    """Measure many changes, turn by turn; then a live loop, and cycles with nothing to do."""
    with _contenders() as contenders:
        turns = [[way.change(turn) for way in contenders] for turn in range(ROUNDS)]
        for place, way in enumerate(contenders):
            cpu, wall = (statistics.median(part[place][i] for part in turns) for i in (0, 1))
            waits, (idle_cpu, idle_wall) = way.live(), way.idle()
            if not way.htap.verify().equal:
                raise SystemExit(f"{way.name}: source and mirror differ: this is worth nothing")
            yield (
                f"{way.name}: {ROWS // 5 + INSERTS:,} changes on {ROWS:,} rows",
                f"{cpu:,.0f} events/s CPU, {wall:,.0f} by the clock",
            )
            yield (
                f"{way.name}: {COMMIT_ROWS} rows, commit to mirror",
                f"p50 {waits[len(waits) // 2]:.1f} ms, p99 {waits[len(waits) * 99 // 100]:.1f} ms",
            )
            yield (
                f"{way.name}: a cycle with nothing to do",
                f"{idle_cpu:.2f} ms CPU, {idle_wall:.2f} ms by the clock",
            )
