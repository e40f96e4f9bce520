"""What is done to a mirror's table for a schema change that needs no copy.

The cycle that follows does it, in the transaction in which it applies what was changed since. So
a reader sees no state that the source never had.
"""

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType

import pyarrow as pa

from rhei_pipeline.capabilities import kept_columns, reads_wider
from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.blame import Blame
from rhei_pipeline.model.kept_columns import KeptColumns
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.schema import NOTHING_RENAMED, Column, FormerNames, Mode, Table
from rhei_pipeline.protocols import (
    ChangeSource,
    Mirror,
    MirrorRecords,
    SourcePositions,
    TableAdministration,
)
from rhei_pipeline.sql.text import mirror_table
from rhei_pipeline.sync.added_columns import AddedValues, find_added, is_followed, stands_as

_INTEGERS = (pa.int16(), pa.int32(), pa.int64())


@dataclass(frozen=True, slots=True)
class Alteration:
    """What a mirror's table needs to have the columns that its source has now.

    Attributes:
        added: Its new columns, each with what rows have in it that stood before; without one, it
            only has fewer, or wider ones, or such of other names.
        former: The names that columns had which were renamed.
        read: The columns whose values are read again, in all rows.
        meets_all: Each row of the mirror is to be met by then. Else it may be one whose deletion
            no change tells, which keeps what is known of it.
        rows_read: In how many that was, once it was done.
        is_read_as_it_was: What was written before is to be read with the columns that it had: a
            history has values that its table lacks by now.
    """

    added: AddedValues = field(default_factory=lambda: MappingProxyType({}))
    former: FormerNames = field(default_factory=lambda: NOTHING_RENAMED)
    read: frozenset[str] = frozenset()
    meets_all: bool = True
    rows_read: list[int] = field(default_factory=list, compare=False)
    is_read_as_it_was: bool = False


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
    known = None if known is None else replace(known, dropped=table.dropped)
    added = find_added(table, known, source, snapshot, mirror, ledger)
    if added is not None:
        return Alteration(added)
    if known is None or not _may_be_followed(known, table):
        return None
    if not is_followed(table, snapshot, mirror, ledger):
        return None
    kept = kept_columns(source, table, known.schema, ledger.watermarks[table.name].position)
    if kept is None or not _is_kept(known, table, kept):
        return None
    news = [name for name in table.schema.names if name not in kept.former]
    altered = Alteration(
        {name: pa.scalar(None, table.schema.arrow.field(name).type) for name in news},
        former=kept.renamed,
        read=kept.unknown,
        meets_all=kept.tells_deletions,
        is_read_as_it_was=len(kept.former) < len(known.schema.names),
    )
    return altered if _can_be_altered(known, table, altered, mirror) else None


def find_widened(
    tables: Iterable[Table], source: ChangeSource, mirror: Mirror, ledger: Ledger, blame: Blame
) -> set[str]:
    """Return the histories that nothing has to be read of in the shape that they had.

    `tables`: As they were mirrored last. `blame` is left with the one at which an error came up.
    """
    found = set()
    with source.snapshot() as snapshot:
        for known in tables:
            with blame.of(known.name), suppress(SchemaError):  # it may be gone
                now = source.describe(known.name)
                table = Table(
                    replace(now, mirror_name=known.schema.mirror_name), known.mode, known.dropped
                )
                altered = find_alteration(table, known, source, snapshot, mirror, ledger)
                if altered is None or altered.is_read_as_it_was:
                    continue
                if not altered.added or reads_wider(source):
                    found.add(known.name)
    return found


def _may_be_followed(known: Table, table: Table) -> bool:
    """Return whether nothing but a table's columns may be others."""
    before, after = known.schema, table.schema
    alike = replace(before, columns=after.columns, primary_key=after.primary_key) == after
    alike = alike and before.mirror_relation == after.mirror_relation and known.mode is table.mode
    return alike and before != after


def _is_kept(known: Table, table: Table, kept: KeptColumns) -> bool:
    """Return whether a table has the columns that it had, in their order, and its key.

    Others may be gone; or come behind them, where none is gone or called otherwise. What is to be
    read is less than all.
    """
    before, after, former = known.schema, table.schema, kept.former
    own = [column for column in after.columns if column.name in former]
    left = [column for column in before.columns if column.name in {*former.values()}]
    has_news = len(own) < len(after.columns)
    is_whole = len(left) == len(before.columns) and not kept.renamed
    return (
        [column.name for column in left] == [former[column.name] for column in own]
        and [*after.columns[: len(own)]] == own
        and (is_whole or not has_news)
        and tuple(former.get(name) for name in after.primary_key) == before.primary_key
        and kept.unknown.isdisjoint(after.primary_key)
        and (not kept.unknown or len(kept.unknown) < len(after.value_columns))
        and all(
            _holds_the_same(old, new) or (new.name in kept.unknown and _reads_as(old, new))
            for old, new in zip(left, own, strict=True)
        )
    )


def _can_be_altered(known: Table, table: Table, altered: Alteration, mirror: MirrorRecords) -> bool:
    """Return whether the mirror has the table as it was, or, after a sync that was cut off, is."""
    former, found = altered.former, mirror.tables().get(mirror_table(known.schema))
    if not former or found is None:
        return stands_as(known, table, mirror) or stands_as(table, table, mirror)
    if altered.is_read_as_it_was and table.mode is Mode.TEMPORAL:
        return False  # what its log has in either shape is read with the names of one of them
    gone = {*former.values()} - {*table.schema.names}
    if gone.isdisjoint(found.schema.names):
        return stands_as(table, table, mirror)
    others = {name.lower() for name in found.schema.names if name not in gone}
    return stands_as(known, known, mirror) and not any(name.lower() in others for name in former)


def _holds_the_same(old: Column, new: Column) -> bool:
    """Return whether a mirror can keep a column's values as they are."""
    return _is_alike(old, new) and (old.type.equals(new.type) or _is_wider(old.type, new.type))


def _is_alike(old: Column, new: Column) -> bool:
    """Return whether nothing but the name, the type and nulls of a column are others."""
    told = replace(new, name=old.name, type=old.type, nullable=old.nullable, mark=old.mark)
    return told == old and old.logical == new.logical


def _is_wider(old: pa.DataType, new: pa.DataType) -> bool:
    are_decimals = pa.types.is_decimal(old) and pa.types.is_decimal(new)
    return bool(are_decimals and old.scale == new.scale and old.precision <= new.precision)


def _reads_as(old: Column, new: Column) -> bool:
    """Return whether what was written in a column's old type is the same in its new one."""
    was, now = old.type, new.type
    if not _is_alike(old, new):
        return False
    if was in _INTEGERS and now in _INTEGERS:
        return _INTEGERS.index(was) <= _INTEGERS.index(now)
    if pa.types.is_decimal(was) and pa.types.is_decimal(now):
        whole = (was.precision - was.scale, now.precision - now.scale)
        return bool(whole[0] <= whole[1] and was.scale <= now.scale)
    if was.equals(pa.date32()) and now.equals(pa.timestamp("us")):
        return True  # a date's text is midnight's
    return bool(was.equals(pa.float32()) and now.equals(pa.float64()))


def alter(
    table: Table, alteration: Alteration, transaction: TableAdministration, at: datetime
) -> None:
    """Alter a mirror's table."""
    if alteration.added:
        transaction.add_columns(table, alteration.added)
    if alteration.read or not alteration.added:
        transaction.reshape(table, at, alteration.former)


def altered_of(tables: Collection[Table], altered: Mapping[str, Alteration]) -> list[Table]:
    """Return the tables that are to be altered."""
    return [table for table in tables if table.name in altered]
