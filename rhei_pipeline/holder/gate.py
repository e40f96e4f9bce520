"""Counts the calls under way, and keeps new ones out while what they use is closed."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: New calls wait for no longer than this at a time for those that are under way.
_SHUT_SECONDS = 0.3


class StoodAsideError(Exception):
    """The mirror is not held by this process: whoever asks for it asks elsewhere.

    It never leaves this room.
    """


class Gate:
    """Lets calls in; shut, it holds up new ones. A thread that is inside may enter again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._is_shut = False
        self._own = threading.local()

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Be inside for the length of the block."""
        depth = getattr(self._own, "depth", 0)
        self._come_in(again=depth > 0)
        self._own.depth = depth + 1
        try:
            yield
        finally:
            self._own.depth = depth
            self._go_out()

    def enter(self) -> Callable[[], None]:
        """Be inside until the function that is returned is called, from any thread."""
        self._come_in(again=getattr(self._own, "depth", 0) > 0)
        left = threading.Lock()

        def leave() -> None:
            if left.acquire(blocking=False):
                self._go_out()

        return leave

    def _come_in(self, *, again: bool) -> None:
        with self._changed:
            while self._is_shut and not again:
                self._changed.wait()
            self._inside += 1

    def _go_out(self) -> None:
        with self._changed:
            self._inside -= 1
            if not self._inside:
                self._changed.notify_all()

    def shut(self, seconds: float) -> bool:
        """Shut the gate once nobody is inside; return False, with the gate open, if that fails.

        It is tried again and again for so long, each time for a moment: what comes meanwhile is
        held up for no longer than that by a call that takes its time.
        """
        deadline = time.monotonic() + seconds
        while True:
            with self._changed:
                self._is_shut = True
                if self._changed.wait_for(lambda: not self._inside, min(_SHUT_SECONDS, seconds)):
                    return True
            self.let_in()
            if time.monotonic() >= deadline:
                return False
            time.sleep(_SHUT_SECONDS)

    def let_in(self) -> None:
        """Let calls in again."""
        with self._changed:
            self._is_shut = False
            self._changed.notify_all()
