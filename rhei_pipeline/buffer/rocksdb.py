"""One RocksDB directory: open it exclusively, read it, write it, and translate its errors."""

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rhei_pipeline.buffer.confirmation import shut
from rhei_pipeline.errors import (
    BufferBusyError,
    BufferDamagedError,
    BufferFullError,
    RheiError,
    TransientError,
    needs_extra,
)
from rhei_pipeline.model.held_place import OPENED_AGAIN, HeldPlace

_log = logging.getLogger(__name__)
#: What a full disk, a full quota and a file that may not grow are called.
_FULL = ("No space left", "Disk quota exceeded", "File too large")
#: What a disk that fails is called, and RocksDB's refusal of all that follows.
_FAILED = ("Input/output error", "Read-only file system", "Writer has previous error")

#: The file that stands in a buffer before any other does.
FIRST = "rocksdict-config.json"
#: What RocksDB takes for its own, and deletes where it has no use for it.
_OWN_NAME = re.compile(
    r"\d+\.(log|sst|ldb|blob|dbtmp)|(MANIFEST|OPTIONS)-\d+.*|CURRENT|IDENTITY|LOCK|LOG(\.old.*)?",
    re.IGNORECASE,
)


class RocksDirectory:
    """A RocksDB database: keys and values as bytes, ordered by key.

    Attributes:
        is_given_up: A write has failed: RocksDB may refuse all others until it is opened again.

    Raises:
        MissingExtraError: RocksDB's package is not installed.
        BufferBusyError: Another process holds the directory.
        BufferDamagedError: Its files are damaged, or are not RocksDB's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_given_up = False
        self._rocks = _package()
        self._database: Any = None
        with self._translated():
            self._database = self._open()

    @property
    def is_open(self) -> bool:
        """Whether it has not been closed yet."""
        return self._database is not None

    def reopen(self) -> None:
        """Close it, and open it again: what a failed write left is there, or is not."""
        self.close()
        with self._translated():
            self._database = self._open()
        self.is_given_up = False

    def close(self) -> None:
        """Close it, so that another process can open it; safe to repeat."""
        database, self._database = self._database, None
        if database is None:
            return
        try:
            database.close()
        except Exception as error:  # noqa: BLE001  (RocksDB's errors have no class of their own)
            # What was promised is on the disk already; an error before this one said what failed.
            _log.warning("buffer %r: closing failed: %s", str(self.path), error)

    def get(self, key: bytes) -> bytes | None:
        """Return a key's value."""
        with self._translated():
            value: bytes | None = self._opened().get(key)
            return value

    def scan(
        self, first: bytes, prefix: bytes, limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        """Return entries from a key on, as long as their keys begin with a prefix."""
        found: list[tuple[bytes, bytes]] = []
        # An iterator that lives on would keep the directory locked: it ends with this call.
        with self._translated():
            for key, value in self._opened().items(from_key=first):
                if not key.startswith(prefix) or len(found) == limit:
                    break
                found.append((key, value))
        return found

    def batch(self) -> Any:  # noqa: ANN401  (the package is not there at import)
        """Return an empty write batch: `put`, `delete`, `delete_range`, `size_in_bytes`."""
        self._opened()
        return self._rocks.WriteBatch(raw_mode=True)

    def write(self, batch: Any, *, sync: bool) -> None:  # noqa: ANN401
        """Write a batch atomically.

        With `sync` it is on the disk before this returns, and so are all writes before it.
        """
        options = self._rocks.WriteOptions()
        options.sync = sync
        with self._writing() as database:
            database.write(batch, options)

    def delete_range(self, first: bytes, end: bytes) -> None:
        """Delete the keys from `first` to before `end`."""
        with self._writing() as database:
            database.delete_range(first, end)

    def compact(self) -> None:
        """Free the disk space of what was deleted."""
        with self._writing() as database:
            database.compact_range(None, None)

    def erase(self) -> None:
        """Write again all files that hold what was deleted, and delete the logs of writes."""
        with self._writing() as database:
            database.flush()
        self.compact()

    def damaged(self, reason: str) -> BufferDamagedError:
        """Return the error for a directory that cannot be read."""
        return BufferDamagedError(
            f"buffer {str(self.path)!r} cannot be read: {reason}",
            hint="restore it, or move it away: its tables are then copied again",
        )

    def foreign(self) -> BufferDamagedError:
        """Return the error for a directory of others, whose files RocksDB may delete."""
        return BufferDamagedError(
            f"directory {str(self.path)!r} holds something else than a log of changes",
            hint="choose a directory that is empty, or not there yet",
        )

    def _refuse_others(self, names: Collection[str]) -> None:
        """Refuse a directory that RocksDB would spoil; opened with keys of ours, it does.

        Raises:
            BufferDamagedError: It would.
        """
        if FIRST in names:
            if '"raw_mode":false' in (self.path / FIRST).read_text("utf-8", "replace"):
                raise self.foreign()
        elif any(map(_OWN_NAME.fullmatch, names)):
            raise BufferDamagedError(
                f"directory {str(self.path)!r} holds files of RocksDB's, but no file {FIRST!r}",
                hint="if it is of others, choose a directory that is empty, or not there yet; if it"
                " was this buffer, restore it, or move it away: its tables are then copied again",
            )

    def _opened(self) -> Any:  # noqa: ANN401
        if self._database is None:
            raise BufferBusyError(f"buffer {str(self.path)!r} is closed", hint="open it again")
        if self._place.is_left:
            raise BufferDamagedError(
                f"buffer {str(self.path)!r} was deleted or replaced while this process had it open",
                hint=OPENED_AGAIN,
            )
        return self._database

    def _refuse_unusable(self) -> None:
        """Refuse what RocksDB would spoil, or begin again over what is there.

        Raises:
            BufferDamagedError: It would.
        """
        if self.path.exists() and not self.path.is_dir():
            raise self.damaged("it is a file, not a directory")
        names = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        self._refuse_others(names)
        if "CURRENT" not in names and any(name.startswith("MANIFEST-") for name in names):
            raise self.damaged("its file CURRENT is missing")

    def _open(self) -> Any:  # noqa: ANN401
        self._refuse_unusable()
        # It holds rows, and nobody but this user has anything to read in it.
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        rocks = self._rocks
        options = rocks.Options(raw_mode=True)
        options.create_if_missing(create_if_missing=True)
        options.set_paranoid_checks(enabled=True)
        # A write cut off at the end was never promised; damage anywhere else is an error.
        options.set_wal_recovery_mode(rocks.DBRecoveryMode.tolerate_corrupted_tail_records())
        options.set_compression_type(rocks.DBCompressionType.none())  # batches come compressed
        options.set_keep_log_file_num(4)
        self._place = HeldPlace(self.path)
        return rocks.Rdict(str(self.path), options)

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """Yield the database; where the block fails, it is given up."""
        with self._translated():
            database, self.is_given_up = self._opened(), True
            yield database
            self.is_given_up = False

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Translate RocksDB's errors, which have no class of their own, into ours."""
        try:
            yield
        except RheiError:
            raise
        except Exception as error:
            raise self._translate(str(error)) from error

    def _translate(self, text: str) -> RheiError:
        path = str(self.path)
        if "lock hold by" in text or "While lock file" in text:
            return BufferBusyError(
                f"buffer {path!r} is held by another process",
                hint="only one process can open a buffer: stop the other one first",
            )
        if any(reason in text for reason in _FULL):
            return BufferFullError(
                f"the disk that holds {path!r} is full", hint="free space, then try again"
            )
        if "Permission denied" in text:
            return shut(self.path)
        first = text.splitlines()[0] if text else "RocksDB failed"
        if any(reason in text for reason in _FAILED):
            return TransientError(
                f"the disk failed under buffer {path!r}: {first}",
                hint="check the disk and its mounts; the next sync opens the buffer again",
            )
        return self.damaged(first)


def _package() -> Any:  # noqa: ANN401
    with needs_extra("rocksdb", "a buffer"):
        import rocksdict  # noqa: PLC0415  (an extra: only who buffers needs it)
    return rocksdict
