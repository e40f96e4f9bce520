"""Ending a query that is streamed, from another thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rhei_pipeline.errors import QueryError
from rhei_pipeline.model.streaming import Begun


class Cancel:
    """Called, it ends the query; once its connection is given back, it does nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = False
        self._end: Callable[[], object] | None = None

    @classmethod
    def given(cls, begun: Begun | None) -> "Cancel":
        """Make one, and give it to whom it is for, if anybody."""
        made = cls()
        if begun is not None:
            begun(made)
        return made

    def __call__(self) -> None:
        """End the query, from any thread; its next batch is then an error."""
        with self._lock:
            self._asked = True
            if self._end is not None:
                self._end()

    @contextmanager
    def ending_by(self, end: Callable[[], object]) -> Iterator[None]:
        """Within the block, have the query ended by this call.

        Raises:
            QueryError: It was ended before.
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
        """Go no further with a query that was ended between two batches.

        Raises:
            QueryError: It was.
        """
        if self._asked:
            raise QueryError("the query was cancelled")
