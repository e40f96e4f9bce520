"""Whose mirror it is: the source it follows, and the pipeline that writes it."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import PurePath

from rhei_pipeline.errors import CaptureError, MirrorOwnerError


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """What distinguishes one source from all others.

    Attributes:
        kind: `sqlite`, `postgres` or `log`.
        place: Where it is: a file's path; a server's identifier and a database's name. A backup
            restored there is the same source in another state.
        mark: What stays the same when it is moved: an id kept in the file, empty if the file is
            read-only; the server's identifier and the database's oid.
    """

    kind: str
    place: str
    mark: str

    def __str__(self) -> str:
        """Return its name for people."""
        return f"{_KINDS.get(self.kind, self.kind)} {self.place!r}"


@dataclass(frozen=True, slots=True)
class Owner:
    """The source and pipeline that a mirror belongs to.

    Attributes:
        pipeline: The pipeline's declared name; None if it has none.
        former: The ids that the mirror had before it was adopted. A copy of it that was made then
            may live on under one of them.
    """

    source: SourceIdentity
    pipeline: str | None = None
    former: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Name the source, and the pipeline where it has a name."""
        return f"{self.source}, pipeline {self.pipeline!r}" if self.pipeline else str(self.source)

    def text(self) -> str:
        """Return the text that a mirror stores."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> "Owner":
        """Read the output of `text`."""
        form = json.loads(text)
        former = tuple(form.get("former", ()))
        return cls(SourceIdentity(**form["source"]), form["pipeline"], former)


def is_same(recorded: SourceIdentity, found: SourceIdentity, *, is_gone: bool) -> bool:
    """Return whether a source is the recorded one.

    Args:
        recorded: The source that the mirror records.
        found: The declared source.
        is_gone: Nothing is at the recorded place any more, so an equal mark means a move;
            otherwise it means a copy, which is another source.
    """
    if recorded.kind != found.kind:
        return False
    moved = is_gone and recorded.mark == found.mark != ""
    return recorded.place == found.place or moved


def is_at(recorded: SourceIdentity, path: PurePath) -> bool:
    """Return whether a recorded file, or a log, is the one at this path."""
    place = recorded.place.rpartition(" (")[0] if recorded.kind == "log" else recorded.place
    return place == str(path)


def refuse_other(
    recorded: Owner, found: Owner, mirror: str, is_gone: Callable[[SourceIdentity], bool]
) -> None:
    """Refuse a mirror that belongs to another source or another pipeline.

    Raises:
        MirrorOwnerError: It does; the message names both.
    """
    if not is_same(recorded.source, found.source, is_gone=is_gone(recorded.source)):
        raise MirrorOwnerError(
            f"mirror {mirror!r} belongs to another source, {recorded.source}, not to "
            f"{found.source}",
            hint="give this pipeline a mirror.path of its own; if the database was moved, run "
            "'rhei adopt', and the mirror follows it from then on",
        )
    if is_renamed(recorded, found):
        raise MirrorOwnerError(
            f"mirror {mirror!r} belongs to another pipeline, {recorded.pipeline!r}, not to "
            f"{found.pipeline!r}",
            hint="give this pipeline a mirror.path of its own; if it was renamed, run 'rhei adopt'",
        )


def refuse_other_buffer(
    recorded: Owner, found: Owner, buffer: str, is_gone: Callable[[SourceIdentity], bool]
) -> None:
    """Refuse a buffer that belongs to another source or another pipeline.

    Raises:
        CaptureError: It does; the message names both.
    """
    if not is_same(recorded.source, found.source, is_gone=is_gone(recorded.source)):
        whose = f"another source, {recorded.source}, not to {found.source}"
    elif is_renamed(recorded, found):
        whose = f"another pipeline, {recorded.pipeline!r}, not to {found.pipeline!r}"
    else:
        return
    raise CaptureError(
        f"buffer {buffer!r} belongs to {whose}",
        hint="give this pipeline a capture.buffer.path of its own; if the database was moved, or"
        " the pipeline renamed, run 'rhei adopt'",
    )


def is_renamed(recorded: Owner, found: Owner) -> bool:
    """Return whether both have a name, and not the same."""
    names = (recorded.pipeline, found.pipeline)
    return None not in names and names[0] != names[1]


_KINDS = {"sqlite": "SQLite file", "postgres": "PostgreSQL database", "log": "log of events"}
