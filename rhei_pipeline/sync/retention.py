"""Removes what a declaration does not keep of temporal tables' past."""

from collections.abc import Callable, Collection, Iterator
from datetime import datetime

from rhei_pipeline.capabilities import refuse_unless_expiring
from rhei_pipeline.model.retention import ExpiredHistory, HistoryBounds
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.protocols import ChangeSource, MirrorRecords
from rhei_pipeline.sql.text import mirror_table

#: Returns what is declared of a table's past, by the table's name.
BoundsOf = Callable[[str], HistoryBounds]


def expire(
    tables: Collection[Table],
    bounds_of: BoundsOf,
    source: ChangeSource,
    mirror: MirrorRecords,
    here: datetime,
) -> tuple[ExpiredHistory, ...]:
    """Remove versions that are older, or more, than is declared; return what went.

    Their age is told by the source's clock, which has dated them, and by this machine's: what only
    one of the two holds to be old stays, as a clock may have jumped ahead.

    Args:
        tables: Which.
        bounds_of: What is declared of each.
        source: Of which they are.
        mirror: What has their versions.
        here: This machine's time.

    Raises:
        SchemaError: The mirror cannot remove versions.
    """
    bounded = [
        (table, bounds)
        for table in _with_history(tables, mirror)
        if (bounds := bounds_of(table.name))
    ]
    if not bounded:
        return ()
    expiring = refuse_unless_expiring(mirror, bounded[0][0])
    with source.snapshot() as snapshot:
        now = min(snapshot.clock, here)
    return tuple(expiring.expire([bounds.of(table, now) for table, bounds in bounded]))


def _with_history(tables: Collection[Table], mirror: MirrorRecords) -> Iterator[Table]:
    """Yield the tables whose history is in the mirror; not while they are about to change key."""
    standing = mirror.tables() if any(table.mode is Mode.TEMPORAL for table in tables) else {}
    for table in tables:
        found = standing.get(mirror_table(table.schema))
        if found is None or Mode.DESTRUCTIVE in (table.mode, found.mode):
            continue
        if found.schema.primary_key == table.schema.primary_key:
            yield table
