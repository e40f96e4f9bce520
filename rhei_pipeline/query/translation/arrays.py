"""Arrays of PostgreSQL that the mirror has as lists, in DuckDB's SQL."""

from dataclasses import replace

import pyarrow as pa
from sqlglot import exp

from rhei_pipeline.model.semantics import Kind
from rhei_pipeline.model.type_names import ARRAYS
from rhei_pipeline.query.translation.aggregates import Express
from rhei_pipeline.query.translation.fixed_values import fixed_texts
from rhei_pipeline.query.translation.literals import as_value, coerce
from rhei_pipeline.query.translation.meaning import StaysWithSourceError, Typed, derived
from rhei_pipeline.query.translation.scope import Scope, TranslationContext
from rhei_pipeline.sql.text import duckdb_type, literal

#: What an array constructor of literals is an array of, by the type of its elements.
_CONSTRUCTED = {Kind.TEXT: pa.string(), Kind.INT: pa.int32()}
_WORDS: dict[type[exp.Expr], str] = {
    exp.ArrayContainsAll: "list_has_all",
    exp.ArrayOverlaps: "list_has_any",
}


def compares_elements(node: exp.Expr) -> bool:
    """Return whether a side of a comparison is `any(array)` or `all(array)`."""
    return isinstance(node, exp.Any | exp.All) or _named(node) == "all"


def _named(node: exp.Expr) -> str:
    return str(node.this).lower() if isinstance(node, exp.Anonymous) else ""


def member(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `value = any(array)` and `value <> all(array)`."""
    side = node.expression
    is_any = isinstance(node, exp.EQ) and isinstance(side, exp.Any)
    if not is_any and not (isinstance(node, exp.NEQ) and not isinstance(side, exp.Any)):
        raise StaysWithSourceError("it compares with elements otherwise than by = any or <> all")
    inner = side.expressions[0] if isinstance(side, exp.Anonymous) else side.this.unnest()
    array = _array(inner, scope, context, express)
    value = as_value(coerce(express(node.this, scope, context), _kind(array), context), context)
    if value.kind not in {array.elements, Kind.NULL}:
        raise StaysWithSourceError(f"it looks for a {value.kind} among others")
    wanted = f"cast({value.sql} as {_element_type(array)})"
    if value.kind is Kind.INT:
        wanted = f"cast({value.sql} as bigint)"
    # Of an empty array no element is compared, and of a null there is no telling.
    text = (
        f"(case when {array.sql} is null then null when len({array.sql}) = 0 then false"
        f" when {wanted} is null then null when list_contains({array.sql}, {wanted}) then true"
        f" when list_aggregate({array.sql}, 'count') < len({array.sql}) then null else false end)"
    )
    shown = text if is_any else f"(not {text})"
    return derived(shown, Kind.TRUTH, pa.bool_(), array, value, collated=False)


def holds(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `array @> elements` and `array && elements`, where the elements are fixed."""
    array = _array(node.this, scope, context, express)
    elements = _elements(node.expression, array, context)
    kind = _element_type(array)
    texts = ", ".join(f"cast({literal(each)} as {kind})" for each in elements)
    text = f"{_WORDS[type(node)]}({array.sql}, cast([{texts}] as {kind}[]))"
    return derived(text, Kind.TRUTH, pa.bool_(), array, collated=False)


def _elements(node: exp.Expr, array: Typed, context: TranslationContext) -> list[str]:
    """Return the texts of fixed elements; of other types than the array's, the source knows."""
    if not isinstance(node, exp.Array):
        texts = list(fixed_texts(node))
        if array.elements is not Kind.TEXT:
            texts = [_of_kind(each, array, context) for each in texts]
        return texts
    kind = _kind(array)
    if array.column is None or not _CONSTRUCTED.get(kind, pa.null()).equals(_type(array)):
        raise StaysWithSourceError("it compares arrays of several types")
    if kind is Kind.TEXT:
        return list(fixed_texts(node))
    found = [each for each in node.expressions if isinstance(each, exp.Literal)]
    if len(found) < len(node.expressions) or any(each.args.get("is_string") for each in found):
        raise StaysWithSourceError("it has an array that is not fixed, or holds a null")
    return [_of_kind(each.this, array, context) for each in found]


def _of_kind(text: str, array: Typed, context: TranslationContext) -> str:
    kind = _kind(array)
    if kind is Kind.TRUTH:
        if text not in {"t", "f", "true", "false"}:
            raise StaysWithSourceError("it looks for a truth that is written in another way")
        return text
    typed = coerce(Typed("", Kind.UNKNOWN, pa.string(), text=text), kind, context)
    return typed.text.lower() if typed.text is not None else text


def length(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `array_length(array, 1)`, which is null where there is no element."""
    of = node.expression
    if not isinstance(of, exp.Literal) or of.this != "1":
        raise StaysWithSourceError("it asks for an array's length in another dimension")
    array = _array(node.this, scope, context, express)
    text = context.words.cast(f"nullif(len({array.sql}), 0)", pa.int32())
    return derived(text, Kind.INT, pa.int32(), array, collated=False)


def cardinality(
    node: exp.Expr, scope: Scope, context: TranslationContext, express: Express
) -> Typed:
    """Translate `cardinality(array)`."""
    if len(node.expressions) != 1:
        raise StaysWithSourceError("cardinality() takes one argument")
    array = _array(node.expressions[0], scope, context, express)
    text = context.words.cast(f"len({array.sql})", pa.int32())
    return derived(text, Kind.INT, pa.int32(), array, collated=False)


def element(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `array[1]`; the parser counts from 0."""
    places = node.expressions
    is_fixed = len(places) == 1 and isinstance(places[0], exp.Literal)
    if not is_fixed or places[0].args.get("is_string") or not places[0].this.isdigit():
        raise StaysWithSourceError("it takes an element at a place that is not fixed")
    array = _array(node.this, scope, context, express)
    text = f"{array.sql}[{int(places[0].this) + 1}]"
    return derived(text, _kind(array), _type(array), array)


def _array(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    found = express(node, scope, context)
    if found.elements is None or context.catalog.mirror != "duckdb":
        raise StaysWithSourceError("it asks for elements of what is no list in the mirror")
    # Where the mirror has kept the column as text after all, this fails, and the source answers.
    return replace(found, sql=f"cast({found.sql} as {_element_type(found)}[])")


def _kind(array: Typed) -> Kind:
    return array.elements or Kind.OPAQUE


def _logical(array: Typed) -> str:
    return (array.column.logical if array.column is not None else None) or ""


def _type(array: Typed) -> pa.DataType:
    return ARRAYS[_logical(array)]


def _element_type(array: Typed) -> str:
    return duckdb_type(pa.string(), _logical(array)).removesuffix("[]")
