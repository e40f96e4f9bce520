"""How far a source is ahead of the progress that a polling reader noted."""

from collections.abc import Mapping
from pathlib import Path

from rhei_pipeline.capabilities import rescan_due
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.protocols import ChangeSource, Rescan, SourceSnapshot
from rhei_pipeline.sources import progress_notes


def unseen(source: ChangeSource, tables: Mapping[str, Mode], notes: Path) -> int | None:
    """Count the changes that a mirror lacks, by its file; None if there is no file."""
    positions = progress_notes.read(notes)
    if not positions:
        return None
    described = [Table(source.describe(name), mode) for name, mode in tables.items()]
    with source.snapshot() as snapshot:
        return sum(_behind(snapshot, table, positions.get(table.name)) for table in described)


def _behind(snapshot: SourceSnapshot, table: Table, position: Position | None) -> int:
    if position is None or not snapshot.proves(table, position):
        return 1
    due = rescan_due(snapshot, table, position) is not Rescan.NONE
    return snapshot.pending(table, position) + int(due)
