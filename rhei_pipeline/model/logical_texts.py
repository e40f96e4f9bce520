"""Texts that are more than text, such as UUIDs and JSON, each taken as it is or not at all."""

import json
import re
from collections.abc import Callable
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.model.array_texts import array_form, lists_of
from rhei_pipeline.model.interval_texts import admit_intervals
from rhei_pipeline.model.map_texts import admit_maps
from rhei_pipeline.model.struct_texts import admit_structs
from rhei_pipeline.model.type_names import (
    ARRAYS,
    INTERVAL,
    JSON,
    MAP,
    RANGE,
    STRUCT,
    UUID,
    UUID_FORM,
    family,
)

_UUID_WHOLE = re.compile(UUID_FORM)
#: Halves of a pair that stands for one character; alone, they are none.
_HALF = r"\\u[dD][89a-fA-F]"
_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_LONE = re.compile(_HALF)
_BACKSLASH = r"\\"

#: What is expected of a text, for whoever mends one that is not taken, by the family of its type.
EXPECTED = {
    UUID: "a UUID in lower case with hyphens",
    JSON: "JSON without halves of surrogate pairs",
    INTERVAL: "an interval in ISO 8601 as PostgreSQL writes it, of at most 292 years of hours",
    MAP: "a map of texts as PostgreSQL writes an hstore, without a key twice",
    STRUCT: "a composite of parts of these types, as PostgreSQL writes it",
    RANGE: "a range of bounds of this type, as PostgreSQL writes it",
    **{
        name: f"an array of {'two' if name.endswith('[][]') else 'one'} dimension"
        f"{'s' if name.endswith('[][]') else ''}, as PostgreSQL writes it"
        for name in ARRAYS
    },
}


def admit_texts(texts: pa.Array, logical: str, *, trusted: bool) -> pa.Array:
    """Return texts that are all of this logical type.

    Args:
        texts: The values.
        logical: What they are to be.
        trusted: The source holds the column's JSON to be JSON.

    Raises:
        pyarrow.ArrowInvalid: One of them is not.
    """
    if logical != JSON:
        _ADMISSIONS[family(logical)](texts, logical)
        return texts
    doubted = texts
    if trusted:
        doubted = texts.filter(pc.match_substring_regex(texts, _HALF))
    if not all(text is None or _is_json(text) for text in doubted.to_pylist()):
        raise pa.ArrowInvalid
    return texts


def _admit_uuids(texts: pa.Array, _logical: str) -> None:
    if pc.all(pc.match_substring_regex(texts, f"^{UUID_FORM}$")).as_py() is False:
        raise pa.ArrowInvalid


def _admit_arrays(texts: pa.Array, logical: str) -> None:
    if pc.all(pc.match_substring_regex(texts, f"^(?:{array_form(logical)})$")).as_py() is False:
        raise pa.ArrowInvalid
    lists_of(texts, logical)  # each element is within its type


#: What finds that all texts of a column are of one logical type, by its family.
_ADMISSIONS: dict[str, Callable[[pa.Array, str], None]] = {
    UUID: _admit_uuids,
    INTERVAL: lambda texts, _logical: admit_intervals(texts),
    MAP: lambda texts, _logical: admit_maps(texts),
    STRUCT: admit_structs,
    RANGE: admit_structs,
    **dict.fromkeys(ARRAYS, _admit_arrays),
}


def text_reader(logical: str | None, *, trusted: bool) -> Callable[[str], str]:
    """Return what takes one such text and raises ValueError at another."""
    if logical is None:
        return str
    if logical == UUID:
        return _uuid
    if logical == JSON:
        return _json_trusted if trusted else _json
    return partial(_by_column, logical=logical)


def _by_column(text: str, logical: str) -> str:
    admit_texts(pa.array([text]), logical, trusted=False)
    return text


def is_uuid(text: str) -> bool:
    """Return whether a text is a UUID as it is written by PostgreSQL and by the mirrors."""
    return _UUID_WHOLE.fullmatch(text) is not None


def _uuid(text: str) -> str:
    if not is_uuid(text):
        raise ValueError
    return text


def _json(text: str) -> str:
    if not _is_json(text):
        raise ValueError
    return text


def _json_trusted(text: str) -> str:
    if _LONE.search(text) and not _has_whole_characters(text):
        raise ValueError
    return text


def _is_json(text: str) -> bool:
    try:
        # A number is not converted: one of many digits is JSON as well.
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return _has_whole_characters(text)


def _refuse(_name: str) -> object:
    raise ValueError


def _has_whole_characters(text: str) -> bool:
    """Return whether no escape in it is half of a pair; PostgreSQL's json allows that."""
    escaped = text.replace(_BACKSLASH, "")
    return _LONE.search(_PAIR.sub("", escaped)) is None
