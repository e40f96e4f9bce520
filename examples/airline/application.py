"""The airline's application on its database: the same statements, on SQLite or PostgreSQL."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import psycopg

_TABLES = """
create table airlines(carrier TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL);
create table airports(
    faa TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL, lat {real}, lon {real}, alt INTEGER,
    tz INTEGER, dst TEXT, tzone TEXT);
create table planes(
    tailnum TEXT PRIMARY KEY NOT NULL, year INTEGER, type TEXT, manufacturer TEXT, model TEXT,
    engines INTEGER, seats INTEGER, speed INTEGER, engine TEXT);
create table weather(
    origin TEXT NOT NULL, time_hour {hour} NOT NULL, temp {real}, humid {real},
    wind_speed {real}, precip {real}, visib {real}, PRIMARY KEY (origin, time_hour)){keyed};
create table flights(
    flight_id {number} PRIMARY KEY, flight_date DATE NOT NULL,
    carrier TEXT NOT NULL REFERENCES airlines, flight INTEGER NOT NULL, tailnum TEXT,
    origin TEXT NOT NULL, dest TEXT NOT NULL, scheduled_departure TIMESTAMP NOT NULL,
    departed_at TIMESTAMP, arrived_at TIMESTAMP, departure_delay INTEGER, arrival_delay INTEGER,
    distance INTEGER, status TEXT NOT NULL, UNIQUE (flight_date, carrier, flight, origin));
"""
_SOME_READING = "from weather where origin = ? order by time_hour limit 1 offset ?"


class Application(Protocol):
    """What the airline asks of its database.

    Attributes:
        correct_weather: A statement that corrects one reading: origin, place in the year.
    """

    correct_weather: str

    def create(self) -> None:
        """Create the tables."""

    def load(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Insert many rows."""

    def run(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run a statement, with a question mark for each value; return the rows changed."""

    def value(self, sql: str) -> Any:  # noqa: ANN401  (as the driver gives it)
        """Return the one value that a query finds."""

    def transaction(self, *, kept: bool = True) -> Any:  # noqa: ANN401
        """Open a transaction for the length of a block; commit it, or roll it back."""

    def close(self) -> None:
        """Close the connection."""


def connect(database: str) -> Application:
    """Open a SQLite file by its path, or a PostgreSQL database by its address."""
    if database.startswith("postgresql://"):
        return PostgresApplication(database)
    return SqliteApplication(Path(database))


class SqliteApplication:
    """The airline on a SQLite file."""

    correct_weather = (
        "replace into weather select origin, time_hour, temp + 0.1, humid, wind_speed, precip,"
        f" visib {_SOME_READING}"
    )

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30.0)
        self._connection.execute("pragma journal_mode = wal")
        self._connection.execute("pragma synchronous = normal")

    def create(self) -> None:
        """Create the tables."""
        types = {"real": "REAL", "hour": "TEXT", "number": "INTEGER", "keyed": " WITHOUT ROWID"}
        self._connection.executescript(_TABLES.format(**types))

    def load(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Insert many rows."""
        marks = ", ".join("?" for _ in columns)
        with self.transaction():
            self._connection.executemany(
                f"insert into {table}({', '.join(columns)}) values ({marks})", rows
            )

    def run(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run a statement."""
        return self._connection.execute(sql, params).rowcount

    def value(self, sql: str) -> Any:  # noqa: ANN401
        """Return the one value that a query finds."""
        return self._connection.execute(sql).fetchone()[0]

    @contextmanager
    def transaction(self, *, kept: bool = True) -> Iterator[None]:
        """Open a transaction for the length of a block."""
        self._connection.execute("begin immediate")
        yield
        self._connection.execute("commit" if kept else "rollback")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class PostgresApplication:
    """The airline on a PostgreSQL database."""

    correct_weather = (
        f"update weather set temp = temp + 0.1 where (origin, time_hour) in"
        f" (select origin, time_hour {_SOME_READING})"
    )

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True)

    def create(self) -> None:
        """Create the tables."""
        number = "BIGINT GENERATED ALWAYS AS IDENTITY"
        types = {"real": "DOUBLE PRECISION", "hour": "TIMESTAMP", "number": number, "keyed": ""}
        self._connection.execute(_constant(_TABLES.format(**types)))

    def load(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Insert many rows."""
        into = f"copy {table}({', '.join(columns)}) from stdin"
        with self._connection.cursor() as cursor, cursor.copy(_constant(into)) as copy:
            for row in rows:
                copy.write_row(row)

    def run(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run a statement."""
        return self._connection.execute(_constant("%s".join(sql.split("?"))), params).rowcount

    def value(self, sql: str) -> Any:  # noqa: ANN401
        """Return the one value that a query finds."""
        row = self._connection.execute(_constant(sql)).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def transaction(self, *, kept: bool = True) -> Iterator[None]:
        """Open a transaction for the length of a block."""
        with self._connection.transaction(force_rollback=not kept):
            yield

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _constant(sql: str) -> bytes:
    """Vouch for a statement of this example's own: no value is ever written into one."""
    return sql.encode()
