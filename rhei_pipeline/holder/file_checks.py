"""Looks at the files of ours that a sync opens; nothing is changed there, and nobody kept away."""

from collections.abc import Callable, Iterator
from functools import partial

from rhei_pipeline.buffer.looking import refuse_unreadable
from rhei_pipeline.errors import RheiError
from rhei_pipeline.holder.turn import refuse_turn
from rhei_pipeline.mirrors.duckdb.published_copy import refuse_unpublished
from rhei_pipeline.model.reports import Finding, Severity
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.wiring.mirror import lock_file

_NO_SYNC = "no sync can begin"
_NO_CHANGE = "no change can be taken"
_NO_COPY = "syncs go on, and readers of the copy see an older state"


def validate_files(settings: Settings) -> list[Finding]:
    """Find what the next sync could not open of the buffer, or publish, or lock."""
    return [
        Finding(Severity.ERROR, error.message, why, error.hint or "")
        for why, look in _looks(settings)
        if (error := _refusal(look)) is not None
    ]


def _looks(settings: Settings) -> Iterator[tuple[str, Callable[[], None]]]:
    mirror, buffer, lock = settings.mirror, settings.capture.buffer, lock_file(settings.mirror)
    if lock is not None:
        yield _NO_SYNC, partial(refuse_turn, lock)
    if buffer is not None:
        yield _NO_CHANGE, partial(refuse_unreadable, buffer.path)
    if mirror.published is not None:
        yield _NO_COPY, partial(refuse_unpublished, mirror.published.path, mirror.path)


def _refusal(look: Callable[[], None]) -> RheiError | None:
    try:
        look()
    except RheiError as error:
        return error
    return None
