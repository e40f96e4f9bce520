"""Reads single columns of a table again, which may have values that no change tells of."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.changes.compaction import key_codes
from rhei_pipeline.changes.made_events import as_events
from rhei_pipeline.changes.scd2 import repeated
from rhei_pipeline.errors import SourceBusyError
from rhei_pipeline.model.changes import NetChanges, RowBatch
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import MirrorTransaction, SourceSnapshot
from rhei_pipeline.sync.alterations import Alteration

#: So many rows are compared at once.
ROWS = 50_000


def read_columns(
    table: Table, alteration: Alteration, snapshot: SourceSnapshot, transaction: MirrorTransaction
) -> Iterator[tuple[RowBatch, NetChanges]]:
    """Yield what is read, and what of it leads from the mirror to the snapshot.

    The mirror has been brought to the snapshot in all other columns. A value that does not fit is
    a dead letter, and the mirror keeps what it has.

    Raises:
        SourceBusyError: Rows of the mirror were not met: the table was written again meanwhile.
    """
    own = {*table.schema.primary_key, *alteration.read}
    columns = tuple(column for column in table.schema.columns if column.name in own)
    narrow = replace(table, schema=replace(table.schema, columns=columns))
    resume, met = None, 0
    while batch := snapshot.rows(narrow, resume, ROWS):
        transaction.quarantine(batch.rejected)
        held = transaction.present_rows(narrow, batch.rows.select(list(table.schema.primary_key)))
        met += held.num_rows + len({letter.key for letter in batch.rejected})
        events = as_events(narrow.schema, batch.rows, snapshot.clock, live=True)
        others = held.filter(pc.invert(repeated(held, events, narrow.schema)))
        yield batch, _with_values(table, others, batch.rows, transaction)
        resume = batch.resume
    if alteration.meets_all and met < transaction.count(table):
        raise SourceBusyError(
            f"table {table.name!r} was written again while it was read", hint="it is tried again"
        )


def _with_values(
    table: Table, others: pa.Table, read: pa.Table, transaction: MirrorTransaction
) -> NetChanges:
    """Return the mirror's rows of some keys with the values that were read."""
    key = list(table.schema.primary_key)
    whole = transaction.present_rows(table, others.select(key))
    place = pa.array(_places(whole.select(key), read.select(key)))
    for name in read.column_names:
        if name not in key:
            column = whole.schema.get_field_index(name)
            whole = whole.set_column(column, whole.schema.field(name), read[name].take(place))
    return NetChanges(whole, table.schema.arrow_key.empty_table())


def _places(keys: pa.Table, among: pa.Table) -> np.ndarray:
    """Return where each key stands among others, which have all of them."""
    codes = key_codes(pa.concat_tables([keys, among]))
    own, others = codes[: keys.num_rows], codes[keys.num_rows :]
    order = np.argsort(others)
    found: np.ndarray = order[np.searchsorted(others[order], own)]
    return found
