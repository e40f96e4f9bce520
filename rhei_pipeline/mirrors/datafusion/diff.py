"""Finds the differences of two tables by digests, without holding all rows."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from rhei_pipeline.mirrors.datafusion.digests import KeyHashes, key_hashes, table_digests
from rhei_pipeline.mirrors.datafusion.key_index import Numbers
from rhei_pipeline.mirrors.datafusion.write_buffer import WriteBuffer
from rhei_pipeline.mirrors.met_rows import Differences, MetRows, gathered
from rhei_pipeline.model.changes import Comparison, NetChanges
from rhei_pipeline.model.key_span import KeySpan
from rhei_pipeline.model.portions import PORTION_BYTES
from rhei_pipeline.model.schema import Table, TableSchema


def _differing(standing: WriteBuffer, copy: WriteBuffer) -> tuple[Numbers, Numbers]:
    """Return the copy's positions that are new or differ, and the table's that are too many."""
    changed, extra = [_NONE], [_NONE]
    for hashes, digests, places in copy.entries():
        found = standing.find(hashes)
        same = found.digests_or_ends == digests[found.key_numbers]
        changed.append(np.delete(places, found.key_numbers[same]))
    for hashes, _, places in standing.entries():
        extra.append(np.delete(places, copy.find(hashes).key_numbers))
    return np.concatenate(changed), np.concatenate(extra)


def differences(
    standing: WriteBuffer, copy: WriteBuffer, schema: TableSchema, limit: int
) -> Iterator[NetChanges]:
    """Yield the changes from a table's present rows to its copy's.

    A batch has at most `limit` rows, and fewer where they have many bytes.
    """
    changed, extra = _differing(standing, copy)
    gone = standing.take(extra, schema.primary_key)
    bytes_before = np.cumsum(copy.sizes(changed))
    batch = np.arange(len(changed)) // limit + (bytes_before // PORTION_BYTES).astype(np.int64)
    batches = np.split(changed, np.flatnonzero(np.diff(batch)) + 1) if len(changed) else []
    for number in range(max(len(batches), -(-len(extra) // limit))):
        places = batches[number] if number < len(batches) else _NONE
        yield NetChanges(copy.take(places, schema.names), gone.slice(number * limit, limit))


def compare(
    buffer: WriteBuffer, table: Table, rows: Iterable[pa.Table], span: KeySpan | None
) -> Comparison:
    """Compare a table's present rows with its source's, portion by portion.

    The index only says where a row may stand: key and columns are read there and hashed again. A
    row that it hides is not met, and so is extra.
    """
    schema, met = table.schema, MetRows()
    key, found = list(schema.primary_key), Differences(schema.arrow_key)
    for part in gathered(rows):
        keys = part.select(key)
        hashes = key_hashes(keys)
        places, numbers, standing = _standing_rows(buffer, schema, hashes)
        met.add(places)
        unequal = table_digests(standing, schema) != table_digests(part, schema)[numbers]
        found.add(keys, numbers, numbers[unequal])
        del part, standing
    extra = [schema.arrow_key.empty_table()]
    if span is not None:
        extra += _not_met(buffer, key, met, span)
    return found.with_extra(pa.concat_tables(extra))


def _standing_rows(
    buffer: WriteBuffer, schema: TableSchema, hashes: KeyHashes
) -> tuple[Numbers, Numbers, pa.Table]:
    """Return where rows of these keys stand, the numbers of their keys, and the rows."""
    found = buffer.find(hashes)
    order = np.argsort(found.places)  # neighbours stand in one part of a file
    places, numbers = found.places[order], found.key_numbers[order]
    rows = buffer.take(places, schema.names)
    own, sought = key_hashes(rows.select(list(schema.primary_key))), hashes.take(numbers)
    same = (own.words == sought.words) & (own.checks == sought.checks)
    if same.all():
        return places, numbers, rows
    return places[same], numbers[same], rows.filter(pa.array(same))


def _not_met(
    buffer: WriteBuffer, key: list[str], met: MetRows, span: KeySpan
) -> Iterator[pa.Table]:
    """Yield the keys of a span's present rows that were not met."""
    if span.is_whole and buffer.count() == met.count:
        return
    for keys, places in buffer.scan(key):
        lacking = met.lacks(places)
        if lacking.any():
            left = keys.filter(pa.array(lacking))
            yield left.filter(span.holds(left))


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


_NONE = np.zeros(0, dtype=np.int64)
