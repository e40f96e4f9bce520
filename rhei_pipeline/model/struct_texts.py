"""Composites and ranges as PostgreSQL writes them, `(12.50,EUR)` and `[1,5)`, and as structs.

Source: record_out in src/backend/utils/adt/rowtypes.c, range_deparse in rangetypes.c.
"""

from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.model.decimals import decimal_texts, decimals_of
from rhei_pipeline.model.instant_texts import dates_of, instant_texts, instants_of, timestamps_of
from rhei_pipeline.model.type_names import INSTANT, UUID, UUID_FORM, Structure, is_range, structure

_SPACE = r" \t\n\r\v\f"
#: Within quotes, a quotation mark and a backslash are written twice.
_DOUBLED = (('""', '"'), (r"\\", "\\"))
_QUOTED = r'"(?:[^"\\]|""|\\\\)*"'
#: What is quoted besides empty texts.
_OF_COMPOSITE, _OF_RANGE = rf'"\\(),{_SPACE}', rf'"\\()\[\],{_SPACE}'
_BARE = rf"{_QUOTED}|[^{_OF_COMPOSITE}]*"
_BOUND = rf"{_QUOTED}|[^{_OF_RANGE}]*"
_EMPTY = "empty"


def needs_quotes(*, of_range: bool) -> str:
    """Return the regular expression that matches a part which is written in quotes."""
    return f"^$|[{_OF_RANGE if of_range else _OF_COMPOSITE}]"


@lru_cache(maxsize=512)
def struct_form(kept: Structure) -> tuple[str, list[str]]:
    """Return the regular expression of a text, and the names of its groups.

    A composite has a group for each part; a range has its brackets around its bounds.
    """
    if kept.is_range:
        bounds = rf"(?P<b>[\[(])(?P<p0>{_BOUND}),(?P<p1>{_BOUND})(?P<e>[\])])"
        return f"^(?:{bounds}|{_EMPTY})$", ["b", "p0", "p1", "e"]
    names = [f"p{place}" for place in range(len(kept.parts))]
    kinds = (part.logical for _, part in kept.parts)
    forms = (f"(?:{UUID_FORM})?" if kind == UUID else _BARE for kind in kinds)
    groups = (f"(?P<{name}>{form})" for name, form in zip(names, forms, strict=True))
    return rf"^\({','.join(groups)}\)$", names


def admit_structs(texts: pa.Array, logical: str) -> None:
    """Find that texts are all what a composite or a range of this name is, and written so.

    Raises:
        pyarrow.ArrowInvalid: One is not.
    """
    if not struct_texts_of(structs_of(texts, logical)).equals(texts.cast(pa.string())):
        raise pa.ArrowInvalid


def structs_of(texts: pa.Array, logical: str) -> pa.StructArray:
    """Return the composites or ranges that texts are.

    Raises:
        pyarrow.ArrowInvalid: One is none, or a part of one is not of its type.
    """
    kept = structure(logical)
    if kept is None:
        raise pa.ArrowInvalid
    form, groups = struct_form(kept)
    found = pc.extract_regex(texts.cast(pa.string()), form)
    if found.null_count != texts.null_count:
        raise pa.ArrowInvalid
    cut = [pc.struct_field(found, name) for name in groups]
    begins, *parts, ends = cut if kept.is_range else [None, *cut, None]
    kinds = [part.type for _, part in kept.parts[: len(parts)]]
    values = [_values(_plain(part), kind) for part, kind in zip(parts, kinds, strict=True)]
    if kept.is_range:
        values += [pc.equal(begins, "["), pc.equal(ends, "]"), pc.equal(begins, "")]
    mask = texts.is_null() if texts.null_count else None
    return pa.StructArray.from_arrays(values, fields=list(kept.type), mask=mask)


def struct_texts_of(structs: pa.StructArray) -> pa.Array:
    """Return composites or ranges as PostgreSQL writes them."""
    of_range = is_range([field.name for field in structs.type])
    parts = [pc.struct_field(structs, place) for place in range(structs.type.num_fields)]
    if of_range:
        *bounds, low, high, is_empty = parts
        shown = _joined(
            pc.if_else(low, "[", "("),
            _joined(*(_written(part, of_range=True) for part in bounds), by=","),
            pc.if_else(high, "]", ")"),
        )
        shown = pc.if_else(is_empty, _EMPTY, shown)
    else:
        inner = _joined(*(_written(part, of_range=False) for part in parts), by=",")
        shown = _joined("(", inner, ")")
    return pc.if_else(pc.is_valid(structs), shown, pa.scalar(None, pa.string()))


def _plain(parts: pa.Array) -> pa.Array:
    """Return parts without their quotes, null where there is nothing."""
    inner = pc.utf8_slice_codeunits(parts, 1, -1)
    for doubled, single in _DOUBLED:
        inner = pc.replace_substring(inner, doubled, single)
    bare = pc.if_else(pc.equal(parts, ""), pa.scalar(None, pa.string()), parts)
    return pc.if_else(pc.starts_with(parts, '"'), inner, bare)


def _written(values: pa.Array, *, of_range: bool) -> pa.Array:
    """Return parts as texts, quoted where they have to be, empty where they are null."""
    texts = escaped = _texts(values)
    if not pa.types.is_string(values.type) and not pa.types.is_timestamp(values.type):
        return pc.fill_null(texts, "")
    for doubled, single in _DOUBLED:
        escaped = pc.replace_substring(escaped, single, doubled)
    has_to_be = pc.match_substring_regex(texts, needs_quotes(of_range=of_range))
    return pc.fill_null(pc.if_else(has_to_be, _joined('"', escaped, '"'), texts), "")


def _values(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_decimal(kind):
        return decimals_of(texts, kind)
    if pa.types.is_temporal(kind):
        if pc.any(pc.starts_with(texts, "0000")).as_py():
            raise pa.ArrowInvalid  # before year 1 is 1 BC, and Arrow has no word for it
        if pa.types.is_date32(kind):
            return dates_of(texts)
        return instants_of(texts) if kind.equals(INSTANT) else timestamps_of(texts)
    return pc.equal(texts, "t") if pa.types.is_boolean(kind) else texts.cast(kind)


def _texts(values: pa.Array) -> pa.Array:
    kind = values.type
    if pa.types.is_boolean(kind):
        return pc.if_else(values, pa.scalar("t"), pa.scalar("f"))
    if pa.types.is_decimal(kind):
        return decimal_texts(values)
    return instant_texts(values) if pa.types.is_temporal(kind) else values.cast(pa.string())


def _joined(*parts: pa.Array | str, by: str = "") -> pa.Array:
    return pc.binary_join_element_wise(*parts, by)
