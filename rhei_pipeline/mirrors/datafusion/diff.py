"""Finds the differences of two tables by digests, without holding all rows."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from rhei_pipeline.mirrors.datafusion.digests import KeyHashes, key_hashes, table_digests
from rhei_pipeline.mirrors.datafusion.key_index import KeyIndex, Numbers
from rhei_pipeline.mirrors.datafusion.write_buffer import WriteBuffer
from rhei_pipeline.model.changes import Comparison
from rhei_pipeline.model.schema import Table, TableSchema


def differing(standing: WriteBuffer, copy: WriteBuffer) -> tuple[Numbers, Numbers]:
    """Return the copy's positions that are new or differ, and the table's that are too many."""
    changed, extra = [_NONE], [_NONE]
    for hashes, digests, places in copy.entries():
        found = standing.find(hashes)
        same = found.digests_or_ends == digests[found.key_numbers]
        changed.append(np.delete(places, found.key_numbers[same]))
    for hashes, _, places in standing.entries():
        extra.append(np.delete(places, copy.find(hashes).key_numbers))
    return np.concatenate(changed), np.concatenate(extra)


def compare(buffer: WriteBuffer, table: Table, rows: Iterable[pa.Table]) -> Comparison:
    """Compare a table's present rows, with new digests, with all rows of its source."""
    schema = table.schema
    index, places = _fresh_index(buffer, schema)
    seen = np.zeros(len(places), dtype=bool)
    missing, different = [schema.arrow_key.empty_table()], [schema.arrow_key.empty_table()]
    for part in rows:
        keys = part.select(list(schema.primary_key))
        key_numbers, entries = index.find(key_hashes(keys))
        seen[index.positions[entries]] = True
        unequal = index.digests_or_ends[entries] != table_digests(part, schema)[key_numbers]
        missing.append(keys.take(pa.array(np.delete(np.arange(keys.num_rows), key_numbers))))
        different.append(keys.take(pa.array(key_numbers[unequal])))
    extra = buffer.take(places[~seen], schema.primary_key)
    unequal_keys = pa.concat_tables(different)
    repeated, _ = repeats(index.hashes)
    duplicate = buffer.take(places[index.positions[repeated]], schema.primary_key)
    return Comparison(
        pa.concat_tables(missing), extra, _distinct(unequal_keys), _distinct(duplicate)
    )


def repeats(hashes: KeyHashes) -> tuple[Numbers, Numbers]:
    """Return which entries share their key with another one, key by key, and their keys' numbers.

    Shape: two arrays of one length; entries of one key are adjacent.
    """
    order = np.lexsort((hashes.checks, hashes.words))
    words, checks = hashes.words[order], hashes.checks[order]
    same = (words[1:] == words[:-1]) & (checks[1:] == checks[:-1])
    begins = np.concatenate([[True], ~same])[: len(order)]
    number = np.cumsum(begins) - 1
    met = np.bincount(number, minlength=1)[number] > 1 if len(order) else begins
    return order[met], number[met]


def present_repeats(buffer: WriteBuffer) -> tuple[Numbers, Numbers]:
    """Return the positions of present rows with a repeated key, key by key, and key numbers."""
    words, checks = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint32)]
    places = [_NONE]
    for hashes, _, where in buffer.entries():
        words.append(hashes.words)
        checks.append(hashes.checks)
        places.append(where)
    met, number = repeats(KeyHashes(np.concatenate(words), np.concatenate(checks)))
    return np.concatenate(places)[met], number


def _distinct(keys: pa.Table) -> pa.Table:
    return keys.group_by(keys.column_names).aggregate([])


def compare_digests(
    buffer: WriteBuffer, schema: TableSchema, parts: Iterable[pa.Table]
) -> tuple[list[int], pa.Table]:
    """Compare a table's present rows with all rows of its source by the index's digests."""
    seen, stale = [_NONE], []
    for number, part in enumerate(parts):
        found = buffer.find(key_hashes(part.select(list(schema.primary_key))))
        seen.append(found.places)
        equal = found.digests_or_ends == table_digests(part, schema)[found.key_numbers]
        if not equal.all() or len(found.key_numbers) < part.num_rows:
            stale.append(number)
    known = np.concatenate(seen)
    extra = [places[~np.isin(places, known)] for _, _, places in buffer.entries()]
    return stale, buffer.take(np.concatenate([_NONE, *extra]), schema.primary_key)


def _fresh_index(buffer: WriteBuffer, schema: TableSchema) -> tuple[KeyIndex, Numbers]:
    words, checks = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint32)]
    digests, places = [np.zeros(0, np.uint64)], [_NONE]
    for rows, where in buffer.scan(schema.names):
        hashes = key_hashes(rows.select(list(schema.primary_key)))
        words.append(hashes.words)
        checks.append(hashes.checks)
        digests.append(table_digests(rows, schema))
        places.append(where)
    merged = KeyHashes(np.concatenate(words), np.concatenate(checks))
    return KeyIndex.build(merged, np.concatenate(digests)), np.concatenate(places)


_NONE = np.zeros(0, dtype=np.int64)
