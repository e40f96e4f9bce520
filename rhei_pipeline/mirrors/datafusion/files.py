"""Where a mirror's files rest, and the way to keep them in memory."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Protocol

import pyarrow as pa
from datafusion import SessionContext

from rhei_pipeline.errors import MirrorBusyError, MirrorDamagedError

_SET_ASIDE = "set-aside"


@dataclass(frozen=True, slots=True)
class Mark:
    """What stands under a file's name, as far as that can be had without reading it.

    Attributes:
        tag: Changes whenever the file is written again.
    """

    size: int
    tag: str


#: Writes a file's content, piece after piece.
Fill = Callable[["Sink"], None]


class Sink(Protocol):
    """What takes a file's content."""

    def write(self, piece: pa.Buffer | bytes, /) -> int | None:
        """Take the next piece, whole."""


class Files(Protocol):
    """Files that are written once, whole, and then read or deleted. Folders are parted by `/`.

    Attributes:
        remote: Asking for a file's mark is a request over the network, and its tag outlives this
            process.
    """

    remote: ClassVar[bool]

    @property
    def root(self) -> str | None:
        """The path that a file's name is added to; None where files have none."""

    @property
    def storage_options(self) -> dict[str, str]:
        """How others reach the files: options by the names that object stores' clients know."""

    def put(self, name: str, content: pa.Buffer) -> Mark | None:
        """Write a file; it counts once `flush` has returned.

        Returns:
            What stands there now; None where files cannot be damaged.
        """

    def write(self, name: str, fill: Fill) -> Mark | None:
        """Write a file piece by piece; as `put` does."""

    def mark(self, name: str) -> Mark | None:
        """Return what stands under a name; None where nothing does."""

    def set_aside(self, names: Iterable[str]) -> None:
        """Move files where no reader looks; those that are missing do not matter."""

    def remember(self, version: int) -> None:
        """Keep the number of the newest manifest apart from the manifests; cheap, never fails."""

    def remembered(self) -> int:
        """Return the number that was kept last; 0 where none can be read."""

    def link(self, name: str, standing: str) -> None:
        """Give a file a second name; it counts once `flush` has returned."""

    def flush(self) -> None:
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
            MirrorDamagedError: It is not there.
            MirrorError: It cannot be read.
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
    remote: ClassVar[bool] = False
    storage_options: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        self._content: dict[str, pa.Buffer] = {}

    def put(self, name: str, content: pa.Buffer) -> None:
        """Keep a file."""
        self._content[name] = content

    def write(self, name: str, fill: Fill) -> None:
        """Keep a file."""
        self.put(name, gathered(fill))

    def mark(self, name: str) -> Mark | None:
        """Return a file's bytes."""
        found = self._content.get(name)
        return None if found is None else Mark(found.size, "")

    def set_aside(self, names: Iterable[str]) -> None:
        """Forget files."""
        self.delete(names)

    def remember(self, version: int) -> None:
        """Nothing of it stays anyway."""

    def remembered(self) -> int:
        """Nothing was kept."""
        return 0

    def link(self, name: str, standing: str) -> None:
        """Give a file a second name."""
        self._content[name] = self._content[standing]

    def flush(self) -> None:
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


def gathered(fill: Fill) -> pa.Buffer:
    """Return a file's content as one piece."""
    sink = pa.BufferOutputStream()
    fill(sink)
    return sink.getvalue()


def aside(name: str) -> str:
    """Return the name that a file has once it is set aside."""
    return f"{_SET_ASIDE}/{name.replace('/', '-')}"


def missing(root: str, name: str) -> MirrorDamagedError:
    """Return the error for a file that is not there."""
    return MirrorDamagedError(
        f"mirror {root!r} lacks its file {name!r}",
        file=name,
        hint="restore it, or run 'rhei repair' with the table that needs it",
    )


def committed_meanwhile(root: str) -> MirrorBusyError:
    """Say that somebody else committed since this process looked."""
    return MirrorBusyError(
        f"mirror {root!r} was written by another process meanwhile",
        hint="one process writes a mirror at a time: end the other one, and sync again",
    )
