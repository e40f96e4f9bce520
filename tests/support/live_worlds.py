"""An application's database and its declaration, as a Dagster deployment finds them."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg

import rhei_pipeline as rhei
from rhei_pipeline import Settings
from tests.support.dagster_deployment import Location

TABLES = ("orders", "items")
_COLUMNS = {"orders": "status text not null", "items": "amount integer"}


@dataclass
class World:
    """An SQLite file that a DuckDB file mirrors, and where both are."""

    root: Path
    name: str = "shop"

    @classmethod
    def made(
        cls, root: Path, schedule: str = "", pipeline: str = "", tables: Sequence[str] = TABLES
    ) -> "World":
        """Make the tables, all empty; `orders` keeps its history."""
        root.mkdir(parents=True, exist_ok=True)
        world = cls(root)
        world.write(
            "pragma journal_mode = wal",
            *(
                f"create table {name}(id integer primary key, {_COLUMNS.get(name, 'amount int')})"
                for name in tables
            ),
        )
        world.declare(
            "source: {path: app.db}\nmirror: {path: mirror.duckdb}\n" + pipeline, schedule, tables
        )
        return world

    def declare(self, pipeline: str, schedule: str, tables: Sequence[str] = TABLES) -> None:
        """Write the declaration."""
        declared = [
            f"{{name: {it}, mode: {'temporal' if it == 'orders' else 'destructive'}}}"
            for it in tables
        ]
        self.location.declaration.write_text(
            f"{pipeline}registry: {{path: registry.json}}\nsync: {{interval_seconds: 0.05}}\n"
            f"tables: [{', '.join(declared)}]\nschedule: {{verify_hour: null, {schedule}}}\n"
        )

    @property
    def location(self) -> Location:
        """The code location, at a port of its own each time."""
        return Location(self.name, self.root / "pipeline.yaml")

    @property
    def settings(self) -> Settings:
        """The declaration."""
        return Settings.load(self.root / "pipeline.yaml")

    def write(self, *statements: str) -> None:
        """Write in one transaction, as the application does."""
        with closing(sqlite3.connect(self.root / "app.db", timeout=30)) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    def order(self, status: str = "new") -> None:
        """Write a row."""
        self.write(f"insert into orders(status) values ('{status}')")

    def applied(self) -> bool:
        """Return whether the mirror has confirmed all that was written, as the source says."""
        file = f"file:{self.root / 'app.db'}?mode=ro"
        with closing(sqlite3.connect(file, uri=True, timeout=30)) as connection:
            try:
                (written,) = connection.execute("select max(seq) from _rhei_log_orders").fetchone()
                confirmed = connection.execute(
                    "select seq from _rhei_consumer where tbl = 'orders'"
                ).fetchone()
            except sqlite3.OperationalError:  # capture is not there yet
                return False
        return confirmed is not None and confirmed[0] >= (written or 0)

    def assert_equal(self) -> None:
        """Compare every row."""
        with rhei.open(self.settings) as htap:
            assert htap.verify().equal


@dataclass
class ServerWorld(World):
    """A PostgreSQL database whose log is read, and that Parquet files mirror.

    Attributes:
        dsn: The database.
        written: Where the server's log ended when a row was written last.
    """

    dsn: str = ""
    written: str = "0/0"

    @classmethod
    def on(cls, dsn: str, root: Path, schedule: str = "") -> "ServerWorld":
        """Make the tables `orders` and `items`, empty."""
        root.mkdir(parents=True, exist_ok=True)
        world = cls(root, dsn=dsn)
        world.write(
            "create table orders(id serial primary key, status text not null)",
            "create table items(id int primary key, amount int)",
        )
        world.declare(
            f"source: {{kind: postgres, dsn: {dsn!r}}}\ncapture: {{method: logical}}\n"
            "mirror: {kind: datafusion, storage: parquet, path: mirror}\n",
            schedule,
        )
        return world

    def write(self, *statements: str) -> None:
        """Write in one transaction, as the application does."""
        with psycopg.connect(self.dsn) as app:
            for statement in statements:
                app.execute(statement.encode())
            (self.written,) = app.execute("select pg_current_wal_insert_lsn()").fetchone() or ("",)

    def applied(self) -> bool:
        """Return whether the slot was moved past what was written, as the server says."""
        with psycopg.connect(self.dsn) as app:
            return bool(
                app.execute(
                    "select from pg_replication_slots where database = current_database()"
                    " and confirmed_flush_lsn > %s::pg_lsn",
                    (self.written,),
                ).fetchall()
            )
