"""Columns that were added in the source and need no copy: what old rows have in them is known.

The cycle that follows adds them to the mirror's table and fills them in, in the transaction in
which it applies what was changed since. So a reader sees no state that the source never had.
"""

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.capabilities import added_values, reads_wider, rescan_due
from rhei_pipeline.model.changes import LIVE, ChangeBatch
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.model.type_names import UUID
from rhei_pipeline.protocols import ChangeSource, MirrorRecords, Rescan, SourcePositions
from rhei_pipeline.sql.text import mirror_table

#: Added columns by name, each with what rows have in it that stood before; null is a value.
AddedValues = Mapping[str, pa.Scalar]


def find_added(
    table: Table,
    known: Table | None,
    source: ChangeSource,
    snapshot: SourcePositions,
    mirror: MirrorRecords,
    ledger: Ledger,
) -> AddedValues | None:
    """Return the columns to add to a table whose changes are proved; None: it is to be copied.

    `known`: The table as it was mirrored last.

    A history is copied for a default: its rows have other values from then on, which are versions.
    It needs a source that has kept the values that were written before anybody looked.
    """
    if known is None or not _is_only_added(known, table) or not stands_as(known, table, mirror):
        return None
    if table.mode is Mode.TEMPORAL and not reads_wider(source):
        return None
    if not is_followed(table, snapshot, mirror, ledger):
        return None
    found = added_values(source, table, known.schema, ledger.watermarks[table.name].position)
    return found if found is not None and _fits_mirrors(found, table) else None


def is_followed(
    table: Table, snapshot: SourcePositions, mirror: MirrorRecords, ledger: Ledger
) -> bool:
    """Return whether changes alone tell of every row: none is read again, and none did not fit.

    What a row that did not fit has in a column, or for which column it did not, is not known.
    """
    rescan = rescan_due(snapshot, table, ledger.watermarks[table.name].position)
    return rescan is Rescan.NONE and not mirror.quarantined(table)


def _fits_mirrors(values: AddedValues, table: Table) -> bool:
    """Return whether a mirror can be told the values; of JSON, arrays and histories only null."""
    read = {name for name, kind in table.schema.logical.items() if kind != UUID}
    read = {*values} if table.mode is Mode.TEMPORAL else read
    return not any(values[name].is_valid for name in read & values.keys())


def _is_only_added(known: Table, table: Table) -> bool:
    """Return whether a table is as it was, with other columns behind its own."""
    before, after = known.schema, table.schema
    widened = replace(before, columns=(*before.columns, *after.columns[len(before.columns) :]))
    same = widened == after and before.mirror_relation == after.mirror_relation
    return same and known.mode is table.mode and before != after


def stands_as(known: Table, table: Table, mirror: MirrorRecords) -> bool:
    """Return whether the mirror has the table with its key and columns, and not yet the new ones.

    It may have more, which its source has dropped.
    """
    found = mirror.tables().get(mirror_table(known.schema))
    if found is None or found.mode is not known.mode:
        return False
    if found.schema.primary_key != known.schema.primary_key:
        return False
    stands, wanted = _types(found), _types(known)
    added = {name.lower() for name in _types(table).keys() - wanted.keys()}
    is_free = not added & {name.lower() for name in stands}
    if known.mode is Mode.DESTRUCTIVE:
        own = {n: kind for n, kind in stands.items() if n in wanted or not table.keeps_dropped}
        return [*own.items()] == [*wanted.items()] and (is_free or len(own) == len(stands))
    return wanted.items() <= stands.items() and is_free


def _types(table: Table) -> Mapping[str, pa.DataType]:
    return {column.name: column.type for column in table.schema.columns}


def with_added(batch: ChangeBatch, added: AddedValues) -> ChangeBatch:
    """Fill in what rows have that were logged before the columns were added."""
    events = batch.events
    for name in batch.absent & added.keys():
        place = events.schema.get_field_index(name)
        nothing = pa.scalar(None, events.schema.field(place).type)
        filled = pc.if_else(events[LIVE], added[name], nothing)
        events = events.set_column(place, events.schema.field(place), filled)
    return replace(batch, events=events)
