"""A client's call of a server, which alone can tell whether the client still waits."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ClientCall:
    """A call that may be asked from another thread, as long as it runs, whether anybody waits.

    Args:
        is_cancelled: Asks the call itself; there is nothing to ask any more once it has ended.
    """

    def __init__(self, is_cancelled: Callable[[], bool]) -> None:
        self._is_cancelled = is_cancelled
        self._lock = threading.Lock()
        self._runs = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let it be asked within the block, in which the call runs."""
        self._runs = True
        try:
            yield
        finally:
            with self._lock:
                self._runs = False

    @property
    def is_left(self) -> bool:
        """Whether it runs, and nobody waits for it."""
        with self._lock:
            return self._runs and self._is_cancelled()
