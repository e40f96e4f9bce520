"""What the process that holds a mirror does with it, for itself and for those that ask it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from datetime import date, datetime
from typing import Any, Literal

import pyarrow as pa

from rhei_pipeline.buffer.events.database import EventLogDatabase
from rhei_pipeline.capabilities import redeclare, views_of
from rhei_pipeline.changes.consume import After, OnLost
from rhei_pipeline.changes.masks import source_schema
from rhei_pipeline.errors import PermanentError, QueryError, SchemaError
from rhei_pipeline.holder.searching import search, written_paths
from rhei_pipeline.model.change_feed import ChangeStream, TableChanges
from rhei_pipeline.model.forgetting import ForgetReport, PersonReport, Trace
from rhei_pipeline.model.named_columns import (
    find_column,
    refuse_other_type,
    refuse_unknown_column,
)
from rhei_pipeline.model.polling import PollOptions
from rhei_pipeline.model.report import counted
from rhei_pipeline.model.reports import (
    CopyReport,
    RowParity,
    SyncReport,
    SyncStatus,
    TypeProposal,
    VerifyReport,
)
from rhei_pipeline.model.schema import Table, TableOptions, TableSchema
from rhei_pipeline.model.schema_log import SchemaChange
from rhei_pipeline.model.snapshot_rows import SnapshotRows
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.model.upkeep import DropReport, MaintenanceReport, RepairReport
from rhei_pipeline.protocols import Database, OnStep
from rhei_pipeline.query import time_travel
from rhei_pipeline.query.freshness import Demand, Written
from rhei_pipeline.query.planner import Prepared
from rhei_pipeline.query.router import Route
from rhei_pipeline.settings.keeping import traces_of
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.settings.sections import TableSettings
from rhei_pipeline.sql.read_only import of_log
from rhei_pipeline.sync.background import BackgroundSync
from rhei_pipeline.sync.initial_sync import OnProgress
from rhei_pipeline.sync.kept_history import Declared, find_mirrored
from rhei_pipeline.sync.people import PersonSearch, letters_of_nobody
from rhei_pipeline.sync.pipeline import no_progress
from rhei_pipeline.sync.repair_keys import Key, RepairRange
from rhei_pipeline.sync.reporting import summed
from rhei_pipeline.sync.verify import broken_histories
from rhei_pipeline.sync.verify_parts import verify_budget
from rhei_pipeline.wiring.cluster import cluster_history
from rhei_pipeline.wiring.declarations import (
    all_tables,
    forget,
    joined,
    refuse_declared,
    remember,
)
from rhei_pipeline.wiring.declared_columns import (
    refuse_held_changes,
    refuse_named_column,
    refuse_new_column,
)
from rhei_pipeline.wiring.engine import open_engine, open_query_service
from rhei_pipeline.wiring.masking import masking_key
from rhei_pipeline.wiring.source import restrict_functions
from rhei_pipeline.wiring.table_options import (
    history_bounds,
    options_of,
    poll_options,
    schema_policies,
    table_options,
)
from rhei_pipeline.wiring.type_proposals import proposals

Hint = Literal["auto", "oltp", "olap", "cluster"]

#: What the holder answers for others, each by its name below.
ANSWERED = frozenset(
    {
        *("query", "stream", "as_of", "dead_letters", "changes", "stream_changes", "diff"),
        *("sync_now", "sync_status", "verify", "row_parity", "row_count", "known_since"),
        *("broken_histories", "propose_types", "schema_log", "maintain"),
        *("explain_route", "reads", "reads_single_rows", "describe", "prepare"),
        *("tables", "left_out", "table_schemas", "views", "owner_unless"),
    }
)


class Held:
    """An open engine: all that can be done with source and mirror.

    Args:
        settings: The declaration.
        on_step: Called at each named step.
        background: Returns the background sync of the process, if there is one.
    """

    def __init__(
        self,
        settings: Settings,
        on_step: OnStep,
        background: Callable[[], BackgroundSync | None],
    ) -> None:
        self.settings = settings
        self.engine = open_engine(settings, on_step)
        self.queries = open_query_service(settings, self.engine)
        self._background = background

    def close(self) -> None:
        """Close everything, once queries were ended and a sync has come to its end.

        Safe to repeat. A connection that is closed while another thread works with it ends the
        whole process.
        """
        self.queries.close()
        self.engine.pipeline.end()
        self.engine.resources.close()

    def watch(
        self, on_sync: Callable[[SyncReport], None], on_query: Callable[[str, float], None]
    ) -> None:
        """Call these with each sync's report, and with each query's side and seconds."""
        self.engine.pipeline.watch(on_sync)
        self.queries.watch(on_query)

    def query(
        self,
        sql: str,
        params: Sequence[Any],
        hint: Hint,
        demand: Demand,
        begun: Begun | None = None,
    ) -> pa.Table:
        """Run one read-only statement on the side that is asked for, or suits."""
        if hint == "auto":
            return self.queries.ask(sql, params, demand, begun)
        if hint == "olap":
            return self.queries.ask_mirror(sql, params, demand, begun)
        if hint == "oltp":
            return self.queries.ask_source(sql, params, "asked for", begun)
        raise QueryError(f"unknown hint {hint!r}", hint="use 'auto', 'oltp', 'olap' or 'cluster'")

    def stream(
        self,
        sql: str,
        params: Sequence[Any],
        rows: int,
        begun: Begun | None,
        own: Written | None,
    ) -> Streamed:
        """Run one read-only statement, and return its answer in batches."""
        return self.queries.stream(sql, params, rows, begun, own)

    def reads(self, sql: str) -> bool:
        """Return whether a statement is a query."""
        return self.queries.planner.reads(sql)

    def reads_single_rows(self, sql: str, params: Sequence[Any]) -> bool:
        """Return whether a statement reads one table by key."""
        return self.queries.reads_single_rows(sql, params)

    def describe(self, sql: str, params: Sequence[Any]) -> pa.Schema | None:
        """Return the schema of a query's answer; None if only a run shows it."""
        return self.queries.planner.describe(sql, params)

    def prepare(self, sql: str) -> Prepared:
        """Return what is known of a statement before its parameters are bound."""
        return self.queries.planner.prepare(sql)

    def explain_route(self, sql: str, params: Sequence[Any], own: Written | None = None) -> Route:
        """Return which side would answer a statement now, and why."""
        return self.queries.route(sql, params, own)

    def owner_unless(self, declared: Mapping[str, Any]) -> str | None:
        """Return whose the mirror is; None where the same source is declared as here."""
        return None if declared == declared_source(self.settings) else self.engine.mirror.owner

    def tables(self) -> list[str]:
        """Return the names of the tables mirrored."""
        return sorted(self.engine.pipeline.tables)

    def left_out(self) -> dict[str, str]:
        """Return the tables that are left out, each with the error."""
        return {name: str(error) for name, error in self.engine.pipeline.left_out.items()}

    def table_schemas(self) -> dict[str, Table]:
        """Return the mirrored tables as they are captured now, by name."""
        return dict(self.engine.pipeline.tables)

    def views(self) -> list[tuple[str | None, str]]:
        """Return the schema and name of each view of the source, which answers queries on them."""
        is_sidecar = self.engine.oltp is not self.engine.database
        return [] if is_sidecar else views_of(self.engine.database)

    def register_table(self, asked: TableSettings) -> None:
        """Capture a table from now on, as is asked for; remembered once it is captured."""
        settings, engine = self.settings, self.engine
        said = joined(settings, engine.registry, asked)
        before = table_options(settings, engine.registry).get(said.name, TableOptions())
        redeclare(engine.masked, said.name, options_of(said, settings), said.polling.options)
        self._restrict_functions(said)
        try:
            engine.pipeline.register(self._declared(said, asked))
        except BaseException:
            polls = poll_options(settings, engine.registry)
            redeclare(engine.masked, said.name, before, polls.get(said.name, PollOptions()))
            self._restrict_functions()
            raise
        remember(settings, engine.registry, said)
        self._restrict_functions()

    def _restrict_functions(self, *more: TableSettings) -> None:
        known = all_tables(self.settings, self.engine.registry)
        restrict_functions(self.settings, self.engine.database, [*known, *more])

    def _declared(self, said: TableSettings, asked: TableSettings) -> Declared:
        tables = self.engine.pipeline.tables.values()
        spelled = {table.schema.full_name.lower(): table for table in tables}
        spelled |= {table.name.lower(): table for table in tables}
        standing = spelled.get(said.name.lower())
        mode = asked.mode or said.mode
        chosen = mode or (standing.mode if standing else self.settings.mode)
        name = asked.name if standing else said.name
        policy = said.schema_changes or self.settings.schema_changes
        dropped = said.dropped_columns or self.settings.dropped_columns
        own = said.mirror_name or ""
        return Declared(name, chosen, mode is not None, own, policy, dropped)

    def unregister_table(self, table: str) -> None:
        """Capture a table no more; its mirror stays as it is."""
        pipeline = self.engine.pipeline
        name = pipeline.leaving.name_of(table)
        refuse_declared(self.settings, name)
        registry = self.engine.registry
        pipeline.leave(name, lambda: forget(self.settings, registry, name))
        self._restrict_functions()

    def drop_table(self, table: str, keep_as: str | None, *, discard_history: bool) -> DropReport:
        """Drop a table of the mirror with its snapshots and records."""
        return self.engine.pipeline.drop_table(table, keep_as, discard_history=discard_history)

    def initial_sync(self, table: str, on_progress: OnProgress) -> CopyReport:
        """Copy a table."""
        return self.engine.pipeline.copy(table, on_progress)

    def initial_sync_all(self, on_progress: OnProgress) -> list[CopyReport]:
        """Copy every table that is not left out."""
        reports = []
        for table in self.tables():
            try:
                reports.append(self.initial_sync(table, on_progress))
            except PermanentError:
                if table not in self.engine.pipeline.left_out:
                    raise
        return reports

    def sync_now(self, on_progress: OnProgress = no_progress) -> SyncReport:
        """Apply all pending changes."""
        return self.engine.pipeline.sync(on_progress)

    def sync_round(self) -> SyncReport:
        """Apply all pending changes, and copy for one turn at most."""
        return self.engine.pipeline.sync_round()

    def sync_status(self, patience_seconds: float | None) -> SyncStatus:
        """Return every table's state."""
        background = self._background()
        error = background.last_error if background else None
        error = error or self.engine.pipeline.emptiness
        standing = self.engine.pipeline.status(patience_seconds)
        return SyncStatus(
            running=background is not None and background.running,
            tables=standing.tables,
            last_error=None if error is None else str(error),
            copying=self.engine.pipeline.copying,
            held_bytes=standing.held_bytes,
            age_seconds=standing.age_seconds,
            not_followed=standing.not_followed,
            not_published=standing.not_published,
            unreadable=standing.unreadable,
        )

    def add_column(self, table: str, column: str, arrow_type: pa.DataType) -> None:
        """Add a column to the source, unless it has it, and to the mirror."""
        found = self.engine.pipeline.table(table)
        schema = self._present_schema(found)
        standing = find_column(schema, column)
        if standing is not None:
            refuse_other_type(schema, standing, arrow_type)
        else:
            self._refuse_foreign_schema(found)
            refuse_new_column(schema, column, self._said_of(found))
            self.engine.database.add_column(schema, column, arrow_type)
        self.sync_now()

    def drop_column(self, table: str, column: str) -> None:
        """Drop a column from the source and the mirror."""
        found = self.engine.pipeline.table(table)
        if column.lower() in map(str.lower, found.schema.primary_key):
            raise SchemaError(f"column {column!r} is part of the primary key", table=found.name)
        schema = self._present_schema(found)
        if find_column(schema, column) is None:
            # A drop that was cut short has reached the source alone.
            refuse_unknown_column(schema, column, self._mirrored_columns(found))
        else:
            self._refuse_foreign_schema(found)
            said, dialect = self._said_of(found), self.settings.source.dialect
            refuse_named_column(schema, column, said, dialect)
            self.engine.database.drop_column(schema, column)
        self.sync_now()

    def _present_schema(self, table: Table) -> TableSchema:
        """Return a table's schema as it is in the source now, also where no sync has met that."""
        known = source_schema(table.schema)
        return self.engine.database.read_schema(table.name, self._said_of(table), known)

    def _said_of(self, table: Table) -> TableOptions:
        """Return what is declared of a table, or was registered."""
        options = table_options(self.settings, self.engine.registry)
        return options.get(table.name, TableOptions())

    def _mirrored_columns(self, table: Table) -> tuple[str, ...]:
        """Return the columns that the mirror has of a table; none before its first copy."""
        found = find_mirrored(table.schema.full_name, self.engine.mirror)
        return found.schema.names if found else ()

    def _refuse_foreign_schema(self, table: Table) -> None:
        """Refuse to change a table that is not ours to change, or whose changes are held back."""
        if self.settings.source.kind == "log":
            raise of_log()
        if self.engine.oltp is not self.engine.database:
            raise QueryError(
                "the source is read-only: only its owner changes its tables",
                hint="change the table in the source; the next sync follows the change",
            )
        policy = schema_policies(self.settings, self.engine.registry)
        refuse_held_changes(table.name, policy(table.name))

    def as_of(self, table: str, instant: datetime, begun: Begun | None = None) -> pa.Table:
        """Return a temporal table's rows as they were at an instant."""
        found = self.engine.pipeline.mirrored(table)
        return self._told(time_travel.as_of(found, instant, self.engine.mirror, begun), found)

    def known_since(self, table: str) -> datetime:
        """Return when a temporal table's history begins."""
        return time_travel.known_since(self.engine.pipeline.mirrored(table), self.engine.mirror)

    def changes(self, table: str, after: After, on_lost: OnLost) -> TableChanges:
        """Return what changed in a temporal table since a position."""
        found = self.engine.pipeline.mirrored(table)
        changed = time_travel.changes(found, after, self.engine.mirror, on_lost)
        return replace(changed, rows=self._told(changed.rows, found))

    def stream_changes(self, table: str, after: After, rows: int, on_lost: OnLost) -> ChangeStream:
        """Return the same in batches."""
        found = self.engine.pipeline.mirrored(table)
        streamed = time_travel.stream_changes(found, after, self.engine.mirror, rows, on_lost)
        shape = self._told(streamed.schema.empty_table(), found).schema
        return replace(streamed, schema=shape)

    def diff(self, table: str, a: datetime, b: datetime) -> pa.Table:
        """Return what differs in a temporal table from one instant to another."""
        found = self.engine.pipeline.mirrored(table)
        return self._told(time_travel.diff(found, a, b, self.engine.mirror), found)

    def _told(self, found: pa.Table, table: Table) -> pa.Table:
        """Add to an answer from one table what the mirror lacks of it."""
        return time_travel.told(found, table, self.engine.mirror, self.engine.pipeline.not_followed)

    def append(self, table: str, events: pa.Table) -> int:
        """Append events to the log that is the source; return how many."""
        database = self.engine.database
        if not isinstance(database, EventLogDatabase):
            raise QueryError(
                "the source is a database: events are appended to a log",
                hint="write with 'execute', or declare 'source: {kind: log, path: ...}'",
            )
        name = self.engine.pipeline.leaving.name_of(table)
        database.log.append(events, stream=name)
        return int(events.num_rows)

    def verify(
        self,
        table: str | None,
        rows_per_second: float | None = None,
        max_rows: int | None = None,
        sample: float | None = None,
    ) -> VerifyReport:
        """Sync, then compare every row of source and mirror, or what a budget allows."""
        if sample is None and rows_per_second is None:
            rows_per_second = self.settings.verify.rows_per_second
        asked = (rows_per_second, max_rows, sample)
        budget = None if asked == (None, None, None) else verify_budget(*asked)
        return self.engine.pipeline.verify(table, budget)

    def schema_log(self, table: str | None) -> list[SchemaChange]:
        """Return the schema changes that the mirror has followed, of one table or of all."""
        known = None if table is None else self.engine.pipeline.mirrored(table).name
        found = self.engine.pipeline.schema_log
        return [change for change in found if known in (None, change.table)]

    def row_parity(self, table: str) -> RowParity:
        """Sync, then count the rows of source and mirror."""
        return self.engine.pipeline.checks.parity(table)

    def row_count(self, table: str) -> int:
        """Return the number of the mirror's current rows."""
        return self.engine.mirror.count(self.engine.pipeline.table(table))

    def snapshot(self, table: str, instants: Mapping[date, datetime]) -> SnapshotRows:
        """Store a temporal table's rows as of an instant for each day."""
        found, cluster = self.engine.pipeline.mirrored(table), cluster_history(self.settings)
        with closing(cluster) if cluster else nullcontext():
            return time_travel.snapshot(found, instants, self.engine.mirror, cluster)

    def forget(self, table: str, keys: Sequence[Key], *, dry_run: bool = False) -> ForgetReport:
        """Remove keys from the mirror with all their past, and search the files for them."""
        paths = written_paths(self.settings)
        return self.engine.pipeline.removals.forget(
            table, keys, lambda texts: search(paths, texts), dry_run=dry_run
        )

    def forget_person(self, person: str, value: Key, *, dry_run: bool = False) -> PersonReport:
        """Remove a person's rows from all tables that the declaration names for such people."""
        paths, pipeline = written_paths(self.settings), self.engine.pipeline
        every = traces_of(self.settings.people, person)
        declared = [trace for trace in every if self.settings.takes(trace.table)]
        if not declared:  # this shard has none of these tables
            return PersonReport(person, {}, dry_run)
        found = PersonSearch(declared, value, masking_key(self.settings), pipeline.mirrored)
        reports = pipeline.removals.forget_person(
            found, lambda texts: search(paths, texts), dry_run=dry_run
        )
        told = zip(declared, reports, strict=True)
        tables = {trace.table: self._with_letters(trace, report) for trace, report in told}
        for name, keys in found.shared.items():
            if keys.num_rows:
                left = (
                    f"{counted(keys.num_rows, 'key')} of {name} that others had, too, or may have"
                )
                tables[name] = replace(tables[name], kept=(*tables[name].kept, left))
        return PersonReport(person, tables, dry_run)

    def _with_letters(self, trace: Trace, report: ForgetReport) -> ForgetReport:
        table, mirror = self.engine.pipeline.mirrored(trace.table), self.engine.mirror
        letters = letters_of_nobody(trace, table, mirror)
        if not letters:
            return report
        more = f"{counted(letters, 'dead letter')} of it, which do not say whose they are"
        return replace(report, beyond=(*report.beyond, more))

    def maintain(self) -> MaintenanceReport:
        """Remove versions that are not to be kept, then merge the mirror's small files."""
        bounds = history_bounds(self.settings, self.engine.registry)
        expired = self.engine.pipeline.removals.expire(bounds)
        return replace(self.engine.mirror.maintain(), expired=expired)

    def broken_histories(self, table: str) -> pa.Table:
        """Return the keys of a temporal table whose versions contradict each other."""
        return broken_histories(self.engine.pipeline.mirrored(table), self.engine.mirror)

    def repair(
        self, table: str, asked: RepairRange | None = None, *, dry_run: bool = False
    ) -> RepairReport:
        """Make a table equal to its source again, or a range of its keys."""
        return self.engine.pipeline.repair(table, asked, dry_run=dry_run)

    def dead_letters(self, table: str | None) -> pa.Table:
        """Return the rows that cannot be mirrored."""
        known = None if table is None else self.engine.pipeline.dead_letters.table(table).name
        return self.engine.mirror.dead_letters(known)

    def propose_types(self, table: str | None) -> list[TypeProposal]:
        """Return the types that would take dead letters, found by trying them."""
        engine, letters = self.engine, self.dead_letters(table)
        return list(proposals(self.settings, letters, engine.pipeline, engine.database))

    def drop_dead_letters(self, table: str | None) -> int:
        """Forget open dead letters; return how many."""
        return self.engine.pipeline.dead_letters.drop(
            sorted(set(self.dead_letters(table)["table_name"].to_pylist()))
        )

    def replay_dead_letters(self, table: str | None) -> SyncReport:
        """Read the rows of the dead letters again, and sync."""
        before = self.sync_now()  # it shows which tables are full of them
        replayed = self.engine.pipeline.dead_letters.replay(self.dead_letters(table))
        return summed(before, self.sync_now()) if replayed else before


def declared_source(settings: Settings) -> dict[str, Any]:
    """Return what is declared of the source, with its connection string: for a socket alone."""
    form = settings.source.model_dump(mode="json")
    secret = getattr(settings.source, "dsn", None)
    found = {**form, "name": settings.name}
    return found if secret is None else {**found, "dsn": secret.get_secret_value()}


def running_as(status: SyncStatus, background: BackgroundSync | None) -> SyncStatus:
    """Return another process's status, as it is for one that syncs in the background, too."""
    if background is None or not background.running:
        return status
    error = None if background.last_error is None else str(background.last_error)
    return replace(status, running=True, last_error=error or status.last_error)


def writable(oltp: Database | None, kind: str) -> Database:
    """Return where writes go.

    Raises:
        QueryError: Nowhere: the source is only read.
    """
    if kind == "log":
        raise of_log()
    if oltp is None:
        raise QueryError(
            "the source is read-only: it is captured by polling",
            hint="write with its own application, or declare a 'local' database beside it",
        )
    return oltp
