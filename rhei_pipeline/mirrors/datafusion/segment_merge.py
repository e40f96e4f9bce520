"""Chooses segments to merge and merges them, which keeps reads fast and disk usage low.

A cycle merges little and often: eight segments of about one size become one of the next size, up
to a fixed number of rows; fewer than eight, once they are an hour old. Larger segments, and those
with many deleted rows, are merged by maintenance.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhei_pipeline.errors import MirrorDamagedError
from rhei_pipeline.mirrors.datafusion.constants import conform, constant_digest
from rhei_pipeline.mirrors.datafusion.digests import KeyHashes, Words
from rhei_pipeline.mirrors.datafusion.key_index import KeyIndex
from rhei_pipeline.mirrors.datafusion.manifest import COPY_PREFIX, Segment, StoredTable
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore
from rhei_pipeline.model.upkeep import MaintenanceReport

#: So many segments of one size are merged into one of the next.
FAN = 8
#: Rows of the largest segment that a cycle makes: about a second's work, once in 64 cycles.
CYCLE_ROWS = 1_000_000
#: And its bytes: what is merged is in memory as a whole, some three times over.
CYCLE_BYTES = 128 * 2**20
#: Rows, and bytes, of the largest segment that maintenance makes; a change rewrites none of them.
SEGMENT_ROWS = 4_000_000
SEGMENT_BYTES = 512 * 2**20
#: A cycle rewrites one segment at most that has less than this share of its rows left: what is
#: gone is still read, and with half of it the aggregate after 100 syncs takes twice as long.
_KEPT_SHARE = 0.65
#: A cycle that has nothing else to fold takes segments that have stood for so long.
AGE = timedelta(hours=1)
#: Maintenance rewrites a segment that has lost this share of its rows.
GONE_SHARE = 0.1

Group = list[Segment]
_Rows = tuple[pa.Table, KeyHashes, Words]
#: Says of rows which of them stay.
Kept = Callable[[pa.Table], npt.NDArray[np.bool_]]


def due_in_a_cycle(
    segments: Sequence[Segment], now: datetime, limit: int = CYCLE_ROWS
) -> list[Group]:
    """Return groups of small segments to merge; none has more than `limit` rows."""
    worn = [[segment] for segment in _foldable(segments) if _is_worn(segment, limit)][:1]
    tiers: dict[tuple[bool, int], Group] = {}
    for segment in _foldable(segments):
        if [segment] in worn:
            continue
        size = int(np.log(max(segment.present_rows, 1)) / np.log(FAN))
        tiers.setdefault((segment.past, size), []).append(segment)
    full = [
        group
        for group in tiers.values()
        if len(group) >= FAN and _rows_of(group) <= limit and _bytes_of(group) <= CYCLE_BYTES
    ]
    return worn + full or _aged(segments, now, limit)


def folded(table: StoredTable, now: datetime, store: SegmentStore) -> StoredTable:
    """Merge what is due of a table that a transaction has written."""
    limit = SEGMENT_ROWS if table.relation.startswith(COPY_PREFIX) else CYCLE_ROWS
    return fold(table, due_in_a_cycle(table.segments, now, limit), store)


def _aged(segments: Sequence[Segment], now: datetime, limit: int) -> list[Group]:
    """Return old segments of one kind, none much larger than all before it together."""
    for past in (False, True):
        group: Group = []
        rows = 0
        for segment in sorted(_foldable(segments), key=lambda each: each.present_rows):
            written = segment.written_at
            if segment.past is not past or written is None or now - written < AGE:
                continue
            if rows + segment.present_rows > limit or (group and segment.present_rows > FAN * rows):
                break
            if _bytes_of([*group, segment]) > CYCLE_BYTES:
                break
            group.append(segment)
            rows += segment.present_rows
        if len(group) > 1:
            return [group]
    return []


def _is_worn(segment: Segment, limit: int) -> bool:
    return segment.present_rows < min(segment.rows, limit) * _KEPT_SHARE


def due_in_maintenance(
    segments: Sequence[Segment], is_outdated: Callable[[Segment], bool] = lambda _: False
) -> list[Group]:
    """Return groups to merge so that few segments are small and few rows are deleted.

    Segments in an outdated format are always rewritten.
    """
    groups: list[Group] = []
    for past in (False, True):
        chosen = [
            s for s in _foldable(segments) if s.past is past and (_is_worth_it(s) or is_outdated(s))
        ]
        groups += _packed(chosen)
    return [
        group for group in groups if len(group) > 1 or _has_holes(group[0]) or is_outdated(group[0])
    ]


def _foldable(segments: Iterable[Segment]) -> Iterator[Segment]:
    return (segment for segment in segments if not segment.tag)


def _is_worth_it(segment: Segment) -> bool:
    return segment.present_rows < SEGMENT_ROWS // 2 or _has_holes(segment)


def _has_holes(segment: Segment) -> bool:
    return segment.rows - segment.present_rows > segment.rows * GONE_SHARE


def _packed(segments: Sequence[Segment]) -> list[Group]:
    groups: list[Group] = []
    for segment in segments:
        joined = [*(groups[-1] if groups else ()), segment]
        if not groups or _rows_of(joined) > SEGMENT_ROWS or _bytes_of(joined) > SEGMENT_BYTES:
            groups.append([])
        groups[-1].append(segment)
    return groups


def _rows_of(group: Group) -> int:
    return sum(segment.present_rows for segment in group)


def _bytes_of(group: Group) -> int:
    return sum(segment.size_bytes for segment in group)


def fold(
    table: StoredTable,
    groups: Sequence[Group],
    store: SegmentStore,
    kept: Kept | None = None,
) -> StoredTable:
    """Write each group as one segment with the table's present schema, without deleted rows.

    Versions that have ended become a segment of their own. `kept` says which rows stay.
    """
    merged = {segment.name: number for number, group in enumerate(groups) for segment in group}
    made = [_fold_group(table.schema, group, store, kept) for group in groups]
    # A merged segment stands where the first of its group stood.
    first = {group[0].name: segments for group, segments in zip(groups, made, strict=True)}
    segments = [
        standing
        for segment in table.segments
        if segment.name not in merged or segment.name in first
        for standing in first.get(segment.name, [segment])
    ]
    return replace(table, segments=tuple(segments))


def maintained(
    tables: Mapping[str, StoredTable], store: SegmentStore, max_rows: int
) -> tuple[dict[str, StoredTable], MaintenanceReport]:
    """Check every file, then merge the segments that are due, up to about `max_rows` rows.

    A table with a damaged file is left as it is and named.
    """
    result, rows, done, damaged = dict(tables), 0, True, []
    for name, table in tables.items():
        chosen = []
        try:
            store.check_anew(store.table_files(table))
            for group in due_in_maintenance(table.segments, store.is_unchecked):
                if rows < max_rows:
                    chosen.append(group)
                    rows += sum(segment.present_rows for segment in group)
                else:
                    done = False
            result[name] = _retagged(fold(table, chosen, store) if chosen else table, store)
        except MirrorDamagedError as error:
            damaged.append(str(error))
    before, after = _sizes(tables.values()), _sizes(result.values())
    return result, MaintenanceReport(
        len(before),
        len(after),
        sum(before),
        sum(after),
        rows_written=rows,
        done=done,
        damaged=tuple(damaged),
    )


def _retagged(table: StoredTable, store: SegmentStore) -> StoredTable:
    """Rewrite segments of snapshots that are older than checksums."""
    if not any(segment.tag and store.is_unchecked(segment) for segment in table.segments):
        return table
    segments = [
        store.write(
            store.form.read(store.content(segment), segment.schema.names),
            None,
            past=segment.past,
            tag=segment.tag,
            constants=segment.constants,
        )
        if segment.tag and store.is_unchecked(segment)
        else segment
        for segment in table.segments
    ]
    return replace(table, segments=tuple(segments))


def _sizes(tables: Iterable[StoredTable]) -> list[int]:
    return [segment.size_bytes for table in tables for segment in table.segments]


def _fold_group(
    schema: pa.Schema, group: Group, store: SegmentStore, kept: Kept | None = None
) -> list[Segment]:
    standing = [_conformed(schema, segment, store) for segment in group if segment.present_rows]
    ended = [store.ended_rows(segment, schema) for segment in group if segment.ended]
    if kept is not None:
        standing, ended = _only(standing, kept), _only(ended, kept)
    return [
        _written(parts, store, past=past)
        for parts, past in ((standing, group[0].past), (ended, True))
        if parts
    ]


def _only(parts: Sequence[_Rows], kept: Kept) -> list[_Rows]:
    masked = ((part, kept(part[0])) for part in parts)
    return [
        (rows.filter(pa.array(mask)), hashes.take(mask), own[mask])
        for (rows, hashes, own), mask in masked
        if mask.any()
    ]


def _conformed(schema: pa.Schema, segment: Segment, store: SegmentStore) -> _Rows:
    rows, hashes, digests_or_ends = store.rows(segment)
    if not segment.past:
        digests_or_ends = digests_or_ends + constant_digest(segment.constants, schema)
    return conform(rows, schema, segment.constants), hashes, digests_or_ends


def _written(parts: Sequence[_Rows], store: SegmentStore, *, past: bool) -> Segment:
    words = np.concatenate([hashes.words for _, hashes, _ in parts])
    checks = np.concatenate([hashes.checks for _, hashes, _ in parts])
    digests_or_ends = np.concatenate([own for _, _, own in parts])
    index = KeyIndex.build(KeyHashes(words, checks), digests_or_ends)
    return store.write(pa.concat_tables([rows for rows, _, _ in parts]), index, past=past)
