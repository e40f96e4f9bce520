"""The highest key of each table of an open DuckDB mirror: what is above it is not there yet."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.mirrors.duckdb.statements import Statements
from rhei_pipeline.mirrors.met_rows import Flags
from rhei_pipeline.model.schema import Table
from rhei_pipeline.sql.text import mirror_table, quote

_LOWEST = -(2**63)


class HighestKeys:
    """Bounds that no key of a table is above, of tables whose key is one integer.

    Most tables number their rows upwards. To search for new rows would take half of a cycle.
    A bound may be too high, and never too low: then rows that are there would be inserted again.
    """

    def __init__(self) -> None:
        self._bounds: dict[tuple[str, str], int] = {}

    @contextmanager
    def within_transaction(self, *, trial: bool) -> Iterator[None]:
        """Forget all bounds behind a transaction that is rolled back, as a trial always is.

        Where it was asked for one after it had deleted rows, those are there again, and above it.
        """
        is_kept = False
        try:
            yield
            is_kept = not trial
        finally:
            if not is_kept:
                self._bounds.clear()

    def absent(self, statements: Statements, table: Table, keys: pa.Table) -> Flags:
        """Return which of these keys the table cannot have, in no version; asks it once."""
        found = np.zeros(keys.num_rows, dtype=bool)
        if _has_bound(table) and keys.num_rows:
            bound = self._bounds.get(_place(table))
            if bound is None:
                bound = self._bounds[_place(table)] = _highest(statements, table)
            above = pc.greater(keys[table.schema.primary_key[0]], bound)
            found |= pc.fill_null(above, fill_value=False).to_numpy()
        return found

    def note(self, table: Table, rows: pa.Table) -> None:
        """Note rows that a table is about to get."""
        if _has_bound(table) and (bound := self._bounds.get(_place(table))) is not None:
            highest = pc.max(rows[table.schema.primary_key[0]]).as_py()
            self._bounds[_place(table)] = bound if highest is None else max(bound, highest)

    def forget(self, table: Table) -> None:
        """Ask a table again: it becomes another one, or has other columns."""
        name = _place(table)[0]
        self._bounds = {of: bound for of, bound in self._bounds.items() if of[0] != name}


def _has_bound(table: Table) -> bool:
    key = table.schema.key_columns
    return len(key) == 1 and pa.types.is_integer(key[0].type)


def _place(table: Table) -> tuple[str, str]:
    """Return what tells a table, and its key, from others."""
    return mirror_table(table.schema).lower(), table.schema.primary_key[0]


def _highest(statements: Statements, table: Table) -> int:
    key, name = quote(table.schema.primary_key[0]), mirror_table(table.schema)
    (highest,) = statements.run(f"select max({key}) from {name}").fetchall()[0]
    return _LOWEST if highest is None else int(highest)
