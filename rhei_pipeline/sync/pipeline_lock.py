"""The lock of a pipeline: one piece of work at a time, and none once it is ended."""

import threading
from types import TracebackType

from rhei_pipeline.errors import mirror_closed


class PipelineLock:
    """Held during a piece of work, by one thread, which may take it again."""

    def __init__(self) -> None:
        self._turns = threading.Condition()
        self._depth = 0
        self._is_ended = False

    def __enter__(self) -> None:
        """Wait for the work of others.

        Raises:
            MirrorError: The pipeline is closed.
        """
        self._turns.acquire()
        if self._is_ended and not self._depth:
            self._turns.release()
            raise mirror_closed()
        self._depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let others work."""
        self._depth -= 1
        self._turns.release()

    def give_way(self, seconds: float) -> None:
        """Let others work for so long, in the midst of work that goes on afterwards.

        Raises:
            MirrorError: The pipeline is closed.
        """
        depth, self._depth = self._depth, 0
        self._turns.wait(seconds)
        self._depth = depth
        if self._is_ended:
            raise mirror_closed()

    def end(self) -> None:
        """Let no work begin any more, and wait for what is under way."""
        self._is_ended = True
        with self._turns:  # what it works with can be closed: no other thread is in it
            pass
