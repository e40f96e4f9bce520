"""Maps of texts as PostgreSQL writes an `hstore`, `"a"=>"1", "b"=>NULL`, and as Arrow's maps.

Source: postgresql.org/docs/18/hstore.html, External Representation.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

#: NUL is in no text of PostgreSQL; here it marks what was escaped.
_QUOTED = r'"(?:[^"\\\x00]|\\["\\])*"'
_PAIR = f"{_QUOTED}=>(?:NULL|{_QUOTED})"
MAP_FORM = f"(?:{_PAIR}(?:, {_PAIR})*)?"
MAP_TYPE = pa.map_(pa.string(), pa.string())
_ARROW, _NULL = "=>", "=>NULL"
#: What is escaped, the mark of it between quotes, and what it is.
_ESCAPES = ((r"\\", "\0b", "\\"), (r"\"", "\0q", '"'))


def admit_maps(texts: pa.Array) -> None:
    """Find that texts are all maps.

    Raises:
        pyarrow.ArrowInvalid: One is not, or has a key twice.
    """
    if pc.all(pc.match_substring_regex(texts, f"^(?:{MAP_FORM})$")).as_py() is False:
        raise pa.ArrowInvalid
    maps = maps_of(texts)
    rows = np.repeat(np.arange(len(maps)), np.diff(maps.offsets))
    pairs = pa.table({"row": rows, "key": maps.keys})
    if pairs.group_by(["row", "key"]).aggregate([]).num_rows < len(pairs):
        raise pa.ArrowInvalid


def maps_of(texts: pa.Array) -> pa.MapArray:
    """Return the maps that texts of `MAP_FORM` are: they are cut at all quotes at once."""
    for escaped, mark, _ in _ESCAPES:
        texts = pc.replace_substring(texts, escaped, mark)
    split = pc.fill_null(pc.split_pattern(texts.cast(pa.string()), '"'), [])
    parts, begins = split.flatten(), np.asarray(split.offsets) - split.offsets[0].as_py()
    # In each text, what is between quotes has an odd place, and what parts it an even one.
    places = np.arange(len(parts)) - np.repeat(begins[:-1], np.diff(begins))
    behind = parts.take(pa.array(np.minimum(np.arange(len(parts)) + 1, max(len(parts) - 1, 0))))
    is_key = (places % 2 == 1) & _flags(pc.starts_with(behind, _ARROW))
    keys = np.flatnonzero(is_key)
    is_null = _flags(pc.starts_with(behind, _NULL))[keys]
    values = pa.array(np.where(is_null, 0, keys + 2), mask=is_null)
    counts = np.concatenate([[0], np.cumsum(is_key)])[begins].astype(np.int32)
    offsets = pa.array(counts, mask=np.append(_flags(texts.is_null()), False))
    found = _plain(parts.take(pa.array(keys))), _plain(parts.take(values))
    return pa.MapArray.from_arrays(offsets, *found)


def map_texts_of(maps: pa.MapArray) -> pa.Array:
    """Return maps as PostgreSQL writes them."""
    keys, items = _quoted(_within(maps, maps.keys)), _quoted(_within(maps, maps.items))
    pairs = pc.binary_join_element_wise(keys, pc.fill_null(items, "NULL"), _ARROW)
    counts = np.diff(maps.offsets)
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(ends), pairs), ", ")
    return pc.if_else(maps.is_valid(), joined, pa.scalar(None, pa.string()))


def _within(maps: pa.MapArray, of_all: pa.Array) -> pa.Array:
    """Return the keys or items of a part of an array; pyarrow gives those of the whole."""
    first, last = maps.offsets[0].as_py(), maps.offsets[-1].as_py()
    return of_all.slice(first, last - first)


def _flags(found: pa.Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.asarray(found.to_numpy(zero_copy_only=False), dtype=bool)


def _plain(parts: pa.Array) -> pa.Array:
    for _, mark, meant in _ESCAPES[::-1]:
        parts = pc.replace_substring(parts, mark, meant)
    return parts


def _quoted(texts: pa.Array) -> pa.Array:
    escaped = pc.replace_substring_regex(texts.cast(pa.string()), r'([\\"])', r"\\\1")
    return pc.binary_join_element_wise('"', escaped, '"', "")
