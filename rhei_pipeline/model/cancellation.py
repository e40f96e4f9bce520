"""Cancels a streamed query from another thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rhei_pipeline.errors import QueryError
from rhei_pipeline.model.streaming import Begun

#: How soon a query that goes on is cancelled again, and how rarely in the end.
AGAIN_SECONDS, RARELY_SECONDS = 0.2, 5.0


class Cancel:
    """A thread-safe function that cancels a query; it does nothing once the query has ended.

    It asks again until the query ends: an engine may miss the first time. DuckDB does, now and
    then, where it is between two of its tasks.
    """

    def __init__(self) -> None:
        # A signal handler may cancel while its thread is in here.
        self._lock = threading.RLock()
        self._asked = False
        self._end: Callable[[], object] | None = None
        self._ended = threading.Event()

    @classmethod
    def given(cls, begun: Begun | None) -> "Cancel":
        """Create one, and pass it to `begun`, if there is one."""
        made = cls()
        if begun is not None:
            begun(made)
        return made

    def __call__(self) -> None:
        """Cancel the query, from any thread; its next batch is then an error."""
        with self._lock:
            is_first, self._asked = not self._asked, True
            if self._end is None:
                return
            if is_first:
                threading.Thread(target=self._insist, name="rhei-cancel", daemon=True).start()
            self._try()

    def _try(self) -> None:
        if self._end is not None:
            with suppress(Exception):  # the query has its own error, and others are to be ended
                self._end()

    def _insist(self) -> None:
        wait = AGAIN_SECONDS
        while not self._ended.wait(wait):
            with self._lock:
                self._try()
            wait = min(wait * 2, RARELY_SECONDS)

    @contextmanager
    def ending_by(self, end: Callable[[], object]) -> Iterator[None]:
        """Within the block, cancel the query by calling `end`.

        Raises:
            QueryError: It was cancelled before.
        """
        with self._lock:
            self.refuse_cancelled()
            self._ended.clear()
            self._end = end
        try:
            yield
        finally:
            with self._lock:
                self._end = None
            self._ended.set()

    def refuse_cancelled(self) -> None:
        """Raise an error if the query was cancelled between two batches.

        Raises:
            QueryError: It was cancelled.
        """
        if self._asked:
            raise QueryError("the query was cancelled")
