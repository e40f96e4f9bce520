"""The reading side of the door: a query goes to the side that suits, as fresh as it has to be."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import pyarrow as pa

from rhei_pipeline.errors import QueryError, TransientError
from rhei_pipeline.ledger import Ledger
from rhei_pipeline.pipeline import Pipeline
from rhei_pipeline.protocols import Database, Mirror, Streamed
from rhei_pipeline.routing import Plan, Route, Router, unanswered
from rhei_pipeline.schema import TableOptions
from rhei_pipeline.translation.meaning import Catalog, MirroredTable

_ONLY_READ = "the source is only read, so that its mirror answers, in the mirror's SQL"
WhenStale = Literal["sync", "wait", "oltp"]
_NANOSECONDS = 1_000_000_000
_LOOK_SECONDS = 0.005


class Written(int):
    """How many rows a write changed, and when it was committed.

    An integer in every respect. Given to a query as `after`, it makes sure that the query sees
    the write.

    Attributes:
        committed_at: By `time.monotonic_ns`, which all processes of a machine share.
    """

    committed_at: int

    def __new__(cls, rows: int, committed_at: int) -> Self:
        """Make one."""
        made = super().__new__(cls, rows)
        made.committed_at = committed_at
        return made


@dataclass(frozen=True, slots=True)
class Freshness:
    """What a query that needs newer data than the mirror has does.

    Attributes:
        when_stale: sync: bring the mirror up to date first. wait: let the background sync do so.
            oltp: ask the source, as far as the query may.
        wait_seconds: How long `wait` waits before it syncs.
    """

    when_stale: WhenStale = "sync"
    wait_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Sides:
    """What a door stands between.

    Attributes:
        source: The database that is mirrored.
        oltp: Where `oltp` is answered: the source, a local database beside a source that is only
            read, or nowhere.
        dialects: The source's and the mirror's.
    """

    source: Database
    oltp: Database | None
    mirror: Mirror
    pipeline: Pipeline
    dialects: tuple[str, str]

    @property
    def is_sidecar(self) -> bool:
        """Whether the source belongs to others, and is only read."""
        return self.oltp is not self.source


class Door:
    """Answers queries from the source or the mirror.

    Args:
        sides: What can be asked.
        options: What the declaration says of a table.
        freshness: What to do when the mirror is not fresh enough.
    """

    def __init__(
        self, sides: Sides, options: Mapping[str, TableOptions], freshness: Freshness
    ) -> None:
        self._sides = sides
        self._mirror = sides.mirror
        self._pipeline = sides.pipeline
        self._options = options
        self._freshness = freshness
        self._lock = threading.Lock()
        self._router: tuple[int, Router] | None = None
        self._doubted: tuple[Ledger, frozenset[str]] | None = None
        self._last_write = 0
        self._watchers: list[Callable[[str, float], None]] = []

    def watch(self, watcher: Callable[[str, float], None]) -> None:
        """Have the side of every query that was answered told, and its seconds."""
        self._watchers.append(watcher)

    def wrote(self, rows: int) -> Written:
        """Note that a write has been committed; later queries of `auto` see it."""
        now = time.monotonic_ns()
        self._last_write = now
        return Written(rows, now)

    def route(self, sql: str, params: Sequence[Any] = ()) -> Route:
        """Tell which side suits a statement, and why.

        Where the mirror does not hold all of the tables yet, an answer comes from the source all
        the same; its metadata say so.
        """
        plan = self._plan(sql, params)
        if self._sides.is_sidecar and plan.reads:
            return Route("olap", _ONLY_READ)
        return plan.route

    def reads(self, sql: str) -> bool:
        """Tell whether a statement is a query, as far as its text tells."""
        return self._plan(sql, ()).reads

    def describe(self, sql: str) -> pa.Schema | None:
        """Return the schema of a query's answer; None where only a run can tell."""
        plan = self._plan(sql, ())
        if plan.columns is None or None in plan.columns or not plan.names:
            return None
        return _empty(plan).schema

    def ask(
        self,
        sql: str,
        params: Sequence[Any] = (),
        *,
        max_staleness: float | None = None,
        after: Written | None = None,
    ) -> pa.Table:
        """Answer a query from the side that suits it; the answer says which, and how fresh."""
        if self._sides.is_sidecar:
            return self.ask_mirror(sql, params, max_staleness, after)
        plan = self._plan(sql, params)
        reason = self._reason_to_leave(plan, max_staleness, after)
        if reason is not None:
            return self.ask_source(sql, params, reason, plan)
        if plan.history:
            return self._ask_history(sql, params, plan)
        answer = self._ask_mirror(plan, params)
        if answer is not None:
            return answer
        reason = f"{plan.route.reason}, but the mirror cannot answer it exactly for these rows"
        return self.ask_source(sql, params, reason, plan)

    def stream(self, sql: str, params: Sequence[Any], rows: int) -> Streamed:
        """Answer a query in batches of about so many rows.

        The answer is never in memory whole, unless its types show in its whole only. Where it
        turns out on the way that only the source answers exactly, the stream ends in an error,
        and what was sent is not to be used. What reads a table otherwise than by key is answered
        by the mirror, too.
        """
        plan = self._plan(sql, params)
        if plan.scans:
            plan = replace(plan, route=Route("olap", "it reads many rows"))
        reason = None if self._sides.is_sidecar else self._reason_to_leave(plan, None, None)
        if reason is not None:
            return self._stream_source(sql, params, reason, plan, rows)
        query = plan.query
        if query is None or self._sides.is_sidecar or query.limit is not None:
            return _in_batches(self.ask(sql, params), rows)
        ledger, synced_from = self._mirror.ledger(), self._pipeline.synced_from
        streamed = self._mirror.stream(query.sql, _bound(plan, params), rows)
        for watcher in self._watchers:
            watcher("olap", 0.0)
        shape = _labelled(_empty(plan), plan.route, ledger, synced_from).schema
        batches = (_batch(batch, shape) for batch in streamed.batches)
        return Streamed(shape, batches, streamed.cancel)

    def _stream_source(
        self, sql: str, params: Sequence[Any], reason: str, plan: Plan, rows: int
    ) -> Streamed:
        oltp = self._sides.oltp
        streamed = oltp.stream(sql, params, plan.columns, rows) if oltp else None
        if streamed is None:
            return _in_batches(self.ask_source(sql, params, reason, plan), rows)
        for watcher in self._watchers:
            watcher("oltp", 0.0)
        empty = streamed.schema.empty_table()
        shape = _labelled(empty, Route("oltp", reason), None).schema
        batches = (_batch(batch, shape) for batch in streamed.batches)
        return Streamed(shape, batches, streamed.cancel)

    def _reason_to_leave(
        self, plan: Plan, max_staleness: float | None, after: Written | None
    ) -> str | None:
        """Bring the mirror up to what is asked; say why the source answers, where it does."""
        if not plan.reads:
            raise QueryError(
                f"a query only reads, and {plan.route.reason.removeprefix('it ')}",
                hint="use execute for writes: they go to the source, and reach the mirror by sync",
            )
        if plan.route.engine == "oltp":
            return plan.route.reason
        written = max(self._last_write, after.committed_at if after else 0)
        needed = self._needed(max_staleness, written)
        if not self._is_fresh(needed) and not self._freshen(needed, may_leave=not plan.history):
            return f"{plan.route.reason}, but the mirror is not as fresh as asked"
        doubt = None if plan.history else self._doubt(plan)
        return f"{plan.route.reason}, but {doubt}" if doubt else None

    def ask_source(
        self, sql: str, params: Sequence[Any], reason: str, plan: Plan | None = None
    ) -> pa.Table:
        """Answer a query from the source."""
        if self._sides.oltp is None:
            raise QueryError(
                "the source is only read: it is captured by polling",
                hint="ask the mirror, or declare a 'local' database beside it",
            )
        columns = None
        if not self._sides.is_sidecar:
            columns = (plan or self._plan(sql, params)).columns
        with self._told("oltp"):
            found = self._sides.oltp.query(sql, params, columns)
        return _labelled(found, Route("oltp", reason), None)

    @contextmanager
    def _told(self, engine: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        for watcher in self._watchers:
            watcher(engine, time.monotonic() - started)

    def ask_mirror(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any],
        max_staleness: float | None = None,
        after: Written | None = None,
    ) -> pa.Table:
        """Answer a query, written for the mirror, from the mirror."""
        needed = self._needed(max_staleness, after.committed_at if after else 0)
        if not self._is_fresh(needed):
            self._freshen(needed, may_leave=False)
        ledger = self._mirror.ledger()
        with self._told("olap"):
            found = self._mirror.query(sql, params)
        return _labelled(found, Route("olap", "asked for"), ledger, self._pipeline.synced_from)

    def _ask_history(self, sql: str, params: Sequence[Any], plan: Plan) -> pa.Table:
        ledger = self._mirror.ledger()
        with self._told("olap"):
            found = self._mirror.query(sql, params)
        return _labelled(found, plan.route, ledger, self._pipeline.synced_from)

    def _ask_mirror(self, plan: Plan, params: Sequence[Any]) -> pa.Table | None:
        """Answer a translated query; None where only the source can tell."""
        if plan.query is None:
            return None
        # Read first: the answer is then at least as new as what it says.
        ledger, synced_from = self._mirror.ledger(), self._pipeline.synced_from
        bound = _bound(plan, params)
        with suppress(QueryError):
            with self._told("olap"):
                found = self._mirror.query(plan.query.sql, bound)
            if unanswered(found, plan.query):
                return None
            if plan.query.limit is not None:
                found = found.slice(0, plan.query.limit)
            return _labelled(_shaped(found, plan), plan.route, ledger, synced_from)
        return None

    def _plan(self, sql: str, params: Sequence[Any]) -> Plan:
        looks = self._pipeline.looks
        router = self._router
        if router is None or router[0] != looks:
            with self._lock:
                router = self._router = (looks, Router(self._catalog()))
        return router[1].plan(sql, params)

    def _catalog(self) -> Catalog:
        tables = list(self._pipeline.tables.values())
        found = self._sides.source.meanings(
            tables, lambda name: self._options.get(name, TableOptions())
        )
        fold: Callable[[MirroredTable], str] = (
            (lambda table: table.schema.name.lower())
            if self._sides.dialects[0] == "sqlite"
            else (lambda table: table.schema.name)
        )
        return Catalog(
            *self._sides.dialects,
            {fold(table): table for table in found},
            self._sides.source.finds_public(),
        )

    def _doubt(self, plan: Plan) -> str | None:
        """Say why the mirror does not hold all that a query needs; None when it does."""
        ledger = self._mirror.ledger()
        waiting = [name for name in sorted(plan.tables) if not self._pipeline.holds(name, ledger)]
        if waiting:
            return f"table {waiting[0]!r} is not copied yet in its present shape"
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
        """Return the moment, by the monotonic clock, whose state the answer must show."""
        if max_staleness is None:
            return written
        if max_staleness < 0:
            raise QueryError("max_staleness is negative", hint="give seconds, 0 for the present")
        now = time.monotonic_ns()
        return max(written, now - int(max_staleness * _NANOSECONDS))

    def _is_fresh(self, needed: int) -> bool:
        return not needed or (self._pipeline.synced_from or 0) >= needed

    def _freshen(self, needed: int, *, may_leave: bool) -> bool:
        """Bring the mirror to the state that is needed; False where the source is to be asked."""
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


def _in_batches(found: pa.Table, rows: int) -> Streamed:
    return Streamed(found.schema, iter(found.to_batches(max_chunksize=rows)))


def _bound(plan: Plan, params: Sequence[Any]) -> dict[str, Any]:
    return {f"p{place}": params[place - 1] for place in plan.bound}


def _empty(plan: Plan) -> pa.Table:
    """Return an answer's columns without a row."""
    kinds = [column.type if column is not None else pa.null() for column in plan.columns or ()]
    return pa.table([pa.array([], kind) for kind in kinds], list(plan.names))


def _batch(batch: pa.RecordBatch, shape: pa.Schema) -> pa.RecordBatch:
    arrays = [
        column if column.type.equals(field.type) else column.cast(field.type)
        for column, field in zip(batch.columns, shape, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=shape)


def _shaped(found: pa.Table, plan: Plan) -> pa.Table:
    """Give the mirror's answer the source's column names and types."""
    columns = plan.columns or ()
    types = [column.type if column is not None else None for column in columns]
    arrays = []
    for place, kept in enumerate(types):
        array = found.column(place)
        arrays.append(array if kept is None or array.type.equals(kept) else array.cast(kept))
    return pa.table(arrays, list(plan.names))


def _labelled(
    found: pa.Table, route: Route, ledger: Ledger | None, synced_from: int | None = None
) -> pa.Table:
    """Write into an answer's schema which side it is from, why, and how fresh it is.

    `rhei.engine`, `rhei.reason`; for the mirror, `rhei.watermark` (JSON, the position of each
    table, at least) and `rhei.staleness_seconds`, since the sync began that the answer shows.
    """
    labels = {"rhei.engine": route.engine, "rhei.reason": route.reason}
    if ledger is not None:
        marks = {name: mark.position.order for name, mark in ledger.watermarks.items()}
        labels["rhei.watermark"] = json.dumps(marks)
    if synced_from is not None:
        age = (time.monotonic_ns() - synced_from) / _NANOSECONDS
        labels["rhei.staleness_seconds"] = f"{age:.3f}"
    return found.replace_schema_metadata({**(found.schema.metadata or {}), **labels})
