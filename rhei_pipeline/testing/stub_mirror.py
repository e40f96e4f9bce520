"""A mirror in memory, queried in DuckDB's SQL. Keeps `Mirror`."""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

import duckdb
import pyarrow as pa

from rhei_pipeline.errors import QueryError, RheiError
from rhei_pipeline.mirrors.duckdb.read_only import DuckDBGuard
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.changes import LetterName
from rhei_pipeline.model.progress import Ledger, Past
from rhei_pipeline.model.query_limits import NO_LIMITS, AnswerLimits, whole
from rhei_pipeline.model.schema import Table
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.model.upkeep import MaintenanceReport
from rhei_pipeline.sql.text import mirror_table, quote
from rhei_pipeline.testing.stub_content import Named, StubContent, letters_table
from rhei_pipeline.testing.stub_transaction import StubTransaction


class StubMirror:
    """A mirror in memory, queried in DuckDB's SQL; one that other code may look into.

    Every transaction works on a copy of all tables: this is for small ones.
    """

    folds_names = False
    taken_schemas: Collection[str] = ()
    not_published: RheiError | None = None

    def __init__(self) -> None:
        self._content = StubContent()
        self._lock = threading.RLock()
        self._engine: duckdb.DuckDBPyConnection | None = None
        self._guard = DuckDBGuard()

    def ledger(self) -> Ledger:
        """Return what is recorded."""
        return self._content.ledger()

    @contextmanager
    def transaction(self, *, trial: bool = False) -> Iterator[StubTransaction]:
        """Open the one writing transaction; an error rolls it back, and so does a trial's end."""
        with self._lock:
            content = self._content.copied()
            yield StubTransaction(content)
            if not trial:
                self._content = content

    def rows(self, table: str) -> list[Named]:
        """Return a table's rows, or versions, by the name it has in the mirror."""
        return list(self._content.tables[quote(table)].rows)

    def query(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any] = (),
        begun: Begun | None = None,
        limits: AnswerLimits = NO_LIMITS,
    ) -> pa.Table:
        """Run one read-only statement on the last committed state.

        Raises:
            QueryLimitError: The answer is larger than `limits` allow.
        """
        cancel = Cancel.given(begun)
        cancel.refuse_cancelled()
        found = self._found(sql, params)
        return whole(found.schema, found.to_batches(), limits)

    def _found(self, sql: str, params: Sequence[Any] | Mapping[str, Any]) -> pa.Table:
        with self._lock:
            engine = self._engine = self._engine or _engine()
            content = self._content
            try:
                with _shown(engine, content):
                    read = self._guard.admitted(sql, engine)
                    bound = dict(params) if isinstance(params, Mapping) else list(params)
                    found = engine.sql(read, params=bound) if bound else engine.sql(read)
                    return pa.table({}) if found is None else _in_utc(found.to_arrow_table())
            except duckdb.Error as error:
                raise QueryError(f"DuckDB refused the query: {error}") from error

    def stream(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any],
        rows: int,
        begun: Begun | None = None,
    ) -> Streamed:
        """Run one read-only statement whole, and return its rows in batches."""
        cancel = Cancel.given(begun)
        found = self.query(sql, params)
        return Streamed(found.schema, _batches(found, rows, cancel.refuse_cancelled), cancel)

    def tables(self) -> Mapping[str, Table]:
        """Return the tables that are in the mirror, as they are there."""
        return {name: standing.table for name, standing in self._content.tables.items()}

    def count(self, table: Table) -> int:
        """Count the rows that are valid now."""
        return StubTransaction(self._content).count(table)

    def past(self, table: Table) -> Past | None:
        """Return what is recorded of a temporal table's past."""
        standing = self._content.tables.get(mirror_table(table.schema))
        if standing is None:
            return None
        mark = self._content.watermarks.get(table.name)
        left = MappingProxyType(dict(standing.left))
        return Past(standing.begins_at, left, mark.recorded_at if mark else None)

    def quarantined(self, table: Table) -> set[LetterName]:
        """Name the open dead letters of a table."""
        return StubTransaction(self._content).quarantined(table)

    def dead_letters(self, table: str | None = None) -> pa.Table:
        """Return the dead letters kept, of one table or of all."""
        found = letters_table(self._content, lambda own, at: at is None and table in (None, own))
        return found.drop_columns(["resolved_at"])

    def confirm(self) -> None:
        """Do nothing: what is held is the newest."""

    def maintain(self) -> MaintenanceReport:
        """Return that nothing is due."""
        return MaintenanceReport()

    def close(self) -> None:
        """Release the engine; safe to repeat, and the content stays."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None


def _batches(
    found: pa.Table, rows: int, refuse_cancelled: Callable[[], None]
) -> Iterator[pa.RecordBatch]:
    for batch in found.to_batches(rows):
        refuse_cancelled()
        yield batch


def _engine() -> duckdb.DuckDBPyConnection:
    # It has no file of its own and opens none.
    engine = duckdb.connect(config={"enable_external_access": False, "threads": 1})
    engine.execute("set timezone = 'UTC'")
    return engine


@contextmanager
def _shown(engine: duckdb.DuckDBPyConnection, content: StubContent) -> Iterator[None]:
    """Within the block, have the engine see the tables, dead letters and snapshots."""
    shown: list[tuple[str | None, str, pa.Table]] = [
        (each.table.schema.namespace, each.table.schema.mirror_relation, each.arrow)
        for each in content.tables.values()
    ]
    shown.append((None, "_rhei_dead_letter", letters_table(content, lambda _, __: True)))
    for name, rows in content.snapshots.items():
        types = content.snapshot_types[name].items()
        shape = pa.schema([("snapshot_date", pa.date32()), *types])
        shown.append(("snapshot", name, pa.Table.from_pylist(rows, schema=shape)))
    with ExitStack() as stack:
        for namespace, relation, rows in shown:
            held = relation if namespace is None else "_rhei_shown"
            engine.register(held, rows)
            if namespace is None:
                stack.callback(engine.unregister, held)
                continue
            target = f"{quote(namespace)}.{quote(relation)}"
            engine.execute(f"create schema if not exists {quote(namespace)}")
            engine.execute(f"create or replace table {target} as from {held}")
            engine.unregister(held)
            stack.callback(engine.execute, f"drop table {target}")
        yield


def _in_utc(found: pa.Table) -> pa.Table:
    """Return instants as the mirror's columns have them, whatever the engine calls UTC."""
    fields = [
        field.with_type(INSTANT)
        if pa.types.is_timestamp(field.type) and field.type.tz is not None
        else field
        for field in found.schema
    ]
    return found.cast(pa.schema(fields))
