"""Where a mirror's files rest: in memory, or in a directory of one file system."""

import fcntl
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import ClassVar, Protocol

import pyarrow as pa
from datafusion import SessionContext

from rhei_pipeline.errors import MirrorBusyError, MirrorError
from rhei_pipeline.olap.locking import WriterLock

_LOCK = "lock"
_PINS = "pins"
_PARTIAL = ".partial"


class Files(Protocol):
    """Files that are written once, whole, and then read or deleted. Folders are parted by `/`."""

    @property
    def root(self) -> str | None:
        """The path that a file's name is added to; None where files have none."""

    @property
    def storage_options(self) -> dict[str, str]:
        """How others reach the files: options by the names that object stores' clients know."""

    def put(self, name: str, content: pa.Buffer) -> None:
        """Write a file; it counts once `settle` has returned."""

    def link(self, name: str, standing: str) -> None:
        """Give a file a second name; it counts once `settle` has returned."""

    def settle(self) -> None:
        """Return once all files written are there to stay."""

    def harden(self, folder: str) -> None:
        """Return once what others wrote into a folder is there to stay."""

    def create(self, name: str, content: bytes) -> None:
        """Write a file at once and for good, unless it exists.

        Raises:
            MirrorBusyError: It exists: somebody else wrote it.
        """

    def get(self, name: str) -> pa.Buffer:
        """Return a file's content.

        Raises:
            MirrorError: It is not there, or cannot be read.
        """

    def size(self, name: str) -> int:
        """Return a file's bytes."""

    def names(self, folder: str) -> dict[str, int]:
        """Return the names of a folder's files, and their bytes."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; those that are gone already do not matter."""

    def abandoned(self, folder: str) -> set[str]:
        """Return a folder's files, except those that a commit under way may be about to name."""

    def register(self, context: SessionContext) -> None:
        """Let a session read files where they are."""

    def pin(self, version: int) -> AbstractContextManager[None]:
        """Hold a version's files for the length of the block, however the process may end."""

    def pinned(self) -> set[int]:
        """Return the versions that readers in other processes hold."""

    def close(self) -> None:
        """Let others write; safe to repeat."""


class MemoryFiles:
    """Files that end with the process."""

    root = None
    storage_options: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        self._content: dict[str, pa.Buffer] = {}

    def put(self, name: str, content: pa.Buffer) -> None:
        """Keep a file."""
        self._content[name] = content

    def link(self, name: str, standing: str) -> None:
        """Give a file a second name."""
        self._content[name] = self._content[standing]

    def settle(self) -> None:
        """Nothing of it stays anyway."""

    def harden(self, folder: str) -> None:
        """Nobody else writes here."""

    def create(self, name: str, content: bytes) -> None:
        """Keep a file; nobody else writes here."""
        self._content[name] = pa.py_buffer(content)

    def get(self, name: str) -> pa.Buffer:
        """Return a file's content."""
        return self._content[name]

    def size(self, name: str) -> int:
        """Return a file's bytes."""
        return int(self._content[name].size)

    def names(self, folder: str) -> dict[str, int]:
        """Return the names of a folder's files, and their bytes."""
        lead = f"{folder}/"
        found = list(self._content.items())
        return {name: kept.size for name, kept in found if name.startswith(lead)}

    def delete(self, names: Iterable[str]) -> None:
        """Forget files."""
        for name in names:
            self._content.pop(name, None)

    def abandoned(self, folder: str) -> set[str]:
        """Return all files of a folder: nobody else writes here."""
        return set(self.names(folder))

    def register(self, context: SessionContext) -> None:
        """Do nothing: a session is given the rows themselves."""

    def pin(self, version: int) -> AbstractContextManager[None]:  # noqa: ARG002
        """Do nothing: nobody else deletes here."""
        return nullcontext()

    def pinned(self) -> set[int]:
        """Nobody else reads here."""
        return set()

    def close(self) -> None:
        """Forget everything."""
        self._content.clear()


class LocalFiles:
    """Files in a directory.

    Args:
        path: The directory, created when it is missing.
        writing: Hold the lock that makes this process the one writer.
        lock_timeout_seconds: How long to wait for it.

    Raises:
        MirrorBusyError: Another process held the lock all that time, or this one holds it.
        MirrorError: The directory cannot be used.
    """

    storage_options: ClassVar[dict[str, str]] = {}

    def __init__(
        self, path: Path, *, writing: bool = True, lock_timeout_seconds: float = 30.0
    ) -> None:
        self.root = str(path.resolve())
        self._path = path
        self._touched: set[Path] = set()
        self._unsynced: set[Path] = set()
        self._lock: WriterLock | None = None
        with self._translated():
            if writing:
                path.mkdir(parents=True, exist_ok=True)
                self._lock = WriterLock(path / _LOCK, str(path), lock_timeout_seconds)

    def put(self, name: str, content: pa.Buffer) -> None:
        """Write a file; `settle` brings it to the disk."""
        file = self._path / name
        with self._translated():
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb", buffering=0) as opened:
                _write_all(opened.fileno(), memoryview(content))
        self._unsynced.add(file)
        self._touched.add(file.parent)

    def link(self, name: str, standing: str) -> None:
        """Give a file a second name; it takes no room."""
        file = self._path / name
        with self._translated():
            file.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                file.hardlink_to(self._path / standing)
        self._touched.add(file.parent)

    def settle(self) -> None:
        """Bring all files and the folders that name them to the disk."""
        with self._translated():
            for path in [*self._unsynced, *self._touched]:
                _sync(path)
        self._unsynced.clear()
        self._touched.clear()

    def harden(self, folder: str) -> None:
        """Bring a folder and its files to the disk."""
        with self._translated():
            for path in [*(self._path / folder).glob("*"), self._path / folder]:
                _sync(path)

    def create(self, name: str, content: bytes) -> None:
        """Write beside, bring to the disk, then link: a name appears with its whole content."""
        file = self._path / name
        partial = file.with_name(file.name + _PARTIAL)
        with self._translated():
            file.parent.mkdir(exist_ok=True)
            partial.write_bytes(content)
            _sync(partial)
            try:
                os.link(partial, file)
            except FileExistsError:
                raise committed_meanwhile(self.root) from None
            finally:
                partial.unlink()
            _sync(file.parent)

    def get(self, name: str) -> pa.Buffer:
        """Map a file into memory."""
        with self._translated(), pa.memory_map(str(self._path / name)) as mapped:
            return mapped.read_buffer()

    def size(self, name: str) -> int:
        """Return a file's bytes."""
        with self._translated():
            return (self._path / name).stat().st_size

    def names(self, folder: str) -> dict[str, int]:
        """Return the names of a folder's files, and their bytes."""
        found = {}
        with self._translated():
            for entry in (self._path / folder).glob("*"):
                try:
                    found[f"{folder}/{entry.name}"] = entry.stat().st_size
                except FileNotFoundError:
                    continue  # the writer collected it while we looked
        return found

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; what is mapped or open stays readable until it is let go."""
        with self._translated():
            for name in names:
                (self._path / name).unlink(missing_ok=True)
                self._unsynced.discard(self._path / name)

    @contextmanager
    def pin(self, version: int) -> Iterator[None]:
        """Hold a version's files for the length of the block, however the process may end."""
        pin = self._path / _PINS / f"{version}-{uuid.uuid4().hex}"
        with self._translated():
            pin.parent.mkdir(exist_ok=True)
            descriptor = os.open(pin, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        try:
            yield
        finally:
            pin.unlink(missing_ok=True)
            os.close(descriptor)

    def abandoned(self, folder: str) -> set[str]:
        """Return all files of a folder: who asks holds the lock."""
        return set(self.names(folder))

    def register(self, context: SessionContext) -> None:
        """Do nothing: a session reads paths as they are."""

    def pinned(self) -> set[int]:
        """Return the versions that living readers hold; what dead ones left is swept away."""
        found = set()
        for pin in (self._path / _PINS).glob("*"):
            if _is_held(pin):
                found.add(int(pin.name.partition("-")[0]))
            else:
                pin.unlink(missing_ok=True)
        return found

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            self._lock.release()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise MirrorError(
                f"mirror {self.root!r} lacks a file", hint="restore its files, or copy it anew"
            ) from error
        except OSError as error:
            raise MirrorError(
                f"mirror {self.root!r} cannot be used: {error.strerror or error}",
                hint="mend this, then try again; what was committed is not touched",
            ) from error


def committed_meanwhile(root: str) -> MirrorBusyError:
    """Say that somebody else committed since this process looked."""
    return MirrorBusyError(
        f"mirror {root!r} was written by another process meanwhile",
        hint="one process writes a mirror at a time: end the other one, and sync again",
    )


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


def _write_all(descriptor: int, content: memoryview) -> None:
    content = content.cast("B")
    while content:
        content = content[os.write(descriptor, content) :]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
