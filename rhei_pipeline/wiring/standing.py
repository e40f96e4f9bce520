"""How far a declaration's source is ahead of its mirror, which is not opened."""

from contextlib import closing
from pathlib import Path

from rhei_pipeline.buffer.confirmation import unapplied_events
from rhei_pipeline.errors import needs_extra
from rhei_pipeline.model.standing import SourceStanding
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sources.sqlite.database import SqliteDatabase
from rhei_pipeline.sources.sqlite.triggers import standing as of_triggers
from rhei_pipeline.sync.schema_registry import mirror_id_of
from rhei_pipeline.wiring.engine import unseen_events
from rhei_pipeline.wiring.source import open_database


def source_standing(settings: Settings) -> SourceStanding:
    """Return what is pending, since when, where the logs end, and what they take on the disk."""
    pending = unseen_events(settings)
    mirror_id = mirror_id_of(settings.registry.path)
    buffer = settings.capture.buffer
    buffered = None if buffer is None else unapplied_events(buffer.path)
    reader = buffered[0] if buffered else mirror_id
    if reader is None or settings.capture_method in ("polling", "append"):
        return SourceStanding(pending)
    found = _of_reader(settings, reader, pending)
    if buffer is None:
        return found
    held = {**found.held_bytes, "buffer": _size(buffer.path)}
    return SourceStanding(pending, found.is_exact, found.heads, found.waiting, held)


def _of_reader(settings: Settings, reader: str, pending: int | None) -> SourceStanding:
    with closing(open_database(settings)) as database:
        if isinstance(database, SqliteDatabase):
            return of_triggers.standing(database, reader, pending)
        with needs_extra("postgres", "a PostgreSQL source"):
            from rhei_pipeline.wiring import postgres
        return postgres.standing(settings, postgres.of_postgres(database), reader, pending)


def _size(directory: Path) -> int:
    """Return the bytes of a directory's files, of which some may just be going."""
    found = 0
    for file in directory.glob("*"):
        try:
            found += file.stat().st_size
        except FileNotFoundError:
            continue
    return found
