"""The facade of the library: write, query, sync, copy, verify, read history."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from rhei_pipeline.changes.consume import After, OnLost
from rhei_pipeline.errors import RheiError, needs_extra
from rhei_pipeline.holder.access import Access
from rhei_pipeline.holder.close_at_exit import close_at_exit
from rhei_pipeline.holder.held import Hint, running_as, writable
from rhei_pipeline.holder.keeping_up import KeepingUp
from rhei_pipeline.model.change_feed import ChangeStream, TableChanges
from rhei_pipeline.model.closing import Closing
from rhei_pipeline.model.forgetting import ForgetReport, PersonReport
from rhei_pipeline.model.forking import is_fork, keep_from_forks, note_opened, refuse_in_fork
from rhei_pipeline.model.instants import When, as_instant
from rhei_pipeline.model.reports import (
    CopyReport,
    RowParity,
    SyncReport,
    SyncStatus,
    TypeProposal,
    VerifyReport,
)
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.model.schema_log import SchemaChange
from rhei_pipeline.model.snapshot_rows import SnapshotRows
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.model.type_names import parse_type
from rhei_pipeline.model.upkeep import DropReport, MaintenanceReport, RepairReport
from rhei_pipeline.protocols import Database, OnStep
from rhei_pipeline.query.freshness import Demand, Writes, Written
from rhei_pipeline.query.planner import Prepared
from rhei_pipeline.query.router import Route
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.settings.source import PollingSettings
from rhei_pipeline.sync.background import BackgroundSync, checked_interval
from rhei_pipeline.sync.initial_sync import OnProgress
from rhei_pipeline.sync.pipeline import no_progress, no_step
from rhei_pipeline.sync.repair_keys import Key, RepairRange
from rhei_pipeline.wiring.compute import Cluster
from rhei_pipeline.wiring.declarations import table_settings

if TYPE_CHECKING:
    from rhei_pipeline.monitoring.server import MonitoringServer


class HTAP(Closing):
    """An operational database and its analytical mirror.

    A context manager: leaving the block stops the background sync and closes everything, also
    when an error ends the block. All calls are safe to repeat and to make from several threads.
    """

    # It has many methods because it is no seam: nobody implements it, and for whoever holds it
    # each is one call, found beside the others. None does more than pass on to what the engine is
    # made of: the pipeline, the mirror, the database and the queries.

    def __init__(self, settings: Settings, *, on_step: OnStep = no_step, hold: bool = True) -> None:
        settings.refuse_whole()
        note_opened()
        keep_from_forks(self)
        self.settings = settings
        # Made here, and not by the first who asks: two threads would make one each.
        self._cluster = Cluster(settings) if settings.compute is not None else None
        self._opened = Access(settings, on_step, keep=hold)
        self._background: BackgroundSync | None = None
        #: What serves metrics and the status page, once `start_sync` was asked for that.
        self.monitoring: MonitoringServer | None = None
        self._writes = Writes()
        self._note_closed = close_at_exit(self.close)

    def close(self) -> None:
        """Stop the background sync and close everything; safe to repeat.

        In a fork of the process that opened this, it does nothing: all of it is the parent's.
        """
        self._note_closed()
        if is_fork():
            return
        self.stop_sync()
        if self.monitoring is not None:
            self.monitoring.close()
        if self._cluster is not None:
            self._cluster.close()
        self._opened.close()

    @property
    def _access(self) -> Access:
        refuse_in_fork()
        return self._opened

    @property
    def holds(self) -> bool:
        """Whether this process has the mirror open; another one is asked otherwise."""
        return self._access.holds

    def execute(self, sql: str, params: Sequence[Any] = ()) -> Written:
        """Run one write in the source and commit it; return the rows affected.

        Where the source is only polled, the write goes to the local database.

        Raises:
            QueryError: The source is only polled and no local database is declared.
        """
        return self._written(lambda oltp: oltp.execute(sql, params))

    def execute_returning(self, sql: str, params: Sequence[Any] = ()) -> pa.Table:
        """Run one write in the source, such as `insert ... returning id`; return its rows.

        Returns:
            The rows. Its schema's metadata name, as `rhei.written`, the token that a query's
            `after` takes.

        Raises:
            QueryError: The statement returns no rows, and was undone; or see `execute`.
        """
        found = self._access.write(lambda oltp: self._writable(oltp).execute_returning(sql, params))
        written = self._writes.note(found.num_rows)
        return found.replace_schema_metadata({"rhei.written": written.token})

    def execute_batch(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> Written:
        """Run all statements in one transaction of the source, all or nothing."""
        return self._written(lambda oltp: oltp.execute_batch(statements))

    def _written(self, write: Callable[[Database], int]) -> Written:
        return self._writes.note(self._access.write(lambda oltp: write(self._writable(oltp))))

    def _writable(self, oltp: Database | None) -> Database:
        return writable(oltp, self.settings.source.kind)

    def append(self, table: str, events: pa.Table) -> Written:
        """Append events of a table to the log that is the source; on disk before this returns.

        Args:
            table: A declared table.
            events: Whole rows in their order, each what its key has now. `_rhei_live` false says
                that the key has no row any more, `_rhei_changed_at` when it was changed.
        """
        return self._writes.note(self._access.hold(lambda held: held.append(table, events)))

    def query(
        self,
        sql: str,
        params: Sequence[Any] = (),
        hint: Hint = "auto",
        max_staleness: float | None = None,
        after: Written | str | None = None,
        begun: Begun | None = None,
    ) -> pa.Table:
        """Run one read-only statement, in the source's SQL.

        Args:
            sql: The statement. With `olap` it is in the mirror's SQL, with `cluster` in Spark's.
            params: Values for its placeholders: `?` for SQLite, the mirror and a cluster, `%s` for
                PostgreSQL.
            hint: `auto` chooses the side, and sees every write made by this object; `oltp`
                queries the source; `olap` queries the mirror as it is; `cluster` has the declared
                cluster read what the mirror has published, or the mirror where that is not there.
                With a polled source, `oltp` queries the local database, and `auto` that one, or
                the mirror in its SQL.
            max_staleness: How many seconds the mirror's answer may be behind the source; 0 for its
                present state.
            after: What `execute` returned, or its `token`, here or in another process of this
                machine: the answer shows that write.
            begun: Called with a thread-safe cancel function once the query may be cancelled.

        Returns:
            The answer. Its schema's metadata name the side, the reason and the watermark.

        Raises:
            QueryError: The statement does not only read, or its side refuses it.
        """
        demand = Demand(max_staleness, after, self._writes.last)
        if hint == "cluster":
            demand.refuse_for_cluster()
            return self._asked_cluster().query(
                sql, params, begun, lambda: self.query(sql, params, "olap")
            )
        if hint == "olap" and (max_staleness, after) == (None, None):
            return self._access.answer_of_mirror(
                lambda it: it.query(sql, params, hint, demand, begun)
            )
        return self._access.answer_without(
            lambda it: it.query(sql, params, hint, demand, begun),
            lambda source: source.query(sql, params, hint, begun),
        )

    def stream(
        self,
        sql: str,
        params: Sequence[Any] = (),
        rows: int = 50_000,
        begun: Begun | None = None,
        hint: Literal["auto", "olap", "cluster"] = "auto",
    ) -> Streamed:
        """Run one read-only statement, and return its answer in batches.

        Args:
            sql: The statement, in the source's SQL; with `olap` in the mirror's, with `cluster` in
                Spark's.
            params: Values for its placeholders.
            rows: The approximate number of rows in a batch.
            begun: Called before the first batch with a thread-safe cancel function.
            hint: As in `query`. With `olap` the answer is read whole first. One of the cluster that
                breaks off ends in an error, whatever has come of it.
        """
        if hint == "cluster":
            return self._asked_cluster().stream(
                sql, params, rows, begun, lambda: self.query(sql, params, "olap")
            )
        if hint == "olap":
            found = self.query(sql, params, "olap", begun=begun)
            return Streamed(found.schema, iter(found.to_batches(rows)))
        return self._access.stream_without(
            lambda it: it.stream(sql, params, rows, begun, self._writes.last),
            lambda source: source.stream(sql, params, rows, begun),
        )

    def _asked_cluster(self) -> Cluster:
        refuse_in_fork()
        return self._cluster or Cluster(self.settings)  # without one, it says what to declare

    def reads(self, sql: str) -> bool:
        """Return whether a statement is a query, judged by its text."""
        return self._access.answer_without(
            lambda it: it.reads(sql), lambda source: source.reads(sql)
        )

    def reads_single_rows(self, sql: str, params: Sequence[Any] = ()) -> bool:
        """Return whether a statement reads one table by key, and so is soon answered."""
        return self._access.answer_without(
            lambda it: it.reads_single_rows(sql, params),
            lambda source: source.reads_single_rows(sql, params),
        )

    def describe(self, sql: str, params: Sequence[Any] = ()) -> pa.Schema | None:
        """Return the schema of a query's answer without running it; None if only a run shows it."""
        return self._access.answer_without(
            lambda it: it.describe(sql, params), lambda source: source.describe(sql, params)
        )

    def prepare(self, sql: str) -> Prepared:
        """Return what is known of a statement before its parameters are bound."""
        return self._access.answer_without(
            lambda it: it.prepare(sql), lambda source: source.prepare(sql)
        )

    def explain_route(self, sql: str, params: Sequence[Any] = ()) -> Route:
        """Return which side would answer a statement now, why, and how new the answer would be."""
        return self._access.answer_without(
            lambda it: it.explain_route(sql, params, self._writes.last),
            lambda source: source.route(sql, params),
        )

    def tables(self) -> list[str]:
        """Return the names of the tables mirrored."""
        return self._access.answer(lambda it: it.tables())

    @property
    def left_out(self) -> dict[str, str]:
        """The tables that are left out because of an error, with the error and what to do."""
        return self._access.answer(lambda it: it.left_out())

    def register_table(  # noqa: PLR0913  (what a declaration says of a table, each by its name)
        self,
        name: str,
        mode: Mode | str | None = None,
        *,
        columns: Sequence[str] | None = None,
        primary_key: Sequence[str] | None = None,
        types: Mapping[str, str] | None = None,
        polling: PollingSettings | Mapping[str, Any] | None = None,
        mirror_name: str | None = None,
        mask: Mapping[str, str] | None = None,
        where: str | None = None,
    ) -> None:
        """Capture a table from now on; if it is captured already, repair what is missing.

        What is said of it is remembered, as if declared. A later call changes what it names.

        Args:
            name: Its name in the source.
            mode: destructive or temporal; left out: the pipeline's default.
            columns: Mirror these columns only.
            primary_key: Use this unique key; left out: the declared one.
            types: Types that override the declared ones, by column.
            polling: How it is polled, with the fields of a declaration's `polling`.
            mirror_name: Its name in the mirror; left out: as in the source.
            mask: How columns are masked, by column.
            where: Mirror the rows of which this is true.

        Raises:
            SchemaError: It cannot be captured so, or the declaration names it and says otherwise.
            SettingsError: A value does not make sense.
        """
        how = {"columns": columns, "primary_key": primary_key, "types": types, "polling": polling}
        shown = {"mirror_name": mirror_name, "mask": mask, "where": where}
        asked = table_settings({"name": name, "mode": mode, **how, **shown})
        self._access.hold(lambda held: held.register_table(asked))

    def unregister_table(self, name: str) -> None:
        """Capture a table no more, unless another mirror needs that; its own stays as it is.

        Raises:
            SchemaError: The declaration names it, or it is not known.
        """
        self._access.hold(lambda held: held.unregister_table(name))

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
        return self._access.hold(
            lambda held: held.drop_table(table, keep_as, discard_history=discard_history)
        )

    def initial_sync(self, table: str, on_progress: OnProgress = no_progress) -> CopyReport:
        """Copy a table; a repeated copy applies only the differences."""
        return self._access.hold(lambda held: held.initial_sync(table, on_progress))

    def initial_sync_all(self, on_progress: OnProgress = no_progress) -> list[CopyReport]:
        """Copy every table that is not left out."""
        return self._access.hold(lambda held: held.initial_sync_all(on_progress))

    def sync_now(self, on_progress: OnProgress = no_progress) -> SyncReport:
        """Apply all pending changes; a table that was never copied is copied first."""
        return self._access.answer(lambda it: it.sync_now(on_progress))

    def start_sync(
        self, interval_seconds: float | None = None, metrics_port: int | None = None
    ) -> BackgroundSync:
        """Sync in the background at an interval; one that is running already takes the new one.

        Where another process holds the mirror and syncs in the background, its reports are taken
        over; one that holds the mirror and does not sync gives it to this process.

        Args:
            interval_seconds: The pause between two syncs. Left out: `sync.interval_seconds`.
            metrics_port: Serve `/metrics`, `/healthz`, `/readyz` and a status page there, for
                this machine alone, until this is closed; 0 chooses any free port.

        Raises:
            SettingsError: The interval is not above 0, or longer than any wait.
        """
        access = self._access
        access.refuse_closed()
        default = self.settings.sync.interval_seconds
        interval = checked_interval(default if interval_seconds is None else interval_seconds)
        if metrics_port is not None and self.monitoring is None:
            self.monitoring = _monitoring(self, metrics_port)
        if self._background is None or not self._background.running:
            keeping = KeepingUp(access)
            self._background = keeping.background = BackgroundSync(keeping, interval)
            access.background = self._background
            self._background.start()
        elif interval_seconds is not None:
            self._background.change_interval(interval_seconds)
        return self._background

    def stop_sync(self) -> None:
        """Stop the background sync after the running cycle."""
        refuse_in_fork()
        if self._background is not None:
            self._background.stop()

    def sync_status(self, patience_seconds: float | None = None) -> SyncStatus:
        """Return every table's state.

        Args:
            patience_seconds: How long to wait for a running sync before the last known status is
                returned. That is also returned if source or mirror cannot be read, with the
                reason in `unreadable`; where the source, a buffer or the registry cannot be opened,
                what the mirror alone knows; of a mirror that cannot be opened while the background
                sync tries to, without tables. Left out: wait until the sync ends, and raise an
                error if something cannot be read.
        """
        syncs = self._background is not None and self._background.running
        try:
            found = self._status(patience_seconds)
        except RheiError as error:
            if patience_seconds is None or not syncs:
                raise
            found = SyncStatus(running=syncs, tables={}, unreadable=str(error))
        return running_as(found, self._background)

    def _status(self, patience_seconds: float | None) -> SyncStatus:
        if patience_seconds is None:
            return self._access.answer(lambda it: it.sync_status(None))
        return self._access.answer_of_mirror(
            lambda it: it.sync_status(patience_seconds), is_named=True
        )

    def watch(
        self,
        on_sync: Callable[[SyncReport], None],
        on_query: Callable[[str, float], None],
    ) -> None:
        """Call `on_sync` with each sync's report, `on_query` with each query's side and seconds."""
        self._access.watch(on_sync, on_query)

    def table_schemas(self) -> dict[str, Table]:
        """Return the mirrored tables as they are captured now, by name."""
        return self._access.answer_without(
            lambda it: it.table_schemas(), lambda source: source.tables
        )

    def views(self) -> list[tuple[str | None, str]]:
        """Return the schema and name of each view of the source, which answers queries on them."""
        return self._access.answer_without(lambda it: it.views(), lambda source: source.views())

    def add_column(self, table: str, column: str, arrow_type: pa.DataType | str) -> None:
        """Add a column to the source, unless it has it, and to the mirror.

        Args:
            table: The table.
            column: The column's name.
            arrow_type: Its type, or the type's name as in a declaration, such as `decimal(9,2)`.

        Raises:
            SchemaError: The table has a column of that name and of another type, its columns are
                declared, or the type's name is not known.
        """
        kind = parse_type(arrow_type)[0] if isinstance(arrow_type, str) else arrow_type
        self._access.hold(lambda held: held.add_column(table, column, kind))

    def drop_column(self, table: str, column: str) -> None:
        """Drop a column from the source and the mirror; a temporal mirror keeps its values.

        Raises:
            SchemaError: It is part of the key, or neither source nor mirror has it.
        """
        self._access.hold(lambda held: held.drop_column(table, column))

    def as_of(self, table: str, instant: When) -> pa.Table:
        """Return a temporal table's rows as they were at an instant, with the columns it had.

        The metadata say what the mirror lacks of the table, as those of a query of it do.

        Args:
            table: A temporal table.
            instant: A datetime with its zone, a text such as `2026-11-01T12:00Z`, or a day, which
                means its beginning in UTC.

        Raises:
            QueryError: The table keeps no history, its history begins later or is kept since then
                alone, or the instant has no time zone.
        """
        return self._access.answer_of_mirror(lambda it: it.as_of(table, as_instant(instant)))

    def known_since(self, table: str) -> datetime:
        """Return since when a temporal table's history is known; earlier states are refused."""
        return self._access.answer_of_mirror(lambda it: it.known_since(table))

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
                Or it is older than what is kept of the history, or a column means something else
                since then.
            QueryError: The table keeps no history, its history begins after the instant, or the
                position is none.
        """
        return self._access.answer_of_mirror(lambda it: it.changes(table, after, on_lost))

    def stream_changes(
        self, table: str, after: After = None, rows: int = 50_000, on_lost: OnLost = "raise"
    ) -> ChangeStream:
        """Return the same as `changes`, in batches of about so many rows."""
        return self._access.stream(lambda it: it.stream_changes(table, after, rows, on_lost))

    def diff(self, table: str, a: When, b: When) -> pa.Table:
        """Return what differs in a temporal table from one instant to another, by key.

        The instants are given as for `as_of`.

        Returns:
            `_rhei_operation` (I, U or D), the columns at `b` (of a deleted row its key alone),
            `_rhei_changed_at`, and `_rhei_old_<column>` with the values at `a`. A row that is the
            same at both is left out, whatever it was meanwhile.

        Raises:
            QueryError: The table keeps no history, or it begins after one of the instants.
        """
        return self._access.answer_of_mirror(
            lambda it: it.diff(table, as_instant(a), as_instant(b))
        )

    def verify(
        self,
        table: str | None = None,
        *,
        rows_per_second: float | None = None,
        max_rows: int | None = None,
        sample: float | None = None,
    ) -> VerifyReport:
        """Sync, then compare every row of source and mirror at one source state.

        With a pace or a number of rows, tables are compared part by part, each at a source state
        of its own, and others sync in between. The next such call goes on where this one ended:
        `coverage` in the report of a table tells how far.

        Args:
            table: This table alone.
            rows_per_second: How many rows of the source to read in a second, on average; left
                out: the declared pace.
            max_rows: How many rows of each table to compare now, about.
            sample: Compare rows that are drawn by lot, each with this chance, and count the rows
                of both sides; `sample` in the report of a table says what that would have seen.

        Raises:
            SettingsError: A number is not positive, or a sample is asked for and a pace, too.
        """
        budget = (rows_per_second, max_rows, sample)
        return self._access.answer(lambda it: it.verify(table, *budget))

    def schema_log(self, table: str | None = None) -> list[SchemaChange]:
        """Return the schema changes that the mirror has followed, the oldest first.

        Each with the position and the time, the columns before and after, and what it cost.
        """
        return self._access.answer_of_mirror(lambda it: it.schema_log(table))

    def row_parity(self, table: str) -> RowParity:
        """Sync, then count the rows of source and mirror at one source state."""
        return self._access.answer(lambda it: it.row_parity(table))

    def row_count(self, table: str) -> int:
        """Return the number of the mirror's current rows."""
        return self._access.answer(lambda it: it.row_count(table))

    def snapshot(self, table: str, instants: Mapping[date, datetime]) -> SnapshotRows:
        """Store a temporal table's rows as of an instant for each day, in `snapshot.<table>`.

        Existing days are replaced; all days are written in one transaction. A declared cluster
        finds the rows; where it is not there, the mirror does.

        Returns:
            How many rows each day's snapshot has. Its `engines` say who found the rows of a day,
            its `reason` why the cluster did not.

        Raises:
            QueryError: The table keeps no history, or its history begins after one of the days.
        """
        return self._access.hold(lambda held: held.snapshot(table, instants))

    def maintain(self) -> MaintenanceReport:
        """Remove versions that are not to be kept, and merge the mirror's small files.

        Call it again until it reports that it is done.

        Raises:
            SchemaError: The mirror cannot remove versions, and `history` asks for it.
        """
        return self._access.answer(lambda it: it.maintain())

    def forget(self, table: str, keys: Sequence[Key], *, dry_run: bool = False) -> ForgetReport:
        """Remove keys from the mirror with all their past, and search the files for them.

        Rows, versions, snapshots in the mirror, dead letters and published copies lose them, and
        files that held them are written again. Syncs first. An as-of of before lacks the rows from
        then on; `schema_log` tells when how many keys were forgotten.

        Args:
            table: A table of the mirror, whether it is still declared or not.
            keys: Each its value, its values in order, or a dict of them by column.
            dry_run: Only say what there is to forget.

        Raises:
            SchemaError: The source still has one, or one is no key of the table.
        """
        return self._access.hold(lambda held: held.forget(table, keys, dry_run=dry_run))

    def forget_person(self, person: str, value: Key, *, dry_run: bool = False) -> PersonReport:
        """Remove a person from all tables that the declaration names, and search the files.

        The rows are found by the columns under `people`, in the mirror, its history and snapshots;
        a column that is hashed is looked for by the hash. See `forget` for what becomes of them.

        Args:
            person: What the declaration calls such people.
            value: What names this one, as the source has it.
            dry_run: Only say what there is to forget.

        Raises:
            SchemaError: The source still has a row, or a table has no such column.
            SettingsError: No such people are declared.
        """
        return self._access.hold(lambda held: held.forget_person(person, value, dry_run=dry_run))

    def broken_histories(self, table: str) -> pa.Table:
        """Return the keys of a temporal table whose versions contradict each other."""
        return self._access.answer(lambda it: it.broken_histories(table))

    def repair(
        self,
        table: str,
        *,
        key: Key | None = None,
        first: Key | None = None,
        last: Key | None = None,
        dry_run: bool = False,
    ) -> RepairReport:
        """Make a table equal to its source again, or a range of its keys.

        Args:
            table: The table.
            key: This key alone: its value, its values in order, or a dict of them by column.
            first: From this key on.
            last: Up to this key.
            dry_run: Only say what there is to change.

        Raises:
            SchemaError: This is no key of the table, or its keys have no ranges.
        """
        asked = RepairRange.of(key, first, last)
        return self._access.hold(lambda held: held.repair(table, asked, dry_run=dry_run))

    def dead_letters(self, table: str | None = None) -> pa.Table:
        """Return the rows that cannot be mirrored: table_name, key, column_name, reason, ...."""
        return self._access.answer_of_mirror(lambda it: it.dead_letters(table))

    def propose_types(self, table: str | None = None) -> list[TypeProposal]:
        """Return types that could be declared because they take dead letters, the best first.

        Each is tried on the values of the dead letters and on other rows of the source; nothing is
        changed. There are none for PostgreSQL, which types its columns itself.
        """
        return self._access.answer(lambda it: it.propose_types(table))

    def drop_dead_letters(self, table: str | None = None) -> int:
        """Forget open dead letters, and return how many; their rows stay as the mirror has them.

        A row that is met again, by a change, a copy or a replay, becomes a dead letter again.
        `verify` reads all rows, and counts those that cannot be mirrored in any case.
        """
        return self._access.hold(lambda held: held.drop_dead_letters(table))

    def replay_dead_letters(self, table: str | None = None) -> SyncReport:
        """Read the rows of the dead letters again, and sync."""
        return self._access.hold(lambda held: held.replay_dead_letters(table))


def _monitoring(htap: HTAP, port: int) -> "MonitoringServer":
    with needs_extra("metrics", "the metrics endpoint"):
        from rhei_pipeline.monitoring.server import MonitoringServer  # noqa: PLC0415
    return MonitoringServer(htap, port=port)


def open(source: Settings | str | Path, *, hold: bool = True) -> HTAP:  # noqa: A001  (rhei.open is the public name)
    """Open the pipeline of a declaration, given as a file or as settings.

    Where another process holds the mirror, that one is asked, and steps aside for a moment where
    only an open mirror will do.

    Args:
        source: The declaration.
        hold: Keep the mirror open until this is closed, if it is free; otherwise it is opened for
            each call alone.
    """
    settings = source if isinstance(source, Settings) else Settings.load(source)
    return HTAP(settings, hold=hold)
