"""Places for queries: so many at once, and the others wait in line."""

import threading
from collections import deque


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

    def take(self, seconds: float) -> bool:
        """Take a place; tell whether one came free within so many seconds."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            if not seconds:
                return False
            mine = threading.Event()
            self._waiting.append(mine)
        if mine.wait(seconds):
            return True
        with self._lock:
            if mine.is_set():  # it was given at the last moment
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
