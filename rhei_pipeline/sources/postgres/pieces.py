"""Large values of PostgreSQL's rows, in pieces.

What is sent whole, the driver holds beside our copy, and it keeps that much room from then on. So a
row's large values come before the row, a megabyte at a time, and are put together in one buffer.
"""

import struct
from binascii import unhexlify
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rhei_pipeline.model.portions import PORTION_BYTES
from rhei_pipeline.sources.postgres.catalog import Connection

#: Bytes from which on a value comes in pieces.
LARGE_VALUE_BYTES = PORTION_BYTES // 2
_PIECE_BYTES = 2**20
#: Bytes that a large value takes where it lies, however well it is compressed.
_LEAST_STORED = 2**18
#: In front of a value: its column's place, and its bytes.
_HEADER = struct.Struct(">ii")
#: How the line of a row begins, as its first column is null.
_NO_PIECE = b"\\N,"
_STORED = """
select coalesce(sum(pg_relation_size(c.reltoastrelid)), 0) > %s, array(
    select a.attname::text from pg_attribute a
    where a.attrelid = %s::regclass and a.atttypid = 'bytea'::regtype and not a.attisdropped)
from pg_class c
where c.oid = %s::regclass or c.oid in (select relid from pg_partition_tree(%s::regclass))
"""


@dataclass(frozen=True, slots=True)
class LargeRow:
    """A row as a line of text without its large values, and these.

    Attributes:
        values: By place of the column.
    """

    line: bytes
    values: Mapping[int, pa.Buffer]

    def put_in(self, texts: pa.Table, blobs: Collection[int]) -> pa.Table:
        """Put the values into the columns of the row: text, but bytes at the places of `blobs`."""
        for place, value in self.values.items():
            kind = pa.large_binary() if place in blobs else pa.large_string()
            ends = pa.py_buffer(np.array([0, value.size], np.int64))
            array = pa.Array.from_buffers(kind, 1, [None, ends, value])
            texts = texts.set_column(place, texts.column_names[place], array)
        return texts


def may_be_large(connection: Connection, relation: str) -> tuple[bool, tuple[str, ...]]:
    """Return whether a table has a large value, as far as the bytes beside it tell.

    And which of its columns are bytes in the server, too.
    """
    asked = (_LEAST_STORED, relation, relation, relation)
    found = connection.execute(_STORED, asked).fetchone()
    return (bool(found[0]), tuple(found[1])) if found else (False, ())


def in_pieces(
    query: str,
    count: int,
    texts: Collection[int],
    blobs: Collection[int],
    sized: Collection[int] = (),
) -> str:
    """Return SQL of a query's rows, each behind the pieces of its large values.

    Another column comes first: a piece, behind how many bytes all of its row are, or null.

    Args:
        query: Selects the rows.
        count: How many columns it has.
        texts: The places of those that are read as text.
        blobs: The places of those that are read as bytes.
        sized: Of these, those that are bytes in the server as well, which tells how many.
    """
    names = [f"c{place}" for place in range(count)]
    large = {place: _is_large_text(f"c{place}") for place in texts}
    large |= {place: _is_large_blob(f"c{place}", is_sized=place in sized) for place in blobs}
    # As a copy writes it: a cast to text would take the blanks from the end of a char(n).
    bytes_of = {place: f"convert_to(format('%s', c{place}), 'UTF8')" for place in texts}
    bytes_of |= {
        place: f"c{place}::bytea" if place in sized else f"c{place}::text::bytea" for place in blobs
    }
    values = ", ".join(
        f"({place}, case when {large[place]} then {bytes_of[place]} end)" for place in large
    )
    shown = [
        f"case when n = pieces and ({large[place]}) is not true then {name} end"
        if place in large
        else f"case when n = pieces then {name} end"
        for place, name in enumerate(names)
    ]
    held = (
        f"select q.*, case when {' or '.join(large.values())} then (select string_agg(part.bytes,"
        f" ''::bytea) from (values {values}) v(place, bytes) cross join lateral (values"
        " (int4send(v.place) || int4send(length(v.bytes))), (v.bytes)) part(bytes)"
        " where v.bytes is not null) end as held"
        # Evaluated once a row, and by one process: several would mix the pieces of their rows.
        f" from ({query}) q({', '.join(names)}) where pg_backend_pid() > 0 offset 0"
    )
    size = f"coalesce((length(held) - 1) / {_PIECE_BYTES} + 1, 0)"
    piece = (
        f"case when n < pieces then length(held) || ':' ||"
        f" encode(substr(held, n * {_PIECE_BYTES} + 1, {_PIECE_BYTES}), 'hex') end"
    )
    return (
        f"select {piece}, {', '.join(shown)} from (select h.*, {size} as pieces,"
        f" generate_series(0, {size}) as n from ({held}) h) p"
    )


def _is_large_text(name: str) -> str:
    """Return SQL that reads a value only where it may be large."""
    return (
        f"case when pg_column_size({name}) > {_LEAST_STORED}"
        f" then octet_length({name}::text) > {LARGE_VALUE_BYTES} end"
    )


def _is_large_blob(name: str, *, is_sized: bool) -> str:
    """Return the same of bytes; of unknown ones those that are far smaller there come whole."""
    stored, is_bytes = f"pg_column_size({name})", f"pg_typeof({name})::text = 'bytea'"
    if not is_sized:
        return f"({stored} > {LARGE_VALUE_BYTES} and {is_bytes})"
    return (
        f"case when {stored} > {_LEAST_STORED} and {is_bytes}"
        f" then octet_length({name}) > {LARGE_VALUE_BYTES} end"
    )


def put_together(lines: Iterator[bytes]) -> Iterator[bytes | LargeRow]:
    """Yield the lines of rows, and large rows with their values; without the first column."""
    held: list[pa.Buffer] = []
    at = 0
    for line in lines:
        if line.startswith(_NO_PIECE):
            row = [line[len(_NO_PIECE) :]]
            del line  # it may be long, and would be held until the next one is asked for
            yield LargeRow(row.pop(), _taken(held)) if held else row.pop()
            at = 0
            continue
        colon, end = line.index(b":"), line.index(b",")
        if not held:
            held.append(pa.allocate_buffer(int(line[:colon])))
        piece = unhexlify(memoryview(line)[colon + 1 : end])
        memoryview(held[0]).cast("B")[at : at + len(piece)] = piece
        at += len(piece)


def _taken(held: list[pa.Buffer]) -> dict[int, pa.Buffer]:
    """Take a row's bytes over, and return its values in them."""
    data = held.pop()
    values, at = {}, 0
    while at < data.size:
        place, size = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        values[place] = data.slice(at, size)
        at += size
    return values
