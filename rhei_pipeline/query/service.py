"""Answers queries: chooses the side, and makes the mirror as fresh as the query needs."""

import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Literal, Self

import pyarrow as pa

from rhei_pipeline.errors import (
    MirrorError,
    MirrorMemoryError,
    QueryError,
    QueryLimitError,
    TransientError,
)
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.query_limits import (
    AnswerLimits,
    QueryClock,
    QueryLimits,
    TimedQuery,
    Turns,
    counted,
    whole,
)
from rhei_pipeline.model.schema import TableOptions
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.query import results
from rhei_pipeline.query.planner import Engines, Planner
from rhei_pipeline.query.router import Plan, Route, tables_read, unanswered
from rhei_pipeline.query.translation.queries import Query

_INEXACT = "the mirror cannot answer it exactly for these rows"
_ONLY_READ = "the source is only read, so that its mirror answers, in the mirror's SQL"
_NOT_SUPPORTED = "the mirror's engine does not run a query of its form"
#: How an engine says that it does not run a query on any rows.
_UNSUPPORTED = re.compile(
    r"not (yet )?(implemented|supported)|unsupported|recursion limit|Binder Error|Parser Error"
    r"|Catalog Error|Error during planning|physical plan|expression depth|Schema error",
    re.IGNORECASE,
)
WhenStale = Literal["sync", "wait", "oltp"]
_NANOSECONDS = 1_000_000_000
_LOOK_SECONDS = 0.005
_TOKEN = re.compile(r"(\d+)@(\d+)", re.ASCII)


class Written(int):
    """The rows that a write changed, and when it was committed.

    An integer in every respect. Passed to a query as `after`, it makes sure that the query sees
    the write. Pickling and copying keep the commit time; JSON would keep only the number, so send
    `token` instead.

    Attributes:
        committed_at: By `time.monotonic_ns`, which all processes of a machine share.
    """

    committed_at: int

    def __new__(cls, rows: int, committed_at: int) -> Self:
        """Create one."""
        made = super().__new__(cls, rows)
        made.committed_at = committed_at
        return made

    def __reduce__(self) -> tuple[type[Self], tuple[int, int]]:
        """Return the arguments for a copy."""
        return type(self), (int(self), self.committed_at)

    @property
    def token(self) -> str:
        """The write as a short text, such as `2@81234567890`; a query's `after` takes it."""
        return f"{int(self)}@{self.committed_at}"

    @classmethod
    def parse(cls, token: str) -> Self:
        """Parse a token.

        Raises:
            QueryError: It is not a token.
        """
        found = _TOKEN.fullmatch(token)
        if found is None:
            raise _no_write()
        return cls(int(found[1]), int(found[2]))


def moment_of(after: Written | str | None) -> int:
    """Return when a write was committed, by the monotonic clock; 0 for none.

    Raises:
        QueryError: It is neither the result of a write nor its token.
    """
    if after is None:
        return 0
    written = Written.parse(after) if isinstance(after, str) else after
    if not isinstance(written, Written):
        raise _no_write()
    # One of before the machine was started again lies in the past, whatever its number.
    return min(written.committed_at, time.monotonic_ns())


def _no_write() -> QueryError:
    return QueryError(
        "'after' is not a write",
        hint="pass what execute returned, or its 'token': a number alone has no commit time",
    )


@dataclass(frozen=True, slots=True)
class Demand:
    """How new an answer has to be.

    Attributes:
        max_staleness: How many seconds it may be behind the source.
        after: A write that it shows, because that was asked for.
        own: The last write of whoever asks; it is shown where the side is chosen.
    """

    max_staleness: float | None = None
    after: Written | str | None = None
    own: Written | None = None


_NONE = Demand()


class Writes:
    """The writes of one object, of which the last is known; from any thread."""

    def __init__(self) -> None:
        self.last: Written | None = None
        self._lock = threading.Lock()

    def note(self, rows: int) -> Written:
        """Return a write that was committed just now."""
        written = Written(rows, time.monotonic_ns())
        with self._lock:  # one that was committed earlier may be noted later
            if self.last is None or self.last.committed_at < written.committed_at:
                self.last = written
        return written


@dataclass(frozen=True, slots=True)
class Freshness:
    """What happens when a query needs newer data than the mirror has.

    Attributes:
        when_stale: sync: sync first. wait: wait for the background sync. oltp: query the source,
            if the query allows that.
        wait_seconds: How long `wait` waits before it syncs.
    """

    when_stale: WhenStale = "sync"
    wait_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A query whose answer is wanted in batches; `begun` gets its cancel function."""

    sql: str
    params: Sequence[Any]
    rows: int
    begun: Begun | None


class QueryService:
    """Answers queries from the source or the mirror.

    Args:
        sides: What can be asked.
        options: What the declaration says of a table.
        freshness: What to do when the mirror is not fresh enough.
        limits: What one query may take.
    """

    def __init__(
        self,
        engines: Engines,
        options: Mapping[str, TableOptions],
        freshness: Freshness,
        limits: QueryLimits | None = None,
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
        self._pipeline = engines.pipeline
        self._freshness = freshness
        self._doubted: tuple[Ledger, frozenset[str]] | None = None
        self._watchers: list[Callable[[str, float], None]] = []

    def watch(self, watcher: Callable[[str, float], None]) -> None:
        """Call `watcher` with the side and seconds of every answered query."""
        self._watchers.append(watcher)

    def route(self, sql: str, params: Sequence[Any] = ()) -> Route:
        """Return which side suits a statement, and why.

        If the mirror does not hold all of the tables yet, the source answers anyway; the answer's
        metadata say so.
        """
        plan = self.planner.plan(sql, params)
        if self._engines.is_sidecar and plan.reads:
            return Route("olap", _ONLY_READ)
        return plan.route

    def ask(
        self,
        sql: str,
        params: Sequence[Any] = (),
        demand: Demand = _NONE,
        begun: Begun | None = None,
    ) -> pa.Table:
        """Answer a query from the suitable side; the answer's metadata say which, and how fresh."""
        if self._engines.is_sidecar:
            self._refuse_not_followed(sql)
            return self.ask_mirror(sql, params, demand, begun)
        plan = self.planner.plan(sql, params)
        with self._under_way(begun, is_short=self._is_short(plan)) as query:
            return self._ask(sql, params, plan, demand, query.begun)

    def reads_single_rows(self, sql: str, params: Sequence[Any] = ()) -> bool:
        """Return whether a statement reads one table by key, and so is soon answered."""
        return self._is_short(self.planner.plan(sql, params))

    def _is_short(self, plan: Plan) -> bool:
        return plan.route.engine == "oltp" and bool(plan.tables) and not plan.scans

    @contextmanager
    def _under_way(self, begun: Begun | None = None, *, is_short: bool) -> Iterator[TimedQuery]:
        """Hold a query's turn, and time it, for the length of the block."""
        with self._turns[is_short].taken(), self._clock.timing(begun) as query:
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
            return self._ask_source(sql, params, reason, plan, begun)
        if plan.history:
            self._refuse_not_followed(sql)
            self._refuse_bound(sql, demand)
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
            under_way = self._under_way(begun, is_short=self._is_short(plan))
            query = held.enter_context(under_way)
            streamed = self._stream(_Wanted(sql, params, rows, query.begun), plan, own)
            held.callback(self._tell, streamed.schema, query)
            batches = _until_closed(streamed, self._limits.answer, held.pop_all())
        next(batches)  # begun, it gives back its turn even where nobody takes a row
        return replace(streamed, batches=batches)

    def _tell(self, answered: pa.Schema, query: TimedQuery) -> None:
        engine = answered.metadata[b"rhei.engine"].decode()
        for watcher in self._watchers:
            watcher(engine, query.elapsed_seconds)

    def _stream(self, wanted: "_Wanted", plan: Plan, own: Written | None) -> Streamed:
        demand, is_sidecar = Demand(own=own), self._engines.is_sidecar
        reason = None if is_sidecar else self._reason_to_leave(plan, demand)
        if reason is not None:
            return self._stream_source(wanted, reason, plan)
        if plan.query is None or is_sidecar:
            self._refuse_not_followed(wanted.sql)
            return self._stream_as_it_is(wanted, plan)
        answer = self._stream_mirror(wanted, plan, plan.query)
        if answer is not None:
            return answer
        return self._stream_source(wanted, f"{plan.route.reason}, but {_INEXACT}", plan)

    def _stream_mirror(self, wanted: "_Wanted", plan: Plan, query: Query) -> Streamed | None:
        """Stream a translated query's answer; None if only the source can answer."""
        ledger, synced_from = self._mirror.ledger(), self._pipeline.synced_from
        ended = threading.Event()
        begun = None if wanted.begun is None else _also(wanted.begun, ended.set)
        try:
            bound = results.bound(plan, wanted.params)
            streamed = self._mirror.stream(query.sql, bound, wanted.rows, begun)
            if query.limit is not None:
                # One row more than the limit shows whether it cuts between equal rows.
                most = self._limits.answer.with_another_row()
                found = whole(streamed.schema, streamed.batches, most)
                if unanswered(found, query):
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
        shape = results.labelled(results.empty(plan), plan.route, ledger, _age(synced_from)).schema
        return Streamed(shape, results.shown(first, streamed.batches, shape), streamed.cancel)

    def _stream_as_it_is(self, wanted: "_Wanted", plan: Plan) -> Streamed:
        """Stream the answer to a query that is written for the mirror."""
        route = Route("olap", _ONLY_READ) if self._engines.is_sidecar else plan.route
        ledger, synced_from = self._mirror.ledger(), self._pipeline.synced_from
        streamed = self._mirror.stream(wanted.sql, wanted.params, wanted.rows, wanted.begun)
        first = next(streamed.batches, None)
        empty = streamed.schema.empty_table()
        shape = results.labelled(empty, route, ledger, _age(synced_from)).schema
        return Streamed(shape, results.shown(first, streamed.batches, shape), streamed.cancel)

    def _stream_source(self, wanted: "_Wanted", reason: str, plan: Plan) -> Streamed:
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
            raise QueryError(f"a query only reads: {plan.route.reason}", hint=plan.instead)
        if plan.route.engine == "oltp":
            return plan.route.reason
        written = max(moment_of(demand.own), moment_of(demand.after))
        needed = self._needed(demand.max_staleness, written)
        try:
            is_fresh = self._is_fresh(needed) or self._freshen(needed, may_leave=not plan.history)
        except MirrorError as error:
            if plan.history:
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
        with self._under_way(begun, is_short=self._is_short(plan)) as query:
            return self._ask_source(sql, params, reason, plan, query.begun)

    def _ask_source(
        self, sql: str, params: Sequence[Any], reason: str, plan: Plan, begun: Begun | None
    ) -> pa.Table:
        with self._logged("oltp"):
            return self._from_source(sql, params, reason, plan, begun)

    def _from_source(
        self, sql: str, params: Sequence[Any], reason: str, plan: Plan, begun: Begun | None
    ) -> pa.Table:
        if self._engines.oltp is None:
            raise QueryError(
                "the source is read-only: it is captured by polling",
                hint="query the mirror, or declare a 'local' database beside it",
            )
        columns = None if self._engines.is_sidecar else plan.columns
        read = partial(tables_read, sql, self._engines.dialects[0])
        pointing = results.pointing(read, self._mirror.tables, self._pipeline.tables)
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
        demand: Demand = _NONE,
        begun: Begun | None = None,
    ) -> pa.Table:
        """Answer a query that is written in the mirror's SQL; `own` writes do not matter there."""
        needed = self._needed(demand.max_staleness, moment_of(demand.after))
        if not self._is_fresh(needed):
            self._freshen(needed, may_leave=False)
        self._refuse_bound(sql, demand)
        ledger = self._mirror.ledger()
        with self._under_way(begun, is_short=False) as query, self._logged("olap"):
            found = self._mirror.query(sql, params, query.begun, self._limits.answer)
        labelled = results.labelled(
            found, Route("olap", "asked for"), ledger, _age(self._pipeline.synced_from)
        )
        return results.dated(labelled, self._not_followed_in(sql))

    def _not_followed_in(self, sql: str) -> dict[str, datetime]:
        """Return the tables of a statement for the mirror that are no longer synced."""
        known = self._pipeline.not_followed
        read = tables_read(sql, self._engines.dialects[1]) if known else frozenset()
        return {name: since for name, since in known.items() if name.lower() in read}

    def _refuse_not_followed(self, sql: str) -> None:
        """Refuse `auto` queries of tables that left the declaration or the source."""
        for name, since in self._not_followed_in(sql).items():
            if name not in self._pipeline.left_out:
                raise QueryError(
                    f"table {name!r} is no longer followed since {since.isoformat()}",
                    hint="use the hint 'olap' to read what its mirror still holds, declare it "
                    "again,"
                    f" or drop it from the mirror with 'rhei drop-table {name}'",
                )

    def _refuse_bound(self, sql: str, demand: Demand) -> None:
        """Refuse a freshness limit for tables that are no longer synced."""
        is_bound = demand.max_staleness is not None or demand.after is not None
        stale = self._not_followed_in(sql) if is_bound else {}
        for name, since in stale.items():
            raise QueryError(
                f"table {name!r} is not followed since {since.isoformat()}, and its mirror is "
                "older than the query allows",
                hint="query without 'max_staleness' and 'after'; 'rhei sync' says what to do",
            )

    def _ask_history(self, sql: str, params: Sequence[Any], plan: Plan, begun: Begun) -> pa.Table:
        ledger = self._mirror.ledger()
        with self._logged("olap"):
            found = self._mirror.query(sql, params, begun, self._limits.answer)
        labelled = results.labelled(found, plan.route, ledger, _age(self._pipeline.synced_from))
        return results.dated(labelled, self._not_followed_in(sql))

    def _ask_mirror(self, plan: Plan, params: Sequence[Any], begun: Begun) -> pa.Table | None:
        """Answer a translated query; None where only the source can tell."""
        if plan.query is None:
            return None
        # Read first: the answer is then at least as new as what it says.
        ledger, synced_from = self._mirror.ledger(), self._pipeline.synced_from
        bound = results.bound(plan, params)
        is_cut = plan.query.limit is not None
        most = self._limits.answer.with_another_row() if is_cut else self._limits.answer
        with self._logged("olap"):
            found = self._mirror.query(plan.query.sql, bound, begun, most)
        if unanswered(found, plan.query):
            return None
        if is_cut:
            found = found.slice(0, plan.query.limit)
            self._limits.answer.refuse_rows(found.num_rows)
        return results.labelled(results.shaped(found, plan), plan.route, ledger, _age(synced_from))

    def _doubt(self, plan: Plan) -> str | None:
        """Return why the mirror does not hold all that a query needs; None when it does."""
        try:
            return self._lack(plan)
        except MirrorError as error:
            return _failure(error)

    def _lack(self, plan: Plan) -> str | None:
        ledger = self._mirror.ledger()
        waiting = [name for name in sorted(plan.tables) if not self._pipeline.holds(name, ledger)]
        if waiting:
            return f"table {waiting[0]!r} is not copied yet with its present columns"
        lacking = sorted(plan.tables & self._with_dead_letters(ledger))
        if lacking:
            return f"table {lacking[0]!r} has rows that cannot be mirrored"
        return None

    def _with_dead_letters(self, ledger: Ledger) -> frozenset[str]:
        known = self._doubted
        if known is None or known[0] is not ledger:
            names = frozenset(self._mirror.dead_letters()["table_name"].to_pylist())
            known = self._doubted = (ledger, names)
        return known[1]

    def _needed(self, max_staleness: float | None, written: int) -> int:
        """Return the time, by the monotonic clock, whose state the answer must show."""
        if max_staleness is None:
            return written
        if max_staleness < 0:
            raise QueryError(
                "max_staleness is negative",
                hint="give a number of seconds; 0 asks for the present state",
            )
        now = time.monotonic_ns()
        return max(written, now - int(max_staleness * _NANOSECONDS))

    def _is_fresh(self, needed: int) -> bool:
        return not needed or (self._pipeline.synced_from or 0) >= needed

    def _freshen(self, needed: int, *, may_leave: bool) -> bool:
        """Make the mirror as fresh as needed; return False if the source should answer."""
        if self._freshness.when_stale == "oltp" and may_leave:
            return False
        if self._freshness.when_stale == "wait":
            deadline = time.monotonic() + self._freshness.wait_seconds
            while time.monotonic() < deadline:
                if self._is_fresh(needed):
                    return True
                time.sleep(_LOOK_SECONDS)
        try:
            self._pipeline.sync()
        except TransientError:
            if not may_leave:
                raise
            return False
        return True


def _failure(error: Exception) -> str:
    """Return why the source answers in the place of a mirror that fails for good.

    Raises:
        MirrorMemoryError: The source would need as much memory.
    """
    if isinstance(error, MirrorMemoryError):
        raise error
    if isinstance(error, MirrorError):
        return f"the mirror fails: {error}"
    return f"the mirror fails with {type(error).__name__}"


def _until_closed(
    streamed: Streamed, limits: AnswerLimits, held: ExitStack
) -> Iterator[pa.RecordBatch]:
    """Yield an empty batch, then those of an answer; let go of what is held when that is over."""
    with held:
        if isinstance(streamed.batches, Generator):
            held.callback(streamed.batches.close)
        yield pa.record_batch({})
        yield from counted(streamed.batches, limits)


def _age(synced_from: int | None) -> float | None:
    """Return the seconds since the start of the sync that an answer shows."""
    return None if synced_from is None else (time.monotonic_ns() - synced_from) / _NANOSECONDS


def _also(begun: Begun, note: Callable[[], None]) -> Begun:
    """Return a `begun` callback that calls `note`, too, when the query is cancelled."""

    def given(cancel: Callable[[], None]) -> None:
        def call() -> None:
            note()
            cancel()

        begun(call)

    return given
