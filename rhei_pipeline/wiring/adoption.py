"""Makes sure that a mirror has one owner: it is recorded, and another one is refused."""

from contextlib import ExitStack
from pathlib import Path

from rhei_pipeline.buffer.confirmation import unapplied_events
from rhei_pipeline.errors import MirrorBusyError, MirrorError, SchemaError
from rhei_pipeline.model.ownership import Owner, SourceIdentity, is_same, refuse_other
from rhei_pipeline.model.reports import Finding, Severity
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sync.schema_registry import Registry
from rhei_pipeline.wiring.mirror import OwnedMirror, is_made, open_mirror
from rhei_pipeline.wiring.source import SourceDatabase, forget_elsewhere, open_database


def claim(settings: Settings, database: SourceDatabase, mirror: OwnedMirror) -> None:
    """Record whose the mirror is, where that is new; nothing else is changed.

    Raises:
        MirrorError: It belongs to another source or another pipeline.
    """
    if settings.mirror.in_memory:
        return
    recorded, found = _recorded(mirror), Owner(database.identity(), settings.name)
    if recorded is not None:
        refuse_other(recorded, found, mirror.path, _is_gone)
    _record(settings, database, mirror, forget_positions=False)


def refuse_owner(settings: Settings, recorded: str) -> None:
    """Refuse a mirror that another process holds, where it is not of the declared source.

    Raises:
        MirrorError: It belongs to another source or another pipeline.
    """
    with ExitStack() as stack:
        database = open_database(settings)
        stack.callback(database.close)
        found = Owner(database.identity(), settings.name)
    refuse_other(Owner.read(recorded), found, str(settings.mirror.path), _is_gone)


def validate_owner(settings: Settings) -> list[Finding]:
    """Find a mirror of another source or pipeline, or a registry of another mirror.

    It makes no mirror, and waits for none.
    """
    if not is_made(settings.mirror):
        return []
    patience = settings.mirror.model_copy(update={"lock_timeout_seconds": 0.0, "published": None})
    with ExitStack() as stack:
        database = open_database(settings, looking=True)
        stack.callback(database.close)
        try:
            mirror = open_mirror(patience)
            stack.callback(mirror.close)
            recorded = _recorded(mirror)
            if recorded is not None:
                found = Owner(database.identity(), settings.name)
                refuse_other(recorded, found, mirror.path, _is_gone)
            Registry(
                settings.registry.path, mirror.mirror_id, lambda: not mirror.ledger().watermarks
            )
        except MirrorBusyError:
            return []  # whoever holds it has looked
        except (MirrorError, SchemaError) as error:
            return [Finding(Severity.ERROR, error.message, "no sync can begin", error.hint or "")]
    return []


def adopt(settings: Settings) -> tuple[Owner | None, Owner]:
    """Make the declared source and pipeline the mirror's owner, whoever it was before.

    Where the source is another one, every table is compared with it whole by the next sync.

    Returns:
        The owner there was, and the one there is.
    """
    with ExitStack() as stack:
        database = open_database(settings)
        stack.callback(database.close)
        mirror = open_mirror(settings.mirror)
        stack.callback(mirror.close)
        before, source = _recorded(mirror), database.identity()
        known = before is not None and is_same(
            before.source, source, is_gone=_is_gone(before.source)
        )
        if not known:
            for reader in _readers(settings, mirror):
                forget_elsewhere(settings, database, reader)
        return before, _record(settings, database, mirror, forget_positions=not known)


def _readers(settings: Settings, mirror: OwnedMirror) -> list[str]:
    """Name those who read the source's log: the mirror, and the buffer before it."""
    buffer = settings.capture.buffer
    buffered = unapplied_events(buffer.path) if buffer else None
    return [mirror.mirror_id, *(buffered or ())[:1]]


def _record(
    settings: Settings, database: SourceDatabase, mirror: OwnedMirror, *, forget_positions: bool
) -> Owner:
    recorded = _recorded(mirror)
    # Only now is it sure that the source is the right one to write into.
    source = (
        database.identity() if settings.capture_method == "polling" else database.marked_identity()
    )
    owner = Owner(source, settings.name or (recorded.pipeline if recorded else None))
    if owner != recorded:
        mirror.claim(owner.text(), forget_positions=forget_positions)
    return owner


def _recorded(mirror: OwnedMirror) -> Owner | None:
    return None if mirror.owner is None else Owner.read(mirror.owner)


def _is_gone(source: SourceIdentity) -> bool:
    """Whether a source has left its place, as far as this machine can see."""
    # A server answers for its databases: the mark is the database's own, and has no copies.
    return source.kind != "sqlite" or not Path(source.place).exists()
