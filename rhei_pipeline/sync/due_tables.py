"""Which tables a cycle has something to do for."""

from collections.abc import Iterable

from rhei_pipeline.capabilities import is_retained_for, rescan_due
from rhei_pipeline.model.blame import Blame
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import Rescan, SourcePositions


def all_parted(
    tables: Iterable[Table], snapshot: SourcePositions, ledger: Ledger, blame: Blame
) -> bool:
    """Return whether a state of rows parts each table's changes into those before and behind it.

    A transaction may be in the log and not yet be seen: then the state is older than a mirror
    that has it, or sees what stands behind it.
    """
    for table in tables:
        mark = ledger.watermarks.get(table.name)
        with blame.of(table.name):
            head = snapshot.head(table)
            if mark is not None and head.order < mark.position.order:
                return False
            if snapshot.shares_log and snapshot.pending(table, head):
                return False
    return True


def find_due(
    tables: Iterable[Table], snapshot: SourcePositions, ledger: Ledger, blame: Blame
) -> tuple[list[Table], list[Table]] | None:
    """Return the tables with something to do, and those that only follow the head.

    None: the source has no longer all that they need. What is pending of a table may tell so.
    """
    due: list[Table] = []
    behind: list[Table] = []
    for table in tables:
        place = ledger.needed_from(table.name)
        if place is None:
            continue
        with blame.of(table.name):
            if not snapshot.proves(table, place):
                return None
            if _is_due(table, snapshot, ledger, place):
                if not snapshot.proves(table, place):
                    return None
                due.append(table)
            elif table.name not in ledger.copies:
                behind.append(table)
    return due, behind


def _is_due(table: Table, snapshot: SourcePositions, ledger: Ledger, place: Position) -> bool:
    copy = ledger.copies.get(table.name)
    return _has_work(table, snapshot, place) if copy is None else copy.complete


def _has_work(table: Table, snapshot: SourcePositions, after: Position) -> bool:
    return (
        snapshot.pending(table, after) > 0
        or is_retained_for(snapshot, after)
        or rescan_due(snapshot, table, after) is not Rescan.NONE
    )
