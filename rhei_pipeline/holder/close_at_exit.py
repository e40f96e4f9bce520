"""Closes what a program forgot to close."""

import atexit
from collections.abc import Callable
from weakref import WeakMethod


def close_at_exit(close: Callable[[], None]) -> Callable[[], None]:
    """Register what closes before a program ends that did not close, while everything still works.

    Otherwise the interpreter ends below a running sync, and DuckDB's binding lists what it held.

    Args:
        close: A bound method; its object is not kept alive by this.

    Returns:
        What to call once it has been closed.
    """
    method = WeakMethod(close)

    def close_if_open() -> None:
        forgotten = method()
        if forgotten is not None:
            forgotten()

    atexit.register(close_if_open)
    return lambda: atexit.unregister(close_if_open)
