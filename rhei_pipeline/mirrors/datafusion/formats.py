"""How a segment's rows are written: Arrow IPC, mapped into memory as it stands, or Parquet."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rhei_pipeline.mirrors.datafusion.key_index import Numbers

#: A segment's own column: the row's number in it, by which removed rows are left out.
ROW = "_rhei_row"

#: Rows in a part of a segment: large enough to read fast, small enough to leave parts unread.
_PART_ROWS = 65_536
_COMPRESSION_LEVEL = 1  # further levels take twice the time to save a tenth


class Format(Protocol):
    """A way to write rows."""

    suffix: str

    def encode(self, rows: pa.Table) -> pa.Buffer:
        """Write rows, the row number among them."""

    def read(self, content: pa.Buffer, columns: Sequence[str]) -> pa.Table:
        """Read all rows."""

    def parts(self, content: pa.Buffer, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Read all rows, a part at a time."""

    def take(self, content: pa.Buffer, columns: Sequence[str], positions: Numbers) -> pa.Table:
        """Read the rows at these positions, which ascend."""


class Ipc:
    """Arrow IPC, uncompressed: reading is mapping."""

    suffix = ".arrow"

    def encode(self, rows: pa.Table) -> pa.Buffer:
        """Write a file with parts of equal size."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows.combine_chunks(), max_chunksize=_PART_ROWS)
        return sink.getvalue()

    def read(self, content: pa.Buffer, columns: Sequence[str]) -> pa.Table:
        """Point at the rows where they are."""
        return pa.ipc.open_file(content).read_all().select(list(columns))

    def parts(self, content: pa.Buffer, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Point at each part."""
        found = self.read(content, columns)
        for batch in found.to_batches():
            yield pa.Table.from_batches([batch], found.schema)

    def take(self, content: pa.Buffer, columns: Sequence[str], positions: Numbers) -> pa.Table:
        """Take rows from where they are."""
        batches = self.read(content, columns)
        chunks = batches.to_batches()
        where = positions // _PART_ROWS
        taken = [
            chunks[part].take(pa.array(positions[where == part] - part * _PART_ROWS))
            for part in np.unique(where)
        ]
        return pa.Table.from_batches(taken, batches.schema)


class Parquet:
    """Parquet with statistics for each row group and page, but of floating columns.

    Statistics leave NaN out, and engines believe them: of NaN, 5 and 5 they make 5, 5 and 5.
    """

    suffix = ".parquet"

    def encode(self, rows: pa.Table) -> pa.Buffer:
        """Write a file whose row groups a query can leave out by their statistics."""
        sink = pa.BufferOutputStream()
        pq.write_table(
            rows,
            sink,
            row_group_size=_PART_ROWS,
            compression="zstd",
            compression_level=_COMPRESSION_LEVEL,
            use_dictionary=[name for name in rows.column_names if name != ROW],
            column_encoding={ROW: "DELTA_BINARY_PACKED"},
            write_page_index=True,
            write_statistics=[f.name for f in rows.schema if not pa.types.is_floating(f.type)],
            write_page_checksum=True,  # for readers of Delta tables, who have no manifest
        )
        return sink.getvalue()

    def read(self, content: pa.Buffer, columns: Sequence[str]) -> pa.Table:
        """Read the columns."""
        return self._open(content).read(list(columns))

    def parts(self, content: pa.Buffer, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Read a row group at a time."""
        file = self._open(content)
        for group in range(file.metadata.num_row_groups):
            yield file.read_row_group(group, list(columns))

    def take(self, content: pa.Buffer, columns: Sequence[str], positions: Numbers) -> pa.Table:
        """Read the row groups that hold one of the rows."""
        file = self._open(content)
        where = positions // _PART_ROWS
        groups: npt.NDArray[np.int64] = np.unique(where)
        rows = file.read_row_groups(groups.tolist(), list(columns))
        # All groups but the last one of a segment are full.
        within = np.searchsorted(groups, where) * _PART_ROWS + positions % _PART_ROWS
        return rows.take(pa.array(within))

    def misleads(self, content: pa.Buffer) -> bool:
        """Return whether an older file holds a NaN, which its statistics leave out."""
        file = self._open(content)
        floating = [f.name for f in file.schema_arrow if pa.types.is_floating(f.type)]
        if not floating:
            return False
        rows = file.read(floating)
        return any(pc.any(pc.is_nan(column)).as_py() for column in rows.columns)

    def _open(self, content: pa.Buffer) -> pq.ParquetFile:
        return pq.ParquetFile(pa.BufferReader(content))
