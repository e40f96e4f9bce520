"""The logs of all tables of one source, read together: which there are, and where each ends.

Which there are changes with the schema only; where they end, with a commit. So a cycle asks one
statement for all tables, and one before which nothing was committed asks none.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence

from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.schema import Table
from rhei_pipeline.sources.sqlite.triggers.ddl import log_table
from rhei_pipeline.sources.sqlite.triggers.log_chain import TriggerLog, all_logs, folded
from rhei_pipeline.sql.text import quote


class LogCatalog:
    """What a connection to the source knows of the logs; to be followed in each transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._schema_version: int | None = None
        self._state: tuple[int, int] | None = None
        self._logs: Mapping[bytes, list[TriggerLog]] | None = None
        self._statements: Sequence[str] = ()
        self._newest: dict[bytes, Position] | None = None
        self._places: dict[bytes, Position] = {}
        self._resting: dict[str, Table] = {}

    def follow(self, schema_version: int) -> None:
        """Forget what is not so any more in the transaction that the connection is in."""
        if schema_version != self._schema_version:
            self._schema_version, self._logs, self._state = schema_version, None, None
            self._resting.clear()
        # The first number tells of the commits of all others, the second one of our own.
        (version,) = self._connection.execute("pragma data_version").fetchone()
        state = (version, self._connection.total_changes)
        if state != self._state:
            self._state, self._newest = state, None

    def logs(self, table: str) -> Sequence[TriggerLog]:
        """Return the logs of a table that are still there, the one written into last."""
        return self._all_logs().get(folded(table), ())

    def newest(self, table: str) -> Position:
        """Return the place of the newest entry of the log that is written into.

        One that was cleared has none: what is returned then is no entry's place.
        """
        if self._newest is None:
            self._newest = self._read_newest()
        name = folded(table)
        if name not in self._newest:
            # It is missing, empty, or was not to be read with the others: the error is its own.
            self._newest[name] = self._read_one(table)
        return self._newest[name]

    def newest_alone(self, table: str) -> Position:
        """Return the same, and read no other log for it: many tables may be captured in a row."""
        if self._newest is not None:
            return self.newest(table)
        name, found = folded(table), self._read_one(table)
        if self._places.get(name) != found:
            self._places[name] = found
        return self._places[name]

    def _read_one(self, table: str) -> Position:
        row = self._connection.execute(_newest_sql(log_table(table))).fetchone()
        return Position(0, "") if row is None else Position(row[0], str(row[1]))

    def note_rest(self, table: Table) -> None:
        """Note that a table's log could be read behind its newest entry, at this schema."""
        self._resting[table.name] = table

    def is_at_rest(self, table: Table, position: Position) -> bool:
        """Return whether a position is that of the newest entry, and its log was found good.

        That is so for any later newest entry as well, as long as the schema is the same.
        """
        name = table.name
        return self._resting.get(name) is table and self.newest(name) is position

    def _all_logs(self) -> Mapping[bytes, list[TriggerLog]]:
        if self._logs is None:
            self._logs = all_logs(self._connection)
            most = self._connection.getlimit(sqlite3.SQLITE_LIMIT_COMPOUND_SELECT)
            self._statements = list(_newest_of_all(self._logs, most))
        return self._logs

    def _read_newest(self) -> dict[bytes, Position]:
        self._all_logs()
        try:
            rows = [r for text in self._statements for r in self._connection.execute(text)]
        except sqlite3.Error:
            return {}
        # A place that is the same stays the same object, by which a mirror's is known again.
        known = self._places
        self._places = {
            name: place
            if (place := known.get(name)) is not None
            and place.order == seq
            and place.proof == str(at)
            else Position(seq, str(at))
            for name, seq, at in rows
        }
        return dict(self._places)


def _newest_of_all(logs: Mapping[bytes, list[TriggerLog]], most: int) -> Iterator[str]:
    """Write what reads the newest entries of all logs, in as few statements as SQLite takes."""
    parts = [
        f"select * from ({_newest_sql(found[-1].name, name)})"
        for name, found in logs.items()
        if not found[-1].retired
    ]
    for start in range(0, len(parts), most):
        yield " union all ".join(parts[start : start + most])


def _newest_sql(log: str, name: bytes | None = None) -> str:
    named = "" if name is None else f"x'{name.hex()}', "
    return f"select {named}seq, at from {quote(log)} order by seq desc limit 1"
