"""What every snapshot of a database does alike: it asks the reader of the table for its rows."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa

from rhei_pipeline.model.changes import RowBatch
from rhei_pipeline.model.schema import Table


class TableReader(Protocol):
    """Reads one table in the snapshot's transaction."""

    def start_at(self, key: pa.Table) -> str:
        """Return where reading in key order goes on with a key."""

    def draw(self, share: float, limit: int) -> Iterator[RowBatch]:
        """Yield rows drawn by lot."""

    def orders_bytewise(self) -> bool:
        """Return whether the database orders the keys by their bytes."""

    def count(self, where: str = ...) -> int:
        """Count the rows of which a condition is true."""

    def range_ends(self, count: int) -> Sequence[str]:
        """Return the last keys of all of so many ranges but the last."""

    def rows_within(self, resume: str | None, until: str | None, limit: int) -> RowBatch | None:
        """Return the next rows in key order, up to a key."""


class TableReads(ABC):
    """The reads of a snapshot that concern one table and nothing else."""

    @property
    def cuts_ranges(self) -> bool:
        """True: a database is asked for any range of keys."""
        return True

    @abstractmethod
    def _reader(self, table: Table) -> TableReader:
        """Return the table's reader in this snapshot."""

    def start_at(self, table: Table, key: pa.Table) -> str:
        """Return where `rows` goes on with a key."""
        return self._reader(table).start_at(key)

    def draw(self, table: Table, share: float, limit: int) -> Iterator[RowBatch]:
        """Yield rows drawn by lot, each with the same chance."""
        return self._reader(table).draw(share, limit)

    def orders_bytewise(self, table: Table) -> bool:
        """Return whether the source orders the table's keys by their bytes."""
        return self._reader(table).orders_bytewise()

    def count(self, table: Table) -> int:
        """Return the table's row count."""
        return self._reader(table).count()

    def count_where(self, table: Table, where: str) -> int:
        """Count the rows of which a condition in the source's SQL is true."""
        return self._reader(table).count(where)

    def range_ends(self, table: Table, count: int) -> Sequence[str]:
        """Return where all of so many ranges of keys but the last end."""
        return self._reader(table).range_ends(count)

    def rows_within(
        self, table: Table, resume: str | None, until: str | None, limit: int
    ) -> RowBatch | None:
        """Return the next rows of a range of keys."""
        return self._reader(table).rows_within(resume, until, limit)
