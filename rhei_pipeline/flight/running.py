"""Queries under way: how many at once, for how long, and how to end them."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import flight

from rhei_pipeline.errors import RheiError
from rhei_pipeline.protocols import Streamed


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one server does.

    Attributes:
        queries: Queries under way at once; more are told to come again.
        seconds: The longest that one may take, its sending included.
        batch_rows: Rows in one message; about so many of each query are in memory.
    """

    queries: int = 64
    seconds: float = 300.0
    batch_rows: int = 65_536


class Running:
    """The queries under way."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._places = threading.BoundedSemaphore(limits.queries)
        self._cancels: dict[bytes, list[Callable[[], None]]] = {}
        self._lock = threading.Lock()

    def send(
        self, handle: bytes, ask: Callable[[], Streamed], is_cancelled: Callable[[], bool]
    ) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """Begin a query; return its schema, and its batches as they are wanted.

        Raises:
            flight.FlightUnavailableError: Too many are under way.
        """
        if not self._places.acquire(blocking=False):
            raise flight.FlightUnavailableError(
                f"{self.limits.queries} queries are under way: try again"
            )
        try:
            with translated():
                streamed = ask()
        except BaseException:
            self._places.release()
            raise
        return streamed.schema, self._batches(handle, streamed, is_cancelled)

    def _batches(
        self, handle: bytes, streamed: Streamed, is_cancelled: Callable[[], bool]
    ) -> Iterator[pa.RecordBatch]:
        deadline = time.monotonic() + self.limits.seconds
        timer = threading.Timer(self.limits.seconds, streamed.cancel)
        timer.daemon = True
        timer.start()
        ended = threading.Event()
        cancel = _both(ended.set, streamed.cancel)
        with self._lock:
            self._cancels.setdefault(handle, []).append(cancel)
        try:
            with translated():
                for batch in streamed.batches:
                    self._refuse_ended(ended.is_set() or is_cancelled(), deadline)
                    yield batch
        except flight.FlightServerError:
            # An engine that was interrupted says so in its own words; the reason is ours to tell.
            self._refuse_ended(ended.is_set(), deadline)
            raise
        finally:
            timer.cancel()
            with self._lock:
                self._cancels[handle].remove(cancel)
                if not self._cancels[handle]:
                    del self._cancels[handle]
            close = getattr(streamed.batches, "close", None)
            if close is not None:
                close()
            self._places.release()

    def _refuse_ended(self, cancelled: bool, deadline: float) -> None:  # noqa: FBT001
        if cancelled:
            raise flight.FlightCancelledError("the query was cancelled")
        if time.monotonic() > deadline:
            raise flight.FlightTimedOutError(
                f"the query took longer than {self.limits.seconds:g} s"
            )

    def cancel(self, handle: bytes) -> bool:
        """End every query under way by a handle; tell whether there was one."""
        with self._lock:
            found = list(self._cancels.get(handle, ()))
        for cancel in found:
            cancel()
        return bool(found)


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        first()
        second()

    return call


@contextmanager
def translated() -> Iterator[None]:
    """Give a client our message and hint, and nothing of where it came from."""
    try:
        yield
    except RheiError as error:
        raise flight.FlightServerError(str(error)) from None
