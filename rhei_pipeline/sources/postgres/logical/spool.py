"""The messages of one read of the log, kept in memory or in a temporary file."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from rhei_pipeline.errors import SourceError
from rhei_pipeline.model.large_rows import give_back_freed
from rhei_pipeline.sources.postgres.logical import pgoutput
from rhei_pipeline.sources.postgres.logical.moment import LogPortion, Visible
from rhei_pipeline.sources.postgres.logical.position import NO_COMMIT, TableCommit

#: Messages beyond so many bytes wait in a temporary file instead of in memory.
SPOOL_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Chunk:
    """Where messages stand among all that were read."""

    start: int
    length: int


class Spool:
    """The messages of one read of the log, in memory or in a temporary file."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115
        self._parts: dict[int, list[tuple[Chunk, pgoutput.Run]]] = {}
        #: Of the pieces behind the messages that are whole.
        self._lengths: list[np.ndarray] = []
        self._end = self._indexed = 0

    @property
    def is_empty(self) -> bool:
        """Whether no message contains a change."""
        return not self._parts

    def of(self, relation: int | None) -> Sequence[tuple[Chunk, pgoutput.Run]]:
        """Return the locations of one table's changes."""
        return self._parts.get(relation, ()) if relation is not None else ()

    def first_unseen(self, visible: Visible) -> int | None:
        """Return where the first transaction committed that is not visible; None where all are."""
        runs = (run for found in self._parts.values() for _, run in found)
        unseen = [run.lsn[~visible.sees(run.xid)] for run in runs]
        return min((int(found.min()) for found in unseen if len(found)), default=None)

    def last_commit(self, relation: int | None, begin: int, end: int) -> TableCommit:
        """Return the last commit that changed a table, of those from one place to another."""
        last = NO_COMMIT
        for _, run in self.of(relation):
            (within,) = np.nonzero((run.lsn >= begin) & (run.lsn < end))
            if len(within) and run.lsn[within[-1]] > last.lsn:
                last = TableCommit(int(run.lsn[within[-1]]), int(run.xid[within[-1]]))
        return last

    def add(self, part: LogPortion, first: int, context: pgoutput.DecodingContext) -> int:
        """Take messages over, and return how many are whole by now."""
        pieces = np.fromiter(map(len, part.messages), np.int64, len(part.messages))
        self._lengths.append(pieces)
        buffer = b"".join(part.messages)
        part.messages.clear()
        self._append(buffer)
        if (pieces[-1:] == part.piece_bytes).any():
            return 0
        chunk = Chunk(self._indexed, self._end - self._indexed)
        if chunk.length > len(buffer):
            del buffer  # else it were held beside what is read
            give_back_freed()
            buffer = self.read(chunk)
        lengths = _whole(np.concatenate(self._lengths), part.piece_bytes)
        self._lengths.clear()
        self._indexed = self._end
        for run in pgoutput.index(buffer, lengths, first, context):
            self._parts.setdefault(run.relation.oid, []).append((chunk, run))
        return len(lengths)

    def _append(self, buffer: bytes) -> None:
        with _translated():
            self._file.seek(self._end)
            if self._end + len(buffer) > SPOOL_BYTES:
                self._file.rollover()  # by itself it would only do so once they are in memory
            self._file.write(buffer)
            self._file.flush()  # what is not on the disk yet fails here, and not when it is read
        self._end += len(buffer)

    def read(self, chunk: Chunk) -> bytes:
        """Return the messages of a chunk."""
        with _translated():
            self._file.seek(chunk.start)
            return self._file.read(chunk.length)

    def close(self) -> None:
        """Delete them."""
        with suppress(OSError):  # what could not be written is not wanted any more
            self._file.close()


@contextmanager
def _translated() -> Iterator[None]:
    """Name the temporary file in the errors of the system."""
    try:
        yield
    except OSError as error:
        raise SourceError(
            f"the log's messages cannot be kept in a temporary file: {error.strerror}",
            hint="make room in the system's temporary directory, or have TMPDIR name another, then"
            " sync",
        ) from error


def _whole(lengths: np.ndarray, piece_bytes: int) -> np.ndarray:
    """Return the lengths of messages from those of their pieces."""
    is_cut = lengths == piece_bytes
    if not is_cut.any():
        return lengths
    return np.add.reduceat(lengths, np.flatnonzero(np.concatenate([[True], ~is_cut[:-1]])))
