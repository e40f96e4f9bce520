"""Each file and folder that a declaration names is there for one purpose."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rhei_pipeline.settings.model import Settings


def refuse_shared_places(settings: "Settings") -> None:
    """Refuse a declaration that names one place for two purposes: one would overwrite the other.

    Raises:
        ValueError: Says what to declare.
    """
    known = dict[str, str]()
    for field, path in _places(settings):
        other = known.setdefault(os.path.normpath(path), field)
        if other != field:
            raise ValueError(f"{field}: this is {other}, too: give each a path of its own")


def _places(settings: "Settings") -> Iterator[tuple[str, Path]]:
    """Yield each field that names a place of this machine, or of the mirror's store."""
    mirror, buffer = settings.mirror, settings.capture.buffer
    source = getattr(settings.source, "path", None)
    if source is not None:
        yield "source.path", source
    if not mirror.in_memory:
        yield "mirror.path", mirror.path
    if mirror.published is not None:
        yield "mirror.published.path", mirror.published.path
    if buffer is not None:
        yield "capture.buffer.path", buffer.path
    if settings.local is not None:
        yield "local.path", settings.local.path
    yield "registry.path", settings.registry.path
    if settings.schedule.snapshot_files is not None:
        yield "schedule.snapshot_files", settings.schedule.snapshot_files
