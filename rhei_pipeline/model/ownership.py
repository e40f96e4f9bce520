"""Whose a mirror is: the source it follows, and the pipeline that keeps it."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from rhei_pipeline.errors import MirrorError


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """What tells one source from all others.

    Attributes:
        kind: `sqlite` or `postgres`.
        place: Where it is: a file's path; a server's number and a database's name. What is put
            back there, from a backup or anew, is the same source in another state.
        mark: What goes along where it is moved: an id kept in the file, empty where none may be
            written; a server's number and the database's own.
    """

    kind: str
    place: str
    mark: str

    def __str__(self) -> str:
        """Name it for people."""
        return f"{_KINDS.get(self.kind, self.kind)} {self.place!r}"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who may write a mirror.

    Attributes:
        pipeline: Its declared name; None where it has none.
    """

    source: SourceIdentity
    pipeline: str | None = None

    def text(self) -> str:
        """Write it as a mirror keeps it."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> "Owner":
        """Read what `text` wrote."""
        form = json.loads(text)
        return cls(SourceIdentity(**form["source"]), form["pipeline"])


def is_same(recorded: SourceIdentity, found: SourceIdentity, *, is_gone: bool) -> bool:
    """Whether a source is the one that is recorded.

    Args:
        recorded: The source as the mirror knows it.
        found: The source as it is declared.
        is_gone: Nothing is at the recorded place any more, so that a mark tells of a move; else
            it tells of a copy, which leads a life of its own.
    """
    if recorded.kind != found.kind:
        return False
    moved = is_gone and recorded.mark == found.mark != ""
    return recorded.place == found.place or moved


def refuse_other(
    recorded: Owner, found: Owner, mirror: str, is_gone: Callable[[SourceIdentity], bool]
) -> None:
    """Refuse a mirror that belongs to another source or another pipeline.

    Raises:
        MirrorError: It does; names both.
    """
    if not is_same(recorded.source, found.source, is_gone=is_gone(recorded.source)):
        raise MirrorError(
            f"mirror {mirror!r} is of another source, {recorded.source}, and not of {found.source}",
            hint="give this pipeline a mirror.path of its own; where the database was moved, run"
            " 'rhei adopt', and the mirror follows it from then on",
        )
    names = (recorded.pipeline, found.pipeline)
    if None not in names and names[0] != names[1]:
        raise MirrorError(
            f"mirror {mirror!r} is of another pipeline, {names[0]!r}, and not of {names[1]!r}",
            hint="give this pipeline a mirror.path of its own; where it was renamed, run"
            " 'rhei adopt'",
        )


_KINDS = {"sqlite": "SQLite file", "postgres": "PostgreSQL database"}
