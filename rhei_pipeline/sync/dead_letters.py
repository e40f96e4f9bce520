"""Rows that could not be mirrored: list them, and have them tried again."""

import json
from collections.abc import Mapping

import pyarrow as pa

from rhei_pipeline.sync.pipeline import Pipeline


def replay(letters: pa.Table, pipeline: Pipeline) -> int:
    """Mark the dead letters' rows to be read again by the next sync; return how many.

    A row that fits by now is applied and its letter resolved; one that does not stays one. Those of
    a table that is left out are left: nothing of it is read, and in one that is full of letters
    they would come again once these are dropped.
    """
    keys_by_table: dict[str, list[tuple[object, ...]]] = {}
    for letter in letters.to_pylist():
        key = tuple(map(_bound, json.loads(letter["key"]).values()))
        keys_by_table.setdefault(letter["table_name"], []).append(key)
    touched = {name: keys for name, keys in keys_by_table.items() if name not in pipeline.left_out}
    for name, keys in touched.items():
        pipeline.touch(name, keys)
    return sum(map(len, touched.values()))


def keys_by_column(letters: pa.Table) -> dict[tuple[str, str], list[tuple[object, ...]]]:
    """Return the keys of dead letters by table and column; a letter of no column is left out."""
    found: dict[tuple[str, str], list[tuple[object, ...]]] = {}
    for letter in letters.to_pylist():
        if letter["column_name"] is not None:
            key = tuple(map(_bound, json.loads(letter["key"]).values()))
            found.setdefault((letter["table_name"], letter["column_name"]), []).append(key)
    return found


def _bound(part: object) -> object:
    return bytes.fromhex(part["hex"]) if isinstance(part, Mapping) else part
