"""Finds the open versions of a temporal table, ends them, and appends others."""

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.changes.compaction import key_codes
from rhei_pipeline.changes.scd2 import DELETED, FLOOR, LOCATOR, REPEATED, repeated
from rhei_pipeline.mirrors.duckdb.comparison import digested_sql
from rhei_pipeline.mirrors.duckdb.large_rows import LargeRows
from rhei_pipeline.mirrors.duckdb.lent_rows import OPENINGS, TOUCHED, LentRows
from rhei_pipeline.mirrors.duckdb.logical import as_kept
from rhei_pipeline.mirrors.duckdb.row_places import delete_at
from rhei_pipeline.mirrors.duckdb.tables import (
    apart,
    arrow_type,
    in_utc,
    logical_of,
    registered,
)
from rhei_pipeline.model.array_texts import as_texts
from rhei_pipeline.model.changes import SEQUENCE, Operation, Versions
from rhei_pipeline.model.large_rows import are_large
from rhei_pipeline.model.schema import OPERATION, VALID_FROM, VALID_TO, Table
from rhei_pipeline.model.selection import each_once
from rhei_pipeline.model.type_names import INSTANT, INTERVAL
from rhei_pipeline.sql.text import listed, literal, matching, mirror_table

_CLOSED, _EVENTS = "_rhei_closed", "_rhei_events"
_CLOSINGS, _ENDED = "_rhei_closings", "_rhei_ended"
#: To register other keys takes longer than to ask of so many more than need be.
_FEW = 250
#: DuckDB keeps what an UPDATE changes by vectors: so many rows, and so many bytes for each vector
#: of which a row is changed, until that is committed.
_VECTOR_ROWS, _VECTOR_BYTES = 2048, 24 * 2**10


class VersionRows:
    """Versions of temporal tables, within one transaction.

    Args:
        connection: In that transaction.
        lent: Shows rows to it.
        large_rows: Shows rows to it, of which few copies are held.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, lent: LentRows, large_rows: LargeRows
    ) -> None:
        self._connection = connection
        self._lent = lent
        self._large_rows = large_rows
        #: The rows last found as the mirror has them; None if they are not to be written again.
        self._found: pa.Table | None = None

    def find(self, table: Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return the open versions of the touched keys, and the last end of keys without one."""
        name, key = mirror_table(table.schema), table.schema.primary_key
        shown, compared, self._found = [*table.schema.names, VALID_FROM, LOCATOR], events, None
        if are_large(events):
            compared = self._digests(table, events)
            present = digested_sql(table, name, f"{VALID_FROM}, {VALID_TO}, rowid, ")
        else:
            present = name
        touched = events.select(list(key))
        with self._lent.shown(TOUCHED, touched):
            relation = self._connection.sql(
                f"select t.*, t.rowid as {LOCATOR} from {present} t"
                f" semi join {TOUCHED} k on {matching('t', 'k', key)} where t.{VALID_TO} is null"
            )
            is_exact = all(map(_is_exact, map(str, relation.types)))
            found = relation.to_arrow_table()
            opened = as_texts(in_utc(found.select(shown)))
            floors = self._floors(table, opened.select(list(key)), touched)
        if present == name and is_exact:
            self._found = found
        same = repeated(opened, compared, table.schema)
        versions = opened.select([*key, VALID_FROM, LOCATOR]).append_column(REPEATED, same)
        return versions, floors

    def _floors(self, table: Table, opened: pa.Table, touched: pa.Table) -> pa.Table:
        """Return the last end of each touched key, which is registered, with no open version."""
        codes = pa.array(key_codes(pa.concat_tables([opened, touched])))
        open_, all_ = codes.slice(0, opened.num_rows), codes.slice(opened.num_rows)
        closed = touched.filter(pc.invert(pc.is_in(all_, open_)))
        if not closed.num_rows:
            return closed.append_column(FLOOR, pa.array([], INSTANT))
        if touched.num_rows <= _FEW:
            return self._last_ends(table, TOUCHED)
        with registered(self._connection, _CLOSED, closed):
            return self._last_ends(table, _CLOSED)

    def _last_ends(self, table: Table, keys: str) -> pa.Table:
        name, key = mirror_table(table.schema), table.schema.primary_key
        return self._arrow(
            f"select {listed(key, 't')}, max(t.{VALID_TO}) as {FLOOR} from {name} t"
            f" semi join {keys} k on {matching('t', 'k', key)} group by {listed(key, 't')}"
            f" having count(*) = count(t.{VALID_TO})"
        )

    def _digests(self, table: Table, events: pa.Table) -> pa.Table:
        """Return events with digests instead of their texts and bytes."""
        with self._large_rows.shown(_EVENTS, as_kept(self._connection, events, table.schema)):
            digested = digested_sql(table, _EVENTS, f"{SEQUENCE}, ")
            return self._arrow(f"select {listed([SEQUENCE, *table.schema.names])} from {digested}")

    def supersede(self, table: Table, versions: Versions) -> None:
        """End the versions that were found, and append the new ones."""
        name, ended = mirror_table(table.schema), self._ended(versions.closings)
        openings = as_kept(self._connection, versions.openings, table.schema)
        if ended is None:
            for closings in apart(versions.closings, LOCATOR):
                self._end(name, closings)
            self._append(name, OPENINGS, openings)
            return
        delete_at(self._connection, name, ended[LOCATOR].to_numpy())
        # Those that ended come first: the versions of a key stand in their order.
        ended = in_utc(ended.drop_columns([LOCATOR]))
        if ended.schema.equals(openings.schema, check_metadata=True) and not are_large(openings):
            self._append(name, OPENINGS, pa.concat_tables([ended, openings]))
            return
        with registered(self._connection, _ENDED, ended):
            self._append(name, f"(from {_ENDED} union all by name from {OPENINGS})", openings)

    def _ended(self, closings: pa.Table) -> pa.Table | None:
        """Return the ended versions, where they are to be written again; None if not.

        An UPDATE has DuckDB hold the vectors that it touches, and write columns again as a whole
        at the next checkpoint. So few rows of a large table cost as much as many, and rows that
        are not wide are deleted and appended instead.
        """
        found, self._found = self._found, None
        if found is None or not closings.num_rows:
            return None
        places = found[LOCATOR].to_numpy()
        order = np.argsort(places)
        chosen = order[np.searchsorted(places, closings[LOCATOR].to_numpy(), sorter=order)]
        ended = found.take(pa.array(chosen))
        vectors = len(each_once(places[chosen] // _VECTOR_ROWS))
        if ended.nbytes > vectors * _VECTOR_BYTES:
            return None
        deleted = pa.scalar(Operation.DELETE.value)
        columns = {
            VALID_TO: closings[VALID_TO],
            OPERATION: pc.if_else(closings[DELETED], deleted, ended[OPERATION]),
        }
        for column, values in columns.items():
            ended = ended.set_column(ended.column_names.index(column), column, values)
        return ended

    def _end(self, name: str, closings: pa.Table) -> None:
        with registered(self._connection, _CLOSINGS, closings):
            # Two statements: changing one column is cheaper, and most closings change one.
            for deleted, also in (
                ("not", ""),
                ("", f", {OPERATION} = {literal(Operation.DELETE)}"),
            ):
                self._connection.execute(
                    f"update {name} as t set {VALID_TO} = c.{VALID_TO}{also}"
                    f" from (select * from {_CLOSINGS} where {deleted} {DELETED}) c"
                    f" where t.rowid = c.{LOCATOR}"
                )

    def _append(self, name: str, rows: str, openings: pa.Table) -> None:
        if rows != OPENINGS or openings.num_rows:
            with self._large_rows.shown(OPENINGS, openings):
                self._connection.execute(f"insert into {name} by name from {rows}")

    def _arrow(self, sql: str) -> pa.Table:
        return as_texts(in_utc(self._connection.sql(sql).to_arrow_table()))


def _is_exact(kind: str) -> bool:
    """Return whether Arrow holds each value of a type of DuckDB's.

    Somebody may have given the table a column of their own. No interval has more than 292 years
    of hours there, and of types that no mirror has, some become others.
    """
    return arrow_type(kind) is not None and logical_of(kind) != INTERVAL
