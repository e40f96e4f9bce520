"""What comparing a table's rows portion by portion takes, in every mirror."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.model.changes import Comparison
from rhei_pipeline.model.portions import PORTION_BYTES
from rhei_pipeline.model.selection import each_once

Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

#: Rows that are looked up at once: each time, a table's keys may have to be read once.
PORTION_ROWS = 250_000
_PAGE_BITS = 16
_WITHIN = (1 << _PAGE_BITS) - 1


class MetRows:
    """Which rows of a table were met, by where they stand: pages of flags, where there are any.

    So far-off numbers cost nothing, such as DuckDB gives the rows that a transaction has written.
    """

    def __init__(self) -> None:
        self._pages: dict[int, Flags] = {}
        self.count = 0

    def add(self, places: Places) -> None:
        """Note rows; any of them may have been met before."""
        if not len(places):
            return
        ordered = each_once(places)
        pages, starts = np.unique(ordered >> _PAGE_BITS, return_index=True)
        ends = np.append(starts[1:], len(ordered))
        for page, low, high in zip(pages.tolist(), starts, ends, strict=True):
            own = ordered[low:high]
            flags = self._pages.setdefault(page, np.zeros(_WITHIN + 1, dtype=bool))
            within = own & _WITHIN
            self.count += len(own) - int(flags[within].sum())
            flags[within] = True

    def lacks(self, places: Places) -> Flags:
        """Return which of the rows were not met."""
        missing, pages = np.ones(len(places), dtype=bool), places >> _PAGE_BITS
        for page in np.unique(pages).tolist():
            flags = self._pages.get(page)
            if flags is not None:
                here = np.flatnonzero(pages == page)
                missing[here] = ~flags[places[here] & _WITHIN]
        return missing


class Differences:
    """The keys that differ, gathered portion by portion."""

    def __init__(self, keys: pa.Schema) -> None:
        self._missing = [keys.empty_table()]
        self._different = [keys.empty_table()]
        self._duplicate = [keys.empty_table()]

    def add(self, keys: pa.Table, met: Places, unequal: Places) -> None:
        """Add a portion of the source's keys.

        Args:
            keys: In the order of the rows.
            met: The number of the key of each row of the table that was met.
            unequal: The same of those that differ.
        """
        times = np.bincount(met, minlength=keys.num_rows)
        self._missing.append(keys.filter(pa.array(times == 0)))
        self._different.append(keys.take(pa.array(np.sort(unequal))))
        self._duplicate.append(keys.filter(pa.array(times > 1)))

    def with_extra(self, extra: pa.Table) -> Comparison:
        """Return all of them, with the keys of the table's rows that were not met."""
        return Comparison(
            pa.concat_tables(self._missing),
            extra,
            pa.concat_tables(self._different),
            pa.concat_tables([*self._duplicate, repeated_keys(extra)]),
        )


def gathered(rows: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows in portions that are worth looking up together."""
    held: list[pa.Table] = []
    count = size = 0
    for part in rows:
        count, size = count + part.num_rows, size + part.nbytes
        held.append(part)
        del part
        if count >= PORTION_ROWS or size >= PORTION_BYTES:
            yield pa.concat_tables(held)
            held.clear()
            count = size = 0
    if held:
        yield pa.concat_tables(held)


def repeated_keys(keys: pa.Table) -> pa.Table:
    """Return each key that is there more than once."""
    names = keys.column_names
    counted = keys.group_by(names).aggregate([([], "count_all")])
    return counted.filter(pc.greater(counted["count_all"], 1)).select(names).cast(keys.schema)
