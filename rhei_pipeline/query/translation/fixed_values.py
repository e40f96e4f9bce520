"""Constants of PostgreSQL that have parts: arrays and JSON, as Python's values."""

import json
import re
from collections.abc import Sequence
from decimal import Decimal

import pyarrow as pa
from sqlglot import exp

from rhei_pipeline.model.array_texts import array_form, lists_of
from rhei_pipeline.query.translation.meaning import StaysWithSourceError

_TEXTS = "string[]"
_ARRAY = re.compile(array_form(_TEXTS))

Json = dict[str, "Json"] | list["Json"] | str | Decimal | bool | None


def fixed_texts(node: exp.Expr) -> Sequence[str]:
    """Return the elements of an array of texts, `array['a', 'b']` or `'{a,b}'`.

    Raises:
        StaysWithSourceError: It is none, or not fixed.
    """
    if isinstance(node, exp.Array):
        literals = [each for each in node.expressions if _is_text(each)]
        if len(literals) == len(node.expressions):
            return [each.this for each in literals]
    if _is_text(node) and _ARRAY.fullmatch(node.this):
        (found,) = lists_of(pa.array([node.this]), _TEXTS).to_pylist()
        # What reads as null is one, unless it is quoted.
        if not any(each is None or each.lower() == "null" for each in found):
            return list(found)
    raise StaysWithSourceError("it has an array that is not fixed, or holds a null")


def fixed_keys(node: exp.Expr) -> Sequence[str]:
    """Return the keys for which `?`, `?|` or `?&` looks.

    Raises:
        StaysWithSourceError: They are not fixed, or there are none.
    """
    given = node.expression
    if isinstance(node, exp.JSONBContainsTopKey):
        if not _is_text(given):
            raise StaysWithSourceError("it looks for a key that is not fixed")
        return [given.this]
    keys = fixed_texts(given)
    if not keys:
        raise StaysWithSourceError("it looks for no key at all")
    return keys


def _is_text(node: exp.Expr) -> bool:
    return isinstance(node, exp.Literal) and bool(node.args.get("is_string"))


def fixed_json(node: exp.Expr) -> Json:
    """Return a constant of JSON.

    Raises:
        StaysWithSourceError: It is none, or not fixed.
    """
    if isinstance(node, exp.Cast) and node.args["to"].is_type("jsonb"):
        node = node.this
    if not _is_text(node) or "\\u" in node.this:
        raise StaysWithSourceError("it looks for JSON that is not fixed")
    try:
        found: Json = json.loads(
            node.this, parse_int=Decimal, parse_float=Decimal, parse_constant=_refuse
        )
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise StaysWithSourceError("it looks for what is no JSON") from error
    return found


def _refuse(_name: str) -> object:
    raise ValueError
