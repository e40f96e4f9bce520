"""An answer that a holder sends in batches: ended, it is an error and never a shorter answer."""

import threading
from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import flight

from rhei_pipeline.errors import MirrorError, QueryError
from rhei_pipeline.holder import server, wire
from rhei_pipeline.holder.client import STOOD_ASIDE
from rhei_pipeline.holder.gate import StoodAsideError
from rhei_pipeline.holder.server import HolderServer, _Sent
from rhei_pipeline.model.streaming import Streamed

BATCH = pa.record_batch({"n": [1]})


class Answer:
    """Batches without an end, and what was done to them."""

    def __init__(self, seconds: float = 60.0) -> None:
        self.cancelled = self.closed = 0
        self.is_gone = False
        streamed = Streamed(BATCH.schema, self._batches(), self._cancel)
        closing = threading.Event()
        self.sent = _Sent(streamed, lambda: self.is_gone, closing, seconds)

    def _batches(self) -> Generator[pa.RecordBatch]:
        try:
            while True:
                yield BATCH
        finally:
            self.closed += 1

    def _cancel(self) -> None:
        self.cancelled += 1


@pytest.fixture
def answer() -> Iterator[Answer]:
    made = Answer()
    assert next(made.sent) is BATCH
    yield made
    made.sent.end()


def test_an_answer_that_was_ended_is_an_error_and_lets_go_of_the_mirror(answer: Answer) -> None:
    answer.sent.end()
    assert (answer.cancelled, answer.closed) == (1, 1)
    with pytest.raises(flight.FlightCancelledError):
        next(answer.sent)


def test_an_answer_whose_asker_is_gone_is_an_error(answer: Answer) -> None:
    answer.sent.look()
    assert answer.closed == 0
    answer.is_gone = True
    with pytest.raises(flight.FlightCancelledError):
        next(answer.sent)


def test_an_answer_that_nobody_takes_in_time_is_ended_and_says_so() -> None:
    late = Answer(seconds=0.0)
    assert next(late.sent) is BATCH
    late.sent.look()
    assert (late.cancelled, late.closed) == (1, 1)
    with pytest.raises(flight.FlightServerError) as told:
        next(late.sent)
    assert isinstance(wire.unpack_error(told.value.extra_info), QueryError)


def test_what_was_ended_before_it_began_is_cancelled_as_it_begins() -> None:
    asked, heard = server._Asked(), list[bool]()
    asked.end()
    asked.begun(lambda: heard.append(True))
    assert heard == [True]
    asked.look()  # an engine may not have heard it
    assert heard == [True, True]


def test_others_are_told_the_kind_of_a_failure_and_not_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(flight.FlightServerError) as told, server._answered():
        raise ValueError("the secret 4711")
    known = str(wire.unpack_error(told.value.extra_info))
    assert "ValueError" in known
    assert "4711" not in known
    assert "4711" in caplog.text


def test_what_fails_while_a_mirror_is_closed_is_asked_for_elsewhere() -> None:
    closing = threading.Event()
    for _ in range(2):
        with pytest.raises(flight.FlightServerError) as told, server._answered(closing):
            raise QueryError("the mirror is closed")
        is_elsewhere = told.value.extra_info == STOOD_ASIDE
        assert is_elsewhere is closing.is_set()
        closing.set()


def test_others_call_nothing_of_a_holder_but_what_it_answers() -> None:
    called = list[str]()
    held = SimpleNamespace(tables=lambda: ["t"], forget=lambda *_: called.append("forget"))
    desk = SimpleNamespace(answer_here=lambda ask: ask(held))
    holder: Any = SimpleNamespace(_desk=desk)
    assert HolderServer._value(holder, "call", ["tables"]) == ["t"]
    for kind, name in (("call", "forget"), ("call", "query"), ("other", "tables")):
        with pytest.raises(MirrorError, match="does not answer"):
            HolderServer._value(holder, kind, [name])
    assert called == []


def test_who_stood_aside_says_so() -> None:
    with pytest.raises(flight.FlightServerError) as told, server._answered():
        raise StoodAsideError
    assert told.value.extra_info == STOOD_ASIDE
