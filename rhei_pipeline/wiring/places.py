"""Looks whether what a declaration names can be made where it is to be."""

import os
from collections.abc import Iterator
from pathlib import Path

from rhei_pipeline.model.reports import Finding, Severity
from rhei_pipeline.settings.model import Settings


def validate_places(settings: Settings) -> list[Finding]:
    """Find what cannot be written; nothing is made or changed."""
    return [
        Finding(
            severity,
            f"{field.split('.')[-2]} {str(path)!r} cannot be written",
            why,
            f"give this user write access there, or correct {field}",
        )
        for field, path, severity, why in _written(settings)
        # A buffer is a directory, and the others are files or that.
        if not _can_be_written(path / "any" if field.startswith("capture") else path)
    ]


def _written(settings: Settings) -> Iterator[tuple[str, Path, Severity, str]]:
    mirror, buffer = settings.mirror, settings.capture.buffer
    if not (mirror.in_memory or mirror.url):
        yield "mirror.path", mirror.path, Severity.ERROR, "no sync can begin"
    if mirror.published is not None:
        why = "syncs go on, and readers of the copy see an older state"
        yield "mirror.published.path", mirror.published.path, Severity.ERROR, why
    if buffer is not None:
        yield "capture.buffer.path", buffer.path, Severity.ERROR, "no change can be taken"
    why = "syncs go on, and each process has to learn again what it would say"
    yield "registry.path", settings.registry.path, Severity.WARNING, why


def _can_be_written(path: Path) -> bool:
    """Return whether a path is this user's to write, or the first folder that is above it."""
    if os.path.exists(path) and not _may(path, os.W_OK):  # noqa: PTH110  (Path's raises)
        return False
    folder = next(p for p in (path, *path.parents) if os.path.exists(p))  # noqa: PTH110
    if folder == path and not path.is_dir():
        folder = path.parent  # in which more files are made beside it
    return folder.is_dir() and _may(folder, os.W_OK | os.X_OK)


def _may(path: Path, what: int) -> bool:
    # As who opens it, where the system tells that from who began this process.
    return os.access(path, what, effective_ids=os.access in os.supports_effective_ids)
