"""The facade of the library: write, query, sync, copy, verify, read history."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import pyarrow as pa

from rhei_pipeline.capabilities import views_of
from rhei_pipeline.changes.consume import After, OnLost
from rhei_pipeline.errors import PermanentError, QueryError, SchemaError
from rhei_pipeline.model.change_feed import ChangeStream, TableChanges
from rhei_pipeline.model.reports import (
    CopyReport,
    DropReport,
    MaintenanceReport,
    RepairReport,
    RowParity,
    SyncReport,
    SyncStatus,
    VerifyReport,
)
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.protocols import Database, OnStep
from rhei_pipeline.query import time_travel
from rhei_pipeline.query.planner import Prepared
from rhei_pipeline.query.results import dated
from rhei_pipeline.query.router import Route
from rhei_pipeline.query.service import Written
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sync.background import BackgroundSync
from rhei_pipeline.sync.dead_letters import replay
from rhei_pipeline.sync.initial_sync import OnProgress
from rhei_pipeline.sync.kept_history import Declared
from rhei_pipeline.sync.pipeline import no_progress, no_step
from rhei_pipeline.wiring.engine import open_engine, open_query_service

Hint = Literal["auto", "oltp", "olap"]


class HTAP:
    """An operational database and its analytical mirror.

    A context manager: leaving the block stops the background sync and closes everything, also
    when an error ends the block. All calls are safe to repeat and to make from several threads.
    """

    # It has many methods because it is no seam: nobody implements it, and for whoever holds it
    # each is one call, found beside the others. None does more than pass on to what the engine is
    # made of: the pipeline, the mirror, the database and the queries.

    def __init__(self, settings: Settings, *, on_step: OnStep = no_step) -> None:
        self.settings = settings
        self._engine = open_engine(settings, on_step)
        self._queries = open_query_service(settings, self._engine)
        self._background: BackgroundSync | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the background sync and close everything; safe to repeat."""
        self.stop_sync()
        self._engine.resources.close()

    def execute(self, sql: str, params: Sequence[Any] = ()) -> Written:
        """Run one write in the source and commit it; return the rows affected.

        Where the source is only polled, the write goes to the local database.

        Raises:
            QueryError: The source is only polled and no local database is declared.
        """
        return self._queries.wrote(self._oltp().execute(sql, params))

    def execute_batch(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> Written:
        """Run all statements in one transaction of the source, all or nothing."""
        return self._queries.wrote(self._oltp().execute_batch(statements))

    def query(
        self,
        sql: str,
        params: Sequence[Any] = (),
        hint: Hint = "auto",
        max_staleness: float | None = None,
        after: Written | str | None = None,
    ) -> pa.Table:
        """Run one read-only statement, in the source's SQL.

        Args:
            sql: The statement. With `olap` it is in the mirror's SQL.
            params: Values for its placeholders: `?` for SQLite and the mirror, `%s` for
                PostgreSQL.
            hint: `auto` chooses the side, and sees every write made by this object; `oltp`
                queries the source; `olap` queries the mirror as it is. With a polled source,
                `oltp` queries the local database, and `auto` the mirror, in the mirror's SQL.
            max_staleness: How many seconds the mirror's answer may be behind the source.
            after: What `execute` returned, or its `token`, here or in another process of this
                machine: the answer shows that write.

        Returns:
            The answer. Its schema's metadata name the side, the reason and the watermark.

        Raises:
            QueryError: The statement does not only read, or its side refuses it.
        """
        if hint == "auto":
            return self._queries.ask(sql, params, max_staleness=max_staleness, after=after)
        if hint == "olap":
            return self._queries.ask_mirror(sql, params, max_staleness, after)
        if hint == "oltp":
            return self._queries.ask_source(sql, params, "asked for")
        raise QueryError(f"unknown hint {hint!r}", hint="use 'auto', 'oltp' or 'olap'")

    def stream(
        self,
        sql: str,
        params: Sequence[Any] = (),
        rows: int = 50_000,
        begun: Begun | None = None,
    ) -> Streamed:
        """Run one read-only statement as with `auto`, and return its answer in batches.

        Args:
            sql: The statement, in the source's SQL.
            params: Values for its placeholders.
            rows: The approximate number of rows in a batch.
            begun: Called before the first batch with a thread-safe cancel function.
        """
        return self._queries.stream(sql, params, rows, begun)

    def reads(self, sql: str) -> bool:
        """Return whether a statement is a query, judged by its text."""
        return self._queries.planner.reads(sql)

    def reads_single_rows(self, sql: str, params: Sequence[Any] = ()) -> bool:
        """Return whether a statement reads one table by key, and so is soon answered."""
        return self._queries.reads_single_rows(sql, params)

    def describe(self, sql: str, params: Sequence[Any] = ()) -> pa.Schema | None:
        """Return the schema of a query's answer without running it; None if only a run shows it."""
        return self._queries.planner.describe(sql, params)

    def prepare(self, sql: str) -> Prepared:
        """Return what is known of a statement before its parameters are bound."""
        return self._queries.planner.prepare(sql)

    def explain_route(self, sql: str, params: Sequence[Any] = ()) -> Route:
        """Return which side would answer a statement now, and why."""
        return self._queries.route(sql, params)

    @property
    def _is_sidecar(self) -> bool:
        """Whether the source is read-only, so that a local database takes the writes."""
        return self._engine.oltp is not self._engine.database

    def _oltp(self) -> Database:
        if self._engine.oltp is None:
            raise QueryError(
                "the source is read-only: it is captured by polling",
                hint="write with its own application, or declare a 'local' database beside it",
            )
        return self._engine.oltp

    def tables(self) -> list[str]:
        """Return the names of the tables mirrored."""
        return sorted(self._engine.pipeline.tables)

    @property
    def left_out(self) -> dict[str, str]:
        """The tables that are left out because of an error, with the error and what to do."""
        return {name: str(error) for name, error in self._engine.pipeline.left_out.items()}

    def register_table(self, name: str, mode: Mode | str | None = None) -> None:
        """Capture a table from now on; if it is captured already, repair what is missing."""
        tables = self._engine.pipeline.tables.values()
        spelled = {table.schema.full_name.lower(): table for table in tables}
        spelled |= {table.name.lower(): table for table in tables}
        standing = spelled.get(name.lower())
        chosen = mode or (standing.mode if standing else self.settings.mode)
        declared = Declared(name, Mode(chosen), explicit=mode is not None)
        self._engine.pipeline.register(declared)

    def drop_table(
        self, table: str, keep_as: str | None = None, *, discard_history: bool = False
    ) -> DropReport:
        """Drop a table of the mirror with its snapshots and records.

        The source is not changed, and the next sync copies a table that is still declared again.

        Args:
            table: A table of the mirror, whether it is still declared or not.
            keep_as: The name under which its rows, history and snapshots are kept for queries.
            discard_history: Delete the history of a temporal table for ever.

        Raises:
            SchemaError: It is not in the mirror; it has history and neither option was given; or
                the name to keep it as is taken.
        """
        return self._engine.pipeline.drop_table(table, keep_as, discard_history=discard_history)

    def initial_sync(self, table: str, on_progress: OnProgress = no_progress) -> CopyReport:
        """Copy a table; a repeated copy applies only the differences."""
        return self._engine.pipeline.copy(table, on_progress)

    def initial_sync_all(self, on_progress: OnProgress = no_progress) -> list[CopyReport]:
        """Copy every table that is not left out."""
        reports = []
        for table in self.tables():
            try:
                reports.append(self.initial_sync(table, on_progress))
            except PermanentError:
                if table not in self.left_out:
                    raise
        return reports

    def sync_now(self, on_progress: OnProgress = no_progress) -> SyncReport:
        """Apply all pending changes; a table that was never copied is copied first."""
        return self._engine.pipeline.sync(on_progress)

    def start_sync(self, interval_seconds: float | None = None) -> BackgroundSync:
        """Sync in the background at an interval; does nothing if that is already running."""
        if self._background is None or not self._background.running:
            interval = interval_seconds or self.settings.sync.interval_seconds
            self._background = BackgroundSync(self._engine.pipeline, interval)
            self._background.start()
        return self._background

    def stop_sync(self) -> None:
        """Stop the background sync after the running cycle."""
        if self._background is not None:
            self._background.stop()

    def sync_status(self, patience_seconds: float | None = None) -> SyncStatus:
        """Return every table's state.

        Args:
            patience_seconds: How long to wait for a running sync before the last known status is
                returned. That is also returned if source or mirror cannot be read, with the
                reason in `unreadable`. Left out: wait until the sync ends, and raise an error if
                something cannot be read.
        """
        background = self._background
        error = background.last_error if background else None
        error = error or self._engine.pipeline.emptiness
        standing = self._engine.pipeline.status(patience_seconds)
        return SyncStatus(
            running=background is not None and background.running,
            tables=standing.tables,
            last_error=None if error is None else str(error),
            copying=self._engine.pipeline.copying,
            held_bytes=standing.held_bytes,
            age_seconds=standing.age_seconds,
            not_followed=standing.not_followed,
            not_published=standing.not_published,
            unreadable=standing.unreadable,
        )

    def watch(
        self,
        on_sync: Callable[[SyncReport], None],
        on_query: Callable[[str, float], None],
    ) -> None:
        """Call `on_sync` with each sync's report, `on_query` with each query's side and seconds."""
        self._engine.pipeline.watch(on_sync)
        self._queries.watch(on_query)

    def table_schemas(self) -> dict[str, Table]:
        """Return the mirrored tables as they are captured now, by name."""
        return dict(self._engine.pipeline.tables)

    def views(self) -> list[tuple[str | None, str]]:
        """Return the schema and name of each view of the source, which answers queries on them."""
        return [] if self._is_sidecar else views_of(self._engine.database)

    def add_column(self, table: str, column: str, arrow_type: pa.DataType) -> None:
        """Add a column to the source, unless it has it, and to the mirror."""
        found = self._engine.pipeline.table(table)
        if column.lower() not in map(str.lower, found.schema.names):
            self._refuse_foreign_schema()
            self._engine.database.add_column(found.schema, column, arrow_type)
        self.sync_now()

    def drop_column(self, table: str, column: str) -> None:
        """Drop a column from the source and the mirror; a temporal mirror keeps its values."""
        found = self._engine.pipeline.table(table)
        if column.lower() in map(str.lower, found.schema.primary_key):
            raise SchemaError(f"column {column!r} is part of the primary key", table=found.name)
        if column.lower() in map(str.lower, found.schema.names):
            self._refuse_foreign_schema()
            self._engine.database.drop_column(found.schema, column)
        self.sync_now()

    def _refuse_foreign_schema(self) -> None:
        if self._is_sidecar:
            raise QueryError(
                "the source is read-only: only its owner changes its tables",
                hint="change the table in the source; the next sync follows the change",
            )

    def as_of(self, table: str, instant: datetime) -> pa.Table:
        """Return a temporal table's rows as they were at an instant, with the columns it had.

        Raises:
            QueryError: The table keeps no history, its history begins later, or the instant has
                no time zone.
        """
        found = self._engine.pipeline.mirrored(table)
        rows = time_travel.as_of(found, instant, self._engine.mirror)
        left = self._engine.pipeline.not_followed
        return dated(rows, {name: left[name] for name in [found.name] if name in left})

    def known_since(self, table: str) -> datetime:
        """Return when a temporal table's history begins; earlier states are unknown."""
        return time_travel.known_since(self._engine.pipeline.mirrored(table), self._engine.mirror)

    def changes(self, table: str, after: After = None, on_lost: OnLost = "raise") -> TableChanges:
        """Return what was inserted, updated and deleted in a temporal table since a position.

        Nothing is lost and nothing comes twice, whatever happens to syncs between two calls: each
        begins where the one before ended. A row that changed more than once has one change, from
        what it was at the position to what it is now; one that is again as it was has none.

        Args:
            table: A temporal table.
            after: The `position` of the answer before, or its text; an instant, for what differs
                from the table as it was then; None for the whole table.
            on_lost: Where what changed since the position is not known: `raise` an error, or
                answer with the whole table, a `snapshot`.

        Raises:
            ChangesLostError: The position is of another history: the table was dropped and copied
                again, the mirror was put back from a backup, or a repair changed the past itself.
            QueryError: The table keeps no history, its history begins after the instant, or the
                position is none.
        """
        found = self._engine.pipeline.mirrored(table)
        return time_travel.changes(found, after, self._engine.mirror, on_lost)

    def stream_changes(
        self, table: str, after: After = None, rows: int = 50_000, on_lost: OnLost = "raise"
    ) -> ChangeStream:
        """Return the same as `changes`, in batches of about so many rows."""
        found = self._engine.pipeline.mirrored(table)
        return time_travel.stream_changes(found, after, self._engine.mirror, rows, on_lost)

    def diff(self, table: str, a: datetime, b: datetime) -> pa.Table:
        """Return what differs in a temporal table from one instant to another, by key.

        Returns:
            `_rhei_operation` (I, U or D), the columns at `b` (of a deleted row its key alone),
            `_rhei_changed_at`, and `_rhei_old_<column>` with the values at `a`. A row that is the
            same at both is left out, whatever it was meanwhile.

        Raises:
            QueryError: The table keeps no history, or it begins after one of the instants.
        """
        found = self._engine.pipeline.mirrored(table)
        return time_travel.diff(found, a, b, self._engine.mirror)

    def verify(self, table: str | None = None) -> VerifyReport:
        """Sync, then compare every row of source and mirror at one source state."""
        return self._engine.pipeline.verify(table)

    def row_parity(self, table: str) -> RowParity:
        """Sync, then count the rows of source and mirror at one source state."""
        return self._engine.pipeline.parity(table)

    def row_count(self, table: str) -> int:
        """Return the number of the mirror's current rows."""
        return self._engine.mirror.count(self._engine.pipeline.table(table))

    def snapshot(self, table: str, instants: Mapping[date, datetime]) -> dict[date, int]:
        """Store a temporal table's rows as of an instant for each day, in `snapshot.<table>`.

        Existing days are replaced; all days are written in one transaction.

        Returns:
            How many rows each day's snapshot has.

        Raises:
            QueryError: The table keeps no history, or its history begins after one of the days.
        """
        found = self._engine.pipeline.mirrored(table)
        return time_travel.snapshot(found, instants, self._engine.mirror)

    def maintain(self) -> MaintenanceReport:
        """Merge the mirror's small files; call again until it reports that it is done."""
        return self._engine.mirror.maintain()

    def repair(self, table: str) -> RepairReport:
        """Make a table equal to its source again."""
        return self._engine.pipeline.repair(table)

    def dead_letters(self, table: str | None = None) -> pa.Table:
        """Return the rows that cannot be mirrored: table_name, key, column_name, reason, ...."""
        return self._engine.mirror.dead_letters(table)

    def replay_dead_letters(self, table: str | None = None) -> SyncReport:
        """Read the rows of the dead letters again, and sync."""
        replay(self.dead_letters(table), self._engine.pipeline)
        return self.sync_now()


def open(source: Settings | str | Path) -> HTAP:  # noqa: A001  (rhei.open is the public name)
    """Open the pipeline of a declaration, given as a file or as settings."""
    return HTAP(source if isinstance(source, Settings) else Settings.load(source))
