"""Answers queries: chooses the side, and makes the mirror as fresh as the query needs."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pyarrow as pa

from rhei_pipeline.capabilities import publishes
from rhei_pipeline.compute.heavy_reads import HeavyReads
from rhei_pipeline.compute.spark_sql import SparkQuery
from rhei_pipeline.errors import (
    MirrorError,
    MirrorMemoryError,
    MirrorUnreachableError,
    QueryError,
    QueryLimitError,
)
from rhei_pipeline.model.query_limits import (
    AnswerLimits,
    QueryClock,
    QueryLimits,
    TimedQuery,
    Turns,
)
from rhei_pipeline.model.schema import TableOptions
from rhei_pipeline.model.semantics import Translated
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.query import results
from rhei_pipeline.query.completeness import Completeness
from rhei_pipeline.query.freshness import (
    NO_DEMAND,
    Demand,
    Freshness,
    MirrorFreshness,
    Written,
    moment_of,
)
from rhei_pipeline.query.masked_tables import refuse_source
from rhei_pipeline.query.named_tables import tables_read
from rhei_pipeline.query.planner import Engines, Planner, reads_single_rows
from rhei_pipeline.query.router import Plan, Route
from rhei_pipeline.query.streams import ONLY_READ, MirrorStreams, Wanted, until_closed
from rhei_pipeline.query.translation.queries import Query
from rhei_pipeline.sql.read_only import of_log

#: How new an answer of the source is.
_CURRENT = "the source's present state"
_LOCAL = "it reads tables of the local database"
_INEXACT = "the mirror cannot answer it exactly for these rows"
_NOT_SUPPORTED = "the mirror's engine does not run a query of its form"
#: How an engine says that it does not run a query on any rows.
_UNSUPPORTED = re.compile(
    r"not (yet )?(implemented|supported)|unsupported|recursion limit|Binder Error|Parser Error"
    r"|Catalog Error|Error during planning|physical plan|expression depth|Schema error",
    re.IGNORECASE,
)


class QueryService:
    """Answers queries from the source or the mirror.

    Args:
        engines: What can be asked.
        options: What the declaration says of a table.
        freshness: What to do when the mirror is not fresh enough.
        limits: What one query may take.
        heavy: Has a cluster answer queries of many rows; None: there is none.
    """

    def __init__(
        self,
        engines: Engines,
        options: Mapping[str, TableOptions],
        freshness: Freshness,
        limits: QueryLimits | None = None,
        heavy: HeavyReads | None = None,
    ) -> None:
        self._engines = engines
        self._limits = limits = limits or QueryLimits()
        self._clock = QueryClock(limits.seconds)
        #: A read of single rows never waits behind a long query.
        self._turns = {
            is_short: Turns(limits.at_once, limits.turn_seconds) for is_short in (True, False)
        }
        self.planner = Planner(engines, options)
        self._mirror = engines.mirror
        self._heavy = heavy
        self._pipeline = engines.pipeline
        self._freshness = MirrorFreshness(engines.pipeline, freshness)
        self._completeness = Completeness(engines)
        self._streams = MirrorStreams(
            engines, self._limits.answer, self._freshness, self._completeness
        )
        self._watchers: list[Callable[[str, float], None]] = []

    def close(self) -> None:
        """End the queries under way: each fails, as does any that begins later."""
        self._clock.close()
        if self._heavy is not None:
            self._heavy.engine.close()

    def watch(self, watcher: Callable[[str, float], None]) -> None:
        """Call `watcher` with the side and seconds of every answered query."""
        self._watchers.append(watcher)

    def route(self, sql: str, params: Sequence[Any] = (), own: Written | None = None) -> Route:
        """Return which side would answer a statement now, and why; nothing is run or synced.

        What only the answer itself shows is not known here: that the mirror fails, or cannot answer
        exactly for these rows. The answer's metadata say so.
        """
        plan = self.planner.plan(sql, params)
        if not plan.reads:
            return plan.route
        needed = 0 if self._engines.is_sidecar else moment_of(own)
        if self._completeness.is_local(sql, self._engines):
            return Route("oltp", _LOCAL, _CURRENT)
        if self._engines.is_sidecar:
            return Route("olap", ONLY_READ, self._described(sql, needed))
        reason = plan.route.reason
        if plan.route.engine == "olap" and not plan.history:
            doubt = self._doubt(plan)
            if plan.masked is None and self._freshness.leaves(needed):
                doubt = "the mirror is older than the query allows"
            if doubt:
                refuse_source(plan, doubt)
                return Route("oltp", f"{reason}, but {doubt}", _CURRENT)
        if plan.route.engine == "oltp":
            refuse_source(plan, reason)
            return Route("oltp", reason, _CURRENT)
        _, side = self._chosen(plan, results.bound(plan, params))
        return replace(side, freshness=self._described(sql, needed))

    def _described(self, sql: str, needed: int) -> str:
        """Return how new an answer of the mirror would be."""
        for name, since in self._completeness.not_followed(sql).items():
            return f"table {name!r} is not followed since {since.isoformat()}"
        return self._freshness.described(needed)

    def ask(
        self,
        sql: str,
        params: Sequence[Any] = (),
        demand: Demand = NO_DEMAND,
        begun: Begun | None = None,
    ) -> pa.Table:
        """Answer a query from the suitable side; the answer's metadata say which, and how fresh."""
        if self._engines.is_sidecar:
            if self._completeness.is_local(sql, self._engines):
                return self.ask_source(sql, params, _LOCAL, begun)
            self._completeness.refuse_not_followed(sql)
            return self.ask_mirror(sql, params, demand, begun)
        plan = self.planner.plan(sql, params)
        with self._under_way(begun, is_short=reads_single_rows(plan)) as query:
            return self._ask(sql, params, plan, demand, query.begun)

    def reads_single_rows(self, sql: str, params: Sequence[Any] = ()) -> bool:
        """Return whether a statement reads one table by key, and so is soon answered."""
        return reads_single_rows(self.planner.plan(sql, params))

    @contextmanager
    def _under_way(self, begun: Begun | None = None, *, is_short: bool) -> Iterator[TimedQuery]:
        """Hold a query's turn, and time it, for the length of the block."""
        with self._turns[is_short].taken(begun), self._clock.timing(begun) as query:
            yield query

    def _ask(
        self,
        sql: str,
        params: Sequence[Any],
        plan: Plan,
        demand: Demand,
        begun: Begun,
    ) -> pa.Table:
        reason = self._reason_to_leave(plan, demand)
        if reason is not None:
            refuse_source(plan, reason)
            return self._ask_source(sql, params, reason, plan, begun)
        if plan.history:
            self._completeness.refuse_not_followed(sql)
            self._completeness.refuse_bound(sql, demand)
            return self._ask_history(sql, params, plan, begun)
        try:
            answer = self._ask_mirror(plan, params, begun)
        except QueryLimitError:
            raise
        except Exception as error:  # noqa: BLE001  (the source can answer, whatever it is)
            answer, why = None, self._failure(error, sql, params)
        else:
            why = _INEXACT
        if answer is not None:
            return answer
        refuse_source(plan, why)
        return self._ask_source(sql, params, f"{plan.route.reason}, but {why}", plan, begun)

    def _failure(self, error: Exception, sql: str, params: Sequence[Any]) -> str:
        """Return why the source answers; what no try will change is kept in mind."""
        if not isinstance(error, QueryError):
            return _failure(error)
        if not _UNSUPPORTED.search(error.message):
            return _INEXACT
        self.planner.refused(sql, params, _NOT_SUPPORTED)
        return _NOT_SUPPORTED

    def stream(
        self,
        sql: str,
        params: Sequence[Any],
        rows: int,
        begun: Begun | None = None,
        own: Written | None = None,
    ) -> Streamed:
        """Answer a query in batches of about `rows` rows; returns when the first one is ready.

        The whole answer is in memory only if its types, or the rows that a LIMIT keeps, depend on
        all of it. If a later batch shows that only the source answers exactly, the stream ends in
        an error, and the batches already sent must not be used. A query that reads one table, but
        not by key, is answered by the mirror, too. `begun` is called with a thread-safe cancel
        function as soon as the query runs.
        """
        plan = self.planner.plan(sql, params)
        if plan.scans:
            plan = replace(plan, route=Route("olap", "it reads many rows"))
        with ExitStack() as held:
            under_way = self._under_way(begun, is_short=reads_single_rows(plan))
            query = held.enter_context(under_way)
            streamed = self._stream(Wanted(sql, params, rows, query.begun), plan, own)
            held.callback(self._tell, streamed.schema, query)
            batches = until_closed(streamed, self._limits.answer, held.pop_all())
        next(batches)  # begun, it gives back its turn even where nobody takes a row
        return replace(streamed, batches=batches)

    def _tell(self, answered: pa.Schema, query: TimedQuery) -> None:
        engine = answered.metadata[b"rhei.engine"].decode()
        for watcher in self._watchers:
            watcher(engine, query.elapsed_seconds)

    def _stream(self, wanted: Wanted, plan: Plan, own: Written | None) -> Streamed:
        demand, is_sidecar = Demand(own=own), self._engines.is_sidecar
        reason = None if is_sidecar else self._reason_to_leave(plan, demand)
        if reason is not None:
            refuse_source(plan, reason)
            return self._stream_source(wanted, reason, plan)
        if is_sidecar and self._completeness.is_local(wanted.sql, self._engines):
            return self._stream_source(wanted, _LOCAL, plan)
        if plan.query is None or is_sidecar:
            self._completeness.refuse_not_followed(wanted.sql)
            with self._completeness.naming_uncopied(wanted.sql):
                return self._streams.as_it_is(wanted, plan)
        answer = self._streams.translated(wanted, plan, plan.query)
        if answer is not None:
            return answer
        refuse_source(plan, _INEXACT)
        return self._stream_source(wanted, f"{plan.route.reason}, but {_INEXACT}", plan)

    def _stream_source(self, wanted: Wanted, reason: str, plan: Plan) -> Streamed:
        oltp, sql, params = self._engines.oltp, wanted.sql, wanted.params
        streamed = None
        if oltp is not None:
            streamed = oltp.stream(sql, params, plan.columns, wanted.rows, wanted.begun)
        if streamed is None:
            found = self._from_source(sql, params, reason, plan, wanted.begun)
            return Streamed(found.schema, iter(found.to_batches(wanted.rows)))
        empty = streamed.schema.empty_table()
        shape = results.labelled(empty, Route("oltp", reason), None).schema
        return Streamed(shape, results.shown(None, streamed.batches, shape), streamed.cancel)

    def _reason_to_leave(self, plan: Plan, demand: Demand) -> str | None:
        """Make the mirror as fresh as needed; return why the source answers, or None."""
        if not plan.reads:
            raise QueryError(
                f"a query only reads, and this is none: {plan.route.reason}", hint=plan.instead
            )
        if plan.route.engine == "oltp":
            return plan.route.reason
        stays = plan.history or plan.masked is not None
        written = max(moment_of(demand.own), moment_of(demand.after))
        needed = self._freshness.needed(demand.max_staleness, written)
        try:
            is_fresh = self._freshness.reach(needed, may_leave=not stays)
        except MirrorError as error:
            if stays:
                raise
            return f"{plan.route.reason}, but {_failure(error)}"
        if not is_fresh:
            return f"{plan.route.reason}, but the mirror is older than the query allows"
        doubt = None if plan.history else self._doubt(plan)
        return f"{plan.route.reason}, but {doubt}" if doubt else None

    def ask_source(
        self, sql: str, params: Sequence[Any], reason: str, begun: Begun | None = None
    ) -> pa.Table:
        """Answer a query from the source."""
        plan = self.planner.plan(sql, params)
        with self._under_way(begun, is_short=reads_single_rows(plan)) as query:
            return self._ask_source(sql, params, reason, plan, query.begun)

    def _ask_source(
        self, sql: str, params: Sequence[Any], reason: str, plan: Plan, begun: Begun | None
    ) -> pa.Table:
        with self._logged("oltp"):
            return self._from_source(sql, params, reason, plan, begun)

    def _from_source(
        self, sql: str, params: Sequence[Any], reason: str, plan: Plan, begun: Begun | None
    ) -> pa.Table:
        if self._engines.is_log:
            raise of_log()
        if self._engines.oltp is None:
            raise QueryError(
                "the source is read-only: it is captured by polling",
                hint="query the mirror, or declare a 'local' database beside it",
            )
        columns = None if self._engines.is_sidecar else plan.columns
        pointing = results.pointing(
            lambda: tables_read(sql, self._engines.dialects[0]) or (),
            self._mirror.tables,
            self._pipeline.tables,
        )
        with pointing:
            found = self._engines.oltp.query(sql, params, columns, begun)
        return results.labelled(found, Route("oltp", reason), None)

    @contextmanager
    def _logged(self, engine: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        for watcher in self._watchers:
            watcher(engine, time.monotonic() - started)

    def ask_mirror(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any],
        demand: Demand = NO_DEMAND,
        begun: Begun | None = None,
    ) -> pa.Table:
        """Answer a query that is written in the mirror's SQL; `own` writes do not matter there."""
        needed = self._freshness.needed(demand.max_staleness, moment_of(demand.after))
        self._freshness.reach(needed, may_leave=False)
        self._completeness.refuse_bound(sql, demand)
        ledger = self._mirror.ledger()
        with (
            self._under_way(begun, is_short=False) as query,
            self._logged("olap"),
            self._completeness.naming_uncopied(sql),
        ):
            found = self._mirror.query(sql, params, query.begun, self._limits.answer)
        labelled = results.labelled(
            found,
            Route("olap", "asked for"),
            ledger,
            self._freshness.age_seconds(self._pipeline.synced_from),
        )
        return self._completeness.told(labelled, sql, ledger)

    def _ask_history(self, sql: str, params: Sequence[Any], plan: Plan, begun: Begun) -> pa.Table:
        ledger = self._mirror.ledger()
        with self._logged("olap"):
            found = self._mirror.query(sql, params, begun, self._limits.answer)
        labelled = results.labelled(
            found, plan.route, ledger, self._freshness.age_seconds(self._pipeline.synced_from)
        )
        return self._completeness.told(labelled, sql, ledger)

    def _ask_mirror(self, plan: Plan, params: Sequence[Any], begun: Begun) -> pa.Table | None:
        """Answer a translated query; None where only the source can tell."""
        if plan.query is None:
            return None
        # Read first: the answer is then at least as new as what it says.
        ledger, synced_from = self._mirror.ledger(), self._pipeline.synced_from
        bound = results.bound(plan, params)
        is_cut = plan.query.limit is not None
        most = self._limits.answer.with_another_row() if is_cut else self._limits.answer
        found, side = self._from_mirror(plan, plan.query, bound, begun, most)
        if results.unanswered(found, plan.query):
            return None
        if is_cut:
            found = found.slice(0, plan.query.limit)
            self._limits.answer.refuse_rows(found.num_rows)
        return results.labelled(
            results.shaped(found, plan),
            side,
            ledger,
            self._freshness.age_seconds(synced_from),
        )

    def _from_mirror(
        self, plan: Plan, query: Query, bound: Mapping[str, Any], begun: Begun, most: AnswerLimits
    ) -> tuple[pa.Table, Route]:
        """Return the rows of a translated query, and the side that found them."""
        asked, side = self._chosen(plan, bound)
        if asked is not None and self._heavy is not None and publishes(self._mirror):
            with self._logged("cluster"):
                found = self._heavy.answer(asked, self._mirror, begun)
            if not isinstance(found, str):
                most.refuse_bytes(found.nbytes)
                most.refuse_rows(found.num_rows)
                return found, side
            side = Route("olap", f"{plan.route.reason}; not by the cluster: {found}")
        with self._logged("olap"):
            return self._mirror.query(query.sql, bound, begun, most), side

    def _chosen(self, plan: Plan, bound: Mapping[str, Any]) -> tuple[SparkQuery | None, Route]:
        """Return how the cluster is asked, and the side; None where the mirror's engine answers."""
        sql = plan.query.sql if plan.query else None
        if self._heavy is None or not isinstance(sql, Translated) or not publishes(self._mirror):
            return None, plan.route
        asked, why = self._heavy.suits(sql, bound, self._mirror, self._engines.mirror.tables())
        reason = f"{plan.route.reason}; {why}" if why else plan.route.reason
        return asked, Route("olap" if asked is None else "cluster", reason)

    def _doubt(self, plan: Plan) -> str | None:
        """Return why the mirror does not hold all that a query needs; None when it does."""
        try:
            return self._completeness.lack(plan)
        except MirrorError as error:
            return _failure(error)


def _failure(error: Exception) -> str:
    """Return why the source answers in the place of a mirror that fails for good.

    Raises:
        MirrorMemoryError: The source would need as much memory.
    """
    if isinstance(error, MirrorMemoryError):
        raise error
    if isinstance(error, (MirrorError, MirrorUnreachableError)):
        return f"the mirror fails: {error}"
    return f"the mirror fails with {type(error).__name__}"
