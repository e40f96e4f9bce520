"""Rows of a query as columns of text; values of many megabytes among them come in pieces."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.csv as pa_csv

from rhei_pipeline.model.large_rows import give_back_freed
from rhei_pipeline.model.portions import LARGE_BYTES, portions
from rhei_pipeline.model.schema import Column
from rhei_pipeline.sources.postgres.catalog import Connection
from rhei_pipeline.sources.postgres.copy import copy_out
from rhei_pipeline.sources.postgres.pieces import (
    LargeRow,
    in_pieces,
    may_be_large,
    put_together,
)

#: How a copy writes null; a text that reads so is quoted, and so stays a text.
_NULL = "\\N"


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the values of a query lie.

    Attributes:
        relation: The quoted name of the table.
        columns: Those columns of it that the query has, as they are mirrored.
        of_bytes: Those of them that are `bytea`; None: those that the table has as such.
    """

    relation: str
    columns: Sequence[Column]
    of_bytes: tuple[str, ...] | None = None

    def places(self, names: Sequence[str], kind: pa.DataType) -> tuple[int, ...]:
        """Return which columns of the query have values of a type."""
        own = {column.name for column in self.columns if column.type == kind}
        return tuple(place for place, name in enumerate(names) if name in own)


def copied(
    connection: Connection,
    query: str,
    names: Sequence[str],
    limit: int | None = None,
    stored: Stored | None = None,
) -> Generator[pa.Table, None, None]:
    """Run a query and yield its columns as text, in tables of `limit` rows; none if empty.

    With a limit, tables are bounded by their bytes as well; without, there is one. Of what is
    stored in a table with large values, each large row is a table by itself, and a large value of a
    column of bytes is bytes. The connection is busy until the last table is read, or the generator
    is closed.
    """
    texts = stored.places(names, pa.string()) if stored else ()
    blobs = stored.places(names, pa.binary()) if stored else ()
    is_large, of_bytes = False, tuple[str, ...]()
    if stored and (texts or blobs):
        is_large, of_bytes = may_be_large(connection, stored.relation)
        of_bytes = of_bytes if stored.of_bytes is None else stored.of_bytes
    if is_large:
        sized = tuple(place for place in blobs if names[place] in of_bytes)
        query = in_pieces(query, len(names), texts, blobs, sized)
        with closing(copy_out(connection, _copy(query))) as lines:
            yield from _with_large(put_together(lines), names, limit, blobs)
        return
    with closing(copy_out(connection, _copy(query))) as lines:
        if limit is not None:
            yield from _in_portions(lines, names, limit)
        elif whole := list(lines):
            yield _parsed(whole, names)


def _copy(query: str) -> bytes:
    return f"copy ({query}) to stdout (format csv, null E'\\{_NULL}')".encode()


def _with_large(
    found: Iterable[bytes | LargeRow], names: Sequence[str], limit: int | None, blobs: Sequence[int]
) -> Iterator[pa.Table]:
    """Yield tables of the rows between large ones, and each of those."""
    rows = iter(found)
    large: list[LargeRow] = []

    def small() -> Iterator[bytes]:
        for row in rows:
            if isinstance(row, LargeRow):
                large.append(row)
                return
            taken = [row]
            del row  # nothing holds on to what was given on
            yield taken.pop()

    while True:
        yield from _in_portions(small(), names, limit)
        if not large:
            return
        yield _large_table(large, names, blobs)


def _large_table(large: list[LargeRow], names: Sequence[str], blobs: Sequence[int]) -> pa.Table:
    """Take a large row over, and return it as a table."""
    row = large.pop()
    return row.put_in(_parsed([row.line], names), blobs)


def _in_portions(
    lines: Iterator[bytes], names: Sequence[str], limit: int | None
) -> Iterator[pa.Table]:
    for portion in portions(
        lambda count: list(islice(lines, count)), lambda taken: sum(map(len, taken)), limit
    ):
        # In no variable, which would hold it beside what becomes of it.
        yield _parsed(portion, names)


def _parsed(lines: list[bytes], names: Sequence[str]) -> pa.Table:
    """Take lines over, and return their columns."""
    data = b"".join(lines)
    lines.clear()
    is_large = len(data) > LARGE_BYTES
    texts = pa_csv.read_csv(
        pa.BufferReader(data),
        # One block: a value may be longer than any block chosen beforehand. And no threads for a
        # large one: they let go of what they had read some time after its texts are there.
        read_options=pa_csv.ReadOptions(
            block_size=len(data), column_names=list(names), use_threads=not is_large
        ),
        # An empty line is a row: of one column, whose text is empty.
        parse_options=pa_csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        convert_options=pa_csv.ConvertOptions(
            column_types={name: pa.large_string() for name in names},
            null_values=[_NULL],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    if is_large:
        give_back_freed()  # the parser held it once more
    return texts
