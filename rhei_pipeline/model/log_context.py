"""The number that groups the log lines of one sync."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_cycle: ContextVar[str | None] = ContextVar("rhei_cycle", default=None)


@contextmanager
def one_cycle() -> Iterator[None]:
    """Add the same `cycle` to everything that is logged inside; a nested cycle keeps its own."""
    if _cycle.get() is not None:
        yield
        return
    token = _cycle.set(uuid.uuid4().hex[:12])
    try:
        yield
    finally:
        _cycle.reset(token)


def current_cycle() -> str | None:
    """Return the number of the sync that this is a part of; None outside of any."""
    return _cycle.get()
