"""The formats of a segment's rows: Arrow IPC, which is memory-mapped, or Parquet."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rhei_pipeline.mirrors.datafusion.key_index import Numbers
from rhei_pipeline.model.selection import taken_apart

#: A segment's own column: the row's number in it, by which removed rows are left out.
ROW = "_rhei_row"

#: Rows in a part of a segment: large enough to read fast, small enough to leave parts unread.
_PART_ROWS = 65_536
#: And its bytes, unless it is one row: a part is written, and read, as a whole.
_PART_BYTES = 32 * 2**20
#: From this length on, a text's statistics and dictionary would cost several copies of it, and
#: serve nobody.
_LONG = 64 * 2**10
_CODEC = "zstd"
_COMPRESSION_LEVEL = 1  # further levels take twice the time to save a tenth
#: So many rows tell whether a column repeats its values. A dictionary of unique ones only costs: it
#: is built, stored beside the rows' numbers in it, and looked up again. Few rows need none.
_JUDGED_ROWS, _DICTIONARY_FROM = 16_384, 1_024
#: So few are read before threads have begun to.
_FEW_ROWS = 4_096
#: Below so many bytes, to set up a compression takes longer than to write it all.
_TINY = 4_096
#: While a value is compressed, it is held once more. From this length on, that has to save a tenth
#: of its beginning.
_LARGE = 16 * 2**20
_BEGINNING, _WORTH = 2**20, 0.9


class Format(Protocol):
    """A file format for rows."""

    suffix: str

    def write(self, rows: pa.Table, sink: pa.NativeFile) -> None:
        """Write rows, the row number among them."""

    def read(self, content: pa.Buffer, columns: Sequence[str]) -> pa.Table:
        """Read all rows."""

    def parts(self, content: pa.Buffer, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Read all rows, a part at a time."""

    def take(self, content: pa.Buffer, columns: Sequence[str], positions: Numbers) -> pa.Table:
        """Read the rows at these positions, which ascend."""


class Ipc:
    """Arrow IPC, uncompressed: reading maps the file into memory."""

    suffix = ".arrow"

    def write(self, rows: pa.Table, sink: pa.NativeFile) -> None:
        """Write a file with parts of bounded size."""
        with pa.ipc.new_file(sink, rows.schema) as writer:
            for part in _parts(rows):
                writer.write_table(part.combine_chunks())

    def read(self, content: pa.Buffer, columns: Sequence[str]) -> pa.Table:
        """Return the rows without copying."""
        return pa.ipc.open_file(content).read_all().select(list(columns))

    def parts(self, content: pa.Buffer, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield each record batch without copying."""
        found = self.read(content, columns)
        for batch in found.to_batches():
            yield pa.Table.from_batches([batch], found.schema)

    def take(self, content: pa.Buffer, columns: Sequence[str], positions: Numbers) -> pa.Table:
        """Return the rows at these positions."""
        batches = self.read(content, columns)
        chunks = batches.to_batches()
        starts = _starts([chunk.num_rows for chunk in chunks])
        where = _within(starts, positions)
        taken = [
            chunks[part].take(pa.array(positions[where == part] - starts[part]))
            for part in np.unique(where)
        ]
        return pa.Table.from_batches(taken, batches.schema)


class Parquet:
    """Parquet with statistics for each row group and page, except for floating columns.

    Statistics ignore NaN, and engines trust them: for NaN, 5 and 5 they would answer 5, 5 and 5.
    """

    suffix = ".parquet"

    def write(self, rows: pa.Table, sink: pa.NativeFile) -> None:
        """Write a file whose row groups a query can leave out by their statistics."""
        short = [name for name in rows.column_names if not is_long(rows[name])]
        floating = {f.name for f in rows.schema if pa.types.is_floating(f.type)}
        is_tiny = rows.nbytes < _TINY
        plain = {n for n in rows.column_names if is_tiny or _is_incompressible(rows[n])}
        compressed = [name for name in rows.column_names if name not in plain]
        judged = next(_parts(rows)).slice(0, _JUDGED_ROWS)
        repeating = [name for name in short if name != ROW and _repeats(judged[name])]
        counting = [f.name for f in rows.schema if _counts(f.type) and f.name not in repeating]
        with pq.ParquetWriter(
            sink,
            rows.schema,
            compression=dict.fromkeys(compressed, _CODEC) | dict.fromkeys(plain, "none"),
            compression_level=dict.fromkeys(compressed, _COMPRESSION_LEVEL),
            use_dictionary=repeating,
            column_encoding=dict.fromkeys(counting, "DELTA_BINARY_PACKED"),
            write_page_index=True,
            write_statistics=[name for name in short if name not in floating],
            write_page_checksum=True,  # for readers of Delta tables, who have no manifest
        ) as writer:
            for part in _parts(rows):
                writer.write_table(part, row_group_size=max(part.num_rows, 1))

    def read(self, content: pa.Buffer, columns: Sequence[str]) -> pa.Table:
        """Read the columns."""
        file = self._open(content)
        return file.read(list(columns), use_threads=file.metadata.num_rows > _FEW_ROWS)

    def parts(self, content: pa.Buffer, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield one row group at a time."""
        file = self._open(content)
        for group in range(file.metadata.num_row_groups):
            yield file.read_row_group(group, list(columns))

    def take(self, content: pa.Buffer, columns: Sequence[str], positions: Numbers) -> pa.Table:
        """Return the rows at these positions; the row groups that hold them are read one by one."""
        file = self._open(content)
        counts = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        starts = _starts(counts)
        where = _within(starts, positions)
        groups = np.unique(where)
        taken = [
            taken_apart(
                file.read_row_group(group, list(columns), use_threads=counts[group] > _FEW_ROWS),
                positions[slice(*np.searchsorted(where, [group, group + 1]))] - starts[group],
            )
            for group in groups.tolist()
        ]
        return pa.concat_tables(taken) if taken else file.read_row_groups([], list(columns))

    def misleads(self, content: pa.Buffer) -> bool:
        """Return whether an older file holds a NaN, which its statistics ignore."""
        file = self._open(content)
        floating = [f.name for f in file.schema_arrow if pa.types.is_floating(f.type)]
        if not floating:
            return False
        rows = file.read(floating)
        return any(pc.any(pc.is_nan(column)).as_py() for column in rows.columns)

    def _open(self, content: pa.Buffer) -> pq.ParquetFile:
        return pq.ParquetFile(pa.BufferReader(content))


def encoded(form: Format, rows: pa.Table) -> pa.Buffer:
    """Return the file that a format makes of rows."""
    sink = pa.BufferOutputStream()
    form.write(rows, sink)
    return sink.getvalue()


def _parts(rows: pa.Table) -> Iterator[pa.Table]:
    """Cut rows into parts of bounded rows and bytes; no rows are one part."""
    for low in range(0, max(rows.num_rows, 1), _PART_ROWS):
        yield from _in_size(rows.slice(low, _PART_ROWS))


def _in_size(rows: pa.Table) -> Iterator[pa.Table]:
    if rows.num_rows <= 1 or rows.nbytes <= _PART_BYTES:
        yield rows
        return
    middle = rows.num_rows // 2
    yield from _in_size(rows.slice(0, middle))
    yield from _in_size(rows.slice(middle))


def _starts(counts: Sequence[int]) -> Numbers:
    """Return the position of the first row of each part."""
    return np.cumsum([0, *counts], dtype=np.int64)[:-1]


def _within(starts: Numbers, positions: Numbers) -> Numbers:
    """Return in which part each position lies."""
    found: Numbers = np.searchsorted(starts, positions, side="right") - 1
    return found


def is_long(column: pa.ChunkedArray) -> bool:
    """Return whether a column has long values."""
    return _longest(column) > _LONG


def _repeats(column: pa.ChunkedArray) -> bool:
    """Return whether a column's values come back so often that a dictionary of them is shorter."""
    if len(column) < _DICTIONARY_FROM or pa.types.is_nested(column.type):
        return False
    try:
        return bool(2 * pc.count_distinct(column).as_py() <= len(column))
    except pa.ArrowNotImplementedError:  # such as of views, which an engine may give
        return True


def _counts(kind: pa.DataType) -> bool:
    """Return whether Parquet has a type's values as whole numbers, of which differences suit."""
    is_moment = pa.types.is_timestamp(kind) or pa.types.is_time(kind) or pa.types.is_date32(kind)
    return bool(is_moment or pa.types.is_integer(kind))


def _is_incompressible(column: pa.ChunkedArray) -> bool:
    """Return whether a column's longest value is large, and hardly shorter when compressed."""
    length = _longest(column)
    if length < _LARGE:
        return False
    where = pc.index(pc.binary_length(column), length).as_py()
    beginning = column[where].as_buffer()[:_BEGINNING]
    return bool(pa.compress(beginning, codec=_CODEC).size > _WORTH * beginning.size)


def _longest(column: pa.ChunkedArray) -> int:
    """Return the length of a column's longest text or bytes; 0 of other types."""
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_binary(kind)):
        return 0
    return int(pc.max(pc.binary_length(column)).as_py() or 0)
