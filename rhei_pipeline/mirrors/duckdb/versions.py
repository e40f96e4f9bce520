"""Finds the open versions of a temporal table, ends them, and appends others."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.changes.compaction import key_codes
from rhei_pipeline.changes.scd2 import DELETED, FLOOR, LOCATOR, REPEATED, repeated
from rhei_pipeline.mirrors.duckdb.comparison import digested_sql
from rhei_pipeline.mirrors.duckdb.highest_keys import HighestKeys
from rhei_pipeline.mirrors.duckdb.large_rows import LargeRows
from rhei_pipeline.mirrors.duckdb.lent_rows import OPENINGS, TOUCHED, LentRows
from rhei_pipeline.mirrors.duckdb.logical import as_kept
from rhei_pipeline.mirrors.duckdb.row_places import delete_at
from rhei_pipeline.mirrors.duckdb.statements import Statements
from rhei_pipeline.mirrors.duckdb.tables import (
    apart,
    arrow_type,
    in_utc,
    logical_of,
    registered,
)
from rhei_pipeline.mirrors.duckdb.upsert import NUMBER, numbered
from rhei_pipeline.mirrors.met_rows import Flags, Places
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
        statements: In that transaction.
        lent: Shows rows to it.
        large_rows: Shows rows to it, of which few copies are held.
        highest: Bounds of the keys of tables.
    """

    def __init__(
        self, statements: Statements, lent: LentRows, large_rows: LargeRows, highest: HighestKeys
    ) -> None:
        self._statements = statements
        self._connection = statements.connection
        self._lent = lent
        self._large_rows = large_rows
        self._highest = highest
        #: The rows last found as the mirror has them; None if they are not to be written again.
        self._found: pa.Table | None = None

    def find(self, table: Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return the open versions of the touched keys, and the last end of keys without one."""
        name, key = mirror_table(table.schema), table.schema.primary_key
        shown, compared, self._found = [*table.schema.names, VALID_FROM, LOCATOR], events, None
        absent = self._highest.absent(self._statements, table, events)
        if absent.all():
            return _nothing_open(table), _with_floors(events.select(list(key)).slice(0, 0), [])
        if are_large(events):
            compared = self._digests(table, events)
            present = digested_sql(table, name, f"{VALID_FROM}, {VALID_TO}, rowid, ")
        else:
            present = name
        touched = numbered(events.select(list(key)))
        with self._lent.shown(TOUCHED, touched):
            relation = self._statements.asked(
                f"select t.*, t.rowid as {LOCATOR} from {present} t"
                f" semi join {TOUCHED} k on {matching('t', 'k', key)} where t.{VALID_TO} is null"
            )
            is_exact = all(map(_is_exact, map(str, relation.types)))
            found = relation.to_arrow_table()
            opened = as_texts(in_utc(found.select(shown)))
            floors = self._floors(table, opened.select(list(key)), touched, ~absent)
        if present == name and is_exact:
            self._found = found
        same = repeated(opened, compared, table.schema)
        versions = opened.select([*key, VALID_FROM, LOCATOR]).append_column(REPEATED, same)
        return versions, floors

    def _floors(self, table: Table, opened: pa.Table, touched: pa.Table, known: Flags) -> pa.Table:
        """Return the last end of each touched key, which is registered, with no open version.

        `known` is true of those that the table may have.
        """
        keys = touched.drop_columns([NUMBER])
        codes = key_codes(pa.concat_tables([opened, keys]))
        open_, all_ = codes[: opened.num_rows], codes[opened.num_rows :]
        closed = np.flatnonzero(known & ~np.isin(all_, open_))
        if not len(closed):
            return _with_floors(keys.slice(0, 0), [])
        if touched.num_rows <= _FEW:
            numbers, ends = self._last_ends(table, TOUCHED)
        else:
            with registered(self._connection, _CLOSED, touched.take(pa.array(closed))):
                numbers, ends = self._last_ends(table, _CLOSED)
        _, once = np.unique(all_[numbers], return_index=True)  # events may share a key
        return _with_floors(keys.take(pa.array(numbers[once])), ends[once])

    def _last_ends(self, table: Table, keys: str) -> tuple[Places, Places]:
        """Return the numbers of keys with a past and no open version, and their last ends."""
        name, key = mirror_table(table.schema), table.schema.primary_key
        # Not as Arrow, which DuckDB gives only to who has it plan a question twice.
        found = self._statements.run(
            f"select k.{NUMBER}, epoch_us(max(t.{VALID_TO})) as {FLOOR} from {name} t"
            f" join {keys} k on {matching('t', 'k', key)} group by k.{NUMBER}"
            f" having count(*) = count(t.{VALID_TO})"
        ).fetchnumpy()
        return found[NUMBER], found[FLOOR]

    def _digests(self, table: Table, events: pa.Table) -> pa.Table:
        """Return events with digests instead of their texts and bytes."""
        with self._large_rows.shown(_EVENTS, as_kept(self._connection, events, table.schema)):
            digested = digested_sql(table, _EVENTS, f"{SEQUENCE}, ")
            return self._arrow(f"select {listed([SEQUENCE, *table.schema.names])} from {digested}")

    def supersede(self, table: Table, versions: Versions) -> None:
        """End the versions that were found, and append the new ones."""
        name, ended = mirror_table(table.schema), self._ended(versions.closings)
        openings = as_kept(self._connection, versions.openings, table.schema)
        self._highest.note(table, openings)
        if ended is None:
            for closings in apart(versions.closings, LOCATOR):
                self._end(name, closings)
            self._append(name, OPENINGS, openings)
            return
        delete_at(self._statements, name, ended[LOCATOR].to_numpy())
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
                self._statements.run(f"insert into {name} by name from {rows}")

    def _arrow(self, sql: str) -> pa.Table:
        return as_texts(in_utc(self._connection.sql(sql).to_arrow_table()))


def _nothing_open(table: Table) -> pa.Table:
    more = {VALID_FROM: INSTANT, LOCATOR: pa.int64(), REPEATED: pa.bool_()}
    own = {column.name: column.type for column in table.schema.key_columns}
    return pa.schema(own | more).empty_table()


def _with_floors(keys: pa.Table, ends: Sequence[int] | Places) -> pa.Table:
    return keys.append_column(FLOOR, pa.array(ends, pa.int64()).cast(INSTANT))


def _is_exact(kind: str) -> bool:
    """Return whether Arrow holds each value of a type of DuckDB's.

    Somebody may have given the table a column of their own. No interval has more than 292 years
    of hours there, and of types that no mirror has, some become others.
    """
    return arrow_type(kind) is not None and logical_of(kind) != INTERVAL
