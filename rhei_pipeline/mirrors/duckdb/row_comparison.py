"""Compares a table's present rows with its source's, a portion at a time.

What is staged or registered in a transaction, DuckDB holds in memory until its end. So one thing
alone is registered, which shows each portion of the source's rows in turn. Mostly the table has
just these rows between their first key and their last, which two digests tell for a third of what
looking them up takes. Otherwise they are joined with the table where they lie, and of the table it
is noted which rows were met.
"""

from collections.abc import Callable, Iterable

import duckdb
import numpy as np
import pyarrow as pa

from rhei_pipeline.mirrors.duckdb.comparison import differs_sql, row_digest
from rhei_pipeline.mirrors.duckdb.large_rows import LargeRows
from rhei_pipeline.mirrors.duckdb.logical import as_kept
from rhei_pipeline.mirrors.duckdb.tables import in_utc, registered
from rhei_pipeline.mirrors.met_rows import Differences, MetRows, gathered
from rhei_pipeline.model.changes import Comparison
from rhei_pipeline.model.key_span import WHOLE, KeySpan, orders_alike
from rhei_pipeline.model.schema import VALID_TO, Mode, Table
from rhei_pipeline.sql.text import listed, matching, mirror_table, quote

#: Rows of the table in one answer.
_ANSWER_ROWS = 65_536
_ROWS = "_rhei_rows"
_PLACE, _NUMBER, _DIFFERS = "_rhei_place", "_rhei_number", "_rhei_differs"


class _Portion:
    """Rows as a stream of Arrow, other ones for each query that reads it.

    DuckDB takes it to have one row, and so looks up its rows in the table and never the reverse.
    """

    rows: pa.Table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.rows.__arrow_c_stream__(requested_schema)


class RowComparing:
    """One comparison of a table with its source.

    Args:
        connection: In the transaction that sees the table.
        table: What is compared.
        span: The keys that are; None: those of the source's rows alone.
        freed: Called after each portion: what DuckDB holds of the file may be let go.
        large_rows: How large values among them are read.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        table: Table,
        span: KeySpan | None,
        freed: Callable[[], None],
        large_rows: LargeRows,
    ) -> None:
        self._connection = connection
        self._table = table
        self._freed = freed
        self._large_rows = large_rows
        self._span = span
        self._present, self._bounds = _present_sql(table, span or WHOLE)
        self._met = MetRows()
        self._alike: list[KeySpan] = []
        self._alike_rows = 0
        keys = table.schema.key_columns
        # Of another order, or of a type that Python has otherwise, no key bounds rows surely: days
        # and instants may be beyond its range.
        self._has_spans = span is not None and orders_alike(table.schema)
        self._has_spans &= not any(
            column.name in table.schema.logical or pa.types.is_temporal(column.type)
            for column in keys
        )

    def compare(self, rows: Iterable[pa.Table]) -> Comparison:
        """Compare; rows are taken one portion after the other."""
        found, portion = Differences(self._table.schema.arrow_key), _Portion()
        portion.rows = self._kept(self._table.schema.arrow.empty_table())
        with registered(self._connection, _ROWS, portion):
            for part in gathered(rows):
                portion.rows = self._kept(part)
                with self._large_rows.read(part):
                    if not self._is_alike(part):
                        self._add(found, part)
                del part
                self._freed()
        if self._span is None:
            return found.with_extra(self._table.schema.arrow_key.empty_table())
        return found.with_extra(self._extra())

    def _is_alike(self, part: pa.Table) -> bool:
        """Return whether the table has just these rows between their first key and their last.

        Equal digests are taken for equal rows: one that differs has the same in one of 2**64 cases.
        """
        if not self._has_spans or not part.num_rows:
            return False
        keys = part.select(list(self._table.schema.primary_key))
        # Taken, since a slice would keep all keys.
        first, last = keys.take([0]), keys.take([keys.num_rows - 1])
        span = KeySpan(first, last, includes_after=True)
        if self._digests(_ROWS, {}) != self._digests(*_present_sql(self._table, span)):
            return False
        self._alike.append(span)
        self._alike_rows += part.num_rows
        return True

    def _digests(self, rows: str, bounds: dict[str, object]) -> tuple[object, ...]:
        """Return how many rows there are, and the sum of their digests."""
        sql = f"select count(*), sum({row_digest(self._table, 'r')}) from {rows} r"
        found: tuple[object, ...] = self._connection.execute(sql, bounds or None).fetchall()[0]
        return found

    def _add(self, found: Differences, part: pa.Table) -> None:
        """Look up the rows of the portion that is shown, and add what differs."""
        met = self._looked_up()
        self._met.add(met[_PLACE].to_numpy())
        numbers = met[_NUMBER].to_numpy()
        keys = part.select(list(self._table.schema.primary_key))
        found.add(keys, numbers, numbers[met[_DIFFERS].to_numpy()])

    def _kept(self, rows: pa.Table) -> pa.Table:
        """Return rows of the source as they are compared, each with its number."""
        return _numbered(as_kept(self._connection, rows, self._table.schema))

    def _looked_up(self) -> pa.Table:
        """Return the table's rows of these keys: the key's number, its place, if it differs."""
        return self._arrow(
            f"select s.{_NUMBER}, t.{_PLACE}, {differs_sql(self._table, 's', 't')} as {_DIFFERS}"
            f" from {_ROWS} s join {self._present} t"
            f" on {matching('t', 's', self._table.schema.primary_key)}"
        )

    def _extra(self) -> pa.Table:
        """Return the keys of the table's rows that were not met."""
        count = self._arrow(f"select count(*) as n from {self._present} t")["n"][0].as_py()
        nothing = self._table.schema.arrow_key.empty_table()
        if count == self._met.count + self._alike_rows:
            return nothing
        for span in self._alike:
            present, bounds = _present_sql(self._table, span)
            alike = self._connection.sql(f"select t.{_PLACE} from {present} t", params=bounds)
            self._met.add(alike.to_arrow_table()[_PLACE].to_numpy())
        key = self._table.schema.primary_key
        answer = self._asked(f"select {listed(key, 't')}, t.{_PLACE} from {self._present} t")
        found = [nothing]
        for batch in answer.to_arrow_reader(_ANSWER_ROWS):
            rows = in_utc(pa.Table.from_batches([batch]))
            lacking = self._met.lacks(rows[_PLACE].to_numpy())
            if lacking.any():
                found.append(rows.select(list(key)).filter(pa.array(lacking)).cast(nothing.schema))
        return pa.concat_tables(found)

    def _arrow(self, sql: str) -> pa.Table:
        return in_utc(self._asked(sql).to_arrow_table())

    def _asked(self, sql: str) -> duckdb.DuckDBPyRelation:
        return self._connection.sql(sql, params=self._bounds or None)


def _numbered(rows: pa.Table) -> pa.Table:
    numbers = pa.array(np.arange(rows.num_rows, dtype=np.int64))
    return rows.append_column(_NUMBER, numbers)


def _present_sql(table: Table, span: KeySpan) -> tuple[str, dict[str, object]]:
    """Return SQL that selects the present rows of a span with their places, and its parameters."""
    conditions = [] if table.mode is Mode.DESTRUCTIVE else [f"{VALID_TO} is null"]
    bounds: dict[str, object] = {}
    for side, bound, last_part in (
        ("after", span.after, ">=" if span.includes_after else ">"),
        ("until", span.until, ">"),
    ):
        if bound is not None:
            names = {name: f"{side}_{n}" for n, name in enumerate(bound.column_names)}
            bounds |= {names[name]: bound[name][0].as_py() for name in bound.column_names}
            conditions.append(_bound_sql(names, last_part, begins=side == "after"))
    where = f" where {' and '.join(conditions)}" if conditions else ""
    return f"(select *, rowid as {_PLACE} from {mirror_table(table.schema)}{where})", bounds


def _bound_sql(names: dict[str, str], last_part: str, *, begins: bool) -> str:
    """Return the condition of a bound; that on the first column alone lets DuckDB skip rows."""
    (last, parameter), *rest = reversed(names.items())
    behind = f"{quote(last)} {last_part} ${parameter}"
    for name, parameter in rest:
        here = f"{quote(name)} > ${parameter}"
        behind = f"({here} or ({quote(name)} = ${parameter} and {behind}))"
    first, parameter = next(iter(names.items()))
    side = f"{quote(first)} {'>=' if begins else '<='} ${parameter}"
    return f"{side} and {behind if begins else f'not ({behind})'}"
