"""What is done to a mirror's table for a schema change that needs no copy.

The cycle that follows does it, in the transaction in which it applies what was changed since. So
a reader sees no state that the source never had.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType

import pyarrow as pa

from rhei_pipeline.capabilities import former_names
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.schema import Column, Table
from rhei_pipeline.protocols import (
    ChangeSource,
    MirrorRecords,
    SourcePositions,
    TableAdministration,
)
from rhei_pipeline.sync.added_columns import AddedValues, find_added, is_followed, stands_as


@dataclass(frozen=True, slots=True)
class Alteration:
    """What a mirror's table needs to have the columns that its source has now.

    Attributes:
        added: Its new columns, each with what rows have in it that stood before; without one, it
            only has fewer, or wider ones.
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
    if known is None or not _has_no_more(known, table):
        return None
    # A sync that was cut off may have left it with its new shape.
    if not stands_as(known, table, mirror) and not stands_as(table, table, mirror):
        return None
    if not is_followed(table, snapshot, mirror, ledger):
        return None
    return Alteration() if former_names(source, table, known.schema) is not None else None


def _has_no_more(known: Table, table: Table) -> bool:
    """Return whether a table is as it was, with columns gone, or of a type that holds the same."""
    before, after = known.schema, table.schema
    left = tuple(column for column in before.columns if column.name in after.names)
    same = tuple(column.name for column in left) == after.names
    same = same and replace(before, columns=after.columns) == after
    same = same and before.mirror_relation == after.mirror_relation and known.mode is table.mode
    return same and before != after and all(map(_holds_the_same, left, after.columns))


def _holds_the_same(old: Column, new: Column) -> bool:
    """Return whether a mirror can keep a column's values as they are."""
    told = replace(new, type=old.type, nullable=old.nullable, mark=old.mark)
    is_alike = told == old and old.logical == new.logical
    return is_alike and (old.type.equals(new.type) or _is_wider(old.type, new.type))


def _is_wider(old: pa.DataType, new: pa.DataType) -> bool:
    are_decimals = pa.types.is_decimal(old) and pa.types.is_decimal(new)
    return bool(are_decimals and old.scale == new.scale and old.precision <= new.precision)


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
