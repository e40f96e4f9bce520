"""The table that is measured, and the changes made to it."""

import random
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import rhei_pipeline as rhei

_TABLE = """
create table orders(
    id integer primary key, customer_id integer not null, status text not null,
    amount real not null, note text, created_at integer not null, updated_at integer not null
)
"""
_INSERT = "insert into orders values (?, ?, ?, ?, ?, ?, ?)"
_UPDATE = "update orders set amount = ?, status = 'sent', updated_at = ? where id = ?"


class Orders:
    """One table of a SQLite file, as its application sees it."""

    def __init__(self, directory: Path, rows: int) -> None:
        self.directory = directory
        self.path = directory / "app.db"
        self.rows = rows
        self._random = random.Random(rows)
        self.connection = sqlite3.connect(self.path, isolation_level=None)
        self.connection.execute("pragma journal_mode = wal")
        self.connection.execute("pragma synchronous = normal")
        self.connection.execute(_TABLE)
        self.insert(rows, first=1)
        self._next = rows + 1

    def insert(self, count: int, first: int) -> None:
        """Insert rows in one transaction."""
        rows = (
            (
                i,
                i % 1000,
                "paid",
                i / 100,
                f"note {i:08d} of some length",
                17 * 10**8 + i,
                17 * 10**8,
            )
            for i in range(first, first + count)
        )
        self.connection.execute("begin")
        self.connection.executemany(_INSERT, rows)
        self.connection.execute("commit")

    def change(self, count: int, among: int | None = None) -> None:
        """Make random changes in one transaction: 50 % updates, 35 % inserts, 15 % deletes.

        They are in all rows, or among so many that follow each other in the table's middle.
        """
        draw, run = self._random, self.connection.execute
        low, high = (self.rows // 2, self.rows // 2 + among) if among else (1, self.rows)
        run("begin")
        for _ in range(count):
            kind, key = draw.random(), draw.randint(low, high)
            if kind < 0.5:
                run(_UPDATE, (draw.random() * 100, draw.randint(1, 10**9), key))
            elif kind < 0.85:
                run(_INSERT, (self._next, key % 1000, "new", key / 7, "a new order", key, key))
                self._next += 1
            else:
                run("delete from orders where id = ?", (key,))
        run("commit")

    def open(
        self,
        mode: str = "destructive",
        *,
        buffered: bool = False,
        storage: str | None = None,
        vectors: bool = True,
    ) -> rhei.HTAP:
        """Open the pipeline that mirrors the table, directly or through a buffer.

        The mirror is a DuckDB file, or with a storage in DataFusion's files. Its Delta tables have
        vectors, or none.
        """
        buffer = {"path": self.directory / f"{mode}.cdc"} if buffered else None
        return rhei.open(
            rhei.Settings(
                source={"path": self.path},
                capture={"buffer": buffer},
                mirror={"kind": "datafusion", "storage": storage, "path": self.directory / mode}
                | ({"delta": {"deletion_vectors": vectors}} if storage == "delta" else {})
                if storage
                else {"path": self.directory / f"{mode}.duckdb"},
                registry={"path": self.directory / f"{mode}.json"},
                tables=[{"name": "orders", "mode": mode}],
            )
        )


@contextmanager
def orders(rows: int) -> Iterator[Orders]:
    """Make a table of so many rows in a directory that is removed again."""
    with TemporaryDirectory() as directory:
        made = Orders(Path(directory), rows)
        try:
            yield made
        finally:
            made.connection.close()
