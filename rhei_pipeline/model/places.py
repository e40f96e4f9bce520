"""Places for queries: so many at once, and the others wait in line."""

import threading
from collections import deque

from rhei_pipeline.model.cancellation import Cancel


class Places:
    """A number of places, given in the order in which they were asked for.

    Attributes:
        number: How many there are.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._free = number
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    def take(self, seconds: float, cancel: Cancel | None = None) -> bool:
        """Take a place; tell whether one came free within so many seconds.

        Args:
            seconds: How long to wait.
            cancel: Ends the wait, from any thread.
        """
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            if not seconds:
                return False
            mine = threading.Event()
            self._waiting.append(mine)
        try:
            with (cancel or Cancel()).ending_by(mine.set):
                mine.wait(seconds)
        except BaseException:  # Ctrl-C, too: nobody would give back what it is given later
            if self._is_given(mine):
                self.give_back()
            raise
        return self._is_given(mine)

    def _is_given(self, mine: threading.Event) -> bool:
        """Return whether one that waits no longer was given a place, be it at the last moment."""
        with self._lock:
            if mine not in self._waiting:
                return True
            self._waiting.remove(mine)
            return False

    def give_back(self) -> None:
        """Let the next one have the place."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1
