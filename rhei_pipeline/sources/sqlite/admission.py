"""Rows of a SQLite query as Arrow columns: a few at a time are admitted, and joined to portions.

So few values are Python's at any time that they stay in the processor's cache, and out of the
garbage collector's way. What a portion takes in memory is then known without looking at each.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa

from rhei_pipeline.model.changes import DeadLetter, key_text
from rhei_pipeline.model.plain_values import plain_value
from rhei_pipeline.model.portions import LARGE_BYTES, gathered
from rhei_pipeline.model.schema import Column, TableSchema
from rhei_pipeline.sources.rejections import Rejection
from rhei_pipeline.sources.sqlite.cursors import Rows, Take
from rhei_pipeline.sources.sqlite.types import admit, plain

#: The values of each column of some rows.
Values = Sequence[Sequence[Any]]


@dataclass(frozen=True)
class AdmittedRows:
    """Rows that became Arrow.

    Attributes:
        count: How many.
        arrays: A column each, ours first; null where a row is rejected.
        rejections: The rows that do not fit, by their numbers.
        letters: The dead letter of each rejection.
        last: The values of the last row, as SQLite has them.
    """

    count: int
    arrays: Sequence[pa.Array | pa.ChunkedArray]
    rejections: Sequence[Rejection] = ()
    letters: Sequence[DeadLetter] = ()
    last: Sequence[Any] = ()

    def __len__(self) -> int:
        """Return how many rows they are."""
        return self.count

    @cached_property
    def nbytes(self) -> int:
        """How many bytes the columns take."""
        return sum(array.nbytes for array in self.arrays)


def _nothing(_values: Values) -> list[pa.Array]:
    return []


@dataclass(frozen=True, slots=True)
class Admission:
    """Turns rows of a query into Arrow: values of ours, then those of a table, its key first.

    Attributes:
        schema: What the table's values should be.
        clock: The source's clock; dead letters are dated by it.
        first: How many values of ours stand before the table's.
        own: Turns the columns of a query into arrays of ours.
    """

    schema: TableSchema
    clock: datetime
    first: int = 0
    own: Callable[[Values], list[pa.Array]] = _nothing

    def portions(self, take: Take, limit: int) -> Iterator[AdmittedRows]:
        """Yield all rows in portions of at most `limit`, and of bounded bytes."""
        for parts in gathered(lambda most: self._admitted(take(most)), _size, limit):
            portion = _joined(parts)
            parts.clear()
            yield portion
            del portion  # it may be large, and the next one is read now

    def _admitted(self, rows: Rows) -> AdmittedRows:
        if not rows:
            return AdmittedRows(0, ())
        values = list(zip(*rows, strict=True))
        arrays, rejections = admit(values[self.first :], key_first(self.schema))
        letters = self._letters(rejections, arrays, values[self.first :])
        last = rows[-1][self.first :]
        return AdmittedRows(len(rows), [*self.own(values), *arrays], rejections, letters, last)

    def _letters(
        self, rejections: Sequence[Rejection], arrays: Sequence[pa.Array], values: Values
    ) -> list[DeadLetter]:
        name, clock = self.schema.name, self.clock
        return [
            DeadLetter(
                name, key_in(self.schema, arrays, values, of.row), of.column, of.reason, clock
            )
            for of in rejections
        ]


def key_in(schema: TableSchema, arrays: Sequence[pa.Array], values: Values, row: int) -> str:
    """Return the key of a row as text, whether or not it was admitted.

    As admitted where it was, so that it reads the same once its row is accepted.
    """
    parts = zip(schema.primary_key, arrays, values, strict=False)
    key = {name: (plain_value(array[row]), plain(given[row])) for name, array, given in parts}
    return key_text({name: raw if known is None else known for name, (known, raw) in key.items()})


def key_first(schema: TableSchema) -> list[Column]:
    """Return the columns, those of the key first."""
    return [*schema.key_columns, *schema.value_columns]


def _size(part: AdmittedRows) -> int:
    return part.nbytes


def _joined(parts: Sequence[AdmittedRows]) -> AdmittedRows:
    """Return rows as one; large ones side by side, since joining them takes another copy."""
    if len(parts) == 1:
        return parts[0]
    is_large = sum(map(_size, parts)) > LARGE_BYTES
    join = pa.chunked_array if is_large else pa.concat_arrays
    starts = accumulate((part.count for part in parts), initial=0)
    return AdmittedRows(
        sum(part.count for part in parts),
        [join(pieces) for pieces in zip(*(part.arrays for part in parts), strict=True)],
        [
            replace(rejection, row=start + rejection.row)
            for start, part in zip(starts, parts, strict=False)
            for rejection in part.rejections
        ],
        [letter for part in parts for letter in part.letters],
        parts[-1].last,
    )
