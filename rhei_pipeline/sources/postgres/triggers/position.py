"""A position in trigger logs: what a snapshot saw, and its proof."""

import hashlib
import json
from contextlib import suppress
from dataclasses import astuple, dataclass

from rhei_pipeline.model.schema import Table
from rhei_pipeline.sql.text import literal

_SHAPE_DIGITS = 16
#: A snapshot that sees no transaction, as PostgreSQL's text.
NOTHING_SEEN = "1:1:"


@dataclass(frozen=True, slots=True)
class VisibleText:
    """The transactions that a snapshot sees, as PostgreSQL's text.

    Attributes:
        order: How many transactions it sees; grows whenever one ends.
        low, high: All transactions before `low` are over; none from `high` on is. Some may have
            begun.
    """

    text: str
    order: int
    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "VisibleText":
        """Parse `xmin:xmax:running,running,...`."""
        low, high, running = text.split(":")
        unseen = len(running.split(",")) if running else 0
        return cls(text, int(high) - unseen, int(low), int(high))


@dataclass(frozen=True, slots=True)
class Proof:
    """A position's proof: its log, what was seen of it, and one of the newest entries seen.

    Attributes:
        marker: That entry's number; 0 if there was none.
        marked_by, marked_at: Its transaction and its time.
        late: What was seen of the part of that log after the table had changed, which is read
            with another schema; empty if that is the same.
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
        """Return it as text for a position."""
        return json.dumps(list(astuple(self)))

    @classmethod
    def parse(cls, text: str) -> "Proof | None":
        """Read the output of `text`; None if it is another source's."""
        with suppress(ValueError, TypeError):
            return cls(*json.loads(text))
        return None


def shape_of(table: Table) -> str:
    """Return a digest of a table's columns."""
    return hashlib.sha256("\n".join(table.schema.names).encode()).hexdigest()[:_SHAPE_DIGITS]


def outside(snapshot: str) -> str:
    """Return SQL of the entries that a snapshot does not see."""
    text = f"{literal(snapshot)}::pg_snapshot"
    return f"xid >= pg_snapshot_xmin({text}) and not pg_visible_in_snapshot(xid, {text})"


def noted_sql(log: str, proof: Proof) -> str:
    """Return SQL that is true if the noted entry is the newest one that was seen of its log.

    On a server that was put back to an earlier state, others may have got numbers since that
    were seen already.
    """
    by = f"{literal(proof.marked_by)}::xid8"
    noted = (
        f"exists (select from {log} where xid = {by}"
        f" and seq = {int(proof.marker)} and at::text = {literal(proof.marked_at)})"
    )
    if proof.late:  # the entry was noted of what was seen before
        return noted
    snapshot = f"{literal(proof.snapshot)}::pg_snapshot"
    within = f"xid > {by} and xid < pg_snapshot_xmax({snapshot})"
    others = f"select from {log} where {within} and pg_visible_in_snapshot(xid, {snapshot})"
    return f"{noted} and not exists ({others})"
