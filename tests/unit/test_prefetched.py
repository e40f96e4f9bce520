"""What a thread reads ahead is in order, bounded, and fails where it is asked for."""

import threading
from collections.abc import Iterator

import pyarrow as pa
import pytest

from rhei_pipeline.sources.sqlite import prefetched
from rhei_pipeline.sources.sqlite.prefetched import PrefetchedStream

ROWS = 1_000
SIZE = 8 * ROWS


def batch(number: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array([number] * ROWS, pa.int64())})


class Stream:
    """Batches, and how many of them were taken."""

    def __init__(self, count: int, *, fails: bool = False) -> None:
        self.taken, self.is_idle = 0, threading.Semaphore(0)
        self._count, self._fails = count, fails

    def __call__(self) -> Iterator[pa.RecordBatch]:
        for number in range(self._count):
            self.taken += 1
            self.is_idle.release()
            yield batch(number)
        if self._fails:
            raise pa.ArrowInvalid("cut off")


def taken_after(stream: Stream, count: int) -> int:
    """Wait until so many were taken, and for what may be taken too many."""
    while stream.taken < count:
        assert stream.is_idle.acquire(timeout=30)
    stream.is_idle.acquire(timeout=0.05)
    return stream.taken


def test_batches_come_in_order_and_then_none() -> None:
    found = PrefetchedStream(Stream(5))
    assert [found.next() for _ in range(5)] == [batch(n) for n in range(5)]
    assert found.next() is None
    assert found.next() is None
    found.close()
    found.close()


def test_what_the_stream_fails_with_is_raised_behind_what_it_gave() -> None:
    found = PrefetchedStream(Stream(2, fails=True))
    assert [found.next(), found.next()] == [batch(0), batch(1)]
    with pytest.raises(pa.ArrowInvalid, match="cut off"):
        found.next()
    found.close()


@pytest.mark.parametrize(
    ("most", "large", "ahead"),
    [(3 * SIZE, SIZE, 3), (0, SIZE, 1), (0, 0, 1)],
    ids=["many", "one", "large"],
)
def test_so_much_is_held_at_most(
    monkeypatch: pytest.MonkeyPatch, most: int, large: int, ahead: int
) -> None:
    monkeypatch.setattr(prefetched, "_MOST_BYTES", most)
    monkeypatch.setattr(prefetched, "LARGE_BYTES", large)
    stream = Stream(20)
    found = PrefetchedStream(stream)
    assert taken_after(stream, ahead) == ahead
    for number in range(10):
        assert found.next() == batch(number)
    # A large one is not read until it is asked for.
    assert taken_after(stream, 10 + ahead * (large > 0)) == 10 + ahead * (large > 0)
    found.close()
    assert stream.taken < 20
