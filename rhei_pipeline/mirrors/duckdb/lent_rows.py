"""Shows rows to a connection of DuckDB, a few of them without a table of their own."""

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from rhei_pipeline.mirrors.duckdb.tables import registered
from rhei_pipeline.model.large_rows import are_large

#: What rows are lent as; nothing else registers any under these names.
UPSERTS, OPENINGS, TOUCHED = "_rhei_upserts", "_rhei_openings", "_rhei_touched"
_LENT = frozenset({UPSERTS, OPENINGS, TOUCHED})
#: Of more rows, reading the columns that no statement asks for takes longer than to register them.
_FEW = 1_000


class LentRows:
    """Rows that a connection sees within a block.

    To register a table and take it back takes one to two milliseconds, in a cycle of twelve. So
    what shows few rows stays registered, and shows others in the next cycle, or none.

    Args:
        connection: It outlives transactions.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._standing: dict[str, _Loan] = {}

    @contextmanager
    def shown(self, name: str, rows: pa.Table) -> Iterator[None]:
        """Show rows under a name, within the block."""
        if name not in _LENT or rows.num_rows > _FEW or are_large(rows):
            self._standing.pop(name, None)
            with registered(self._connection, name, rows):
                yield
            return
        loan = self._standing.get(name, _Loan())
        loan.show(rows)
        if name not in self._standing:
            self._connection.register(name, loan)
            self._standing[name] = loan
        try:
            yield
        finally:
            loan.end()

    @contextmanager
    def within_transaction(self, *, trial: bool) -> Iterator[None]:
        """Run a transaction; if it is rolled back, so is what was registered in it."""
        is_committed = False
        try:
            yield
            is_committed = not trial
        finally:
            if not is_committed:
                self._standing.clear()


class _Loan:
    """What DuckDB asks for rows, and for their columns, whenever a statement names them.

    Whoever lists the views of this connection asks for the columns, too, while nothing is lent.
    """

    def __init__(self) -> None:
        self._rows: pa.Table | None = None
        self._schema = pa.schema([])

    def show(self, rows: pa.Table) -> None:
        """Lend rows."""
        self._rows, self._schema = rows, rows.schema

    def end(self) -> None:
        """Let go of the rows."""
        self._rows = None

    def __arrow_c_schema__(self) -> object:
        return self._schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        if self._rows is None:
            raise RuntimeError("these rows were lent, and are so no longer")
        return self._rows.__arrow_c_stream__(requested_schema)
