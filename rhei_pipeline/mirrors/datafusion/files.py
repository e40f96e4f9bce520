"""The interface to a mirror's files, and its implementation in memory."""

import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

import pyarrow as pa
from datafusion import SessionContext

from rhei_pipeline.errors import MirrorBusyError, MirrorDamagedError
from rhei_pipeline.mirrors.datafusion.store_answers import refusal_of, silence_of

#: How DataFusion and delta-rs say that an object store failed. Behind a quotation mark the words
#: are a row's or a statement's.
_FAILED_STORE = re.compile(
    r"^[^'\"`\n]*(Generic (S3|GCS) error|Server returned non-2xx status code: \d{3})", re.MULTILINE
)
_SET_ASIDE = "set-aside"


@dataclass(frozen=True, slots=True)
class Mark:
    """What is known of a stored file without reading it.

    Attributes:
        tag: Changes whenever the file is written again.
    """

    size: int
    tag: str


#: Is told a file's mark, once it is known.
Noted = Callable[[Mark], object]
#: Writes a file's content, piece after piece.
Fill = Callable[["Sink"], None]


class Sink(Protocol):
    """What takes a file's content."""

    @property
    def path(self) -> Path | None:
        """The file itself, if it may be written by its path instead."""

    def write(self, piece: pa.Buffer | bytes, /) -> int | None:
        """Take the next piece, whole."""


class Files(Protocol):
    """Files that are written once, and then only read or deleted. Folders are separated by `/`.

    Attributes:
        remote: Reading a file's mark is a network request, and its tag is valid beyond this
            process.
    """

    remote: ClassVar[bool]

    @property
    def root(self) -> str | None:
        """The path that file names are relative to; None where files have no path."""

    @property
    def url(self) -> str:
        """The same as a URL, by which engines read files: no sign in it is a pattern for them."""

    @property
    def storage_options(self) -> dict[str, str]:
        """Options to reach the files, by the names that object stores' clients know."""

    def put(self, name: str, content: pa.Buffer, noted: Noted = bool) -> None:
        """Write a file; it can be read from now on, and is durable once `flush` has returned.

        `noted` is told its mark, and again if its tag is known later; never where files cannot be
        damaged.
        """

    def write(self, name: str, fill: Fill, noted: Noted = bool) -> None:
        """Write a file piece by piece; as `put` does."""

    def each(self, names: Iterable[str], do: Callable[[str], object]) -> None:
        """Do something with each file, side by side where that is a request."""

    def mark(self, name: str) -> Mark | None:
        """Return the mark of a file; None if there is none."""

    def set_aside(self, names: Iterable[str]) -> None:
        """Move files out of readers' sight; missing ones are ignored."""

    def refuse_left(self) -> None:
        """Refuse to go on where others deleted or replaced what these files are in; cheap.

        Raises:
            MirrorError: Says so.
        """

    def remember(self, version: int) -> None:
        """Store the number of the newest manifest apart from the manifests; cheap, never fails."""

    def remembered(self) -> int:
        """Return the number that was stored last; 0 where none can be read."""

    def link(self, name: str, standing: str) -> None:
        """Give a file a second name; it is durable once `flush` has returned."""

    def flush(self, folder: str = "") -> None:
        """Return once all written files, or those of a folder, are durable."""

    def harden(self, folder: str) -> None:
        """Return once what others wrote into a folder is durable."""

    def create(self, name: str, content: bytes) -> None:
        """Write a file atomically and durably, unless it exists.

        Raises:
            MirrorBusyError: It exists: another process wrote it.
        """

    def get(self, name: str, *, fresh: bool = False) -> pa.Buffer:
        """Return a file's content; a fresh one is read again where a copy of it is kept.

        Raises:
            MirrorDamagedError: It is not there.
            MirrorError: It cannot be read.
        """

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""

    def names(self, folder: str) -> dict[str, int]:
        """Return the names of a folder's files, and their sizes in bytes."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; missing ones are ignored."""

    def abandoned(self, folder: str) -> set[str]:
        """Return a folder's files, except those that a running commit may be about to name."""

    def register(self, context: SessionContext) -> None:
        """Enable a DataFusion session to read the files."""

    def pin(self, version: int) -> AbstractContextManager[bool]:
        """Keep a version's files during the block, even if the process is killed.

        The block gets whether they are kept: False if a writer cannot see that they are read.
        """

    def pinned(self) -> set[int]:
        """Return the versions that readers in other processes hold."""

    def close(self) -> None:
        """Release the lock; safe to repeat."""


class MemoryFiles:
    """Files that end with the process."""

    root = None
    url = ""
    remote: ClassVar[bool] = False
    storage_options: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        self._content: dict[str, pa.Buffer] = {}

    def put(self, name: str, content: pa.Buffer, _noted: Noted = bool) -> None:
        """Store a file."""
        self._content[name] = content

    def write(self, name: str, fill: Fill, _noted: Noted = bool) -> None:
        """Keep a file."""
        self.put(name, _gathered(fill))

    def each(self, names: Iterable[str], do: Callable[[str], object]) -> None:
        """Do something with one file after the other."""
        for name in names:
            do(name)

    def mark(self, name: str) -> Mark | None:
        """Return a file's mark."""
        found = self._content.get(name)
        return None if found is None else Mark(found.size, "")

    def set_aside(self, names: Iterable[str]) -> None:
        """Delete files."""
        self.delete(names)

    def refuse_left(self) -> None:
        """Do nothing: nobody else reaches them."""

    def remember(self, version: int) -> None:
        """Do nothing: memory files do not outlive the process."""

    def remembered(self) -> int:
        """Return 0: nothing was stored."""
        return 0

    def link(self, name: str, standing: str) -> None:
        """Give a file a second name."""
        self._content[name] = self._content[standing]

    def flush(self, _folder: str = "") -> None:
        """Do nothing: memory files do not outlive the process."""

    def harden(self, folder: str) -> None:
        """Do nothing: no other process writes here."""

    def create(self, name: str, content: bytes) -> None:
        """Store a file; no other process writes here."""
        self._content[name] = pa.py_buffer(content)

    def get(self, name: str, *, fresh: bool = False) -> pa.Buffer:
        """Return a file's content."""
        del fresh  # no copy is kept
        return self._content[name]

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""
        return int(self._content[name].size)

    def names(self, folder: str) -> dict[str, int]:
        """Return the names of a folder's files, and their sizes in bytes."""
        lead = f"{folder}/"
        found = list(self._content.items())
        return {name: kept.size for name, kept in found if name.startswith(lead)}

    def delete(self, names: Iterable[str]) -> None:
        """Delete files."""
        for name in names:
            self._content.pop(name, None)

    def abandoned(self, folder: str) -> set[str]:
        """Return all files of a folder: no other process writes here."""
        return set(self.names(folder))

    def register(self, context: SessionContext) -> None:
        """Do nothing: a session is given the rows themselves."""

    def pin(self, _version: int) -> AbstractContextManager[bool]:
        """Do nothing: no other process deletes here."""
        return nullcontext(enter_result=True)

    def pinned(self) -> set[int]:
        """Return no version: no other process reads here."""
        return set()

    def close(self) -> None:
        """Delete all files."""
        self._content.clear()


@dataclass(frozen=True, slots=True)
class _InMemory:
    """A `Sink` that holds what it takes."""

    path: None = None
    held: pa.BufferOutputStream = field(default_factory=pa.BufferOutputStream)

    def write(self, piece: pa.Buffer | bytes, /) -> None:
        self.held.write(piece)


def _gathered(fill: Fill) -> pa.Buffer:
    """Return a file's content as one piece."""
    sink = _InMemory()
    fill(sink)
    return sink.held.getvalue()


def aside(name: str) -> str:
    """Return the name that a file has after it was set aside."""
    return f"{_SET_ASIDE}/{name.replace('/', '-')}"


#: What to do about a file that is no table's own.
REPAIR_ANY = "run 'rhei repair' with any table: it moves the file out of the mirror"


def missing(root: str, name: str) -> MirrorDamagedError:
    """Return the error for a file that does not exist."""
    return MirrorDamagedError(
        f"mirror {root!r} has lost its file {name!r}",
        file=name,
        hint=REPAIR_ANY,
    )


def committed_meanwhile(root: str) -> MirrorBusyError:
    """Return the error for a commit that another process has made in the meantime."""
    return MirrorBusyError(
        f"mirror {root!r} was written by another process at the same time",
        hint="only one process can write a mirror: stop the other one first",
    )


def deleted_meanwhile(root: str | None) -> MirrorBusyError:
    """Return the error for a state whose files another process has deleted while it was read."""
    return MirrorBusyError(
        f"mirror {root!r} no longer holds the state that was being read",
        hint="ask again; 'mirror.retained_manifests' says how many states are kept",
    )


def replaced_meanwhile(root: str | None) -> MirrorBusyError:
    """Return the error for files that were put back while they were read."""
    return MirrorBusyError(
        f"mirror {root!r}: its files were replaced while they were read", hint="ask again"
    )


def refuse_failed_store(error: BaseException, message: str, *, table: str | None = None) -> None:
    """Raise an engine's error as what it is where its cause is a store.

    Raises:
        MirrorUnreachableError: That is the cause.
        MirrorError: It refuses what was asked.
    """
    if _FAILED_STORE.search(str(error)):
        told = refusal_of(error, message, "it") or silence_of(error, message)
        told.table = table
        raise told from None  # it may quote what is signed
