"""Change capture by polling timestamps, for a SQLite file that is read-only.

Nothing is created in the source. How far a table was polled is known by the mirror's watermark
alone; what this source remembers beside it only saves reads.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.kept_columns import KeptColumns
from rhei_pipeline.model.polling import PollOptions
from rhei_pipeline.model.reports import Finding
from rhei_pipeline.model.schema import Table, TableOptions, TableSchema, nearest
from rhei_pipeline.sources.catalog_cache import CatalogCache
from rhei_pipeline.sources.polling_source import PollingSource
from rhei_pipeline.sources.sqlite.added_columns import added_values
from rhei_pipeline.sources.sqlite.arrow_rows import ArrowRows
from rhei_pipeline.sources.sqlite.catalog import read_table
from rhei_pipeline.sources.sqlite.column_identities import kept_by_count
from rhei_pipeline.sources.sqlite.database import SqliteDatabase
from rhei_pipeline.sources.sqlite.polling.snapshot import SqlitePollingSnapshot, SqlitePollMemory
from rhei_pipeline.sources.sqlite.polling.table import SqlitePoll
from rhei_pipeline.sources.sqlite.rows import ReadRows, SqliteRowReader
from rhei_pipeline.sources.sqlite.triggers.ddl import CLOCK
from rhei_pipeline.sql.text import listed, quote


def _unknown(_name: str) -> None:
    """Return None: nothing is mirrored yet."""


class SqlitePollingSource(PollingSource):
    """A `ChangeSource` over one SQLite file that it only reads.

    Args:
        database: The source.
        polls: How each table is polled, by name.
        options: Partial replication, chosen keys, given types, by table.
        known: Returns the table as it is mirrored, by name; None when it is not yet.
        notes: A file that tells others how far this mirror has come; never relied on here.
        monotonic: A clock that never goes back, in seconds.

    Not for several threads at once; the caller holds a lock around its work.
    """

    def __init__(
        self,
        database: SqliteDatabase,
        polls: Mapping[str, PollOptions] | None = None,
        options: Mapping[str, TableOptions] | None = None,
        known: Callable[[str], Table | None] = _unknown,
        notes: Path | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._polls = {name.lower(): chosen for name, chosen in (polls or {}).items()}
        self._options = {name.lower(): chosen for name, chosen in (options or {}).items()}
        self._known = known
        self._memory = SqlitePollMemory()
        super().__init__(self._memory, notes, monotonic)
        self._catalogue: CatalogCache[SqlitePoll] = CatalogCache()
        self._connection = database.connect(mode="ro")
        self._file = database.file_id()
        self._arrow_rows = ArrowRows(database.path)

    def describe(self, name: str) -> TableSchema:
        """Read a table's schema as it is now."""
        return self._poll(name).source.schema

    def schema_version(self) -> int:
        """Return SQLite's own count of schema changes."""
        self._follow_the_file()
        with self._database.translated():
            return int(self._connection.execute("pragma schema_version").fetchone()[0])

    def added_values(
        self, table: Table, known: TableSchema, _after: Position
    ) -> Mapping[str, pa.Scalar] | None:
        """Return what columns that are new since are in rows that nobody has stamped since."""
        with self._database.translated():
            return added_values(self._connection, known, table.schema)

    def kept_columns(
        self, table: Table, known: TableSchema, _after: Position
    ) -> KeptColumns | None:
        """Return which columns are those that were known; see `capabilities.KnowsKept`."""
        return kept_by_count(known, table.schema)

    def redeclare(self, name: str, options: TableOptions, polling: PollOptions) -> None:
        """Take what is said of a table from now on."""
        self._options[name.lower()], self._polls[name.lower()] = options, polling
        self._catalogue.forget()

    def timestamp_column(self, name: str) -> str:
        """Return the column by which a table is polled."""
        return self._poll(name).options.updated_at

    def missing_index(self, name: str) -> str | None:
        """Return the statement that creates the index a poll needs; None if it exists."""
        poll = self._poll(name)
        column, schema = poll.options.updated_at, poll.source.schema
        found = self._connection.execute(
            "select 1 from temp.pragma_index_list(?) l, temp.pragma_index_xinfo(l.name) x"
            " where x.seqno = 0 and x.name = ? and not l.partial",
            (schema.name, column),
        )
        if found.fetchone() is not None:
            return None
        index = quote(f"{schema.name}_{column}")
        columns = listed([column, *schema.primary_key])
        return f"create index {index} on {quote(schema.name)}({columns})"

    def lacking(self, _name: str) -> Sequence[Finding]:
        """Return nothing: a process that can open the file can read all of it."""
        return ()

    def remedy_for(self, doubt: str) -> None:
        """Return None: a file has no grants."""

    def snapshot(self) -> AbstractContextManager[SqlitePollingSnapshot]:
        """Hold one committed state of the source; its rows can always be read."""
        return self._held(SqliteRowReader.rows)

    @contextmanager
    def copy_snapshot(self) -> Iterator[SqlitePollingSnapshot]:
        """Hold a state from which a copy reads rows; they may be of a later one."""
        with (
            self._held(self._arrow_rows.rows) as snapshot,
            self._arrow_rows.of(self._file, snapshot.schema_version),
        ):
            yield snapshot

    @contextmanager
    def _held(self, read_rows: ReadRows) -> Iterator[SqlitePollingSnapshot]:
        self._follow_the_file()
        with self._database.translated():
            clock = self._clock()
            self._connection.execute("begin")
            try:
                yield SqlitePollingSnapshot(
                    self._connection, self._poll_at, self._memory, clock, read_rows=read_rows
                )
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("rollback")

    def close(self) -> None:
        """Close the connection; safe to repeat."""
        self._connection.close()

    def _clock(self) -> int:
        """Read the source's clock in microseconds; a step back makes older positions void."""
        began = self._monotonic()
        (now,) = self._connection.execute(f"select {CLOCK}").fetchone()
        self._follow_clock(began, now)
        return int(now)

    def _follow_the_file(self) -> None:
        """Open the file again if another one replaced it."""
        file = self._database.file_id()
        if file != self._file:
            former, opened = self._connection, self._database.connect(mode="ro")
            self._connection, self._file = opened, file
            former.close()
            self._memory.forget_versions()
            self._catalogue.forget()

    def _poll(self, name: str) -> SqlitePoll:
        with self._database.translated():
            version = self._connection.execute("pragma schema_version").fetchone()[0]
            return self._poll_at(name, version)

    def _poll_at(self, name: str, version: int) -> SqlitePoll:
        self._catalogue.follow(version)
        return self._catalogue.get(name) or self._catalogue.put(self._read(name), name)

    def _read(self, name: str) -> SqlitePoll:
        chosen, known = self._options.get(name.lower(), TableOptions()), self._known(name)
        source = read_table(self._connection, name, chosen, known.schema if known else None)
        return SqlitePoll(source, self._spelled(source.schema.name))

    def _spelled(self, table: str) -> PollOptions:
        """Return the table's options with its columns' names as the table has them."""
        options = self._polls.get(table.lower(), PollOptions())
        rows = self._connection.execute("select name from temp.pragma_table_xinfo(?)", (table,))
        columns = {name.lower(): name for (name,) in rows}
        updated_at = _column(table, columns, "updated_at", options.updated_at)
        if options.deleted_at is None:
            return replace(options, updated_at=updated_at)
        deleted_at = _column(table, columns, "deletes", options.deleted_at)
        return replace(options, updated_at=updated_at, deleted_at=deleted_at)


def _column(table: str, columns: Mapping[str, str], setting: str, name: str) -> str:
    if name.lower() not in columns:
        raise SchemaError(
            f"'polling.{setting}' names column {name!r}, which the source does not have",
            table=table,
            hint=nearest(name, sorted(columns.values())),
        )
    return columns[name.lower()]
