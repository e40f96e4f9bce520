"""Rows and versions in a write buffer: merged, appended, ended, and found by their keys."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.changes.compaction import key_codes
from rhei_pipeline.changes.scd2 import DELETED, FLOOR, LOCATOR, REPEATED, repeated
from rhei_pipeline.mirrors.datafusion.constants import conform
from rhei_pipeline.mirrors.datafusion.digests import Words, key_hashes, left_digests, table_digests
from rhei_pipeline.mirrors.datafusion.left_columns import kept_fields, with_kept
from rhei_pipeline.mirrors.datafusion.version_ends import VersionEnds
from rhei_pipeline.mirrors.datafusion.write_buffer import Found, WriteBuffer
from rhei_pipeline.model.changes import SEQUENCE, Counts, NetChanges
from rhei_pipeline.model.progress import AsOf
from rhei_pipeline.model.schema import VALID_FROM, VALID_TO, Table
from rhei_pipeline.model.selection import chosen, each_once, taken
from rhei_pipeline.model.type_names import INSTANT


def merge(buffer: WriteBuffer, table: Table, changes: NetChanges) -> Counts:
    """Compare with the digests of the present rows; remove and append what really changed."""
    key, upserts, count = list(table.schema.primary_key), changes.upserts, changes.upserts.num_rows
    hashes, digests = key_hashes(upserts.select(key)), table_digests(upserts, table.schema)
    # One search for both: each looks into every segment.
    met = buffer.find(hashes.and_those(key_hashes(changes.tombstones.select(key))))
    stays = met.key_numbers < count
    parts = met.key_numbers, met.places, met.digests_or_ends
    found, ended = Found(*(part[stays] for part in parts)), met.places[~stays]
    same = found.digests_or_ends == digests[found.key_numbers]
    if kept_fields(buffer.schema, table):  # which some digests cover
        events = upserts.append_column(SEQUENCE, pa.array(np.arange(count)))
        same = _are_alike(buffer, table, events, found, digests)
    changed = np.ones(count, dtype=bool)
    changed[found.key_numbers[same]] = False
    buffer.remove(np.concatenate([found.places[~same], ended]))
    rows = chosen(with_kept(upserts, buffer, table, found.key_numbers, found.places), changed)
    buffer.append(rows, hashes.take(changed), digests[changed] + left_digests(rows, table))
    return Counts(count - len(found.key_numbers), int((~same).sum()), len(ended))


def append_rows(buffer: WriteBuffer, table: Table, rows: pa.Table) -> None:
    """Append rows with their hashes and digests."""
    hashes = key_hashes(rows.select(list(table.schema.primary_key)))
    buffer.append(rows, hashes, table_digests(rows, table.schema) + left_digests(rows, table))


def open_versions(buffer: WriteBuffer, table: Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the open versions of the touched keys, and the last end of keys without one."""
    own = list(table.schema.primary_key)
    ordered = taken(events, pc.sort_indices(events[SEQUENCE]).to_numpy())
    firsts = taken(ordered, _first_of_each(ordered, table))
    distinct = firsts.select(own)
    sought = key_hashes(distinct)
    found = buffer.find(sought)
    opened = distinct.take(pa.array(found.key_numbers))
    since = buffer.take(found.places, [VALID_FROM])[VALID_FROM]
    opened = opened.append_column(VALID_FROM, since)
    opened = opened.append_column(LOCATOR, pa.array(found.places))
    opened = opened.append_column(REPEATED, _repeated(buffer, table, firsts, found))
    is_pastless = np.ones(distinct.num_rows, dtype=bool)
    is_pastless[found.key_numbers] = False
    pastless = np.flatnonzero(is_pastless)
    past = buffer.find(sought.take(pastless), past=True)
    floors = np.full(len(pastless), np.iinfo(np.int64).min)
    np.maximum.at(floors, past.key_numbers, past.digests_or_ends.view(np.int64))
    having = each_once(past.key_numbers)
    named = distinct.take(pa.array(pastless[having]))
    return opened, named.append_column(FLOOR, pa.array(floors[having]).cast(INSTANT))


def _first_of_each(events: pa.Table, table: Table) -> np.ndarray:
    """Return where the first event of each key stands, of events in their order."""
    codes = key_codes(events.select(list(table.schema.primary_key)))
    first: np.ndarray = np.unique(codes, return_index=True)[1]
    return first


def _repeated(buffer: WriteBuffer, table: Table, firsts: pa.Table, found: Found) -> pa.Array:
    """Return, for each open version, whether its key's first event has an equal digest.

    Its row is read only if its digest covers other columns than the present ones.
    """
    digests = table_digests(firsts, table.schema)
    return pa.array(_are_alike(buffer, table, firsts, found, digests))


def _are_alike(
    buffer: WriteBuffer, table: Table, events: pa.Table, found: Found, digests: Words
) -> npt.NDArray[np.bool_]:
    """Return which rows that were found are those of the events, of which these are the digests."""
    same: npt.NDArray[np.bool_] = found.digests_or_ends == digests[found.key_numbers]
    unsure = np.flatnonzero(~buffer.digests_hold(found.places, table.schema.columns))
    if len(unsure):
        held = conform(buffer.take(found.places[unsure], table.schema.names), table.schema.arrow)
        same[unsure] = repeated(held, events, table.schema).to_numpy(zero_copy_only=False)
    return same


def close_versions(buffer: WriteBuffer, table: Table, closings: pa.Table) -> None:
    """End versions by their places."""
    places, deleted = closings[LOCATOR].to_numpy(), closings[DELETED].to_numpy()
    ends = closings[VALID_TO].cast(pa.int64()).to_numpy()
    left = np.flatnonzero(~buffer.end(places, ends, deleted))
    if len(left):
        # Opened by this transaction, and not yet written: moved instead.
        version_ends = VersionEnds(np.arange(len(left), dtype=np.uint32), ends[left], deleted[left])
        rows = version_ends.written_into(buffer.take(places[left], buffer.schema.names))
        buffer.remove(places[left])
        append_versions(buffer, table, rows, True)  # noqa: FBT003


def end_overlapping(buffer: WriteBuffer, table: Table, places: np.ndarray, keys: np.ndarray) -> int:
    """End each of a key's open versions where the next one begins; return how many ended."""
    since = buffer.take(places, [VALID_FROM])[VALID_FROM].cast(pa.int64()).to_numpy()
    order = np.lexsort((since, keys))
    ends = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if len(ends):
        closings = {
            LOCATOR: pa.array(places[order][ends]),
            VALID_TO: pa.array(since[order][ends + 1]).cast(INSTANT),
            DELETED: pa.array(np.zeros(len(ends), dtype=bool)),
        }
        close_versions(buffer, table, pa.table(closings))
    return len(ends)


def append_versions(buffer: WriteBuffer, table: Table, rows: pa.Table, past: bool) -> None:  # noqa: FBT001
    """Append versions, open ones or those that ended."""
    hashes = key_hashes(rows.select(list(table.schema.primary_key)))
    if past:
        digests_or_ends = rows[VALID_TO].cast(pa.int64()).to_numpy().view(np.uint64)
    else:
        digests_or_ends = table_digests(rows, table.schema) + left_digests(rows, table)
    buffer.append(rows, hashes, digests_or_ends, past=past)


def all_keys(buffer: WriteBuffer, table: Table) -> pa.Table:
    """Return the keys of all current rows."""
    parts = [keys for keys, _ in buffer.scan(table.schema.primary_key)]
    return pa.concat_tables([table.schema.arrow_key.empty_table(), *parts])


def rows_of(buffer: WriteBuffer, table: Table, keys: pa.Table) -> pa.Table:
    """Return the current rows of those keys."""
    key = list(table.schema.primary_key)
    found = buffer.find(key_hashes(keys.select(key)))
    return conform(buffer.take(each_once(found.places), table.schema.names), table.schema.arrow)


def rows_as_of(buffer: WriteBuffer, then: AsOf) -> pa.Table:
    """Return the rows that were valid at an instant."""
    names = list(then.columns)
    found = [pa.schema([buffer.schema.field(name) for name in names]).empty_table()]
    at = pa.scalar(then.instant, INSTANT)
    for past in (False, True):
        for rows, _ in buffer.scan([*names, VALID_FROM, VALID_TO], past=past):
            still = pc.fill_null(pc.greater(rows[VALID_TO], at), fill_value=True)
            alive = pc.and_(pc.less_equal(rows[VALID_FROM], at), still)
            found.append(rows.filter(alive).select(names))
    return pa.concat_tables(found)
