"""Row filters: which rows of a table a mirror has, by a condition that every engine reads alike.

Only comparisons of columns with literals are taken, and only where Arrow's answer is certain to be
the source's. A row is in the filter if the condition is true; not if it is false or unknown.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from sqlglot import exp

from rhei_pipeline.changes.compaction import key_codes
from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.changes import CHANGED_AT, LIVE, ChangeBatch, DeadLetter, key_text
from rhei_pipeline.model.plain_values import plain_rows
from rhei_pipeline.model.schema import Column, TableSchema, nearest, spelled
from rhei_pipeline.model.semantics import Kind

#: Compared alike by every engine; texts only for being equal.
COMPARED = {Kind.INT, Kind.DECIMAL, Kind.TEXT, Kind.TRUTH, Kind.DATE, Kind.TIMESTAMP, Kind.INSTANT}

_REASON = (
    "the source did not send its value (unchanged TOAST), and the row was not in the filter before"
)
_HINT = (
    "use columns of whole numbers, decimals, texts, booleans, dates or timestamps, compared with"
    " literals by =, <>, <, <=, >, >=, in, between or is null, joined by and, or, not"
)
_ORDERS: dict[type, Callable[[pa.Array, pa.Scalar], pa.Array]] = {
    exp.EQ: pc.equal,
    exp.NEQ: pc.not_equal,
    exp.LT: pc.less,
    exp.LTE: pc.less_equal,
    exp.GT: pc.greater,
    exp.GTE: pc.greater_equal,
}
_TURNED: dict[type, type] = {exp.LT: exp.GT, exp.LTE: exp.GTE, exp.GT: exp.LT, exp.GTE: exp.LTE}


@dataclass(frozen=True, slots=True)
class RowFilter:
    """A condition on a table's rows.

    Attributes:
        sql: The condition in the source's SQL, as it was understood.
        columns: The columns that it reads.
    """

    sql: str
    columns: frozenset[str]
    _tree: exp.Expr
    _schema: TableSchema
    _dialect: str

    def holds(self, rows: pa.Table) -> pa.Array:
        """Return for each row whether it is in the filter."""
        reading = _Reading(self._schema, self._dialect, rows)
        found = reading.evaluate(self._tree)
        found = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
        return pc.fill_null(found, fill_value=False)


@cache
def row_filter(text: str, schema: TableSchema, dialect: str) -> RowFilter:
    """Read a condition on a table as the source has it.

    Raises:
        SchemaError: It is not one whose answer is certain.
    """
    try:
        parsed = sqlglot.parse_one(f"select 1 from t where {text}", dialect=dialect)
        tree = parsed.args["where"].this
        alone = exp.select("1").from_("t").where(tree).sql(dialect) == parsed.sql(dialect)
    except Exception:  # noqa: BLE001  (whatever the parser trips over)
        raise _refused(schema, "it cannot be read") from None
    if not alone:
        raise _refused(schema, "it is more than a condition")
    reading = _Reading(schema, dialect, schema.arrow.empty_table())
    reading.evaluate(tree)
    named = tree.transform(reading.named)
    sql = named.sql(dialect, comments=False, identify=True)
    return RowFilter(sql, frozenset(reading.read), tree, schema, dialect)


def refuse_columns(found: RowFilter, schema: TableSchema, kinds: Mapping[str, Kind]) -> None:
    """Refuse a condition on columns that the source compares in a way of its own.

    Raises:
        SchemaError: Names the column.
    """
    for name in sorted(found.columns):
        if kinds.get(name) not in COMPARED:
            raise _refused(schema, f"column {name!r} is compared in a way of the source's own")


def _refused(schema: TableSchema, why: str, hint: str = _HINT) -> SchemaError:
    return SchemaError(f"'where' is not taken: {why}", table=schema.name, hint=hint)


class _Reading:
    """Evaluates a condition on rows, and notes the columns that it reads."""

    def __init__(self, schema: TableSchema, dialect: str, rows: pa.Table) -> None:
        self._schema, self._dialect, self._rows = schema, dialect, rows
        self.read: set[str] = set()

    def evaluate(self, node: exp.Expr) -> pa.ChunkedArray:
        if isinstance(node, exp.Paren):
            return self.evaluate(node.this)
        if isinstance(node, exp.And | exp.Or):
            join = pc.and_kleene if isinstance(node, exp.And) else pc.or_kleene
            return join(self.evaluate(node.this), self.evaluate(node.expression))
        if isinstance(node, exp.Not):
            return pc.invert(self.evaluate(node.this))
        return self._condition(node)

    def _condition(self, node: exp.Expr) -> pa.ChunkedArray:
        if isinstance(node, exp.Column):
            column, values = self._column(node)
            if pa.types.is_boolean(column.type):
                return values
        if isinstance(node, exp.Is) and isinstance(node.expression, exp.Null):
            return pc.is_null(self._column(node.this)[1])
        if isinstance(node, exp.Between) and not node.args.get("symmetric"):
            low, high = node.args["low"], node.args["high"]
            return pc.and_kleene(
                self._compared(exp.GTE, node.this, low), self._compared(exp.LTE, node.this, high)
            )
        if isinstance(node, exp.In) and node.expressions and not node.args.get("query"):
            return self._among(node)
        if type(node) in _ORDERS:
            kind: type = type(node)
            left, right = node.this, node.expression
            if isinstance(right, exp.Column) and not isinstance(left, exp.Column):
                kind, left, right = _TURNED.get(kind, kind), right, left
            return self._compared(kind, left, right)
        raise _refused(self._schema, f"{node.key.upper()} is not a comparison with a literal")

    def _among(self, node: exp.In) -> pa.ChunkedArray:
        found = [self._compared(exp.EQ, node.this, each) for each in node.expressions]
        joined = found[0]
        for each in found[1:]:
            joined = pc.or_kleene(joined, each)
        return joined

    def _compared(self, kind: type, left: exp.Expr, right: exp.Expr) -> pa.ChunkedArray:
        column, values = self._column(left)
        if pa.types.is_string(column.type) and kind not in {exp.EQ, exp.NEQ}:
            why = f"the order of texts, as of column {column.name!r}, is the source's own"
            raise _refused(self._schema, why)
        return _ORDERS[kind](values, self._literal(right, column))

    def _column(self, node: exp.Expr) -> tuple[Column, pa.ChunkedArray]:
        if not isinstance(node, exp.Column) or node.table:
            raise _refused(self._schema, f"{node.sql(self._dialect)!r} is no column alone")
        name, names = node.name, self._schema.names
        if self._dialect == "sqlite":
            name = spelled(name, names)
        elif not node.this.args.get("quoted"):
            name = name.lower()
        if name not in names:
            raise _refused(
                self._schema,
                f"there is no column {name!r}",
                f"correct 'where' in the declaration: {nearest(name, names)}",
            )
        self.read.add(name)
        return self._schema.columns[names.index(name)], self._rows[name]

    def named(self, node: exp.Expr) -> exp.Expr:
        """Return a part of a condition with the column's name in place of how it is written."""
        is_column = isinstance(node, exp.Column)
        return exp.column(self._column(node)[0].name, quoted=True) if is_column else node

    def _literal(self, node: exp.Expr, column: Column) -> pa.Scalar:
        try:
            return _scalar(node, column, self._dialect)
        except (ValueError, ArithmeticError, pa.ArrowException):
            what = node.sql(self._dialect)
            why = f"{what} is no literal of the type of column {column.name!r}"
            raise _refused(self._schema, why) from None


def _scalar(node: exp.Expr, column: Column, dialect: str) -> pa.Scalar:
    """Return a literal in a column's type.

    Raises:
        ValueError: It is another type's, or the column's type does not hold it.
    """
    kind, is_minus = column.type, isinstance(node, exp.Neg)
    if pa.types.is_boolean(kind):
        return pa.scalar(_truth(node, dialect))
    inner = node.this if is_minus else node
    is_number = pa.types.is_integer(kind) or pa.types.is_decimal(kind)
    is_text = isinstance(inner, exp.Literal) and inner.is_string
    if not isinstance(inner, exp.Literal) or is_text is is_number or (is_minus and is_text):
        raise ValueError(node.key)
    text = f"-{inner.this}" if is_minus else str(inner.this)
    if pa.types.is_integer(kind):
        return pa.scalar(int(text), pa.int64())
    if pa.types.is_decimal(kind):
        return pa.scalar(Decimal(text), kind)
    return pa.scalar(text) if pa.types.is_string(kind) else _instant(text, kind)


def _instant(text: str, kind: pa.DataType) -> pa.Scalar:
    if pa.types.is_date32(kind) and len(text) == len("2026-11-27"):
        return pa.scalar(date.fromisoformat(text))
    instant = datetime.fromisoformat(text)
    if not pa.types.is_timestamp(kind) or (instant.tzinfo is None) is not (kind.tz is None):
        raise ValueError(text)
    return pa.scalar(instant, kind)


def _truth(node: exp.Expr, dialect: str) -> bool:
    if isinstance(node, exp.Boolean):
        return bool(node.this)
    if dialect == "sqlite" and isinstance(node, exp.Literal) and node.this in {"0", "1"}:
        return bool(node.this == "1")
    raise ValueError(node.key)


def chosen_rows(rows: pa.Table, found: RowFilter) -> pa.Table:
    """Return the rows that are in a filter."""
    return rows.filter(found.holds(rows))


def chosen_changes(batch: ChangeBatch, schema: TableSchema, found: RowFilter) -> ChangeBatch:
    """Make tombstones of the rows that are not in a filter: what they were may have been in it.

    Their values are null then. A row that comes into the filter without a value that the source
    left out, and that nothing else has, becomes a dead letter.

    Raises:
        SchemaError: The source left out a value that the filter reads.
    """
    live = batch.events[LIVE].combine_chunks()
    _refuse_left_out(batch, live, schema, found)
    inside = pc.and_(found.holds(batch.events), live)
    if inside.equals(live):
        return batch
    events = _with_tombstones(batch.events, inside, schema)
    unchanged = {name: pc.and_(mask, inside) for name, mask in batch.unchanged.items()}
    made = replace(batch, events=events, unchanged=unchanged)
    return _without_unknown(made, pc.and_not(live, inside), schema) if unchanged else made


def _refuse_left_out(
    batch: ChangeBatch, live: pa.Array, schema: TableSchema, found: RowFilter
) -> None:
    for name in sorted(found.columns & batch.unchanged.keys()):
        if pc.any(pc.and_(batch.unchanged[name], live)).as_py():
            raise SchemaError(
                f"the log left out a value of column {name!r}, which 'where' reads",
                table=schema.name,
                hint=f"run 'alter table {schema.name} replica identity full' in the source, and"
                f" 'rhei copy {schema.name}'",
            )


def _with_tombstones(events: pa.Table, inside: pa.Array, schema: TableSchema) -> pa.Table:
    # By a new array: a value that is only marked as null would remain in memory, and be stored.
    positions = pc.if_else(inside, np.arange(len(events)), None)
    unkeyed = {*schema.names} - {*schema.primary_key}

    def of(field: pa.Field, values: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
        if field.name == LIVE:
            return inside
        return values.take(positions) if field.name in unkeyed else values

    columns = [of(*each) for each in zip(events.schema, events.columns, strict=True)]
    return pa.table(columns, schema=events.schema)


def _without_unknown(batch: ChangeBatch, left: pa.Array, schema: TableSchema) -> ChangeBatch:
    """Take out events that lack a value, behind one of their key that was not in the filter."""
    codes = key_codes(batch.events.select(list(schema.primary_key)))
    was_out: set[int] = set()
    lacks = [False] * len(codes)
    for mask in batch.unchanged.values():
        lacks = list(map(operator.or_, lacks, mask.to_pylist()))
    unknown = []
    for code, is_left, is_lacking in zip(codes, left.to_pylist(), lacks, strict=True):
        unknown.append(is_lacking and code in was_out)
        if is_left:
            was_out.add(code)
        elif not is_lacking:
            was_out.discard(code)
    if not any(unknown):
        return batch
    mask = pa.array(unknown)
    found = batch.events.filter(mask)
    keys = plain_rows(found.select(list(schema.primary_key)))
    column = next(iter(batch.unchanged))
    letters = (
        DeadLetter(schema.name, key_text(key), column, _REASON, at)
        for key, at in zip(keys, found[CHANGED_AT].to_pylist(), strict=True)
    )
    kept, former = pc.invert(mask), batch.former_keys
    return replace(
        batch,
        events=batch.events.filter(kept),
        former_keys=None if former is None else former.filter(kept),
        unchanged={name: each.filter(kept) for name, each in batch.unchanged.items()},
        rejected=(*batch.rejected, *letters),
    )
