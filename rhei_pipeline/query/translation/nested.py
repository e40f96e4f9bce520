"""Maps, composites and ranges of PostgreSQL that the mirror has with parts, in DuckDB's SQL."""

from collections.abc import Callable

import pyarrow as pa
from sqlglot import exp

from rhei_pipeline.model.semantics import Kind, NestedPart, Shape
from rhei_pipeline.query.translation.aggregates import Express
from rhei_pipeline.query.translation.fixed_values import fixed_keys
from rhei_pipeline.query.translation.literals import as_value
from rhei_pipeline.query.translation.meaning import StaysWithSourceError, Typed, derived
from rhei_pipeline.query.translation.parsing import key_of
from rhei_pipeline.query.translation.scope import Scope, TranslationContext, folded
from rhei_pipeline.sql.text import literal

_NAMES = {Shape.MAP: "map", Shape.COMPOSITE: "composite", Shape.RANGE: "range"}
#: What is so of a range, as SQL of its parts.
_FLAGS = {
    "isempty": "{is_empty}",
    "lower_inc": "{lower_inclusive}",
    "upper_inc": "{upper_inclusive}",
    "lower_inf": "({lower} is null and not {is_empty})",
    "upper_inf": "({upper} is null and not {is_empty})",
}


def is_map(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> bool:
    """Return whether an operand is a column of maps; of a part of JSON, nothing is asked."""
    inner = node.unnest()
    if isinstance(inner, exp.JSONBExtract | exp.JSONBExtractScalar):
        return False
    nested = express(inner, scope, context).nested
    return nested is not None and nested.shape is Shape.MAP


def value_of(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `map -> 'key'`: null where there is no such key, or its value is null."""
    column, part = _whole(node.this, Shape.MAP, scope, context, express)
    key = key_of(node.expression)
    if not isinstance(key, str):
        raise StaysWithSourceError("it looks for a key that is not fixed")
    text = f"{_as_map(column)}[{literal(key)}]"
    return derived(text, Kind.TEXT, pa.string(), column, collated=part.collated)


def has_keys(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `map ? 'key'`, `?|` and `?&`."""
    column, _ = _whole(node.this, Shape.MAP, scope, context, express)
    word = " and " if isinstance(node, exp.JSONBContainsAllTopKeys) else " or "
    found = _as_map(column)
    tests = word.join(f"map_contains({found}, {literal(key)})" for key in fixed_keys(node))
    text = f"(case when {found} is not null then {tests} end)"
    return derived(text, Kind.TRUTH, pa.bool_(), column, collated=False)


def field(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `(composite).field`."""
    column, _ = _whole(node.this, Shape.COMPOSITE, scope, context, express)
    name = folded(node.expression, context) if isinstance(node.expression, exp.Identifier) else ""
    parts = column.nested.parts if column.nested is not None else ()
    part = next((each for each in parts if each.name == name), None)
    if part is None:
        raise StaysWithSourceError("it asks for a field that the mirror does not have")
    return _part(column, part)


def bound(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `lower(range)` and `upper(range)`."""
    column, _ = _whole(node.this, Shape.RANGE, scope, context, express)
    parts = column.nested.parts if column.nested is not None else ()
    return _part(column, parts[isinstance(node, exp.Upper)])


def flag(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `isempty(range)`, `lower_inc(range)` and their like."""
    if len(node.expressions) != 1:
        raise StaysWithSourceError(f"{node.this}() takes one argument")
    column, _ = _whole(node.expressions[0], Shape.RANGE, scope, context, express)
    text = _FLAGS[str(node.this).lower()].format(**_parts_of(column))
    return derived(text, Kind.TRUTH, pa.bool_(), column, collated=False)


def holds(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `range @> value`, where the value is just of the bounds' type."""
    column, part = _whole(node.this, Shape.RANGE, scope, context, express)
    value = as_value(express(node.expression, scope, context), context)
    if value.kind is not part.kind or not value.type.equals(part.type):
        raise StaysWithSourceError(f"it looks for a {value.kind} in a range of another type")
    _refuse_opaque(part)
    held = (
        "({lower} is null or {value} > {lower} or {lower_inclusive} and {value} = {lower})"
        " and ({upper} is null or {value} < {upper} or {upper_inclusive} and {value} = {upper})"
    )
    text = (
        "(case when {is_empty} is null or {value} is null then null"
        f" else not {{is_empty}} and {held} end)"
    ).format(**_parts_of(column), value=f"({value.sql})")
    return derived(text, Kind.TRUTH, pa.bool_(), column, value, collated=False)


def refuse_parts(value: Typed) -> None:
    """Refuse to ask whether a composite is null: PostgreSQL asks each of its fields.

    Raises:
        StaysWithSourceError: It is one.
    """
    if value.nested is not None and value.nested.shape is Shape.COMPOSITE:
        raise StaysWithSourceError("whether a composite is null depends on its fields")


def _whole(
    node: exp.Expr, shape: Shape, scope: Scope, context: TranslationContext, express: Express
) -> tuple[Typed, NestedPart]:
    """Return a column of this shape that the mirror has with its parts, and the first of them."""
    found = express(node.unnest(), scope, context)
    name = _NAMES[shape]
    if found.nested is None or found.nested.shape is not shape:
        raise StaysWithSourceError(f"it asks for a part of what is no {name}")
    if not found.nested.parts or context.catalog.mirror != "duckdb":
        raise StaysWithSourceError(f"it asks for a part of a {name} that is text in the mirror")
    return found, found.nested.parts[0]


def _part(column: Typed, part: NestedPart) -> Typed:
    _refuse_opaque(part)
    text = _extracted(column, part.kept)
    return derived(text, part.kind, part.type, column, collated=part.collated)


def _refuse_opaque(part: NestedPart) -> None:
    if part.kind is Kind.OPAQUE:
        raise StaysWithSourceError("it asks for a part that the mirror has as another type")


def _extracted(column: Typed, name: str) -> str:
    """Write a part. Of a column that is text after all, DuckDB has none, and the source answers."""
    return f"struct_extract({column.sql}, {literal(name)})"


def _parts_of(column: Typed) -> dict[str, str]:
    names = ("lower", "upper", "lower_inclusive", "upper_inclusive", "is_empty")
    return {name: _extracted(column, name) for name in names}


def _as_map(column: Typed) -> str:
    """Write a map. Where the mirror has a text after all, this fails, and the source answers."""
    return f"cast({column.sql} as map(varchar, varchar))"


#: What is asked of a range by its name.
FLAGS: dict[str, Callable[[exp.Expr, Scope, TranslationContext, Express], Typed]] = dict.fromkeys(
    _FLAGS, flag
)
