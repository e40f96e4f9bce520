"""Statements that every cycle runs again on a connection."""

from collections.abc import Sequence

import duckdb

#: So many texts are kept parsed: those of more than a hundred tables.
_MOST = 1_000


class Statements:
    """Runs statements on a connection; each text is parsed once.

    DuckDB takes a seventh of a small statement's time to parse it, twice where it is given as text.

    Args:
        connection: It outlives transactions.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection
        self._parsed: dict[str, duckdb.Statement] = {}

    def run(self, sql: str, params: Sequence[object] | None = None) -> duckdb.DuckDBPyConnection:
        """Run one statement; return the connection, from which to fetch its answer."""
        return self.connection.execute(self._statement(sql), params)

    def asked(self, sql: str) -> duckdb.DuckDBPyRelation:
        """Return a question's answer, which comes as Arrow without a copy, and has exact types."""
        return self.connection.sql(self._statement(sql))

    def changed(self, sql: str, params: Sequence[object] | None = None) -> int:
        """Run a writing statement; return how many rows it changed."""
        return int(self.run(sql, params).fetchall()[0][0])

    def _statement(self, sql: str) -> duckdb.Statement:
        parsed = self._parsed.get(sql)
        if parsed is None:
            if len(self._parsed) >= _MOST:
                self._parsed.clear()
            (parsed,) = self.connection.extract_statements(sql)
            self._parsed[sql] = parsed
        return parsed
