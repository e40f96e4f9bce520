"""Reads a mirror of files through DataFusion: each table is a view over its segments.

A view filters removed rows by their numbers, so that DataFusion still pushes projections and
filters down to the segments, and skips parts of Parquet files by their statistics.
"""

import math
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from datafusion import DataFrame, RuntimeEnvBuilder, SessionConfig, SessionContext, SQLOptions, udf
from datafusion.catalog import Schema

from rhei_pipeline.errors import MirrorDamagedError, MirrorMemoryError, QueryError
from rhei_pipeline.mirrors.datafusion import (
    deletion_vectors,
    functions,
    guard_udfs,
    visibility_udfs,
)
from rhei_pipeline.mirrors.datafusion.aggregate_checks import AggregateChecks
from rhei_pipeline.mirrors.datafusion.dead_letters import LETTERS
from rhei_pipeline.mirrors.datafusion.engine_errors import translated
from rhei_pipeline.mirrors.datafusion.manifest import Manifest, Segment, StoredTable
from rhei_pipeline.mirrors.datafusion.parameters import (
    Params,
    named_values,
    refuse_surplus,
)
from rhei_pipeline.mirrors.datafusion.planned_query import PlannedQuery
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore
from rhei_pipeline.mirrors.datafusion.views import (
    MAIN,
    SEGMENTS,
    end_function,
    operation_function,
    presence_function,
    refuse_hidden,
    relations_of,
    segment_table,
    view_sql,
    views_of,
)
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.query_limits import NO_LIMITS, AnswerLimits, whole
from rhei_pipeline.model.semantics import Translated
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.sql.placeholders import judged_form, numbered_placeholders
from rhei_pipeline.sql.read_only import refuse_files, refuse_writing, statement_tokens

#: The catalogue whose tables need not be qualified.
CATALOGUE = "rhei"
_LETTERS = "_rhei_dead_letter"

#: How soon after one query has failed for its memory another may fail for the same memory.
_RELEASE_SECONDS = 0.5

#: Threads of DataFusion for each processor. A join that is cancelled works on until its next
#: batch of the table on its right: the queries after it need others.
_THREADS_EACH = 4

_SETTINGS = {
    # Arrow's plain types in, the same types out.
    "datafusion.execution.parquet.schema_force_view_types": "false",
    "datafusion.sql_parser.map_string_types_to_utf8view": "false",
    "datafusion.execution.time_zone": "UTC",
    # These two give false answers. Of several extremes, the first ones found leave out rows that
    # another one needs (github.com/apache/datafusion/issues/25147). Of groups in order, the first
    # few are not found where a real number or NaN is among them, or the query panics.
    "datafusion.optimizer.enable_aggregate_dynamic_filter_pushdown": "false",
    "datafusion.optimizer.enable_topk_aggregation": "false",
}
#: A query reads; the session itself refuses the rest too, whatever the text may look like.
_READING = (
    SQLOptions()
    .with_allow_ddl(allow=False)
    .with_allow_dml(allow=False)
    .with_allow_statements(allow=False)
)

#: What a statement may have that is looked at before it runs.
_AGGREGATES = re.compile("sum|min|max", re.IGNORECASE)

#: A table's quoted name, the table, and its rows.
Frame = tuple[str, StoredTable, DataFrame]


class ReadingSession:
    """A DataFusion session that shows one committed state of all tables at a time."""

    def __init__(self, store: SegmentStore, memory_limit_bytes: int | None = None) -> None:
        self._store = store
        self._lock = threading.Lock()
        # Read by DataFusion when its first query begins.
        os.environ.setdefault("TOKIO_WORKER_THREADS", str(_THREADS_EACH * (os.cpu_count() or 1)))
        config = SessionConfig(_SETTINGS).with_default_catalog_and_schema(CATALOGUE, MAIN)
        runtime = RuntimeEnvBuilder().with_disk_manager_os()
        if memory_limit_bytes is not None:
            runtime = runtime.with_fair_spill_pool(memory_limit_bytes)
        self._context = SessionContext(config.with_information_schema(enabled=False), runtime)
        self._schemas = {MAIN}
        self._views: dict[str, StoredTable] = {}
        self._segments: dict[str, Segment] = {}
        self._letters: str | None = ""
        self._shown: Manifest | None = None
        self._checks = AggregateChecks(self._context)
        self._exhausted_at = -math.inf
        self._wanted: dict[str, StoredTable] = {}
        self.damaged: dict[str, MirrorDamagedError] = {}
        self._create_schema(SEGMENTS)
        functions.restrict(self._context)
        guard_udfs.register(self._context)
        store.files.register(self._context)

    def query(
        self,
        sql: str,
        params: Params,
        manifest: Manifest,
        cancel: Cancel | None = None,
        limits: AnswerLimits = NO_LIMITS,
    ) -> pa.Table:
        """Run one reading statement on a committed state; parameters by place or name.

        Raises:
            QueryError: Not one statement, not a reading one, or DataFusion refuses it.
            QueryLimitError: The answer is larger than `limits` allow.
        """

        def ask() -> pa.Table:
            planned = self.plan(sql, params, manifest, cancel)
            return whole(planned.schema, planned.rows(cancel), limits)

        try:
            return ask()
        except MirrorMemoryError:
            # One that failed just before lets go of its memory only after that.
            before, self._exhausted_at = self._exhausted_at, time.monotonic()
            if self._exhausted_at - before > _RELEASE_SECONDS:
                raise
        time.sleep(_RELEASE_SECONDS)
        return ask()

    def plan(
        self, sql: str, params: Params, manifest: Manifest, cancel: Cancel | None = None
    ) -> PlannedQuery:
        """Plan one read-only statement on a committed state.

        A statement that aggregates may have to look at the values first, until it is cancelled.

        Raises:
            QueryError: As of `query`.
        """
        if isinstance(sql, Translated):
            return self._planned(str(sql), set(sql.relations), params, manifest)
        refuse_writing(sql, "datafusion")
        refuse_files(sql, lambda: self._relations(manifest))
        refuse_hidden(sql)
        bound = numbered_placeholders(sql)
        refuse_surplus(bound, params)
        planned = self._planned(bound, _words(sql), params, manifest)

        def ask(frame: DataFrame) -> pa.Table:
            asked = planned.on_same_tables(frame)
            return whole(asked.schema, asked.rows(cancel))

        if _AGGREGATES.search(sql):
            translated(lambda: self._checks.refuse_false(planned.frame, ask))
        return planned

    def _planned(
        self, bound: str, words: set[str], params: Params, manifest: Manifest
    ) -> PlannedQuery:
        values = named_values(params)
        with self._lock:
            self._show(manifest, words)
            try:
                return PlannedQuery(self._bound(bound, values), self.proof(words))
            except QueryError as error:
                if not self.damaged and "not found" not in str(error):
                    raise
                # Its tables may be named where no token shows them, as in an 'explain'; or one
                # may be damaged, and not shown for that.
                self._show(manifest, None)
                if self.damaged:
                    raise next(iter(self.damaged.values())) from None
                if not manifest.tables:
                    root = self._store.files.root
                    error.hint = f"mirror {root!r} holds no table yet: run 'rhei sync' first"
                    raise
                return PlannedQuery(self._bound(bound, values), self.proof(None))

    def proof(self, words: set[str] | None) -> Callable[[], None]:
        """Return what raises an error if a file of tables that are shown was lost or replaced."""
        tables = [table for _, table in self._named(words)]
        marks = self._store.marks(tables)
        return lambda: self._store.refuse_changed(marks)

    def _named(self, words: set[str] | None) -> list[tuple[str, StoredTable]]:
        """Return the tables shown that a statement names, or all."""
        shown = ((n, table) for n, table in self._wanted.items() if n in self._views)
        return [(n, t) for n, t in shown if words is None or t.relation.lower() in words]

    def frames(self, manifest: Manifest, words: set[str] | None) -> list[Frame]:
        """Return the tables that a statement names, or all, for another session to show."""
        with self._lock:
            self._show(manifest, words)
            named = self._named(words)
            return [(n, table, self._context.sql(f"select * from {n}")) for n, table in named]

    def _bound(self, sql: str, values: dict[str, Any]) -> DataFrame:
        """Plan a statement; this binds its tables, so later changes to views do not affect it."""
        return translated(
            lambda: self._context.sql_with_options(sql, _READING, param_values=values)
        )

    def _relations(self, manifest: Manifest) -> set[str]:
        """Return the names of the tables of a state, without their schemas."""
        return relations_of(manifest)

    def _show(self, manifest: Manifest, words: set[str] | None) -> None:
        """Update the views of the tables that a statement names, or of all, to a state.

        A table's files are checked before its view is created, and again if one changed since.
        """
        self.damaged = {}
        if manifest is not self._shown:
            self._wanted = dict(views_of(manifest))
            stale = [n for n, table in self._views.items() if self._wanted.get(n) is not table]
            for name in stale:
                self._drop(name)
            self._forget(manifest)
            self._shown = manifest
        for name, table in self._wanted.items():
            if words is None or table.relation.lower() in words:
                self._show_table(name, table)
        if words is None or _LETTERS in words:
            self._show_letters(manifest)

    def _show_table(self, name: str, table: StoredTable) -> None:
        try:
            self._store.get_ready(table)
            if name not in self._views:
                self._create_schema(name.split(".", 1)[0].strip('"'))
                for segment in table.segments:
                    self._register(segment)
                self._context.sql(f"create or replace view {name} as {view_sql(table)}")
                self._views[name] = table
        except MirrorDamagedError as error:
            # The other tables of the query may be in order, and this one's name a column's.
            self.damaged[name] = error
            if name in self._views:
                self._drop(name)

    def _drop(self, name: str) -> None:
        self._context.sql(f"drop view {name}")
        del self._views[name]

    def _create_schema(self, name: str) -> None:
        if name not in self._schemas:
            self._context.catalog(CATALOGUE).register_schema(name, Schema.memory_schema())
            self._schemas.add(name)

    def _register(self, segment: Segment) -> None:
        known = self._segments.get(segment.name)
        if known is None:
            self._store.register(segment, self._context, segment_table(segment))
        bits = self._store.bits(segment)
        if bits is not None and (known is None or known.gone != segment.gone):
            version_ends = self._store.version_ends(segment.ended)
            if segment.hidden_rows:
                hidden = visibility_udfs.hidden(bits, version_ends)
                shown = deletion_vectors.as_arrow(hidden, segment.rows)
                self._tell(presence_function(segment), pa.bool_(), visibility_udfs.presence(shown))
            if version_ends:
                self._tell(end_function(segment), INSTANT, visibility_udfs.ends(version_ends))
                self._tell(
                    operation_function(segment),
                    pa.string(),
                    visibility_udfs.operations(version_ends),
                )
        self._segments[segment.name] = segment

    def _tell(self, name: str, kind: pa.DataType, look_up: Callable[[pa.Array], pa.Array]) -> None:
        """Register a function of a row's number."""
        self._context.register_udf(udf(look_up, [pa.uint32()], kind, "immutable", name))

    def _forget(self, manifest: Manifest) -> None:
        names = {segment.name for segment in manifest.segments}
        for name in [known for known in self._segments if known not in names]:
            segment = self._segments.pop(name)
            self._context.deregister_table(segment_table(segment))
            if segment.hidden_rows:
                self._context.deregister_udf(presence_function(segment))
            if segment.ended:
                self._context.deregister_udf(end_function(segment))
                self._context.deregister_udf(operation_function(segment))

    def _show_letters(self, manifest: Manifest) -> None:
        if manifest.letters != self._letters:
            name = manifest.letters
            letters = self._store.letters(name) if name else LETTERS.empty_table()
            if self._letters != "":
                self._context.deregister_table(_LETTERS)
            self._context.register_record_batches(_LETTERS, [_batches(letters)])
            self._letters = name


def _words(sql: str) -> set[str]:
    """Return all words of a statement in lower case, which include its tables' names."""
    return {token.text.lower() for token in statement_tokens(judged_form(sql), "duckdb")}


def _batches(table: pa.Table) -> list[pa.RecordBatch]:
    empty = pa.RecordBatch.from_pylist([], schema=table.schema)
    return table.to_batches() or [empty]
