"""Arrays of one or two dimensions as PostgreSQL writes them, `{1,NULL,3}`, and as lists.

Source: postgresql.org/docs/18/arrays.html, Array Input and Output Syntax.
"""

import re
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.model.interval_texts import with_interval_texts
from rhei_pipeline.model.map_texts import map_texts_of
from rhei_pipeline.model.struct_texts import struct_texts_of
from rhei_pipeline.model.type_names import ARRAYS, UUID_FORM

_QUOTED = r'"(?:[^"\\]|\\.)*"'
#: A text is quoted where it is empty, reads as null, or has what separates elements.
_BARE = r'[^{}",\\ \t\n\r\v\f]+'
NEEDS_QUOTES = r'^$|^(?i:null)$|[{}",\\ \t\n\r\v\f]'
_FORMS = {
    "boolean[]": "[tf]",
    "string[]": f"(?:{_QUOTED}|{_BARE})",
    "uuid[]": UUID_FORM,
}
_INTEGER = r"(?:0|-?[1-9]\d{0,18})"
_ELEMENT = re.compile(f"({_QUOTED})|([^,]+)")
_ROW = re.compile(rf'\{{(?:{_QUOTED}|[^"}}])*\}}')
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_NULL = "NULL"


def array_form(logical: str) -> str:
    """Return the regular expression that matches the whole of such an array's text."""
    inner = _inner(logical)
    element = array_form(inner) if inner else f"(?:{_FORMS.get(logical, _INTEGER)}|NULL)"
    return rf"\{{(?:{element}(?:,{element})*)?\}}"


def lists_of(texts: pa.Array, logical: str) -> pa.Array:
    """Return the arrays that texts of `array_form` are.

    Raises:
        pyarrow.ArrowInvalid: An element is out of its type's range.
    """
    inner = pc.utf8_slice_codeunits(texts.cast(pa.string()), 1, -1)
    of = _inner(logical)
    if of is not None:
        rows = _rows(inner)
        return _of_lengths(rows, lists_of(rows.flatten(), of))
    if pc.any(pc.match_substring(inner, '"')).as_py():
        parts = pa.array(
            [None if text is None else _elements(text) for text in inner.to_pylist()],
            pa.list_(pa.string()),
        )
        flat = parts.flatten()
    else:
        split = pc.split_pattern(inner, ",")
        # What splits into one empty text is an array without elements.
        is_empty = pc.fill_null(pc.equal(inner, ""), fill_value=False)
        parts = pc.if_else(is_empty, pa.scalar([], pa.list_(pa.string())), split)
        flat = parts.flatten()
        flat = pc.if_else(pc.equal(flat, _NULL), pa.scalar(None, pa.string()), flat)
    kind = ARRAYS[logical]
    if pa.types.is_boolean(kind):
        flat = pc.equal(flat, "t")
    return _of_lengths(parts, flat.cast(kind))


def texts_of(lists: pa.Array) -> pa.Array:
    """Return arrays as PostgreSQL writes them."""
    flat = lists.flatten()
    if pa.types.is_list(flat.type):
        shown = texts_of(flat)
    elif pa.types.is_boolean(flat.type):
        shown = pc.if_else(flat, pa.scalar("t"), pa.scalar("f"))
    else:
        shown = flat.cast(pa.string())
        escaped = pc.replace_substring_regex(shown, r'([\\"])', r"\\\1")
        quoted = pc.binary_join_element_wise('"', escaped, '"', "")
        shown = pc.if_else(pc.match_substring_regex(shown, NEEDS_QUOTES), quoted, shown)
    joined = pc.binary_join(_of_lengths(lists, pc.fill_null(shown, _NULL)), ",")
    return pc.binary_join_element_wise("{", joined, "}", "")


def as_texts(rows: pa.Table) -> pa.Table:
    """Return rows of a mirror as everything else meets them: nothing nested, and no intervals."""
    for place, field in enumerate(rows.schema):
        written = next((write for is_such, write in _WRITTEN if is_such(field.type)), None)
        if written is not None:
            texts = [written(chunk) for chunk in rows.column(place).chunks]
            rows = rows.set_column(place, field.name, pa.chunked_array(texts, pa.string()))
    return with_interval_texts(rows)


#: What writes values of a nested type as text.
_WRITTEN: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], pa.Array]], ...] = (
    (pa.types.is_map, map_texts_of),
    (pa.types.is_list, texts_of),
    (pa.types.is_struct, struct_texts_of),
)


def _of_lengths(lists: pa.Array, flat: pa.Array) -> pa.Array:
    """Return lists as long as others, null where those are, with these elements."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    ends = pc.cumulative_sum(lengths.cast(pa.int32()))
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    mask = lists.is_null() if lists.null_count else None
    return pa.ListArray.from_arrays(offsets, flat, mask=mask)


def _inner(logical: str) -> str | None:
    """Return what the elements of an array of two dimensions are; None of one of one."""
    of = logical.removesuffix("[]")
    return of if of in ARRAYS else None


def _rows(inner: pa.Array) -> pa.Array:
    """Return the texts of the arrays in each array's text, which is without its own braces."""
    if pc.any(pc.match_substring(inner, '"')).as_py():
        texts = [None if text is None else _ROW.findall(text) for text in inner.to_pylist()]
        return pa.array(texts, pa.list_(pa.string()))
    split = pc.split_pattern(pc.utf8_slice_codeunits(inner, 1, -1), "},{")
    is_empty = pc.fill_null(pc.equal(inner, ""), fill_value=False)
    rows = pc.if_else(is_empty, pa.scalar([], pa.list_(pa.string())), split)
    return _of_lengths(rows, pc.binary_join_element_wise("{", rows.flatten(), "}", ""))


def _elements(inner: str) -> list[str | None]:
    """Return the elements of an array's text without its braces."""
    return [
        _ESCAPED.sub(r"\1", quoted[1:-1]) if quoted else None if bare == _NULL else bare
        for quoted, bare in _ELEMENT.findall(inner)
    ]
