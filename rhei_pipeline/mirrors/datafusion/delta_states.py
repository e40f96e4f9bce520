"""Which versions of all Delta tables show one state of the mirror together.

A table is published by a commit of its own, so the newest versions of two tables may show two
states. After all of them are published, a small file names the version of each.
"""

import re

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
    """Return the newest state that was published whole; None where there was none."""
    for _ in range(_KEPT):
        known = _known(files)
        if not known:
            return None
        try:
            return PublishedState.read(files.get(known[-1]).to_pybytes().decode())
        except MirrorDamagedError:
            continue  # the writer has replaced it in between
    return None


def _known(files: Files) -> list[str]:
    """Return the names of what is here, the newest last."""
    return sorted(filter(_NAME.fullmatch, files.names(_STATES)))
