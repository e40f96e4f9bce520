"""Which tables a cycle has something to do for."""

from collections.abc import Collection, Iterable

from rhei_pipeline.capabilities import is_retained_for, rescan_due
from rhei_pipeline.model.blame import Blame
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import Rescan, SourcePositions


def _all_proved(
    tables: Iterable[Table], snapshot: SourcePositions, ledger: Ledger, blame: Blame
) -> bool:
    """Return whether the source still has all that these tables need."""
    for table in tables:
        name = table.name
        place = ledger.needed_from(name)
        with blame.of(name):
            if place is not None and not snapshot.proves(table, place):
                return False
    return True


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
    tables: Collection[Table], snapshot: SourcePositions, ledger: Ledger, blame: Blame
) -> tuple[list[Table], list[Table]] | None:
    """Return the tables with something to do, and those that only follow the head.

    None: the source has no longer all that they need. What is pending of a table may tell so.
    """
    if not _all_proved(tables, snapshot, ledger, blame):
        return None
    due, behind = _due_and_behind(tables, snapshot, ledger, blame)
    return (due, behind) if _all_proved(due, snapshot, ledger, blame) else None


def _due_and_behind(
    tables: Iterable[Table], snapshot: SourcePositions, ledger: Ledger, blame: Blame
) -> tuple[list[Table], list[Table]]:
    due: list[Table] = []
    behind: list[Table] = []
    for table in tables:
        name = table.name
        if name in ledger.copies:
            if ledger.copies[name].complete:
                due.append(table)
        elif (mark := ledger.watermarks.get(name)) is not None:
            with blame.of(name):
                if _has_work(table, snapshot, mark.position):
                    due.append(table)
                else:
                    behind.append(table)
    return due, behind


def _has_work(table: Table, snapshot: SourcePositions, after: Position) -> bool:
    return (
        snapshot.pending(table, after) > 0
        or is_retained_for(snapshot, after)
        or rescan_due(snapshot, table, after) is not Rescan.NONE
    )
