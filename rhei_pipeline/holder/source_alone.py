"""What is answered where the mirror cannot be opened: all that the source can answer alone."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from rhei_pipeline.capabilities import views_of
from rhei_pipeline.errors import MirrorError
from rhei_pipeline.model.query_limits import QueryClock
from rhei_pipeline.model.schema import Table
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.protocols import Database
from rhei_pipeline.query import results
from rhei_pipeline.query.planner import MaskedAnswers, Planner, Prepared, reads_single_rows
from rhei_pipeline.query.router import Plan, Route
from rhei_pipeline.query.streams import until_closed
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sync.schema_registry import Registry, mirror_id_of
from rhei_pipeline.wiring.declarations import all_tables
from rhei_pipeline.wiring.engine import query_limits
from rhei_pipeline.wiring.source import restrict_functions
from rhei_pipeline.wiring.table_options import table_options


@dataclass(frozen=True, slots=True)
class _Unopened:
    """Stands where the mirror would, and says why there is none."""

    fault: MirrorError

    def query(self, _sql: str, _params: Sequence[Any] = ()) -> pa.Table:
        """Raise why there is no mirror."""
        raise self.fault


@dataclass(frozen=True, slots=True)
class _Remembered:
    """The tables as they were mirrored last: answers keep the types that they had."""

    tables: Mapping[str, Table]
    generation: int = 0


@dataclass(frozen=True, slots=True)
class _Engines:
    """What can be asked, beside what is known of the mirror; see `planner.Engines`."""

    source: Database
    oltp: Database | None
    mirror: _Unopened
    pipeline: _Remembered
    dialects: tuple[str, str]
    masked: MaskedAnswers

    @property
    def is_sidecar(self) -> bool:
        """Whether a local database answers beside the source."""
        return self.oltp is not self.source


class SourceAlone:
    """Answers queries from the source, and says of others what is wrong with the mirror.

    Args:
        settings: The declaration.
        source, oltp: The database that is mirrored, and where `oltp` is answered.
        fault: Why the mirror cannot be opened.
        clock: Ends queries that take too long.
    """

    def __init__(
        self,
        settings: Settings,
        source: Database,
        oltp: Database | None,
        fault: MirrorError,
        clock: QueryClock,
    ) -> None:
        path = settings.registry.path
        mirror_id = mirror_id_of(path)
        registry = Registry(path if mirror_id else None, mirror_id or "")
        restrict_functions(settings, source, all_tables(settings, registry))
        self._engines = _Engines(
            source,
            oltp,
            _Unopened(fault),
            _Remembered(MappingProxyType(dict(registry.tables))),
            (settings.source.dialect, settings.mirror.kind),
            settings.queries.masked,
        )
        self._fault = fault
        self._planner = Planner(self._engines, table_options(settings, registry))
        self._clock, self._limits = clock, query_limits(settings)

    def query(self, sql: str, params: Sequence[Any], hint: str, begun: Begun | None) -> pa.Table:
        """Answer a query that the source may answer.

        Raises:
            MirrorError: Only the mirror may: why it cannot be opened.
        """
        is_chosen = hint == "oltp"
        oltp = self._engines.oltp
        if oltp is None or not (is_chosen or hint == "auto"):
            raise self._fault
        plan = self._planner.plan(sql, params) if is_chosen else self._plan(sql, params)
        columns = None if self._engines.is_sidecar else plan.columns
        with self._clock.timing(begun) as timed:
            found = oltp.query(sql, params, columns, timed.begun)
        return results.labelled(found, Route("oltp", "asked for" if is_chosen else self.why), None)

    def stream(self, sql: str, params: Sequence[Any], rows: int, begun: Begun | None) -> Streamed:
        """Answer the same in batches.

        Raises:
            MirrorError: Only the mirror may: why it cannot be opened.
        """
        plan, oltp = self._plan(sql, params), self._engines.oltp
        if oltp is None:
            raise self._fault
        with ExitStack() as held:
            timed = held.enter_context(self._clock.timing(begun))
            streamed = oltp.stream(sql, params, plan.columns, rows, timed.begun)
            if streamed is None:
                found = oltp.query(sql, params, plan.columns, timed.begun)
                streamed = Streamed(found.schema, iter(found.to_batches(rows)))
            empty = streamed.schema.empty_table()
            shape = results.labelled(empty, Route("oltp", self.why), None).schema
            shown = results.shown(None, streamed.batches, shape)
            streamed = Streamed(shape, shown, streamed.cancel)
            batches = until_closed(streamed, self._limits.answer, held.pop_all())
        next(batches)  # begun, it ends its time even where nobody takes a row
        return replace(streamed, batches=batches)

    def route(self, sql: str, params: Sequence[Any]) -> Route:
        """Return which side answers a statement now.

        Raises:
            MirrorError: None does.
        """
        self._plan(sql, params)
        return Route("oltp", self.why)

    def reads(self, sql: str) -> bool:
        """Return whether a statement is a query, judged by its text."""
        return self._planner.reads(sql)

    def reads_single_rows(self, sql: str, params: Sequence[Any]) -> bool:
        """Return whether a statement reads one table by key, and so is soon answered."""
        return reads_single_rows(self._planner.plan(sql, params))

    def describe(self, sql: str, params: Sequence[Any]) -> pa.Schema | None:
        """Return the schema of a query's answer; None if only a run shows it."""
        return self._planner.describe(sql, params)

    def prepare(self, sql: str) -> Prepared:
        """Return what is known of a statement before its parameters are bound."""
        return self._planner.prepare(sql)

    @property
    def tables(self) -> dict[str, Table]:
        """The tables as they were mirrored last, by name."""
        return dict(self._engines.pipeline.tables)

    def views(self) -> list[tuple[str | None, str]]:
        """Return the schema and name of each view of the source."""
        return [] if self._engines.is_sidecar else views_of(self._engines.source)

    @property
    def why(self) -> str:
        """Why the source answers."""
        return f"the mirror cannot be opened: {self._fault}"

    def _plan(self, sql: str, params: Sequence[Any]) -> Plan:
        """Return the plan of a statement that nobody chose a side for.

        Raises:
            MirrorError: Only the mirror answers it: why it cannot be opened.
        """
        if self._engines.is_sidecar:
            raise self._fault
        plan = self._planner.plan(sql, params)
        if plan.history or plan.masked is not None:
            raise self._fault
        return plan
