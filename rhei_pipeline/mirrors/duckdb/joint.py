"""Queries over several DuckDB files at once, none of which is open for writing meanwhile."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from rhei_pipeline.errors import MirrorError, QueryError, RheiError
from rhei_pipeline.mirrors.duckdb.connecting import CONFIG, MEMORY, ended_by_signals
from rhei_pipeline.mirrors.duckdb.driver_errors import keys_of_the_user, query_error, translated
from rhei_pipeline.mirrors.duckdb.housekeeping import OPEN_LETTERS, read_mirror_id, silent
from rhei_pipeline.mirrors.duckdb.last_commit import LastCommit, noted
from rhei_pipeline.mirrors.duckdb.mirror import BATCH_ROWS
from rhei_pipeline.mirrors.duckdb.progress import read_ledger
from rhei_pipeline.mirrors.duckdb.published_copy import refuse_copy_of_others
from rhei_pipeline.mirrors.duckdb.read_only import DuckDBGuard
from rhei_pipeline.mirrors.duckdb.tables import MAIN, SNAPSHOTS, in_utc, mirrors_public, read_tables
from rhei_pipeline.mirrors.joining import Part
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.query_limits import NO_LIMITS, AnswerLimits, whole
from rhei_pipeline.model.schema import Table
from rhei_pipeline.model.streaming import Begun
from rhei_pipeline.sql.text import literal, mirror_table, quote

#: What may only be set once all files are attached.
_LOCKED = ("enable_external_access", "lock_configuration")
#: A schema of PostgreSQL's whose tables need not be qualified, as in the source.
_UNQUALIFIED = "public"


class JointDuckDB:
    """Several DuckDB files, attached for reading alone; whoever opened it closes it.

    Args:
        mirrors: Each mirror's file, as it is shown.
        memory_limit_bytes: The most that a query takes.
        copies: The mirror of each file that is a published copy.

    Raises:
        RheiError: None can be read: why the first one cannot.
    """

    def __init__(
        self,
        mirrors: Sequence[tuple[Part, Path]],
        memory_limit_bytes: int | None = None,
        copies: Mapping[Path, Path] | None = None,
    ) -> None:
        self._copies = copies or {}
        self._guard = DuckDBGuard()
        self._ledgers: list[Ledger] = []
        self._letters: list[pa.Table] = []
        self._tables: list[dict[str, Table]] = []
        #: The id of each mirror, in their order.
        self.mirror_ids: list[str] = []
        #: Why some cannot be read, by their places among all.
        self.left_out: dict[int, RheiError] = {}
        self._path = str(mirrors[0][1])
        config = {name: value for name, value in CONFIG.items() if name not in _LOCKED}
        if memory_limit_bytes is not None:
            config["memory_limit"] = f"{memory_limit_bytes} B"
        with ExitStack() as opened:
            self._connection = opened.enter_context(
                closing(silent(duckdb.connect(MEMORY, config=config)))
            )
            for place, (part, path) in enumerate(mirrors):
                name = part.schema or f"_rhei_part_{place}"
                try:
                    with translated(str(path)):
                        self._attach(part, path, name)
                except RheiError as error:
                    self.left_out[place] = error
                    # One that was attached before it was refused, too, is not to be read.
                    self._connection.execute(f"detach database if exists {quote(name)}")
            if not self.mirror_ids:
                raise next(iter(self.left_out.values()))
            for name in _LOCKED:
                self._connection.execute(f"set {name} = {literal(str(CONFIG[name]))}")
            self._opened = opened.pop_all()

    def _attach(self, part: Part, path: Path, name: str) -> None:
        if not path.exists():
            raise MirrorError(f"there is no mirror at {str(path)!r}", hint="sync once, then read")
        asked = f"attach {literal(str(path.absolute()))} as {quote(name)} (read_only)"
        self._connection.execute(asked)
        with self._connection.cursor() as cursor:
            cursor.execute(f"use {quote(name)}")
            mirror_id = read_mirror_id(cursor, str(path))
            ledger, standing = read_ledger(cursor), read_tables(cursor)
            tables = [*standing.values()]
            letters = cursor.sql(OPEN_LETTERS).to_arrow_table()
            if mirrors_public(cursor):
                # Somebody else may have one of such a name in `main`; the first is shown there.
                tables.sort(key=lambda table: table.schema.namespace != _UNQUALIFIED)
            days = _snapshots(cursor)
        _refuse_older(str(path), mirror_id, ledger)
        if path in self._copies:
            refuse_copy_of_others(self._copies[path], path, mirror_id)
        self._letters.append(letters)
        self._ledgers.append(ledger)
        self._tables.append(standing)
        self.mirror_ids.append(mirror_id)
        if part.schema is None:
            self._show([table for table in tables if part.takes(table.name)], name)
            for relation in days:
                self._show_as(f"{SNAPSHOTS}.{quote(relation)}", SNAPSHOTS, relation, name)

    def _show(self, tables: Sequence[Table], name: str) -> None:
        """Show tables under their own names."""
        for table in tables:
            schemas = [table.schema.namespace or MAIN]
            schemas += [MAIN] if table.schema.namespace == _UNQUALIFIED else []
            for schema in schemas:
                self._show_as(_qualified(table), schema, table.schema.mirror_relation, name)

    def _show_as(self, standing: str, schema: str, relation: str, name: str) -> None:
        self._connection.execute(f"create schema if not exists {quote(schema)}")
        view = f"{quote(schema)}.{quote(relation)}"
        self._connection.execute(
            f"create view if not exists {view} as select * from {quote(name)}.{standing}"
        )

    def tables(self) -> list[dict[str, Table]]:
        """Return the tables of each mirror, in their order, by quoted name."""
        return self._tables

    def ledgers(self) -> list[Ledger]:
        """Return what each mirror has recorded, in their order."""
        return self._ledgers

    def dead_letters(self) -> list[pa.Table]:
        """Return the open dead letters of each mirror, in their order."""
        return self._letters

    def query(
        self,
        sql: str,
        params: Sequence[object] = (),
        begun: Begun | None = None,
        limits: AnswerLimits = NO_LIMITS,
    ) -> pa.Table:
        """Run one read-only statement over all mirrors.

        Raises:
            QueryError: Not one read-only statement, or DuckDB refuses it.
            QueryLimitError: The answer is larger than `limits` allow.
        """
        cancel = Cancel.given(begun)
        cursor = self._connection.cursor()
        with (
            keys_of_the_user(),
            closing(cursor),
            cancel.ending_by(cursor.interrupt),
            ended_by_signals(cursor),
        ):
            try:
                admitted = self._guard.admitted(sql, cursor)
                cursor.execute("begin transaction read only")
                found = cursor.sql(admitted, params=list(params) or None)
                if found is None:
                    raise QueryError("the statement returns no rows")
                with _plain(found) as (shape, batches):
                    return whole(shape, batches, limits)
            except (duckdb.Error, pa.ArrowException, OSError) as error:
                is_empty = not any(ledger.watermarks for ledger in self._ledgers)
                raise query_error(error, self._path, is_empty=is_empty) from None  # may quote a row

    def close(self) -> None:
        """Close all files; safe to repeat."""
        self._opened.close()


def _snapshots(cursor: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the names of the tables of snapshots in the database that is in use."""
    found = cursor.execute(
        "select table_name from duckdb_tables() where database_name = current_database()"
        f" and schema_name = {literal(SNAPSHOTS)}"
    ).fetchall()
    return [str(name) for (name,) in found]


def _qualified(table: Table) -> str:
    name = mirror_table(table.schema)
    return name if table.schema.namespace else f"{MAIN}.{name}"


@contextmanager
def _plain(
    found: duckdb.DuckDBPyRelation,
) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """Give an answer's batches, with instants in UTC."""
    with closing(found.to_arrow_reader(BATCH_ROWS)) as reader:
        shape = in_utc(reader.schema.empty_table()).schema
        yield (
            shape,
            (batch if batch.schema.equals(shape) else batch.cast(shape) for batch in reader),
        )


def _refuse_older(path: str, mirror_id: str, ledger: Ledger) -> None:
    """Refuse a file that lacks commits it had; a published copy has no note of them."""
    if not noted(path):
        return
    with closing(LastCommit(path, writing=False)) as last:
        older = last.lost(mirror_id, ledger)
    if older is not None:
        raise older
