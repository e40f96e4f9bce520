"""Which versions of all Delta tables show one state of the mirror together.

A table is published by a commit of its own, so the newest versions of two tables may show two
states. After all of them are published, a small file names the version of each.
"""

import re
from contextlib import suppress

from rhei_pipeline.errors import MirrorDamagedError
from rhei_pipeline.mirrors.datafusion.files import Files
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore
from rhei_pipeline.model.published_state import PublishedState

_STATES = "published"
_SUFFIX = ".json"
_NAME = re.compile(rf"{_STATES}/\d{{20}}{re.escape(_SUFFIX)}")
#: A reader may be about to read the one before the newest.
_KEPT = 3


def write_state(state: PublishedState, store: SegmentStore) -> None:
    """Name the versions of a publication that is complete."""
    files, content = store.files, state.text().encode()
    name = f"{_STATES}/{state.version:020}{_SUFFIX}"
    known = _known(files)
    if name in known:
        if files.get(name).to_pybytes() == content:
            return
        # Delta tables that were written again count their versions from the beginning.
        files.delete([name])
        known.remove(name)
    files.create(name, content)
    files.delete(known[: 1 - _KEPT])


def newest_state(files: Files) -> PublishedState | None:
    """Return the newest state that was published whole; None where there was none.

    Raises:
        MirrorDamagedError: Its file is damaged.
    """
    for _ in range(_KEPT):
        known = _known(files)
        if not known:
            return None
        try:
            content = files.get(known[-1]).to_pybytes()
        except MirrorDamagedError:
            continue  # the writer has replaced it in between
        return _read(content, known[-1])
    return None


def last_readable(files: Files) -> PublishedState | None:
    """Return the newest state whose file is not damaged: the next publication replaces others."""
    for name in reversed(_known(files)):
        with suppress(MirrorDamagedError):
            return _read(files.get(name).to_pybytes(), name)
    return None


def _read(content: bytes, name: str) -> PublishedState:
    try:
        return PublishedState.read(content.decode())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MirrorDamagedError(
            f"{name!r} is damaged, which names what was published",
            file=name,
            hint="run 'rhei maintain', which writes it again",
        ) from error


def _known(files: Files) -> list[str]:
    """Return the names of what is here, the newest last."""
    return sorted(filter(_NAME.fullmatch, files.names(_STATES)))
