"""Answers of the mirror in batches, sent while the rest is still being read."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from rhei_pipeline.errors import MirrorMemoryError, QueryLimitError
from rhei_pipeline.model.query_limits import AnswerLimits, counted, whole
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.query import results
from rhei_pipeline.query.completeness import Completeness
from rhei_pipeline.query.freshness import MirrorFreshness
from rhei_pipeline.query.planner import Engines
from rhei_pipeline.query.router import Plan, Route
from rhei_pipeline.query.translation.queries import Query

#: Why the mirror answers everything, in its own SQL.
ONLY_READ = "the source is only read, so that its mirror answers, in the mirror's SQL"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A query whose answer is wanted in batches; `begun` gets its cancel function."""

    sql: str
    params: Sequence[Any]
    rows: int
    begun: Begun | None


class MirrorStreams:
    """Streams answers of the mirror.

    Args:
        engines: The mirror, and the pipeline that syncs it.
        limits: How much one answer may hold.
        freshness: Knows how old an answer is.
        completeness: Knows what the mirror lacks.
    """

    def __init__(
        self,
        engines: Engines,
        limits: AnswerLimits,
        freshness: MirrorFreshness,
        completeness: Completeness,
    ) -> None:
        self._mirror = engines.mirror
        self._pipeline = engines.pipeline
        self._is_sidecar = engines.is_sidecar
        self._limits = limits
        self._freshness = freshness
        self._completeness = completeness

    def translated(self, wanted: Wanted, plan: Plan, query: Query) -> Streamed | None:
        """Stream a translated query's answer; None if only the source can answer."""
        ledger, synced_from = self._mirror.ledger(), self._pipeline.synced_from
        ended = threading.Event()
        begun = None if wanted.begun is None else _also(wanted.begun, ended.set)
        try:
            bound = results.bound(plan, wanted.params)
            streamed = self._mirror.stream(query.sql, bound, wanted.rows, begun)
            if query.limit is not None:
                # One row more than the limit shows whether it cuts between equal rows.
                most = self._limits.with_another_row()
                found = whole(streamed.schema, streamed.batches, most)
                if results.unanswered(found, query):
                    return None
                kept = found.slice(0, query.limit).select(range(len(query.columns)))
                streamed = replace(streamed, batches=iter(kept.to_batches(wanted.rows)))
            first = next(streamed.batches, None)
        except (MirrorMemoryError, QueryLimitError):
            raise
        except Exception:
            if ended.is_set():
                raise
            return None
        shape = results.labelled(
            results.empty(plan), plan.route, ledger, self._freshness.age_seconds(synced_from)
        ).schema
        return Streamed(shape, results.shown(first, streamed.batches, shape), streamed.cancel)

    def as_it_is(self, wanted: Wanted, plan: Plan) -> Streamed:
        """Stream the answer to a query that is written for the mirror."""
        route = Route("olap", ONLY_READ) if self._is_sidecar else plan.route
        ledger, synced_from = self._mirror.ledger(), self._pipeline.synced_from
        streamed = self._mirror.stream(wanted.sql, wanted.params, wanted.rows, wanted.begun)
        first = next(streamed.batches, None)
        empty = streamed.schema.empty_table()
        labelled = results.labelled(empty, route, ledger, self._freshness.age_seconds(synced_from))
        shape = self._completeness.told(labelled, wanted.sql, ledger).schema
        return Streamed(shape, results.shown(first, streamed.batches, shape), streamed.cancel)


def until_closed(
    streamed: Streamed, limits: AnswerLimits, held: ExitStack
) -> Iterator[pa.RecordBatch]:
    """Yield an empty batch, then those of an answer; let go of what is held when that is over."""
    with held:
        if isinstance(streamed.batches, Generator):
            held.callback(streamed.batches.close)
        yield pa.record_batch({})
        yield from counted(streamed.batches, limits)


def _also(begun: Begun, note: Callable[[], None]) -> Begun:
    """Return a `begun` callback that calls `note`, too, when the query is cancelled."""

    def given(cancel: Callable[[], None]) -> None:
        def call() -> None:
            note()
            cancel()

        begun(call)

    return given
