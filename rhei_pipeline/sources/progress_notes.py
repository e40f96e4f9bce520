"""A small file with a reader's progress, for processes that do not open the mirror.

The mirror's file is held by one process, and not every source can be written to. Nothing relies on
the file. Where it is gone, old or of a newer format, a sync begins that finds nothing to do if the
source is polled; other sources are asked as if nothing had been noted.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.progress import changed_positions
from rhei_pipeline.model.stored_format import UNNUMBERED

_log = logging.getLogger(__name__)

#: What this version writes. In the first format, which had no number, there were positions alone.
FORMAT = 2


class Notes:
    """The file, as the one reader writes it; without a path nothing is stored."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._noted: dict[str, Position] = {}
        self._is_unwritten = False

    def write(self, positions: Mapping[str, Position]) -> None:
        """Record how far tables, or what else there is, have come; others keep their entries.

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


def was_put_back(noted: Mapping[str, Position], recorded: Mapping[str, Position]) -> bool:
    """Return whether a source has an earlier record of a reader than it noted, or is another one.

    What is noted is never ahead of a source's own record, unless an older state was put back.
    """
    found = ((at, recorded.get(name, at)) for name, at in noted.items())
    return any(now.order < at.order or now.proof != at.proof for at, now in found)


def read(path: Path) -> dict[str, Position]:
    """Return what was recorded; nothing where that cannot be read."""
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
