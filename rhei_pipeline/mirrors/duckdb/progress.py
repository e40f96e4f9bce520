"""Progress within one transaction of a DuckDB mirror: read at its start, written at its end.

However many tables make progress, the ledger is read once and written by one statement.
"""

from types import MappingProxyType

import duckdb

from rhei_pipeline.errors import MirrorError
from rhei_pipeline.mirrors.duckdb.housekeeping import (
    forget_copies,
    read_ledger,
    write_copy,
    write_watermarks,
)
from rhei_pipeline.model.progress import CopyProgress, Ledger, Watermark


class ProgressRecords:
    """The recorded progress, as one transaction sees it.

    Args:
        connection: In that transaction.
        begun_with: What was recorded when it began; None if it must be read.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, begun_with: Ledger | None = None
    ) -> None:
        self._connection = connection
        self._ledger: Ledger | None = None
        self._marks: dict[str, Watermark] = {}
        self._copies: dict[str, CopyProgress] = {}
        self._unwritten: dict[str, Watermark] = {}
        self._ended: set[str] = set()
        self._is_known = False
        if begun_with is not None:
            self._take(begun_with)

    def ledger(self) -> Ledger:
        """Return all of it, as one state."""
        self._read()
        if self._ledger is None:
            self._ledger = Ledger(
                MappingProxyType(dict(self._marks)), MappingProxyType(dict(self._copies))
            )
        return self._ledger

    def move(self, mark: Watermark) -> None:
        """Replace the table's watermark; a lower one is refused."""
        self._read()
        earlier = self._marks.get(mark.table)
        if earlier is not None and earlier.position.order > mark.position.order:
            raise MirrorError(
                f"its watermark would go back from {earlier.position.order}"
                f" to {mark.position.order}",
                table=mark.table,
                hint="another sync has committed since; run this one again",
            )
        self._marks[mark.table] = self._unwritten[mark.table] = mark
        self._ledger = None

    def note_copy(self, progress: CopyProgress) -> None:
        """Replace the progress of the table's copy."""
        self._read()
        self._forget_ended()
        write_copy(self._connection, progress, is_new=progress.table not in self._copies)
        self._copies[progress.table] = progress
        self._ledger = None

    def forget_copy(self, table: str) -> None:
        """Delete the record of a running copy, with the others before the commit."""
        self._read()
        if self._copies.pop(table, None) is not None:
            self._ended.add(table)
        self._ledger = None

    def _read(self) -> None:
        if not self._is_known:
            self._take(read_ledger(self._connection))

    def _take(self, ledger: Ledger) -> None:
        self._ledger, self._is_known = ledger, True
        self._marks, self._copies = dict(ledger.watermarks), dict(ledger.copies)

    def write(self) -> None:
        """Write the changed progress; it commits with the rows."""
        self._forget_ended()
        if self._unwritten:
            write_watermarks(self._connection, self._unwritten.values())
            self._unwritten.clear()

    def _forget_ended(self) -> None:
        if self._ended:
            forget_copies(self._connection, self._ended)
            self._ended.clear()

    def read_anew(self) -> None:
        """Read the records again at the next access: something else is about to write them."""
        self.write()
        self._is_known, self._ledger = False, None
