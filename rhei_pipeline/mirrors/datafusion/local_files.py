"""A mirror's files in a local directory."""

import errno
import fcntl
import os
import re
import stat
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
from datafusion import SessionContext

from rhei_pipeline.errors import MirrorError
from rhei_pipeline.mirrors.datafusion.files import (
    Fill,
    Mark,
    Noted,
    Sink,
    aside,
    committed_meanwhile,
    missing,
)
from rhei_pipeline.mirrors.locking import (
    WriterLock,
    left,
    lock_of_directory,
    lockable,
    of_others,
)
from rhei_pipeline.model.durable import make_durable

#: Holds the number of the newest manifest.
_NEWEST = "newest"
_REMEMBERED = b"%012d %010d\n"
_REMEMBERED_BYTES = len(_REMEMBERED % (0, 0))
_PINS = "pins"
#: What to do where the system refuses a file.
_FIX = "fix this, then try again; committed data is not affected"
_GIVE_ACCESS = "give this user access to all that is in it, or correct mirror.path"
_PIN = re.compile(r"(\d+)-[0-9a-f]{32}")
#: Why a file cannot be made by those who may read the others.
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}
_PARTIAL = ".partial"
#: Where the writer creates files, and may have died while it did.
_CREATING = tuple(
    f"{place}/[0-9]*.json.*{_PARTIAL}" for place in ("manifests", "delta/*/*/_delta_log")
)


class LocalFiles:
    """Files in a directory.

    Args:
        path: The directory, created when it is missing.
        writing: Take the lock that makes this process the only writer.
        lock_timeout_seconds: How long to wait for it.

    Raises:
        MirrorBusyError: Another process held the lock all that time.
        MirrorError: The directory cannot be used, or a file in it is in the way.
    """

    remote: ClassVar[bool] = False
    storage_options: ClassVar[dict[str, str]] = {}

    def __init__(
        self, path: Path, *, writing: bool = True, lock_timeout_seconds: float = 30.0
    ) -> None:
        self.root = str(path.resolve())
        self.url = path.resolve().as_uri()
        self._path = path
        #: What a path begins with: to join the parts of one takes ten times as long.
        self._lead = f"{path}/"
        self._touched: set[Path] = set()
        self._unsynced: set[Path] = set()
        self._lock: WriterLock | None = None
        with self._translated():
            if writing:
                path.mkdir(parents=True, exist_ok=True)
                _refuse_of_others(path / _NEWEST)
                self._lock = WriterLock(lock_of_directory(path), str(path), lock_timeout_seconds)
                for left in (left for place in _CREATING for left in path.glob(place)):
                    left.unlink(missing_ok=True)

    def put(self, name: str, content: pa.Buffer, noted: Noted = bool) -> None:
        """Write a file; `flush` brings it to the disk."""

        def fill(sink: Sink) -> None:
            sink.write(content)

        self.write(name, fill, noted)

    def write(self, name: str, fill: Fill, noted: Noted = bool) -> None:
        """Write a file piece by piece; `flush` brings it to the disk."""
        file = self._path / name
        with self._translated():
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb", buffering=0) as opened:
                fill(OpenedFile(opened.fileno(), file))
                mark = _mark(os.fstat(opened.fileno()))
        self._unsynced.add(file)
        self._touched.add(file.parent)
        noted(mark)

    def each(self, names: Iterable[str], do: Callable[[str], object]) -> None:
        """Do something with one file after the other."""
        for name in names:
            do(name)

    def mark(self, name: str) -> Mark | None:
        """Return the file's inode, modification time and size."""
        with self._translated():
            try:
                return _mark(os.stat(self._lead + name))  # noqa: PTH116  (asked of every file)
            except FileNotFoundError:
                return None

    def set_aside(self, names: Iterable[str]) -> None:
        """Rename files into a folder for them."""
        with self._translated():
            for name in names:
                target = self._path / aside(name)
                target.parent.mkdir(exist_ok=True)
                with suppress(FileNotFoundError):
                    (self._path / name).rename(target)
                self._unsynced.discard(self._path / name)

    def refuse_left(self) -> None:
        """Refuse to go on where the directory, or the lock in it, is not the one that was opened.

        Raises:
            MirrorError: Says so.
        """
        if self._lock is not None and self._lock.place.is_left:
            raise left(self.root)

    def remember(self, version: int) -> None:
        """Write it into a small file, without waiting for the disk."""
        with suppress(OSError):
            descriptor = os.open(self._path / _NEWEST, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(descriptor, _REMEMBERED % (version, _proof(version)), 0)
            finally:
                os.close(descriptor)

    def remembered(self) -> int:
        """Read that file."""
        try:
            found = (self._path / _NEWEST).read_bytes().split()
            version, proof = int(found[0]), int(found[1])
        except (OSError, ValueError, IndexError):
            return 0
        return version if proof == _proof(version) else 0

    def link(self, name: str, standing: str) -> None:
        """Create a hard link; it needs no space."""
        file = self._path / name
        with self._translated():
            file.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                file.hardlink_to(self._path / standing)
        self._touched.add(file.parent)

    def flush(self, _folder: str = "") -> None:
        """Sync all written files and their folders to the disk."""
        with self._translated():
            for path in [*self._unsynced, *self._touched]:
                make_durable(path)
        self._unsynced.clear()
        self._touched.clear()

    def harden(self, folder: str) -> None:
        """Sync a folder and its files to the disk."""
        with self._translated():
            for path in [*(self._path / folder).glob("*"), self._path / folder]:
                make_durable(path)

    def create(self, name: str, content: bytes) -> None:
        """Write a temporary file, sync it, then link it: the name appears with its full content."""
        file = self._path / name
        # Of its own: whoever creates the same name at the same time writes another one.
        partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}{_PARTIAL}")
        with self._translated():
            file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            make_durable(partial)
            try:
                os.link(partial, file)
            except FileExistsError:
                raise committed_meanwhile(self.root) from None
            finally:
                partial.unlink(missing_ok=True)
            make_durable(file.parent)

    def get(self, name: str, *, fresh: bool = False) -> pa.Buffer:
        """Map a file into memory."""
        del fresh  # no copy is kept
        with self._translated():
            if not (self._path / name).stat().st_size:
                return pa.py_buffer(b"")
            with pa.memory_map(str(self._path / name)) as mapped:
                return mapped.read_buffer()

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""
        with self._translated():
            return (self._path / name).stat().st_size

    def names(self, folder: str) -> dict[str, int]:
        """Return the names of a folder's files, and their sizes in bytes."""
        found = {}
        with self._translated():
            for entry in (self._path / folder).glob("*"):
                try:
                    standing = entry.stat()
                except FileNotFoundError:
                    continue  # the writer collected it while we looked
                if stat.S_ISREG(standing.st_mode):
                    found[f"{folder}/{entry.name}"] = standing.st_size
        return found

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; those that are mapped or open stay readable until they are released."""
        with self._translated():
            for name in names:
                # Others may name directories in a Delta table's log: those are no files of ours.
                with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
                    (self._path / name).unlink()
                self._unsynced.discard(self._path / name)

    @contextmanager
    def pin(self, version: int) -> Iterator[bool]:
        """Keep a version's files during the block, even if the process is killed.

        Who may only read the mirror cannot.
        """
        pin = self._path / _PINS / f"{version}-{uuid.uuid4().hex}"
        with self._translated():
            try:
                pin.parent.mkdir(exist_ok=True)
                opened = lockable(pin)
            except OSError as error:
                if error.errno not in _UNWRITABLE:
                    raise
                opened = None
        if opened is None:
            yield False
            return
        fcntl.flock(opened, fcntl.LOCK_SH)
        try:
            yield True
        finally:
            pin.unlink(missing_ok=True)
            opened.close()

    def abandoned(self, folder: str) -> set[str]:
        """Return all files of a folder: the caller holds the lock."""
        return set(self.names(folder))

    def register(self, context: SessionContext) -> None:
        """Do nothing: a session reads paths directly."""

    def pinned(self) -> set[int]:
        """Return the versions that live readers hold, and delete the pins of dead ones."""
        found = set()
        for pin in (self._path / _PINS).glob("*"):
            named = _PIN.fullmatch(pin.name)
            if named is None:
                continue  # it is somebody else's
            if _is_held(pin):
                found.add(int(named[1]))
            else:
                pin.unlink(missing_ok=True)
        return found

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            name = os.path.relpath(str(error.filename), self.root)
            # Where it is the directory itself, it could not be made.
            if isinstance(error, FileNotFoundError) and name != os.curdir:
                raise missing(self.root, name) from error
            # Of an open file that could not be written, the system does not say which it is.
            is_inside = error.filename is not None and not name.startswith(os.curdir)
            which = f"its file {name!r}: " if is_inside else ""
            raise MirrorError(
                f"mirror {self.root!r} cannot be used: {which}{error.strerror or error}",
                hint=_GIVE_ACCESS if isinstance(error, PermissionError) else _FIX,
            ) from error


def _mark(found: os.stat_result) -> Mark:
    return Mark(found.st_size, f"{found.st_ino}-{found.st_mtime_ns}")


def _refuse_of_others(file: Path) -> None:
    """Refuse a file that is not the one with the number of the newest manifest.

    Raises:
        MirrorError: Says so.
    """
    with suppress(FileNotFoundError):
        # What is cut off is its beginning; what has its length may have been damaged.
        if file.stat().st_size != _REMEMBERED_BYTES and file.read_bytes().strip(b"0123456789 "):
            raise of_others(file)


def _proof(version: int) -> int:
    return zlib.crc32(str(version).encode())


def _is_held(pin: Path) -> bool:
    try:
        descriptor = os.open(pin, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A `Sink`: a file that is open for writing."""

    descriptor: int
    path: Path

    def write(self, piece: pa.Buffer | bytes, /) -> int:
        """Write all of a piece."""
        left = memoryview(piece).cast("B")
        while left:
            left = left[os.write(self.descriptor, left) :]
        return len(piece)
