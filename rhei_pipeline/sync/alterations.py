"""What is done to a mirror's table for a schema change that needs no copy.

The cycle that follows does it, in the transaction in which it applies what was changed since. So
a reader sees no state that the source never had.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType

from rhei_pipeline.capabilities import former_names, rescan_due
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import (
    ChangeSource,
    MirrorRecords,
    Rescan,
    SourcePositions,
    TableAdministration,
)
from rhei_pipeline.sync.added_columns import AddedValues, find_added, stands_as


@dataclass(frozen=True, slots=True)
class Alteration:
    """What a mirror's table needs to have the columns that its source has now.

    Attributes:
        added: Its new columns, each with what rows have in it that stood before; without one, it
            only has fewer.
    """

    added: AddedValues = field(default_factory=lambda: MappingProxyType({}))


#: No table is altered.
NOTHING_ALTERED: Mapping[str, Alteration] = MappingProxyType({})


def find_alteration(
    table: Table,
    known: Table | None,
    source: ChangeSource,
    snapshot: SourcePositions,
    mirror: MirrorRecords,
    ledger: Ledger,
) -> Alteration | None:
    """Return how to alter a table whose changes are proved; None: it is to be copied.

    `known`: The table as it was mirrored last.
    """
    added = find_added(table, known, source, snapshot, mirror, ledger)
    if added is not None:
        return Alteration(added)
    if known is None or not _has_only_less(known, table):
        return None
    # A sync that was cut off may have left it with its new shape.
    if not stands_as(known, table, mirror) and not stands_as(table, table, mirror):
        return None
    if rescan_due(snapshot, table, ledger.watermarks[table.name].position) is not Rescan.NONE:
        return None
    # A row may not have fitted for the column that is gone.
    if mirror.dead_letters(table.name).num_rows:
        return None
    return Alteration() if former_names(source, table, known.schema) is not None else None


def _has_only_less(known: Table, table: Table) -> bool:
    """Return whether a table is as it was, without some of its columns."""
    before, after = known.schema, table.schema
    left = tuple(column for column in before.columns if column.name in after.names)
    same = replace(before, columns=left) == after
    same = same and before.mirror_relation == after.mirror_relation and known.mode is table.mode
    return same and left != before.columns


def alter(
    table: Table, alteration: Alteration, transaction: TableAdministration, at: datetime
) -> None:
    """Alter a mirror's table."""
    if alteration.added:
        transaction.add_columns(table, alteration.added)
    else:
        transaction.reshape(table, at)


def altered_of(tables: Collection[Table], altered: Mapping[str, Alteration]) -> list[Table]:
    """Return the tables that are to be altered."""
    return [table for table in tables if table.name in altered]
