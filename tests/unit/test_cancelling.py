"""Ending a query from another thread: only while it has its connection."""

import threading

import pytest

from rhei_pipeline.errors import QueryError
from rhei_pipeline.model.cancellation import Cancel


def test_a_query_that_has_ended_is_not_ended_again() -> None:
    """Its connection may serve somebody else by then."""
    ended: list[str] = []
    cancel = Cancel()
    with cancel.ending_by(lambda: ended.append("during")):
        cancel()
    cancel()
    assert ended == ["during"]
    with pytest.raises(QueryError, match="cancelled"):
        cancel.refuse_cancelled()


def test_an_engine_that_misses_the_first_time_is_asked_again() -> None:
    heard = threading.Semaphore(0)
    cancel = Cancel()
    with cancel.ending_by(heard.release):
        cancel()
        assert all(heard.acquire(timeout=30) for _ in range(3))


def test_who_asks_again_ends_with_the_query() -> None:
    cancel = Cancel()
    with cancel.ending_by(lambda: None):
        cancel()
        asking = [each for each in threading.enumerate() if each.name == "rhei-cancel"]
        assert asking
    for each in asking:
        each.join(30)
        assert not each.is_alive()


def test_a_first_time_that_fails_is_asked_again() -> None:
    heard = threading.Semaphore(0)
    times: list[int] = []

    def end() -> None:
        times.append(1)
        if len(times) == 1:
            raise OSError("the server cannot be reached")
        heard.release()

    cancel = Cancel()
    with cancel.ending_by(end):
        cancel()
        assert heard.acquire(timeout=30)


def test_a_signal_handler_may_cancel_while_its_thread_cancels() -> None:
    cancel, times = Cancel(), []

    def end() -> None:
        times.append(1)
        if len(times) == 1:
            cancel()  # as a handler does that runs just now

    with cancel.ending_by(end):
        cancel()
        assert len(times) >= 2
