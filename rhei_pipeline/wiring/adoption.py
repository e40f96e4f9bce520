"""Makes sure that a mirror, and a buffer, has one owner: that is recorded, and another refused."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rhei_pipeline.buffer.confirmation import file_of, unapplied_events
from rhei_pipeline.buffer.log import LOG, OWNER, ChangeLog
from rhei_pipeline.buffer.source import is_begun
from rhei_pipeline.errors import CaptureError, MirrorBusyError, MirrorError, SchemaError
from rhei_pipeline.model.ownership import (
    Owner,
    SourceIdentity,
    is_at,
    is_renamed,
    is_same,
    refuse_other,
    refuse_other_buffer,
)
from rhei_pipeline.model.reports import Finding, Severity
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.settings.source import PostgresSettings
from rhei_pipeline.sync.schema_registry import Registry, give_to, mirror_id_of
from rhei_pipeline.wiring.mirror import OwnedMirror, is_made, open_mirror
from rhei_pipeline.wiring.source import SourceDatabase, forget_replaced, left_slots, open_database

#: The fact that says for which mirror a buffer was filled.
_MIRROR = "mirror"


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
    _record(settings, database, mirror)


def claim_buffer(
    settings: Settings,
    database: SourceDatabase,
    log: ChangeLog,
    mirror_id: str | None,
    is_new: Callable[[], bool] = lambda: False,
) -> None:
    """Record whose the buffer is, where that is new; nothing else is changed.

    Args:
        settings: The declaration.
        database: The source.
        log: The buffer.
        mirror_id: The mirror that applies what it holds; None where that is not known.
        is_new: Whether the mirror holds nothing yet, and may take the place of one that was; asked
            only where the buffer is of another mirror.

    Raises:
        CaptureError: It belongs to another source, pipeline or mirror, or is no buffer.
    """
    path, found = str(log.path), Owner(database.identity(), settings.name)
    recorded, filled_for = _owner_of(log), _mirror_of(log)
    if recorded is None:
        _refuse_events(log)
    else:
        refuse_other_buffer(recorded, found, path, _is_gone)
        if _is_replaced(recorded.source, found.source):
            forget_replaced(settings, database, recorded.source, [log.log_id])
        found = Owner(found.source, found.pipeline or recorded.pipeline)
    mirror_id = mirror_id or filled_for
    if filled_for not in (None, mirror_id) and not is_new():
        raise CaptureError(
            f"buffer {path!r} was filled for another mirror since: two declarations share it",
            hint="give each a capture.buffer.path of its own; where only this mirror is in use,"
            " delete the buffer, and its tables are copied again; where 'rhei adopt' was cut off,"
            " run it again",
        )
    _claim_log(log, found, mirror_id)


def _owner_of(log: ChangeLog) -> Owner | None:
    recorded = log.fact(OWNER)
    return None if recorded is None else Owner.read(recorded.decode())


def _mirror_of(log: ChangeLog) -> str | None:
    recorded = log.fact(_MIRROR)
    return None if recorded is None else recorded.decode()


def _claim_log(
    log: ChangeLog, owner: Owner, mirror_id: str | None, *, is_new: bool = False
) -> None:
    """Record whose the buffer is; a new one is another reader, as its mirror is."""
    owner = replace(owner, former=())
    if (owner, mirror_id) != (_owner_of(log), _mirror_of(log)):
        with log.writing() as writer:
            if is_new:
                writer.set_fact(LOG, uuid.uuid4().hex.encode())
            writer.set_fact(OWNER, owner.text().encode())
            writer.set_fact(_MIRROR, mirror_id.encode() if mirror_id else None)


def _refuse_events(log: ChangeLog) -> None:
    """Refuse a log that has had events, and was never a buffer: they are an application's.

    Raises:
        CaptureError: Says so.
    """
    if log.streams and not is_begun(log):
        raise CaptureError(
            f"log {str(log.path)!r} is of an application's events, which a buffer would delete",
            hint="give capture.buffer.path a directory that is empty, or not there yet",
        )


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


def is_ours(settings: Settings, mirror: OwnedMirror) -> bool:
    """Return whether a mirror is the declaration's, as is known without its source.

    A file or a log tells it by its path. Of a server, the registry tells which mirror is synced.
    """
    recorded, source = _recorded(mirror), settings.source
    if recorded is not None:
        renamed = is_renamed(recorded, Owner(recorded.source, settings.name))
        if renamed or recorded.source.kind != source.kind:
            return False
        if not isinstance(source, PostgresSettings):
            return is_at(recorded.source, source.path.resolve())
    return mirror_id_of(settings.registry.path) == mirror.mirror_id


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


class Adoption(NamedTuple):
    """What an adoption has changed.

    Attributes:
        before: The owner there was; None where none was recorded.
        now: The owner there is.
        left: What was left as it was, since a copy of the mirror may use it; a text each.
    """

    before: Owner | None
    now: Owner
    left: tuple[str, ...] = ()


def adopt(settings: Settings, *, as_copy: bool = False) -> Adoption:
    """Make the declared source and pipeline the mirror's owner, whoever it was before.

    Where the source is another one, the mirror becomes another reader: a copy of it that lives on
    loses nothing. Every table is compared with the source whole by the next sync. An adoption that
    was cut off is finished by the next one.

    Args:
        settings: The declaration.
        as_copy: The mirror becomes another reader in any case: it is a copy of one that lives on.
    """
    with ExitStack() as stack:
        database = open_database(settings)
        stack.callback(database.close)
        mirror = open_mirror(settings.mirror)
        stack.callback(mirror.close)
        log = _buffer(settings, stack)
        before, source = _recorded(mirror), database.identity()
        known = before is not None and is_same(
            before.source, source, is_gone=_is_gone(before.source)
        )
        is_new = as_copy or not known
        readers = _readers(settings, mirror, log)
        owner = _record(settings, database, mirror, uuid.uuid4().hex if is_new else None)
        give_to(settings.registry.path, mirror.mirror_id, owner.former)
        is_other = log is not None and _mirror_of(log) != mirror.mirror_id
        if settings.capture.buffer is not None and (is_new or is_other):
            # By it a sensor would ask how far the former reader is, and see nothing to do.
            file_of(settings.capture.buffer.path).unlink(missing_ok=True)
        if log is not None:
            _claim_log(log, owner, mirror.mirror_id, is_new=is_other)
        now = {mirror.mirror_id, *([log.log_id] if log else [])}
        left = left_slots(settings, database, sorted({*readers, *owner.former} - now))
        return Adoption(before, owner, (*left, *(_left_copy(settings) if is_new else ())))


def _left_copy(settings: Settings) -> Iterator[str]:
    """Name the published copy, which is of the mirror's former id."""
    copy = settings.mirror.published
    if copy is not None and copy.path.exists():
        yield (
            f"the published copy {str(copy.path)!r} was left: a copy of this mirror may write it;"
            " where none does, delete it, and the next publication takes its place"
        )


def _buffer(settings: Settings, stack: ExitStack) -> ChangeLog | None:
    """Open the buffer, where there is one already."""
    buffer = settings.capture.buffer
    if buffer is None or not buffer.path.is_dir():
        return None
    log = stack.enter_context(ChangeLog(buffer.path))
    if _owner_of(log) is None:
        _refuse_events(log)
    return log


def _readers(settings: Settings, mirror: OwnedMirror, log: ChangeLog | None = None) -> set[str]:
    """Name those who read the source's log: the mirror, and the buffer before it."""
    buffer = settings.capture.buffer
    noted = unapplied_events(buffer.path) if buffer else None  # also where it is not there any more
    return {mirror.mirror_id, *([log.log_id] if log else []), *(noted or ())[:1]}


def _record(
    settings: Settings, database: SourceDatabase, mirror: OwnedMirror, new_id: str | None = None
) -> Owner:
    recorded, former = _recorded(mirror), (mirror.mirror_id,) if new_id else ()
    # Only now is it sure that the source is the right one to write into.
    source = (
        database.identity() if settings.capture_method == "polling" else database.marked_identity()
    )
    owner = Owner(source, settings.name, former)
    if recorded is not None:
        if new_id is None and _is_replaced(recorded.source, source):
            forget_replaced(settings, database, recorded.source, _readers(settings, mirror))
        owner = Owner(source, settings.name or recorded.pipeline, (*recorded.former, *former))
    if owner != recorded:
        mirror.claim(owner.text(), new_id=new_id)
    return owner


def _is_replaced(recorded: SourceIdentity, found: SourceIdentity) -> bool:
    """Return whether another database has taken the name of the recorded one."""
    return recorded.place == found.place and recorded.mark != found.mark


def _recorded(mirror: OwnedMirror) -> Owner | None:
    return None if mirror.owner is None else Owner.read(mirror.owner)


def _is_gone(source: SourceIdentity) -> bool:
    """Whether a source has left its place, as far as this machine can see."""
    # A server answers for its databases: the mark is the database's own, and has no copies.
    return source.kind != "sqlite" or not Path(source.place).exists()
