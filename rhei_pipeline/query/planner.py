"""What is known of a statement before it runs: which side answers, and the answer's schema."""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import pyarrow as pa

from rhei_pipeline.changes.masks import source_table
from rhei_pipeline.errors import QueryError, RheiError
from rhei_pipeline.model.schema import Table, TableOptions
from rhei_pipeline.model.semantics import MirroredTable
from rhei_pipeline.protocols import Database, Mirror
from rhei_pipeline.query import results
from rhei_pipeline.query.masked_tables import only_mirror
from rhei_pipeline.query.router import Plan, Router
from rhei_pipeline.query.translation.meaning import Catalog
from rhei_pipeline.query.translation.placeholders import SAMPLES
from rhei_pipeline.sync.pipeline import Pipeline

#: Which side answers about tables with masked columns.
MaskedAnswers = Literal["mirror", "source"]


@dataclass(frozen=True, slots=True)
class Engines:
    """The engines that a query service can use.

    Attributes:
        source: The database that is mirrored.
        oltp: What answers `oltp`: the source, a local database beside a read-only source, or
            None.
        dialects: The source's and the mirror's.
        is_log: Whether the source is a log of events, which answers nothing.
        masked: Which side answers about tables with masked columns.
    """

    source: Database
    oltp: Database | None
    mirror: Mirror
    pipeline: Pipeline
    dialects: tuple[str, str]
    is_log: bool = False
    masked: MaskedAnswers = "mirror"

    @property
    def is_sidecar(self) -> bool:
        """Whether the source is read-only, so that a local database takes the writes."""
        return self.oltp is not self.source


class Queried(Protocol):
    """What answers a query in the mirror's SQL."""

    def query(self, sql: str, params: Sequence[Any] = ()) -> pa.Table:
        """Run one read-only statement."""


class KnownTables(Protocol):
    """The tables that statements are about."""

    @property
    def tables(self) -> Mapping[str, Table]:
        """The tables, by name."""

    @property
    def generation(self) -> int:
        """How often they were described again."""


class Planned(Protocol):
    """What statements are planned for: see `Engines`."""

    @property
    def source(self) -> Database:
        """The database that is mirrored."""

    @property
    def oltp(self) -> Database | None:
        """What answers `oltp`."""

    @property
    def mirror(self) -> Queried:
        """What answers in the mirror's SQL."""

    @property
    def pipeline(self) -> KnownTables:
        """The tables that are known."""

    @property
    def dialects(self) -> tuple[str, str]:
        """The source's and the mirror's."""

    @property
    def masked(self) -> MaskedAnswers:
        """Which side answers about tables with masked columns."""

    @property
    def is_sidecar(self) -> bool:
        """Whether a local database answers beside the source."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known of a statement before it runs.

    Attributes:
        schema: The best guess at its answer's schema; None for a write, or if unknown.
        parameters: The best guess at its parameters' types.
        reads: Whether it is a query.
    """

    schema: pa.Schema | None
    parameters: pa.Schema
    reads: bool


def reads_single_rows(plan: Plan) -> bool:
    """Return whether a statement reads one table by key, and so is soon answered."""
    return plan.route.engine == "oltp" and bool(plan.tables) and not plan.scans


def catalog_of(
    source: Database,
    tables: Sequence[Table],
    options: Mapping[str, TableOptions],
    dialects: tuple[str, str],
    masked: MaskedAnswers = "mirror",
) -> Catalog:
    """Return what statements on some tables mean in the dialects of source and mirror.

    `masked`: Which side answers about tables with masked columns.
    """
    found = source.meanings(
        [source_table(table) for table in tables], lambda name: options.get(name, TableOptions())
    )
    by_name = {table.name: table for table in tables}
    found = [_masked(meant, by_name[meant.schema.name], masked) for meant in found]
    fold: Callable[[MirroredTable], str] = (
        (lambda table: table.schema.name.lower())
        if dialects[0] == "sqlite"
        else (lambda table: table.schema.name)
    )
    return Catalog(
        *dialects,
        {fold(table): table for table in found},
        source.finds_public(),
        _names_of_masked(tables, options) if masked == "mirror" else frozenset(),
    )


def _masked(found: MirroredTable, table: Table, answers: MaskedAnswers) -> MirroredTable:
    """Return what queries may do with a table's columns: masked ones are shown and counted only."""
    masked = {column.name for column in table.schema.columns if column.masked}
    if not masked and not table.schema.where:
        return found
    kinds = {name: kind for name, kind in found.kinds.items() if name not in masked}
    doubt = "is masked or filtered in the mirror" if answers == "source" else None
    return replace(found, schema=table.schema, kinds=kinds, doubt=found.doubt or doubt)


def _names_of_masked(
    tables: Sequence[Table], options: Mapping[str, TableOptions]
) -> frozenset[str]:
    """Return the names of all tables that are masked, also of those that are left out."""
    names = {name for name, said in options.items() if said.masks or said.where}
    shown = {t.schema.full_name: t.schema for t in tables}
    names |= {n for n, s in shown.items() if s.where or any(c.masked for c in s.columns)}
    return frozenset(form for name in names for form in _forms(name.lower()))


def _forms(name: str) -> tuple[str, ...]:
    schema, dot, relation = name.rpartition(".")
    if not dot:
        return name, f"public.{name}"
    return (name, relation) if schema in {"public", "main"} else (name,)


class Planner:
    """Plans statements for the pipeline's present tables.

    Args:
        engines: What can be asked.
        options: What the declaration says of a table.
    """

    def __init__(self, engines: Planned, options: Mapping[str, TableOptions]) -> None:
        self._engines = engines
        self._options = options
        self._lock = threading.Lock()
        self._known: tuple[int, Router] | None = None

    def plan(self, sql: str, params: Sequence[Any] = ()) -> Plan:
        """Return the plan of a statement with these parameters."""
        return self._router().plan(sql, params)

    def refused(self, sql: str, params: Sequence[Any], why: str) -> None:
        """Take note that the mirror's engine does not run what a plan asks of it."""
        self._router().refused(sql, params, why)

    def _router(self) -> Router:
        generation = self._engines.pipeline.generation
        known = self._known
        if known is None or known[0] != generation:
            with self._lock:
                known = self._known = (generation, Router(self._catalog(), finish=only_mirror))
        return known[1]

    def _catalog(self) -> Catalog:
        engines = self._engines
        tables = list(engines.pipeline.tables.values())
        return catalog_of(engines.source, tables, self._options, engines.dialects, engines.masked)

    def reads(self, sql: str) -> bool:
        """Return whether a statement is a query, judged by its text."""
        return self.plan(sql).reads

    def describe(self, sql: str, params: Sequence[Any] = ()) -> pa.Schema | None:
        """Return the schema of a query's answer; None if only a run shows it."""
        plan = self.plan(sql, params)
        described = plan.columns is not None and None not in plan.columns and plan.names
        if not described or self._engines.is_sidecar:
            return None
        return results.empty(plan).schema

    def prepare(self, sql: str) -> Prepared:
        """Return what is known of a statement before its parameters are bound: the best guess."""
        types = self._router().parameter_types(sql)
        samples = [SAMPLES[kind] for kind in types]
        reads = self.plan(sql, samples).reads
        schema = None
        if reads:
            schema = self.describe(sql, samples)
            if schema is None:
                with suppress(RheiError):
                    schema = self._asked_for_nothing(sql, samples).schema
        given = pa.schema([(f"parameter_{place}", kind) for place, kind in enumerate(types, 1)])
        return Prepared(schema, given, reads)

    def _asked_for_nothing(self, sql: str, params: Sequence[Any]) -> pa.Table:
        """Query no row of an answer; columns that only rows could type become text."""
        inner = sql.strip().rstrip(";")
        nothing = f"select * from ({inner}\n) as _rhei_asked limit 0"
        plan = self.plan(sql, params)
        if self._engines.is_sidecar or plan.history:
            found = self._engines.mirror.query(nothing, params)
        elif self._engines.oltp is not None and plan.masked is None:
            found = self._engines.oltp.query(nothing, params, plan.columns)
        else:
            raise QueryError("there is nothing to query")
        shape = [
            field.with_type(pa.string()) if pa.types.is_null(field.type) else field
            for field in found.schema
        ]
        return found.cast(pa.schema(shape))
