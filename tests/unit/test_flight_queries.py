"""Queries of a Flight server under way: cancelled, late, left by their client, and forgotten."""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from types import SimpleNamespace

import pyarrow as pa
import pytest
from pyarrow import flight

from rhei_pipeline.errors import QueriesBusyError, QueryError
from rhei_pipeline.model import places, query_limits
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.client_calls import ClientCall
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


def watchers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "rhei-flight"]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have queries looked after without a pause."""
    monkeypatch.setattr(running, "_LOOK_SECONDS", 0.001)


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


def test_a_query_that_goes_on_is_ended_again_until_it_is_over() -> None:
    registry, heard = QueryRegistry(FlightLimits()), threading.Semaphore(0)
    batches = send(registry, heard.release)
    registry.cancel(b"it")
    assert all(heard.acquire(timeout=30) for _ in range(3))
    batches.close()
    for watcher in watchers():
        watcher.join(30)
    assert watchers() == []


def test_nothing_waits_for_a_query_that_ended_as_it_was_cancelled() -> None:
    registry, held = QueryRegistry(FlightLimits()), list[Generator[pa.RecordBatch]]()

    def end() -> None:
        held[0].close()

    held.append(send(registry, end))
    assert registry.cancel(b"it")
    for watcher in watchers():
        watcher.join(30)
    assert watchers() == []


def test_a_query_that_begins_after_all_others_have_ended_is_looked_after_again() -> None:
    registry, heard = QueryRegistry(FlightLimits()), threading.Semaphore(0)
    for _ in range(2):
        batches = send(registry, heard.release)
        registry.cancel(b"it")
        assert all(heard.acquire(timeout=5) for _ in range(3))  # again and again
        batches.close()
        for watcher in watchers():
            watcher.join(30)


def test_a_read_of_single_rows_waits_behind_no_long_query() -> None:
    registry = QueryRegistry(FlightLimits(queries=1, turn_seconds=0))
    long = send(registry, lambda: None)
    once = Streamed(BATCH.schema, iter([BATCH]), lambda: None)
    _, rows = registry.send(b"short", lambda _: once, lambda: False, is_short=True)
    assert list(rows) == [BATCH]
    with pytest.raises(flight.FlightUnavailableError):
        send(registry, lambda: None)
    long.close()


def test_a_server_that_closes_ends_all_that_is_under_way() -> None:
    registry, ended = QueryRegistry(FlightLimits()), list[bytes]()
    under_way = [send(registry, lambda n=n: ended.append(n), n) for n in (b"a", b"b")]  # type: ignore[misc]
    registry.end()
    assert sorted({*ended}) == [b"a", b"b"]
    for batches in under_way:
        with pytest.raises(flight.FlightCancelledError):
            next(batches)


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


def asked_by_who_goes(
    registry: QueryRegistry, ask: Callable[[Begun], Streamed]
) -> tuple[threading.Event, "Future[bool]"]:
    """Ask in a thread; return how the client goes, and whether the query was then cancelled."""
    gone, told = threading.Event(), Future[bool]()

    def work() -> None:
        try:
            _, batches = registry.send(b"it", ask, gone.is_set)
            for _ in batches:
                pass
        except flight.FlightCancelledError:
            told.set_result(True)
        except BaseException as error:  # noqa: BLE001  (the test shows it)
            told.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return gone, told


def working(heard: threading.Event) -> Iterator[pa.RecordBatch]:
    assert heard.wait(30)
    raise QueryError("the engine was interrupted")
    yield  # so that it works as a batch is taken


def test_a_query_whose_client_goes_before_its_first_rows_is_ended() -> None:
    registry = QueryRegistry(FlightLimits(queries=1, turn_seconds=0))
    begun, heard = threading.Event(), threading.Event()

    def ask(tell: Begun) -> Streamed:
        tell(heard.set)
        begun.set()
        return Streamed(BATCH.schema, iter([next(working(heard))]))

    gone, told = asked_by_who_goes(registry, ask)
    assert begun.wait(30)
    gone.set()
    assert told.result(30)
    send(registry, lambda: None).close()  # its turn is free


def test_a_query_whose_client_goes_while_later_rows_are_made_is_ended() -> None:
    registry, heard, begun = QueryRegistry(FlightLimits()), threading.Event(), threading.Event()

    def batches() -> Iterator[pa.RecordBatch]:
        yield BATCH
        begun.set()
        yield from working(heard)

    def ask(tell: Begun) -> Streamed:
        tell(heard.set)
        return Streamed(BATCH.schema, batches())

    gone, told = asked_by_who_goes(registry, ask)
    assert begun.wait(30)
    gone.set()
    assert told.result(30)


def test_who_goes_while_it_waits_for_its_turn_asks_for_nothing() -> None:
    registry = QueryRegistry(FlightLimits(queries=1, turn_seconds=60))
    under_way, asked = send(registry, lambda: None, b"other"), list[bool]()

    def ask(_tell: Begun) -> Streamed:
        asked.append(True)
        return Streamed(BATCH.schema, iter([]))

    gone, told = asked_by_who_goes(registry, ask)
    gone.set()
    assert told.result(30)
    under_way.close()
    send(registry, lambda: None).close()
    assert not asked


def test_a_call_that_has_ended_is_not_asked_whether_its_client_has_gone() -> None:
    call = ClientCall(lambda: True)
    with call.running():
        assert call.is_left
    assert not call.is_left


def test_a_query_that_is_ended_while_its_client_is_looked_for_stays_ended() -> None:
    registry = QueryRegistry(FlightLimits())

    def is_cancelled() -> bool:
        registry.cancel(b"it")
        return False

    def ask(_begun: Begun) -> Streamed:
        return Streamed(BATCH.schema, endless())

    with pytest.raises(flight.FlightCancelledError):
        registry.send(b"it", ask, is_cancelled)


def test_no_time_runs_while_a_query_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep)
    monkeypatch.setattr(running, "time", clock)
    registry = QueryRegistry(FlightLimits(queries=1, seconds=10, turn_seconds=60))
    under_way = send(registry, lambda: None)

    def end_the_other() -> None:
        now[0] = 100.0
        under_way.close()

    other = threading.Timer(0.1, end_the_other)
    other.start()
    assert next(send(registry, lambda: None)) is BATCH
    other.join()


def test_a_server_whose_engine_is_busy_has_its_client_come_again() -> None:
    def ask(_begun: Begun) -> Streamed:
        raise QueriesBusyError("2 queries are under way", hint="try again")

    with pytest.raises(flight.FlightUnavailableError, match="2 queries are under way"):
        QueryRegistry(FlightLimits()).send(b"it", ask, lambda: False)


def fail() -> None:
    raise OSError("the server cannot be reached")


def test_the_watch_goes_on_where_a_query_cannot_be_ended() -> None:
    registry, heard = QueryRegistry(FlightLimits(seconds=0.05)), threading.Semaphore(0)
    batches = [send(registry, fail, b"one"), send(registry, heard.release, b"other")]
    assert all(heard.acquire(timeout=30) for _ in range(3))
    for each in batches:
        each.close()
    late = send(registry, heard.release)
    assert heard.acquire(timeout=30)
    late.close()


def test_a_query_that_cannot_be_ended_keeps_no_other_from_being_ended() -> None:
    heard, clock, cancel = threading.Semaphore(0), QueryClock(0.001), Cancel()
    with clock.timing() as one, clock.timing() as other, cancel.ending_by(fail):
        one.begun(cancel)
        other.begun(heard.release)
        assert heard.acquire(timeout=30)


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


@pytest.mark.parametrize("is_given", [False, True])
def test_who_is_interrupted_while_it_waits_keeps_no_place(
    monkeypatch: pytest.MonkeyPatch, *, is_given: bool
) -> None:
    single = places.Places(1)
    assert single.take(0)

    class Interrupted(threading.Event):
        def wait(self, _timeout: float | None = None) -> bool:
            if is_given:
                single.give_back()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(places, "threading", SimpleNamespace(Event=Interrupted))
        with pytest.raises(KeyboardInterrupt):
            single.take(60)
    if not is_given:
        single.give_back()
    assert single.take(0)


def test_who_waits_for_a_turn_can_be_told_to_go() -> None:
    turns, told = query_limits.Turns(1, 60), threading.Event()

    def begun(cancel: Callable[[], None]) -> None:
        threading.Timer(0.01, cancel).start()
        told.set()

    with turns.taken():
        with pytest.raises(QueryError, match="was cancelled"), turns.taken(begun):
            pass
        assert told.is_set()
    with turns.taken():
        pass
