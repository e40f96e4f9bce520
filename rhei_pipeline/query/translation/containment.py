"""What a jsonb column contains: `?`, `?|`, `?&` and `@>`, in DuckDB's SQL."""

from collections.abc import Iterator
from decimal import Decimal

import pyarrow as pa
from sqlglot import exp

from rhei_pipeline.model.semantics import Kind
from rhei_pipeline.query.translation.aggregates import Express
from rhei_pipeline.query.translation.documents import JsonPlace, find
from rhei_pipeline.query.translation.fixed_values import Json, fixed_json, fixed_keys
from rhei_pipeline.query.translation.meaning import StaysWithSourceError, Typed, derived
from rhei_pipeline.query.translation.scope import Scope, TranslationContext
from rhei_pipeline.sql.text import conjunction, literal

#: Values that one constant may hold: each is a condition.
_MOST_VALUES = 50
#: Digits up to which a number's double tells it from all others of so many digits.
_DOUBLE_DIGITS = 15
_OBJECT, _ARRAY = "'OBJECT'", "'ARRAY'"


def has_keys(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `?`, `?|` and `?&`."""
    root, place = find(node.this, scope, context, express)
    word = " and " if isinstance(node, exp.JSONBContainsAllTopKeys) else " or "
    tests = [_has_key(place, key) for key in fixed_keys(node)]
    return _answer(root, place, f"({word.join(tests)})", context)


def _has_key(place: JsonPlace, key: str) -> str:
    """Write whether an object has a key, an array a string, or a string is it."""
    same = f"e = cast(to_json({literal(key)}) as json)"
    return (
        f"(case when {place.at(key).type} is not null then true else case {place.type}"
        f" when 'ARRAY' then {_any_element(place, same, 'e')}"
        f" when 'VARCHAR' then {place.string} = {literal(key)} else false end end)"
    )


def contains(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `@>` with JSON that is fixed."""
    wanted = fixed_json(node.expression)
    if sum(1 for _ in _values(wanted)) > _MOST_VALUES:
        raise StaysWithSourceError("it looks for JSON of too many values")
    root, place = find(node.this, scope, context, express)
    test = _holds(place, wanted, context, 0)
    if not isinstance(wanted, dict | list):
        # An array contains each of its scalars; at the top alone.
        inside = _any_element(place, _holds(_element("e", place), wanted, context, 1), "e")
        test = f"{test} or {place.type} = 'ARRAY' and {inside}"
    return _answer(root, place, test, context)


def _answer(root: Typed, place: JsonPlace, test: str, context: TranslationContext) -> Typed:
    text = f"(case when {place.is_there} then coalesce(({test}), false) end)"
    if place.scalars:
        asked = " or ".join(f"coalesce({each}, false)" for each in place.scalars)
        text = f"({context.words.guarded(asked, text)})"
    return derived(text, Kind.TRUTH, pa.bool_(), root, collated=False)


def _values(wanted: Json) -> Iterator[Json]:
    yield wanted
    if isinstance(wanted, dict | list):
        for part in wanted.values() if isinstance(wanted, dict) else wanted:
            yield from _values(part)


def _holds(place: JsonPlace, wanted: Json, context: TranslationContext, depth: int) -> str:
    """Write the condition for what stands at a place to contain a constant."""
    if isinstance(wanted, dict):
        parts = [_holds(place.at(key), part, context, depth) for key, part in wanted.items()]
        # What has a key is an object, and what has an element an array.
        return f"({conjunction(parts or [f'{place.type} = {_OBJECT}'])})"
    if isinstance(wanted, list):
        name = f"e{depth}"
        one = _element(name, place)
        parts = [
            _any_element(place, _holds(one, part, context, depth + 1), name) for part in wanted
        ]
        return f"({conjunction(parts or [f'{place.type} = {_ARRAY}'])})"
    return _is_scalar(place, wanted, context)


def _is_scalar(place: JsonPlace, wanted: Json, context: TranslationContext) -> str:
    if wanted is None:
        return f"({place.type} = 'NULL')"
    if isinstance(wanted, bool):
        return _is_text(place, str(wanted).lower(), "BOOLEAN")
    if isinstance(wanted, Decimal):
        return _is_number(place, wanted, context)
    return _is_text(place, str(wanted), "VARCHAR")


def _is_text(place: JsonPlace, text: str, kind: str) -> str:
    """Write whether a scalar has this text and this type, of which few have the text."""
    same = f"{place.string} = {literal(text)}"
    return f"(case when {same} then {place.type} = '{kind}' else false end)"


def _is_number(place: JsonPlace, wanted: Decimal, context: TranslationContext) -> str:
    """Write whether a number is this one; DuckDB has integers as they are, and others as doubles.

    Where the doubles are equal, the digits decide, without the zeros that end them.
    """
    exact = format(wanted, "f") if wanted else "0"
    whole, _, fraction = exact.partition(".")
    fraction = fraction.rstrip("0")
    if len(whole.lstrip("-")) + len(fraction) > _DOUBLE_DIGITS:
        raise StaysWithSourceError("it looks for a number of many digits")
    digits = f"{whole}.{fraction}"  # as rtrim leaves those of a whole number, with its point
    same = f"try_cast({place.string} as double) = cast({literal(exact)} as double)"
    shown = f"rtrim({place.number(context)}, '0') = {literal(digits)}"
    as_whole = "false" if fraction else f"{place.string} = '{int(whole)}'"
    return (
        f"(case when {same} then case {place.type} when 'BIGINT' then {as_whole}"
        f" when 'UBIGINT' then {as_whole} when 'DOUBLE' then {shown} else false end"
        f" else false end)"
    )


def _any_element(place: JsonPlace, test: str, name: str) -> str:
    (path,) = place.paths if len(place.paths) == 1 else ("",)
    if not path:
        raise StaysWithSourceError("its path has an index: write it with ->")
    elements = f"json_extract({place.document}, {literal(path + '[*]')})"
    return f"(len(list_filter({elements}, lambda {name}: coalesce({test}, false))) > 0)"


def _element(name: str, place: JsonPlace) -> JsonPlace:
    return JsonPlace(place.text, name)
