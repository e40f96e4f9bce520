"""A stub source and a stub mirror with the pipeline between them, which can die and return."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from rhei_pipeline.model.reports import SyncReport
from rhei_pipeline.model.schema import VALID_FROM, VALID_TO, Column, Mode, TableSchema
from rhei_pipeline.protocols import ChangeSource
from rhei_pipeline.sync.kept_history import Declared
from rhei_pipeline.sync.options import SyncOptions
from rhei_pipeline.sync.pipeline import Pipeline
from rhei_pipeline.sync.schema_registry import Registry
from rhei_pipeline.testing import Crash, CrashAt, StubMirror, StubSource

Key = tuple[Any, ...]


def schema(name: str, **columns: pa.DataType) -> TableSchema:
    """Return a table with the key `k`, and the columns given; without any, `v`."""
    given = columns or {"v": pa.string()}
    own = (Column("k", pa.int64()), *(Column(column, kind) for column, kind in given.items()))
    return TableSchema(name, own, ("k",))


class StubWorld:
    """What the pipeline stands between; all calls on it go through `work`."""

    def __init__(
        self,
        *tables: str,
        mode: Mode = Mode.DESTRUCTIVE,
        batch_rows: int = 2,
        shares_log: bool = False,
        on_step: Callable[[Any], None] | None = None,
    ) -> None:
        self.source = StubSource(shares_log=shares_log)
        self.mirror = StubMirror()
        self.faults = CrashAt()
        self.names = tables or ("t",)
        self.mode = mode
        self._registry = Registry(None, "stub")
        self._options = SyncOptions(batch_rows)
        self._on_step = on_step or self.faults
        self._pipeline: Pipeline | None = None
        for name in self.names:
            self.source.create(schema(name))

    def capture(self) -> ChangeSource:
        """Return what the pipeline reads."""
        return self.source

    def mode_of(self, _table: str) -> Mode:
        """Return how a table is mirrored."""
        return self.mode

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline, made when there is none."""
        if self._pipeline is None:
            self._pipeline = Pipeline(
                lambda: [Declared(name, self.mode_of(name)) for name in self.names],
                self.capture(),
                self.mirror,
                self._registry,
                self._options,
                self._on_step,
            )
        return self._pipeline

    def restart(self) -> None:
        """Begin with a new process: what it has in memory is lost."""
        self._pipeline = None

    def sync(self) -> SyncReport:
        """Sync, in a process that is begun for it where there is none."""
        return self.pipeline.sync()

    def surviving(self, work: Callable[[], object]) -> bool:
        """Do work that may crash; return whether it did."""
        try:
            work()
        except Crash:
            self.restart()
            return True
        return False

    def fill(self, *keys: int, table: str = "t") -> None:
        """Write one row for each key, each in a transaction of its own."""
        for key in keys:
            self.source.put(table, k=key, v=f"v{key}")

    def present(self, table: str = "t") -> dict[Key, dict[str, Any]]:
        """Return the rows that are valid now, by key; fails on a key that stands twice."""
        rows = [row for row in self.mirror.rows(table) if row.get(VALID_TO) is None]
        assert max(Counter(row["k"] for row in rows).values(), default=1) == 1
        names = self.source.describe(table).names
        return {(row["k"],): {name: row[name] for name in names} for row in rows}

    def versions(self, table: str = "t") -> list[tuple[Any, ...]]:
        """Return a history as keys, values and operations, in the order of its instants."""
        rows = sorted(self.mirror.rows(table), key=lambda row: (row["k"], row[VALID_FROM]))
        return [(row["k"], row["v"], row[VALID_TO] is None) for row in rows]

    def equal(self, tables: Iterable[str] = ()) -> bool:
        """Return whether the mirror's present rows are the source's."""
        return all(self.present(name) == self.source.rows(name) for name in tables or self.names)
