"""Keeps DuckDB's memory from growing with the file, of which it caches what it reads or writes."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

_log = logging.getLogger(__name__)

#: Blocks freed at once, so that queries which begin meanwhile wait for some 100 ms at most.
_MOST_BYTES = 256 * 2**20
#: What is left over: DuckDB needs a little memory for the statements that free the rest.
_LEFT_BYTES = 2 * 2**20
#: Once so much was written into the file, it is worth opening again.
_MUCH_BYTES = 8 * 2**20
_USED = """
select coalesce(sum(memory_usage_bytes), 0)::bigint,
    coalesce(sum(memory_usage_bytes) filter (tag = 'BASE_TABLE'), 0)::bigint
from duckdb_memory()
"""


class BlockCache:
    """The blocks of one file that DuckDB holds in memory; freed after each checkpoint.

    DuckDB frees them only when it reaches `memory_limit`, and to lower that for a moment is the
    one way to ask for it. The operating system still caches the file.

    Args:
        path: The file.
        limit_bytes: The limit to set again; None: DuckDB's own default.
    """

    def __init__(self, path: str, limit_bytes: int | None) -> None:
        self._file, self._log_file = Path(path), Path(f"{path}.wal")
        self._restore = (
            "reset memory_limit" if limit_bytes is None else f"set memory_limit = '{limit_bytes} B'"
        )
        self._lock = threading.Lock()
        self._users = 0
        self._is_due = False
        self.note_opened()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep everything cached while a block runs in which DuckDB may need memory."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1

    @property
    def decodes_slowly(self) -> bool:
        """Whether much was written into the file since it was opened.

        To give one text of what this process has compressed, DuckDB decodes all texts beside it,
        until the file is opened again.
        """
        return self._written_bytes >= _MUCH_BYTES

    def note_opened(self) -> None:
        """Note that the file was just opened."""
        self._written_bytes = 0
        self._logged_bytes, self._file_bytes = _size(self._log_file), _size(self._file)

    def note_commit(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Free the cached blocks if a checkpoint came with a commit and nothing is running."""
        logged, size = _size(self._log_file), _size(self._file)
        self._written_bytes += max(size - self._file_bytes, 0)
        if logged < self._logged_bytes:
            self._is_due = True
            self._written_bytes += self._logged_bytes
        self._logged_bytes, self._file_bytes = logged, size
        if not self._is_due:
            return
        with self._lock:
            if self._users == 0:
                self._is_due = self._free(connection)

    def free_read(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Free what a transaction has read so far, if nothing else is running."""
        with self._lock:
            if self._users == 0:
                # Apart: what DuckDB refuses here would end the transaction.
                with connection.cursor() as apart:
                    self._free(apart)

    def _free(self, connection: duckdb.DuckDBPyConnection) -> bool:
        """Free blocks; return whether there are more."""
        used, cached = connection.execute(_USED).fetchall()[0]
        freed = min(cached - _LEFT_BYTES, _MOST_BYTES)
        if freed <= 0:
            return False
        try:
            connection.execute(f"set memory_limit = '{used - freed} B'")
        except duckdb.OutOfMemoryException:
            # What can be freed has been; the limit is as it was.
            _log.debug("some cached blocks are in use")
        finally:
            connection.execute(self._restore)
        return bool(cached - freed > _LEFT_BYTES)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
