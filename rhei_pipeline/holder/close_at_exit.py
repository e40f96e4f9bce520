"""Closes what a program forgot to close."""

import atexit
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from weakref import WeakMethod

#: How long threads that were asking have to take note that nothing answers any more.
_LEAVING_SECONDS = 2.0
_OWN = str(Path(__file__).parents[1])


def close_at_exit(close: Callable[[], None]) -> Callable[[], None]:
    """Register what closes before a program ends that did not close, while everything still works.

    Otherwise the interpreter ends below a running sync, and DuckDB's binding lists what it held.
    So it does for a thread that it halts on its way out of a query; those are waited for.

    Args:
        close: A bound method; its object is not kept alive by this.

    Returns:
        What to call once it has been closed.
    """
    method = WeakMethod(close)

    def close_if_open() -> None:
        forgotten = method()
        if forgotten is not None:
            asking = [*_asking()]
            forgotten()
            _wait_for(asking)

    atexit.register(close_if_open)
    return lambda: atexit.unregister(close_if_open)


def _asking() -> Iterator[threading.Thread]:
    """Yield the program's own threads that are within a call of ours."""
    frames = sys._current_frames()  # noqa: SLF001  (there is no other way to see them)
    for thread in threading.enumerate():
        ours = thread is threading.current_thread() or thread.name.startswith("rhei-")
        # One that a library has started (Arrow Flight does) cannot be waited for.
        is_foreign = isinstance(thread, threading._DummyThread)  # noqa: SLF001  (it has no name)
        if not (ours or is_foreign) and _is_within(frames.get(thread.ident or 0)):
            yield thread


def _is_within(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_OWN):
            return True
        frame = frame.f_back
    return False


def _wait_for(threads: list[threading.Thread]) -> None:
    deadline = time.monotonic() + _LEAVING_SECONDS
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
