"""Queries of a Flight server under way: cancelled, late, left by their client, and forgotten."""

import threading
from collections.abc import Callable, Generator, Iterator
from types import SimpleNamespace

import pyarrow as pa
import pytest
from pyarrow import flight

from rhei_pipeline.model import places, query_limits
from rhei_pipeline.model.query_limits import QueryClock
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.server.flight import running
from rhei_pipeline.server.flight.running import FlightLimits, QueryRegistry

BATCH = pa.record_batch({"n": [1]})


def endless() -> Iterator[pa.RecordBatch]:
    while True:
        yield BATCH


def send(
    registry: QueryRegistry,
    cancel: Callable[[], None],
    handle: bytes = b"it",
    *,
    is_gone: bool = False,
) -> Generator[pa.RecordBatch]:
    """Begin a query without end, by an engine that does not end when it is cancelled."""

    def ask(begun: Begun) -> Streamed:
        begun(cancel)
        return Streamed(BATCH.schema, endless(), cancel)

    _, batches = registry.send(handle, ask, lambda: is_gone)
    assert isinstance(batches, Generator)
    return batches


def timers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if isinstance(each, threading.Timer)]


def test_every_query_of_a_ticket_is_cancelled_and_told_so() -> None:
    registry, ended = QueryRegistry(FlightLimits()), list[str]()
    one, two, other = (
        send(registry, lambda name=name: ended.append(name), handle)  # type: ignore[misc]
        for name, handle in (("one", b"a"), ("two", b"a"), ("other", b"b"))
    )
    assert registry.cancel(b"a")
    assert not registry.cancel(b"c")
    assert sorted(ended) == ["one", "two"]
    for batches in (one, two):
        with pytest.raises(flight.FlightCancelledError):
            next(batches)
    assert next(other) is BATCH
    other.close()
    assert registry._queries == {}


def test_a_query_cancelled_before_it_begins_is_ended_as_it_begins() -> None:
    registry, ended = QueryRegistry(FlightLimits()), list[bool]()

    def ask(begun: Begun) -> Streamed:
        registry.cancel(b"it")
        begun(lambda: ended.append(True))
        assert ended
        return Streamed(BATCH.schema, endless(), lambda: None)

    _, batches = registry.send(b"it", ask, lambda: False)
    with pytest.raises(flight.FlightCancelledError):
        next(batches)


def test_a_query_that_goes_on_is_ended_again_until_it_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "_AGAIN_SECONDS", 0.001)
    registry, heard = QueryRegistry(FlightLimits()), threading.Semaphore(0)
    batches = send(registry, heard.release)
    registry.cancel(b"it")
    assert all(heard.acquire(timeout=30) for _ in range(3))
    batches.close()
    for timer in timers():
        timer.join(30)
    assert timers() == []


def test_nothing_waits_for_a_query_that_ended_as_it_was_cancelled() -> None:
    registry, held = QueryRegistry(FlightLimits()), list[Generator[pa.RecordBatch]]()

    def end() -> None:
        held[0].close()

    held.append(send(registry, end))
    assert registry.cancel(b"it")
    for timer in timers():
        timer.join(30)
    assert timers() == []


def test_a_query_whose_time_is_over_is_ended_and_told_so() -> None:
    heard = threading.Semaphore(0)
    batches = send(QueryRegistry(FlightLimits(seconds=0.001)), heard.release)
    assert heard.acquire(timeout=30)
    with pytest.raises(flight.FlightTimedOutError, match=r"longer than 0\.001 s"):
        next(batches)


def test_a_query_whose_client_is_gone_ends_at_its_next_batch() -> None:
    registry = QueryRegistry(FlightLimits(queries=1, turn_seconds=0))
    with pytest.raises(flight.FlightCancelledError):
        next(send(registry, lambda: None, is_gone=True))
    send(registry, lambda: None).close()


def test_a_late_query_is_ended_again_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_limits, "_AGAIN_SECONDS", 0.001)
    heard = threading.Semaphore(0)
    with QueryClock(0.001).timing() as query:
        query.begun(heard.release)
        assert all(heard.acquire(timeout=30) for _ in range(3))


def test_a_place_that_comes_to_who_just_gave_up_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    single = places.Places(1)
    assert single.take(0)

    class Late(threading.Event):
        def wait(self, _timeout: float | None = None) -> bool:
            single.give_back()
            return False

    monkeypatch.setattr(places, "threading", SimpleNamespace(Event=Late))
    for _ in range(2):
        assert single.take(0.01)
