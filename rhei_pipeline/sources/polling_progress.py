"""A small file with the mirror's progress, which a polling reader writes for other processes.

Nothing can be written to the source, and the mirror's file is held by one process. Nothing relies
on it: a file that is gone, old or of a newer format makes a sync begin that finds nothing to do.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from rhei_pipeline.capabilities import rescan_due
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.progress import changed_positions
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.model.stored_format import UNNUMBERED
from rhei_pipeline.protocols import ChangeSource, Rescan, SourceSnapshot

_log = logging.getLogger(__name__)

#: What this version writes. In the first format, which had no number, there were positions alone.
FORMAT = 2


class Notes:
    """The file, as the one polling reader writes it; without a path nothing is stored."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._noted: dict[str, Position] = {}
        self._is_unwritten = False

    def write(self, positions: Mapping[str, Position]) -> None:
        """Record how far tables have come; other tables keep their entries.

        Where it cannot be written that is logged once, and the next call tries again.
        """
        if self._path is None or not changed_positions(positions, self._noted):
            return
        noted, was_unwritten = {**self._noted, **positions}, self._is_unwritten
        self._is_unwritten = True
        try:
            _write(self._path, noted)
        except OSError as error:
            if not was_unwritten:
                _log.error(
                    "progress %r cannot be written: %s; the rows are in the mirror, and every sync"
                    " tries again: give this user write access there, or correct registry.path",
                    str(self._path),
                    error.strerror or error,
                )
            return
        self._noted, self._is_unwritten = noted, False

    def forget(self) -> None:
        """Delete the file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _write(path: Path, noted: Mapping[str, Position]) -> None:
    positions_by_table = {name: [at.order, at.proof] for name, at in noted.items()}
    form = {"format": FORMAT, "positions": positions_by_table}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(form), "utf-8")
    beside.replace(path)


def unseen(source: ChangeSource, tables: Mapping[str, Mode], notes: Path) -> int | None:
    """Count the changes that a mirror lacks, by its file; None if there is no file."""
    positions = _read(notes)
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


def _read(path: Path) -> dict[str, Position]:
    try:
        form = json.loads(path.read_text("utf-8"))
        # A table may be named "format": its value is a list.
        written = form["format"] if isinstance(form.get("format"), int) else UNNUMBERED
        if written > FORMAT:
            return {}
        positions = form if written == UNNUMBERED else form["positions"]
        return {name: Position(order, proof) for name, (order, proof) in positions.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
