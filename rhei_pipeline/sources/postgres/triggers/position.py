"""A place in the logs that triggers write: what a snapshot saw, and what proves it."""

import hashlib
import json
from contextlib import suppress
from dataclasses import astuple, dataclass

from rhei_pipeline.model.schema import Table
from rhei_pipeline.sql.text import literal

_SHAPE_DIGITS = 16


@dataclass(frozen=True, slots=True)
class VisibleText:
    """What a snapshot of the server sees, as its text.

    Attributes:
        order: How many transactions it sees; grows whenever one ends.
    """

    text: str
    order: int

    @classmethod
    def parse(cls, text: str) -> "VisibleText":
        """Read `xmin:xmax:running,running,...`."""
        _, high, running = text.split(":")
        return cls(text, int(high) - len(running.split(",")) if running else int(high))


@dataclass(frozen=True, slots=True)
class Proof:
    """A position's proof: which log, what was seen of it, and one of the newest entries seen.

    Attributes:
        marker: That entry's number; 0 where there was none.
        marked_by, marked_at: Its transaction and its time.
        late: What was seen of that log from where the table was no longer as its triggers knew
            it, which is read in another shape; empty where that is the same.
        shape: Digest of the columns that were read.
    """

    identity: str
    snapshot: str
    marker: int
    marked_by: str
    marked_at: str
    late: str = ""
    shape: str = ""

    def text(self) -> str:
        """Write it for a position."""
        return json.dumps(list(astuple(self)))

    @classmethod
    def parse(cls, text: str) -> "Proof | None":
        """Read what `text` wrote; None where it is another source's."""
        with suppress(ValueError, TypeError):
            return cls(*json.loads(text))
        return None


def shape_of(table: Table) -> str:
    """Return a digest of a table's columns."""
    return hashlib.sha256("\n".join(table.schema.names).encode()).hexdigest()[:_SHAPE_DIGITS]


def outside(snapshot: str) -> str:
    """Write SQL of the entries that a snapshot does not see."""
    text = f"{literal(snapshot)}::pg_snapshot"
    return f"xid >= pg_snapshot_xmin({text}) and not pg_visible_in_snapshot(xid, {text})"
