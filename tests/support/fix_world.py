"""A source, a mirror, and what opens and compares them."""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.model.schema import Mode
from rhei_pipeline.testing.faults import Crash, CrashAt
from rhei_pipeline.testing.oracle import Row, arrow_rows
from tests.support.model import source_rows
from tests.support.parts import engine_of


@dataclass
class World:
    """A source database with an application's connection, and a mirror that can die and return."""

    directory: Path
    tables: list[dict[str, Any]] | None = None
    mode: str | None = "destructive"
    batch_rows: int = 50_000
    mirror_path: str | None = None
    storage: str | None = None
    delta: dict[str, Any] | None = None
    buffered: bool = False
    prune: bool = True
    limits: dict[str, Any] = field(default_factory=dict)
    method: str = "trigger"
    local: dict[str, Any] | None = None
    published: dict[str, Any] | None = None
    people: dict[str, dict[str, str]] = field(default_factory=dict)
    faults: CrashAt = field(default_factory=CrashAt)
    _htap: HTAP | None = None

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.path = self.directory / "app.db"
        self.buffer = self.directory / "cdc"
        self.app = sqlite3.connect(self.path, isolation_level=None)
        self.app.execute("pragma journal_mode = wal")

    @property
    def settings(self) -> Settings:
        """The declaration."""
        return Settings(
            source={"path": self.path},
            capture={
                "method": self.method,
                "buffer": {"path": self.buffer, **self.limits} if self.buffered else None,
            },
            mirror={
                "kind": "datafusion" if self.storage else "duckdb",
                "storage": self.storage,
                "path": self.mirror_path or self.directory / (self.storage or "mirror.duckdb"),
                "lock_timeout_seconds": 0.5,
                "published": self.published,
                **({} if self.delta is None else {"delta": self.delta}),
            },
            registry={"path": self.directory / "registry.json"},
            local=self.local,
            tables=self.tables,
            people=self.people,
            **({} if self.mode is None else {"mode": self.mode}),
            sync={"batch_rows": self.batch_rows, "prune": self.prune},
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
            self.app.execute(statement)

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

    def mirror_rows(self, table: str) -> frozenset[Row]:
        """Return the mirror's rows that are valid now, with the source's columns."""
        return arrow_rows(self._present(table))

    def present(self, table: str) -> list[dict[str, Any]]:
        """Return the same, each row by its columns' names, and twice what stands twice."""
        rows: list[dict[str, Any]] = self._present(table).to_pylist()
        return rows

    def _present(self, table: str) -> pa.Table:
        columns = ", ".join(f'"{name}"' for name in self.columns(table))
        temporal = engine_of(self.htap).pipeline.table(table).mode is Mode.TEMPORAL
        where = " where _rhei_valid_to is null" if temporal else ""
        return self.htap.query(f'select {columns} from "{table}"{where}', hint="olap")

    def columns(self, table: str) -> list[str]:
        """Return the source's columns."""
        rows = self.app.execute(
            "select name from pragma_table_xinfo(?) where hidden <> 1", (table,)
        )
        return [name for (name,) in rows]

    def assert_equal(self, *tables: str) -> None:
        """The mirror holds what the source holds, bit for bit."""
        for table in tables:
            assert self.mirror_rows(table) == source_rows(self.app, table), table

    def versions(self, table: str, order: str = "_rhei_valid_from") -> list[dict[str, Any]]:
        """Return a temporal table's versions."""
        found = self.htap.query(f'select * from "{table}" order by {order}', hint="olap")
        rows: list[dict[str, Any]] = found.to_pylist()
        return rows

    def close(self) -> None:
        """Close everything."""
        self.crash()
        self.app.close()


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Make worlds that are closed at the end."""
    worlds: list[World] = []

    def make(**options: Any) -> World:
        worlds.append(World(tmp_path / f"world{len(worlds)}", **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """One source with one table `orders` of three rows, and a destructive mirror."""
    made = make_world()
    made.run(
        "create table orders(id integer primary key, status text, amount real)",
        "insert into orders values (1, 'new', 1.5), (2, 'new', 2.5), (3, 'paid', 3.5)",
    )
    return made
