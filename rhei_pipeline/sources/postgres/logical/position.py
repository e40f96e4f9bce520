"""A position in the server's log, and what proves it: also on a server that was put back.

A server's disk may be put back to an earlier state. The server is then the same by its name, its
timeline and our slot, and soon writes another log at the places that a mirror has read. So a
position says which commit of its table was the last one before it.
"""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache

from rhei_pipeline.model.changes import Position

#: So many positions and proofs are remembered: a cycle asks several times for those of each table.
REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class TableCommit:
    """The last commit of a table before a position.

    Attributes:
        lsn: Where its record starts; 0 where the log that was read had none.
        xid: Its transaction.
    """

    lsn: int = 0
    xid: int = 0


NO_COMMIT = TableCommit()


@dataclass(frozen=True, slots=True)
class LogPosition:
    """What a position of a table means.

    Attributes:
        lsn: The place in the server's log.
        relation: The server, its timeline, the table, and how it is published.
        base: What is added to a place for its order. A server whose log is shorter than that of
            the one before it would else be behind the mirror.
        last: The last commit before it; None where that is not known.
        known: Up to where that is known; 0: up to the position.
    """

    lsn: int
    relation: str
    base: int = 0
    last: TableCommit | None = None
    known: int = 0

    @property
    def noted_at(self) -> int:
        """The place before which its last commit is the last one."""
        return self.known or self.lsn

    @classmethod
    def parse(cls, position: Position) -> "LogPosition":
        """Read the output of `position`, also of versions that noted no commit."""
        return _parsed(position)

    def position(self) -> Position:
        """Return it as a position of a mirror."""
        order = self.lsn + self.base
        if not self.relation:
            return Position(order, "")
        return Position(order, _proof(self.relation, self.base, self.last, self.known))


@lru_cache(REMEMBERED)
def _parsed(position: Position) -> LogPosition:
    with suppress(ValueError, TypeError):
        relation, base, *last = json.loads(position.proof)
        commit, known = (TableCommit(*last[:2]), last[2]) if last else (None, 0)
        return LogPosition(position.order - base, relation, base, commit, known)
    return LogPosition(position.order, position.proof)


@lru_cache(REMEMBERED)
def _proof(relation: str, base: int, last: TableCommit | None, known: int) -> str:
    commit = [] if last is None else [last.lsn, last.xid, known]
    return json.dumps([relation, base, *commit])


@dataclass
class LogMemory:
    """What is known of positions.

    Attributes:
        bases: By table, what is added to a place of the log for its order.
        proved: By table, a position that was read or made in this session of the server. While it
            lasts, the server cannot be put back.
    """

    bases: dict[str, int] = field(default_factory=dict)
    proved: dict[str, Position] = field(default_factory=dict)
