"""Cancels a streamed query from another thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rhei_pipeline.errors import QueryError
from rhei_pipeline.model.streaming import Begun


class Cancel:
    """A thread-safe function that cancels a query; it does nothing once the query has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = False
        self._end: Callable[[], object] | None = None

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
            self._asked = True
            if self._end is not None:
                self._end()

    @contextmanager
    def ending_by(self, end: Callable[[], object]) -> Iterator[None]:
        """Within the block, cancel the query by calling `end`.

        Raises:
            QueryError: It was cancelled before.
        """
        with self._lock:
            self._end = end
            self.refuse_cancelled()
        try:
            yield
        finally:
            with self._lock:
                self._end = None

    def refuse_cancelled(self) -> None:
        """Raise an error if the query was cancelled between two batches.

        Raises:
            QueryError: It was cancelled.
        """
        if self._asked:
            raise QueryError("the query was cancelled")
