"""A range of a table's keys, as source and mirror order them alike."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.model.schema import TableSchema


@dataclass(frozen=True, slots=True)
class KeySpan:
    """The keys after one key and up to another, each a table of one row with the key's columns.

    None: from the first key on, or up to the last. With `includes_after` it begins with that key
    itself.
    """

    after: pa.Table | None = None
    until: pa.Table | None = None
    includes_after: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it holds every key."""
        return self.after is None and self.until is None

    def holds(self, keys: pa.Table) -> pa.ChunkedArray:
        """Return which of the keys it holds."""
        found = pa.chunked_array([pa.repeat(pa.scalar(value=True), keys.num_rows)])
        if self.after is not None:
            begun = pc.greater_equal if self.includes_after else pc.greater
            found = pc.and_(found, _is_behind(keys, self.after, begun))
        if self.until is not None:
            found = pc.and_not(found, _is_behind(keys, self.until, pc.greater))
        return found


#: All keys of a table.
WHOLE = KeySpan()


def _is_behind(
    keys: pa.Table, bound: pa.Table, last_part: Callable[[pa.ChunkedArray, pa.Scalar], pa.Array]
) -> pa.ChunkedArray:
    """Return which keys come after the bound: the first part that is another one decides."""
    columns = [(keys[name], bound[name][0]) for name in reversed(bound.column_names)]
    return reduce(
        lambda behind, part: pc.or_(pc.greater(*part), pc.and_(pc.equal(*part), behind)),
        columns[1:],
        last_part(*columns[0]),
    )


def orders_alike(schema: TableSchema) -> bool:
    """Return whether every engine orders keys of these types alike, byte for byte.

    Floating keys have two zeros, and a decimal's order is that of its text in some sources.
    """
    return all(_is_ordered(column.type) for column in schema.key_columns)


def _is_ordered(kind: pa.DataType) -> bool:
    is_bytes = pa.types.is_string(kind) or pa.types.is_binary(kind)
    return bool(is_bytes or pa.types.is_integer(kind) or pa.types.is_date32(kind))
