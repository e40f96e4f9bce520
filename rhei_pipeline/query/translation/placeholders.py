"""Guesses the types of a statement's parameters from what they are compared with or stored in."""

from collections.abc import Iterator
from datetime import UTC, date, datetime

import pyarrow as pa
from sqlglot import exp

from rhei_pipeline.model.semantics import Kind, MirroredTable
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.query.translation.meaning import Catalog

#: A value of each type, to plan with before any is bound.
SAMPLES = {
    pa.int64(): 0,
    pa.float64(): 0.0,
    pa.string(): "",
    pa.binary(): b"",
    pa.bool_(): False,
    pa.date32(): date(2000, 1, 1),
    pa.timestamp("us"): datetime(2000, 1, 1),  # noqa: DTZ001  (a timestamp without a zone)
    INSTANT: datetime(2000, 1, 1, tzinfo=UTC),
}
_KEPT = {
    Kind.INT: pa.int64(),
    Kind.REAL: pa.float64(),
    Kind.NUMBER: pa.float64(),
    Kind.DECIMAL: pa.float64(),
    Kind.BLOB: pa.binary(),
    Kind.TRUTH: pa.bool_(),
    Kind.DATE: pa.date32(),
    Kind.TIMESTAMP: pa.timestamp("us"),
    Kind.INSTANT: INSTANT,
}
_BESIDE = (exp.Predicate, exp.Binary, exp.In, exp.Between, exp.Neg, exp.Paren)


def parameter_types(statement: exp.Expr, catalog: Catalog) -> list[pa.DataType]:
    """Return the likely type of each parameter, in order; text if nothing shows it.

    Args:
        statement: Its parameters are named by position, `rhei_1`, or numbered.
        catalog: The mirrored tables.
    """
    found: dict[int, pa.DataType] = {}
    for node in statement.find_all(exp.Placeholder, exp.Parameter):
        place = _place(node)
        if place is not None and found.get(place, pa.string()).equals(pa.string()):
            found[place] = _type_of(node, statement, catalog)
    return [found.get(place, pa.string()) for place in range(1, max(found, default=0) + 1)]


def _place(node: exp.Expr) -> int | None:
    name = node.this.name if isinstance(node.this, exp.Expr) else str(node.this or "")
    place = name.removeprefix("rhei_")
    return int(place) if place.isdigit() else None


def _type_of(node: exp.Expr, statement: exp.Expr, catalog: Catalog) -> pa.DataType:
    around = node.parent
    if isinstance(around, exp.Limit | exp.Offset):
        return pa.int64()
    if isinstance(around, exp.Tuple) and isinstance(statement, exp.Insert):
        return _stored(around.expressions.index(node), statement, catalog)
    while isinstance(around, _BESIDE):
        beside = [
            column
            for side in around.iter_expressions()
            for column in side.find_all(exp.Column)
            if not isinstance(side, exp.Subquery)
        ]
        if beside:
            return _column_type(beside[0].name, statement, catalog)
        around = around.parent
    return pa.string()


def _stored(place: int, statement: exp.Insert, catalog: Catalog) -> pa.DataType:
    """Return the type of the column into which an INSERT puts the value at this position."""
    into = statement.this
    names = [name.name for name in into.expressions] if isinstance(into, exp.Schema) else []
    if not names:
        tables = list(_tables(statement, catalog))
        names = list(tables[0].all_columns) if tables else []
    return _column_type(names[place], statement, catalog) if place < len(names) else pa.string()


def _column_type(name: str, statement: exp.Expr, catalog: Catalog) -> pa.DataType:
    found = {
        _kept(kind, catalog)
        for table in _tables(statement, catalog)
        for column, kind in table.kinds.items()
        if column.lower() == name.lower()
    }
    return found.pop() if len(found) == 1 else pa.string()


def _kept(kind: Kind, catalog: Catalog) -> pa.DataType:
    # SQLite's dates are text.
    is_text = catalog.source == "sqlite" and kind is Kind.DATE
    return pa.string() if is_text else _KEPT.get(kind, pa.string())


def _tables(statement: exp.Expr, catalog: Catalog) -> Iterator[MirroredTable]:
    named = {(table.name.lower(), table.db.lower()) for table in statement.find_all(exp.Table)}
    for table in catalog.tables.values():
        relation = table.schema.relation.lower()
        namespace = (table.schema.namespace or "").lower()
        if named & {(relation, namespace), (relation, ""), (relation, "main")}:
            yield table
