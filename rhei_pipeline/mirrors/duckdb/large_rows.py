"""Rows with large values, of which DuckDB holds as few copies as it can."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from rhei_pipeline.mirrors.duckdb.connecting import CHECKPOINT_THRESHOLD
from rhei_pipeline.mirrors.duckdb.lent_rows import LentRows
from rhei_pipeline.model.large_rows import are_large, give_back_freed


class LargeRows:
    """Shows rows to DuckDB within one transaction, and commits those that are large.

    Args:
        connection: In that transaction.
        lent: Shows it rows.
        let_go: Frees what DuckDB caches of the file.
        copies: The tables of which a copy under way has large rows; outlives the transaction.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        lent: LentRows,
        let_go: Callable[[], None],
        copies: set[str],
    ) -> None:
        self._connection = connection
        self._lent = lent
        self._let_go = let_go
        self._copies = copies
        self._had_some = False

    @contextmanager
    def shown(self, name: str, rows: pa.Table) -> Iterator[None]:
        """Show rows under a name within a block, in which large ones are written."""
        with self._lent.shown(name, rows), self.read(rows):
            self._had_some = self._had_some or are_large(rows)
            yield

    @contextmanager
    def read(self, rows: pa.Table) -> Iterator[None]:
        """Read rows within a block, beside those that they are compared with."""
        if not are_large(rows):
            yield
            return
        with self._by_one_thread():
            yield

    def note_copied(self, table: str, rows: pa.Table) -> None:
        """Note that a copy has large rows, if it has."""
        if are_large(rows):
            self._copies.add(table)

    def has_copied(self, table: str) -> bool:
        """Return whether a copy has large rows; those of another process count as small."""
        return table in self._copies

    def forget_copy(self, table: str) -> None:
        """Forget what was noted of a copy."""
        self._copies.discard(table)

    @contextmanager
    def read_again(self, table: str) -> Iterator[None]:
        """Read a copy's rows within a block, and write them again."""
        if not self.has_copied(table):
            yield
            return
        self._had_some = True
        with self._by_one_thread():
            yield

    @contextmanager
    def _by_one_thread(self) -> Iterator[None]:
        """Let one thread alone work on a large value: several hold it more often."""
        self._free()
        with self._connection.cursor() as apart:  # works also once the transaction has failed
            apart.execute("set threads = 1")
            try:
                yield
            finally:
                apart.execute("reset threads")

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Commit by a checkpoint if rows are large: DuckDB's log holds them three times more.

        Where somebody reads at that time, they go through the log nonetheless.
        """
        if not self._had_some:
            yield
            return
        self._free()
        with self._connection.cursor() as apart:
            apart.execute("set checkpoint_threshold = '1 B'")
            apart.execute("set auto_checkpoint_skip_wal_threshold = 0")
            try:
                yield
            finally:
                apart.execute(f"set checkpoint_threshold = '{CHECKPOINT_THRESHOLD}'")
                apart.execute("reset auto_checkpoint_skip_wal_threshold")
        self._free()

    def _free(self) -> None:
        give_back_freed()
        self._let_go()
