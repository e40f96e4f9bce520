"""A position in the server's log, and what proves it: also on a server that was put back.

A server's disk may be put back to an earlier state. The server is then the same by its name, its
timeline and our slot, and soon writes another log at the places that a mirror has read. So a
position says which commit of its table was the last one before it.
"""

import json
import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from rhei_pipeline.model.changes import Position

_log = logging.getLogger(__name__)


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
#: What a position means behind the last that it says.
_NOTHING_MORE: tuple[Any, ...] = (None, None, 0, 0, ())


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
        taken: How many changes of its table are before it that the transaction made which commits
            at the place. It gave the table another key, and what follows is read by that one.
        keys: The numbers of what made the table's key unique there; see `UniqueKey`.
    """

    lsn: int
    relation: str
    base: int = 0
    last: TableCommit | None = None
    known: int = 0
    taken: int = 0
    keys: tuple[int, ...] = ()

    @property
    def noted_at(self) -> int:
        """The place before which its last commit is the last one."""
        return self.known or self.lsn

    @classmethod
    def parse(cls, position: Position) -> "LogPosition":
        """Read the output of `position`, also of versions that noted no commit."""
        with suppress(ValueError, TypeError):
            relation, base, *more = json.loads(position.proof)
            lsn, xid, known, taken, keys = (*more, *_NOTHING_MORE[len(more) :])[:5]
            last = None if lsn is None else TableCommit(lsn, xid)
            return cls(position.order - base, relation, base, last, known, taken, tuple(keys))
        return cls(position.order, position.proof)

    def position(self) -> Position:
        """Return it as a position of a mirror."""
        order = self.lsn + self.base
        if not self.relation:
            return Position(order, "")
        last: list[object] = []
        if self.last is not None:
            last = [self.last.lsn, self.last.xid, self.known]
        if self.taken or self.keys:
            last = [*(last or [None, None, self.known]), self.taken]
        if self.keys:
            last.append(self.keys)
        return Position(order, json.dumps([self.relation, self.base, *last]))


@dataclass
class LogMemory:
    """What is known of positions.

    Attributes:
        bases: By table, what is added to a place of the log for its order.
        proved: By table, a position that was read or made in this session of the server. While it
            lasts, the server cannot be put back.
        places: What these positions mean: a cycle asks that of each table.
        unfit: By table, a position behind which the log cannot be read.
    """

    bases: dict[str, int] = field(default_factory=dict)
    proved: dict[str, Position] = field(default_factory=dict)
    places: dict[Position, LogPosition] = field(default_factory=dict)
    unfit: dict[str, Position] = field(default_factory=dict)

    def place(self, position: Position) -> LogPosition:
        """Return what a position means."""
        return self.places.get(position) or LogPosition.parse(position)

    def note(self, table: str, position: Position, place: LogPosition) -> None:
        """Note that a position of a table is proved."""
        self.places.pop(self.proved.get(table, position), None)
        self.proved[table], self.places[position] = position, place

    def position(self, table: str, place: LogPosition) -> Position:
        """Return a place of a table as a position, and note that it is proved."""
        proved = self.proved.get(table)
        known = proved and self.places.get(proved)
        if proved and known and replace(known, lsn=place.lsn) == place:
            position = Position(place.lsn + place.base, proved.proof)
        else:
            position = place.position()
        self.note(table, position, place)
        return position

    def distrust(self, table: str, position: Position) -> None:
        """Note that the log behind a position cannot be read, and warn of it once."""
        if self.unfit.get(table) != position:
            _log.warning(
                "table %r: its log names rows by another key for a while; it is copied by its "
                "difference, without the versions of that time",
                table,
            )
        self.unfit[table] = position

    def forget_session(self) -> None:
        """Forget what a session of the server had proved."""
        self.proved.clear()
        self.places.clear()
