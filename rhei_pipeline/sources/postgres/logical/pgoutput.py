"""Decodes PostgreSQL's logical replication messages (pgoutput) by column with numpy.

Source: postgresql.org/docs/18/protocol-logicalrep-message-formats.html, protocol version 1, text
format. Many messages follow one another in one buffer; all messages of one table are decoded
together, column by column, and never one by one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from rhei_pipeline.sources.postgres.instants import apart, dated_here

#: From 1970 to PostgreSQL's own epoch, 2000, in microseconds.
_EPOCH_MICROSECONDS = 946_684_800_000_000

_BEGIN, _ORIGIN, _RELATION, _TRUNCATE = b"BORT"
_INSERT, _UPDATE, _DELETE = b"IUD"
_NEW, _WHOLE = b"NO"
_UNCHANGED, _TEXT = b"ut"
#: Replica identities by a key: the primary one, or that of an index.
_BY_KEY = b"di"
#: The flag of a column that belongs to it.
_OF_KEY = 1


@dataclass(frozen=True, slots=True)
class LoggedRelation:
    """A table as a Relation message describes it.

    Attributes:
        types: The oids of the columns' types.
        key: The columns that name a row in its messages; none where the table had no key. None:
            its whole rows do, or nothing does.
    """

    oid: int
    columns: tuple[str, ...]
    types: tuple[int, ...]
    key: tuple[str, ...] | None = None


@dataclass
class DecodingContext:
    """What earlier messages defined and later ones need, from one buffer to the next.

    Attributes:
        clock: The server's clock when they are read, in microseconds since 1970.
    """

    clock: int
    lsn: int = 0
    committed_at: int = 0
    xid: int = 0
    relations: dict[int, LoggedRelation] = field(default_factory=dict)
    instants: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True, slots=True)
class Run:
    """Messages of one table with one schema, in order, without another kind between them.

    Attributes:
        relation: The table's columns.
        places: The offset of each message in the buffer.
        order: Each message's number in the stream.
        lsn: Where the commit record of each message's transaction starts.
        committed_at: When that transaction committed here, in microseconds since 1970; unique in
            the stream.
        xid: Its id, 32 bits.
        truncate: Whether this is one Truncate message.
    """

    relation: LoggedRelation
    places: np.ndarray
    order: np.ndarray
    lsn: np.ndarray
    committed_at: np.ndarray
    xid: np.ndarray
    truncate: bool = False

    def take(self, chosen: np.ndarray) -> "Run":
        """Return some of the messages."""
        return replace(
            self,
            places=self.places[chosen],
            order=self.order[chosen],
            lsn=self.lsn[chosen],
            committed_at=self.committed_at[chosen],
            xid=self.xid[chosen],
        )


@dataclass(frozen=True, slots=True)
class Texts:
    """Where a column's values stand in the buffer of their messages, as text.

    Attributes:
        begin: The offset of each that is there.
        length: Its bytes.
        is_there: Whether it was sent, and is not null.
    """

    begin: np.ndarray
    length: np.ndarray
    is_there: np.ndarray

    def at(self, chosen: np.ndarray) -> "Texts":
        """Return those at some positions."""
        return Texts(self.begin[chosen], self.length[chosen], self.is_there[chosen])

    def but(self, mask: np.ndarray, others: "Texts") -> "Texts":
        """Return the others where the mask is true, and else these."""
        return Texts(
            np.where(mask, others.begin, self.begin),
            np.where(mask, others.length, self.length),
            np.where(mask, others.is_there, self.is_there),
        )

    def only(self, mask: np.ndarray) -> "Texts":
        """Return these, of which only those are there where the mask is true."""
        return Texts(self.begin, self.length, self.is_there & mask)

    def read(self, buffer: bytes) -> pa.Array:
        """Return the values, in the order of the buffer; null where one is not there.

        That one may have any place: where a key was changed and a value left alone, its place in
        the old row comes behind that in the new one.
        """
        count = len(self.begin)
        if count == 1 and self.is_there[0]:  # it may be a large one, and needs no copy
            ends = np.array([self.begin[0], self.begin[0] + self.length[0]], np.int64)
            buffers = [None, pa.py_buffer(ends), pa.py_buffer(buffer)]
            return pa.Array.from_buffers(pa.large_string(), 1, buffers)
        offsets = np.empty(2 * count, np.int64)
        offsets[0::2], offsets[1::2] = self.begin, self.begin + self.length
        if not self.is_there.all():
            offsets[np.repeat(~self.is_there, 2)] = 0
            np.maximum.accumulate(offsets, out=offsets)
        values = pa.Array.from_buffers(
            pa.large_string(),
            max(2 * count - 1, 0),
            [None, pa.py_buffer(offsets), pa.py_buffer(buffer)],
        )
        return values.take(pa.array(np.arange(0, 2 * count, 2), mask=~self.is_there))


@dataclass(frozen=True, slots=True)
class Tuples:
    """The columns of one tuple of each message, and masks of the values that were not sent."""

    texts: dict[str, Texts]
    unchanged: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Changes:
    """A decoded run.

    Attributes:
        buffer: The messages.
        new: The rows after the change; nothing is there where `has_new` is false.
        old: The rows or keys before the change, if they were sent; nothing is there where
            `has_old` is false.
        has_whole: Whether it is the row before the change, and not its key alone.
        is_update: Whether a row was changed.
    """

    run: Run
    buffer: bytes
    new: Tuples
    old: Tuples
    has_new: np.ndarray
    has_old: np.ndarray
    has_whole: np.ndarray
    is_update: np.ndarray

    def texts(self, tuples: Tuples, name: str) -> Texts:
        """Return a column of one of the two; of one that was not logged, nothing is there."""
        found = tuples.texts.get(name)
        if found is not None:
            return found
        count = len(self.run.places)
        return Texts(self.run.places, np.zeros(count, np.int64), np.zeros(count, bool))


def index(buffer: bytes, lengths: np.ndarray, first: int, context: DecodingContext) -> list[Run]:
    """Sort messages into runs, each table's in order.

    Args:
        buffer: The messages, one after another.
        lengths: The length of each.
        first: The first message's number in the stream.
        context: Carried from one call to the next.
    """
    data = np.frombuffer(buffer, np.uint8)
    places = np.cumsum(lengths) - lengths
    kinds = data[places]
    stream = _Stream(data, places, kinds, first, *_transactions(data, places, kinds, context))
    breaks = _breaks(buffer, stream, context)
    rows = np.flatnonzero(np.isin(kinds, [_INSERT, _UPDATE, _DELETE]))
    oids = _number(data, places[rows] + 1, 4)
    runs = [
        run
        for oid in np.unique(oids)
        for run in _runs(stream, rows[oids == oid], int(oid), breaks, context)
    ]
    runs += [run for found in breaks.values() for run in _truncates(stream, found)]
    _carry(breaks, context)
    return sorted(runs, key=lambda run: int(run.order[0]))


@dataclass(frozen=True, slots=True)
class _Stream:
    data: np.ndarray
    places: np.ndarray
    kinds: np.ndarray
    first: int
    lsn: np.ndarray
    committed_at: np.ndarray
    xid: np.ndarray

    def run(self, relation: LoggedRelation, messages: np.ndarray, *, truncate: bool = False) -> Run:
        return Run(
            relation,
            self.places[messages],
            self.first + messages,
            self.lsn[messages],
            self.committed_at[messages],
            self.xid[messages],
            truncate,
        )


#: For one table: the number of a Relation or Truncate message, and the shape it gives or keeps.
_Break = tuple[int, LoggedRelation, bool]


def _transactions(
    data: np.ndarray, places: np.ndarray, kinds: np.ndarray, context: DecodingContext
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each message's transaction: the last Begin at or before it."""
    begins = np.flatnonzero(kinds == _BEGIN)
    at = places[begins]
    lsn = np.concatenate([[context.lsn], _number(data, at + 1, 8)])
    committed_at = _committed_at(_number(data, at + 9, 8), begins, kinds, context)
    xid = np.concatenate([[context.xid], _number(data, at + 17, 4)])
    which = np.searchsorted(begins, np.arange(len(places)), side="right")
    context.lsn, context.committed_at, context.xid = (
        int(lsn[-1]),
        int(committed_at[-1]),
        int(xid[-1]),
    )
    return lsn[which], committed_at[which], xid[which]


def _committed_at(
    told: np.ndarray, begins: np.ndarray, kinds: np.ndarray, context: DecodingContext
) -> np.ndarray:
    """Return when transactions were committed here: the one before these, and these."""
    found = np.concatenate([[context.committed_at], told + _EPOCH_MICROSECONDS])
    elsewhere = np.zeros(len(found), dtype=bool)
    # It follows its Begin at once; that one may have ended the messages before these.
    elsewhere[np.searchsorted(begins, np.flatnonzero(kinds == _ORIGIN), side="right")] = True
    if elsewhere.any():
        found = dated_here(found, elsewhere, context.clock)
    first = 0 if elsewhere[0] else 1
    found[first:] = apart(found[first:], context.instants)
    context.instants = np.concatenate([context.instants, found[first:]])
    return found


def _breaks(buffer: bytes, stream: _Stream, context: DecodingContext) -> dict[int, list[_Break]]:
    """Read the few messages that are not about a row: relations and truncations."""
    known = dict(context.relations)
    breaks: dict[int, list[_Break]] = {}
    for message in np.flatnonzero(np.isin(stream.kinds, [_RELATION, _TRUNCATE])):
        place = int(stream.places[message])
        if stream.kinds[message] == _RELATION:
            relation = _relation(buffer, place)
            known[relation.oid] = relation
            breaks.setdefault(relation.oid, []).append((int(message), relation, False))
        else:
            for oid in _truncated(buffer, place):
                breaks.setdefault(oid, []).append((int(message), known[oid], True))
    return breaks


def _relation(buffer: bytes, place: int) -> LoggedRelation:
    oid = int.from_bytes(buffer[place + 1 : place + 5], "big")
    place = buffer.index(b"\0", place + 5) + 1  # behind the namespace
    place = buffer.index(b"\0", place) + 2  # behind the name and the replica identity
    is_named = buffer[place - 1] in _BY_KEY
    count = int.from_bytes(buffer[place : place + 2], "big")
    place += 2
    columns, types, key = [], [], []
    for _ in range(count):
        end = buffer.index(b"\0", place + 1)
        columns.append(buffer[place + 1 : end].decode())
        if buffer[place] & _OF_KEY:
            key.append(columns[-1])
        types.append(int.from_bytes(buffer[end + 1 : end + 5], "big"))
        place = end + 9  # behind type and modifier
    return LoggedRelation(oid, tuple(columns), tuple(types), tuple(key) if is_named else None)


def _truncated(buffer: bytes, place: int) -> list[int]:
    count = int.from_bytes(buffer[place + 1 : place + 5], "big")
    start = place + 6
    return [int.from_bytes(buffer[start + 4 * i : start + 4 * i + 4], "big") for i in range(count)]


def _runs(
    stream: _Stream,
    messages: np.ndarray,
    oid: int,
    breaks: dict[int, list[_Break]],
    context: DecodingContext,
) -> Iterator[Run]:
    """Split one table's messages where its schema changes or it is truncated."""
    cuts = breaks.get(oid, [])
    shapes = [context.relations.get(oid), *(relation for _, relation, _ in cuts)]
    which = np.searchsorted([number for number, _, _ in cuts], messages) if cuts else None
    for place, relation in enumerate(shapes):
        chosen = messages if which is None else messages[which == place]
        if relation is not None and len(chosen):
            yield stream.run(relation, chosen)


def _truncates(stream: _Stream, breaks: Sequence[_Break]) -> Iterator[Run]:
    for message, relation, truncate in breaks:
        if truncate:
            yield stream.run(relation, np.array([message]), truncate=True)


def _carry(breaks: dict[int, list[_Break]], context: DecodingContext) -> None:
    for oid, found in breaks.items():
        context.relations[oid] = found[-1][1]


def decode(buffer: bytes, run: Run) -> Changes:
    """Find the values of a run's rows."""
    data = np.frombuffer(buffer, np.uint8)
    tags = data[run.places + 5]
    kinds = data[run.places]
    has_old, has_new = tags != _NEW, kinds != _DELETE
    ends = run.places + 6
    old = _tuples(data, run, np.where(has_old, run.places + 6, -1), ends)
    # Behind an old tuple stands the new one's tag.
    starts = np.where(has_old, ends + 1, run.places + 6)
    new = _tuples(data, run, np.where(has_new, starts, -1), starts)
    return Changes(run, buffer, new, old, has_new, has_old, tags == _WHOLE, kinds == _UPDATE)


def _tuples(data: np.ndarray, run: Run, starts: np.ndarray, ends: np.ndarray) -> Tuples:
    """Find one tuple of each message that has one; set `ends` to the offsets after them."""
    there = starts >= 0
    tuples = Tuples({}, {})
    if not there.any():
        return tuples
    place = starts[there] + 2  # behind the count of columns
    for column in run.relation.columns:
        tag = data[place]
        is_text = tag == _TEXT
        length = np.where(is_text, _number(data, np.where(is_text, place + 1, 0), 4), 0)
        begin = np.where(is_text, place + 5, place)
        tuples.texts[column] = _spread(Texts(begin, length, is_text), there, run.places)
        if (tag == _UNCHANGED).any():
            mask = np.zeros(len(starts), dtype=bool)
            mask[there] = tag == _UNCHANGED
            tuples.unchanged[column] = mask
        place = begin + length + ~is_text
    ends[there] = place
    return tuples


def _spread(texts: Texts, there: np.ndarray, places: np.ndarray) -> Texts:
    if there.all():
        return texts
    whole = Texts(places.copy(), np.zeros(len(there), np.int64), np.zeros(len(there), bool))
    whole.begin[there], whole.length[there] = texts.begin, texts.length
    whole.is_there[there] = texts.is_there
    return whole


def _number(data: np.ndarray, places: np.ndarray, width: int) -> np.ndarray:
    """Read big-endian numbers, of 4 or 8 bytes."""
    # The numbers at all offsets, of which none is made but those asked for.
    count = max(len(data) - width + 1, 0)
    everywhere = np.ndarray((count,), f">u{width}", data, strides=(1,))
    found: np.ndarray = everywhere[places].astype(np.int64)
    return found
