"""Asks the declared cluster, which reads one published state of the mirror."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any

import pyarrow as pa

from rhei_pipeline.compute.judging import tables_read
from rhei_pipeline.errors import (
    ComputeUnreachableError,
    MirrorError,
    MissingExtraError,
    SettingsError,
    needs_extra,
)
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.published_state import PublishedState
from rhei_pipeline.model.reports import Finding, Severity
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.query import results
from rhei_pipeline.query.streams import until_closed
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.wiring.cluster import cluster_engine, published_root
from rhei_pipeline.wiring.engine import query_clock, query_limits
from rhei_pipeline.wiring.mirror import store_access


class Cluster:
    """The cluster of a declaration.

    Raises:
        SettingsError: None is declared.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.compute is None:
            raise SettingsError(
                "no cluster is declared", hint="declare 'compute', or leave the hint 'cluster' out"
            )
        self._settings = settings
        self._engine = cluster_engine(settings.compute)
        self._clock = query_clock(settings)
        self._limits = query_limits(settings).answer

    def close(self) -> None:
        """End the session that is held for the next query."""
        self._clock.rest()
        self._engine.close()

    def query(
        self,
        sql: str,
        params: Sequence[Any],
        begun: Begun | None,
        mirror: Callable[[], pa.Table],
    ) -> pa.Table:
        """Return the cluster's answer; where it is not there, that of the mirror.

        Args:
            sql: One statement in Spark's SQL.
            params: Values for its `?`.
            begun: Given what cancels the query.
            mirror: Asks the mirror the same.

        Raises:
            QueryError: The statement does not only read, or the cluster refuses it.
        """
        state, tables = self._read_by(sql)
        try:
            with self._clock.timing(begun) as query:
                cancel = Cancel.given(query.begun)
                found = self._engine.query(sql, params, tables, cancel)
        except ComputeUnreachableError as error:
            answered = mirror()
            return answered.cast(_with_reason(answered.schema, error))
        self._limits.refuse_bytes(found.nbytes)
        self._limits.refuse_rows(found.num_rows)
        return found.replace_schema_metadata(_labels(state))

    def stream(
        self,
        sql: str,
        params: Sequence[Any],
        rows: int,
        begun: Begun | None,
        mirror: Callable[[], pa.Table],
    ) -> Streamed:
        """Return the cluster's answer in batches; where it is not there, that of the mirror.

        Nobody goes on in the middle of an answer that the cluster broke off: it is an error.
        """
        state, tables = self._read_by(sql)
        with ExitStack() as held:
            query = held.enter_context(self._clock.timing(begun))
            try:
                cancel = Cancel.given(query.begun)
                found = self._engine.stream(sql, params, tables, cancel, rows)
            except ComputeUnreachableError as error:
                answered = mirror()
                shape = _with_reason(answered.schema, error)
                return Streamed(shape, results.shown(None, iter(answered.to_batches(rows)), shape))
            batches = until_closed(found, self._limits, held.pop_all())
        next(batches)  # begun, it gives back its session even where nobody takes a row
        shape = found.schema.with_metadata(_labels(state))
        return Streamed(shape, results.shown(None, batches, shape), found.cancel)

    def _read_by(self, sql: str) -> tuple[PublishedState, dict[str, tuple[str, int]]]:
        """Return the published state, and where a statement's tables are, at which versions."""
        state, root = self._state()
        published = {table.name: table for table in state.tables}
        tables = {
            written: (f"{root}/{published[name].folder}", published[name].version)
            for written, name in tables_read(sql, published).items()
        }
        return state, tables

    def _state(self) -> tuple[PublishedState, str]:
        """Return the newest published state, and where its folders are."""
        with needs_extra("delta", "what a cluster reads"):
            from rhei_pipeline.mirrors.datafusion.delta_states import newest_state
            from rhei_pipeline.mirrors.datafusion.storages import open_files
        mirror = self._settings.mirror
        access = store_access(mirror) if mirror.url else None
        with closing(open_files("parquet", mirror.url or mirror.path, access)) as files:
            found = newest_state(files)
        if found is None or not found.tables:
            raise MirrorError(
                "nothing was published for a cluster yet",
                hint="sync once; 'mirror.delta.interval_seconds' says how often it is published",
            )
        return found, published_root(self._settings)


def validate_compute(settings: Settings) -> list[Finding]:
    """Return what prevents queries of the cluster; it is asked for its version alone."""
    if settings.compute is None:
        return []
    try:
        with closing(cluster_engine(settings.compute)) as engine:
            engine.version()
    except (ComputeUnreachableError, MissingExtraError) as error:
        why = "queries with the hint 'cluster' are answered by the mirror until then"
        return [Finding(Severity.WARNING, error.message, why, error.hint or "")]
    return []


def _labels(state: PublishedState) -> dict[str, str]:
    return {
        "rhei.engine": "cluster",
        "rhei.reason": f"asked for; version {state.version} of the mirror, as published",
        "rhei.watermark": json.dumps(dict(state.watermarks)),
        "rhei.committed_at": state.committed_at,
    }


def _with_reason(shape: pa.Schema, error: ComputeUnreachableError) -> pa.Schema:
    """Return the schema of the mirror's answer, with why it answers."""
    return shape.with_metadata(
        {**(shape.metadata or {}), b"rhei.reason": f"the mirror answers: {error.message}".encode()}
    )
