"""Reads a stream of Arrow's by a thread, so that whoever writes it goes on while it is used."""

import threading
from collections import deque
from collections.abc import Callable, Iterator

import pyarrow as pa

from rhei_pipeline.model.portions import LARGE_BYTES

#: What is held at most of what nobody has asked for yet, or one batch that is not large.
_MOST_BYTES = 16 * 2**20


class PrefetchedStream:
    """The batches of a stream.

    Args:
        opened: Opens the stream; called by the thread. Whoever closes this first sees to it that
            the stream ends.
    """

    def __init__(self, opened: Callable[[], Iterator[pa.RecordBatch]]) -> None:
        self._opened = opened
        self._changed = threading.Condition()
        self._found: deque[pa.RecordBatch] = deque()
        self._held_bytes = 0
        self._is_asked = self._is_closed = self._has_ended = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="rhei-prefetch", daemon=True)
        self._thread.start()

    def next(self) -> pa.RecordBatch | None:
        """Return the next batch, None at the end; raise what the stream has failed with."""
        with self._changed:
            self._is_asked = True
            self._changed.notify()
            self._changed.wait_for(lambda: self._found or self._has_ended)
            self._is_asked = False
            if self._found:
                batch = self._found.popleft()
                self._held_bytes -= batch.nbytes
                self._changed.notify()
                return batch
        if self._error is not None:
            raise self._error
        return None

    def close(self) -> None:
        """Wait until nothing is read any more; safe to repeat."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        self._found.clear()

    def _read(self) -> None:
        try:
            for batch in self._opened():
                size = batch.nbytes
                with self._changed:
                    self._found.append(batch)
                    self._held_bytes += size
                    self._changed.notify()
                    del batch
                    while not self._goes_on(size):
                        self._changed.wait()
                    if self._is_closed:
                        return
        except Exception as error:  # noqa: BLE001  (whoever asks for the next batch gets it)
            self._error = error
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify()

    def _goes_on(self, size: int) -> bool:
        """Return whether to read one more batch, which is as large as the last one, probably."""
        if self._is_closed or (self._is_asked and not self._found):
            return True
        if self._held_bytes + size <= _MOST_BYTES:
            return True
        return not self._found and size <= LARGE_BYTES
