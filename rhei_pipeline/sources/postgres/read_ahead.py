"""Reads a large table's rows ahead, by several connections in one snapshot."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from queue import SimpleQueue

from rhei_pipeline.errors import SourceFullError
from rhei_pipeline.model.changes import RowBatch
from rhei_pipeline.model.portions import PORTION_BYTES
from rhei_pipeline.sources.postgres.catalog import Connection
from rhei_pipeline.sources.postgres.rows import PostgresRowReader

#: Connections beside the one that looks for the ranges' ends.
READERS = 2


class ReadAhead:
    """Reads ranges of keys in parallel, and returns them in order.

    The ends of the ranges are found beforehand, so that all but the last have as many rows, however
    keys are spread. A range with more bytes than a portion is several batches, and the ranges
    behind it have fewer rows. No more than one batch a reader waits to be taken.

    Args:
        reader: Reads the table in the snapshot.
        share: Opens one more connection in the same snapshot; it is closed here.
        resume: The key after which to begin.
        limit: Rows of one batch.

    Raises:
        SourceFullError: The server has no connection free.
    """

    def __init__(
        self,
        reader: PostgresRowReader,
        share: Callable[[], Connection],
        resume: str | None,
        limit: int,
    ) -> None:
        self._reader = reader
        self._limit = self._rows = limit
        self._given = self._planned = resume
        self._is_planned = self._is_over = False
        self._connections = _shared(share)
        self._idle: SimpleQueue[Connection] = SimpleQueue()
        for connection in self._connections:
            self._idle.put(connection)
        self._threads = ThreadPoolExecutor(len(self._connections), "rhei-copy")
        self._ranges: deque[tuple[Future[RowBatch | None], str | None]] = deque()

    def leads_on(self, table: str, resume: str | None, limit: int) -> bool:
        """Return whether the next batch is the one that follows a key."""
        here = (self._reader.schema.name, self._given, self._limit)
        return not self._is_over and here == (table, resume, limit)

    def next(self) -> RowBatch | None:
        """Return the next batch; None when there are no more rows."""
        while len(self._ranges) <= READERS and not self._is_planned:
            self._plan()
        while self._ranges:
            read, end = self._ranges.popleft()
            batch = read.result()
            if batch is not None:
                if batch.resume != end:
                    self._ranges.appendleft((self._begun(batch.resume, end), end))
                self._given = batch.resume
                bytes_of_row = batch.rows.nbytes / max(batch.rows.num_rows, 1)
                self._rows = min(self._limit, int(PORTION_BYTES / max(bytes_of_row, 1)) or 1)
                return batch
        self._is_over = True
        return None

    def close(self) -> None:
        """Stop reading; safe to repeat."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for connection in self._connections:
            connection.close()

    def _plan(self) -> None:
        """Start reading the next range."""
        end = self._reader.end_of(self._planned, self._rows)
        self._ranges.append((self._begun(self._planned, end), end))
        self._planned, self._is_planned = end, end is None

    def _begun(self, begin: str | None, end: str | None) -> Future[RowBatch | None]:
        return self._threads.submit(self._read, begin, end)

    def _read(self, begin: str | None, end: str | None) -> RowBatch | None:
        connection = self._idle.get()
        try:
            reader = replace(self._reader, connection=connection)
            return reader.rows(begin, self._limit, end)
        finally:
            self._idle.put(connection)


def _shared(share: Callable[[], Connection]) -> list[Connection]:
    """Open the connections; fewer where the server has no more free.

    Raises:
        SourceFullError: It has not even one.
    """
    opened: list[Connection] = []
    with ExitStack() as held:
        for _ in range(READERS):
            try:
                opened.append(held.enter_context(closing(share())))
            except SourceFullError:
                if not opened:
                    raise
                break
        held.pop_all()
    return opened
