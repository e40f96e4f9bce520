"""Paths into a jsonb column of PostgreSQL, as text or as what they lead to, in DuckDB's SQL."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import pyarrow as pa
from sqlglot import exp

from rhei_pipeline.model.semantics import Kind
from rhei_pipeline.query.translation.aggregates import Express
from rhei_pipeline.query.translation.fixed_values import fixed_texts
from rhei_pipeline.query.translation.meaning import StaysWithSourceError, Typed, derived
from rhei_pipeline.query.translation.parsing import key_of
from rhei_pipeline.query.translation.scope import Scope, TranslationContext
from rhei_pipeline.sql.text import literal

_ROOT = "$"
#: A part of a path that `#>` takes for an index where it meets an array, and else for a key.
_INDEX = re.compile(r"-?(0|[1-9]\d{0,8})")
_ODD_INDEX = re.compile(r"\s*[+-]?\d")
_MOST_PATHS = 4
#: A number as jsonb writes it.
_NUMBER = r"-?[0-9]+(\.[0-9]+)?"
_NAMES = {
    "OBJECT": "object",
    "ARRAY": "array",
    "VARCHAR": "string",
    "BOOLEAN": "boolean",
    "NULL": "null",
    **dict.fromkeys(("BIGINT", "UBIGINT", "DOUBLE"), "number"),
}


@dataclass(frozen=True, slots=True)
class JsonPlace:
    """A place in a JSON document, in the mirror's SQL.

    Attributes:
        text: The document's own text, digit for digit.
        document: What the paths lead into: the document, or a part of it.
        paths: The paths that may lead there; at most one does.
        scalars: The condition for an index to be asked of a scalar, which PostgreSQL takes for an
            array of one element.
    """

    text: str
    document: str
    paths: tuple[str, ...] = (_ROOT,)
    scalars: tuple[str, ...] = ()

    def called(self, function: str) -> str:
        """Return a function of DuckDB's, called for this place."""
        calls = [f"{function}({self.document}, {literal(path)})" for path in self.paths]
        return calls[0] if len(calls) == 1 else f"coalesce({', '.join(calls)})"

    @property
    def type(self) -> str:
        """What stands there, by DuckDB's name for it; null where nothing does."""
        return self.called("json_type")

    @property
    def is_there(self) -> str:
        """The condition for anything to stand there."""
        is_root = self.paths == (_ROOT,)
        return f"{self.document if is_root else self.type} is not null"

    @property
    def string(self) -> str:
        """The text of a scalar."""
        return self.called("json_extract_string")

    def at(self, key: str) -> "JsonPlace":
        """Return what an object has there under a key."""
        paths = tuple(path + _key(key) for path in self.paths)
        return JsonPlace(self.text, self.document, paths, self.scalars)

    def number(self, context: TranslationContext) -> str:
        """Return a number's own digits: DuckDB has read it as a double, and lost some.

        They are the document's only ones that are the same double. Where others are as well, the
        query ends, and the source answers it.
        """
        found = f"regexp_extract_all(cast({self.text} as varchar), {literal(_NUMBER)})"
        same = f"lambda d: try_cast(d as double) = try_cast({self.string} as double)"
        texts = f"list_distinct(list_filter({found}, {same}))"
        only = context.words.guarded("len(t) <> 1", "t[1]")
        return f"list_transform([{texts}], lambda t: {only})[1]"


def text_at(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `->>` and `#>>`: a scalar's text. Of an array or an object, the source has it."""
    root, place = find(node, scope, context, express)
    text = f"case when {_may_be_other(place)} then {_told(place, context)} else {place.string} end"
    return derived(_checked(place, f"({text})", context), Kind.TEXT, pa.string(), root)


def _may_be_other(place: JsonPlace) -> str:
    """Write whether a text may not be that of a string: few documents are read again for more."""
    return f"contains('-0123456789{{[', left({place.string}, 1))"


def _told(place: JsonPlace, context: TranslationContext) -> str:
    """Write the text of a scalar by its type, or the end of the query."""
    compound = context.words.guarded(f"{place.document} is not null", "null")
    return (
        f"case {place.type} when 'DOUBLE' then {place.number(context)}"
        f" when 'OBJECT' then {compound} when 'ARRAY' then {compound} else {place.string} end"
    )


def part_at(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `->` and `#>` where it only matters whether anything is there."""
    around = node.parent
    while isinstance(around, exp.Paren):
        around = around.parent
    if not isinstance(around, exp.Is):
        raise StaysWithSourceError("a part of a JSON value is written differently by the mirror")
    root, place = find(node, scope, context, express)
    return derived(_checked(place, place.type, context), Kind.OPAQUE, pa.string(), root)


def length(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `jsonb_array_length`."""
    root, place = find(_only(node), scope, context, express)
    # Of what is no array, the source says so, and DuckDB that it has no elements.
    counted = context.words.guarded(f"n = 0 and {place.type} <> 'ARRAY'", "n")
    of = place.called("json_array_length")
    text = context.words.cast(f"list_transform([{of}], lambda n: {counted})[1]", pa.int32())
    return derived(_checked(place, text, context), Kind.INT, pa.int32(), root)


def type_name(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `jsonb_typeof`."""
    root, place = find(_only(node), scope, context, express)
    known = " ".join(f"when {literal(found)} then {literal(to)}" for found, to in _NAMES.items())
    text = f"(case {place.type} {known} end)"
    return derived(_checked(place, text, context), Kind.TEXT, pa.string(), root)


def _only(node: exp.Expr) -> exp.Expr:
    if len(node.expressions) != 1:
        raise StaysWithSourceError(f"{node.this}() takes one argument")
    argument: exp.Expr = node.expressions[0]
    return argument


def find(
    node: exp.Expr, scope: Scope, context: TranslationContext, express: Express
) -> tuple[Typed, JsonPlace]:
    """Return the column that holds a document, and the place in it that a node names.

    Raises:
        StaysWithSourceError: It is no jsonb, or the mirror has no such path.
    """
    if isinstance(node, exp.Paren):
        return find(node.this, scope, context, express)
    if isinstance(node, exp.JSONBExtract | exp.JSONBExtractScalar):
        root, place = find(node.this, scope, context, express)
        if isinstance(node.this.unnest(), exp.JSONBExtractScalar):
            raise StaysWithSourceError("it asks a text for what only JSON has")
        step = key_of(node.expression)
        if step is None:
            return root, _along(place, fixed_texts(node.expression))
        return root, place.at(step) if isinstance(step, str) else _element(place, step)
    root = express(node, scope, context)
    if not root.document:
        raise StaysWithSourceError("it asks for parts of what is no jsonb column")
    if context.catalog.mirror != "duckdb":
        raise StaysWithSourceError("the mirror's engine has no operators of JSON")
    return root, JsonPlace(root.sql, root.sql)


def _along(place: JsonPlace, steps: Sequence[str]) -> JsonPlace:
    """Return the place at the end of a path as `#>` takes it."""
    choices: list[tuple[str, ...]] = []
    for step in steps:
        if _INDEX.fullmatch(step):
            choices.append((_key(step), _subscript(int(step))))
        elif _ODD_INDEX.match(step):
            raise StaysWithSourceError(f"its path has {step!r}, which may be an index")
        else:
            choices.append((_key(step),))
    paths = tuple("".join(parts) for parts in product(place.paths, *choices))
    if len(paths) > _MOST_PATHS:
        raise StaysWithSourceError("its path has several indexes: write them with ->")
    return JsonPlace(place.text, place.document, paths, place.scalars)


def _element(place: JsonPlace, index: int) -> JsonPlace:
    scalars = place.scalars
    if index in {0, -1}:
        scalars = (*scalars, f"{place.type} not in ('ARRAY', 'OBJECT')")
    paths = tuple(path + _subscript(index) for path in place.paths)
    return JsonPlace(place.text, place.document, paths, scalars)


def _key(key: str) -> str:
    if not key or "*" in key:
        raise StaysWithSourceError(f"the mirror's paths have no key {key!r}")
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    return f'."{escaped}"'


def _subscript(index: int) -> str:
    return f"[{index}]" if index >= 0 else f"[#{index}]"


def _either(*conditions: str) -> str:
    return " or ".join(f"coalesce({condition}, false)" for condition in conditions)


def _checked(place: JsonPlace, text: str, context: TranslationContext) -> str:
    if not place.scalars:
        return text
    return f"({context.words.guarded(_either(*place.scalars), text)})"
