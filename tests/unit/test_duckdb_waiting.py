"""Who waits for a DuckDB mirror, and what a signal leaves behind."""

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import duckdb
import pytest

from rhei_pipeline.mirrors.duckdb import forgetting
from rhei_pipeline.mirrors.duckdb.connecting import ended_by_signals
from rhei_pipeline.mirrors.duckdb.forgetting import Door


def test_a_door_is_open_again_though_its_shutting_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at Ctrl-C: a query that waits at it would wait for ever."""
    monkeypatch.setattr(forgetting, "_PATIENCE_SECONDS", 0.01)
    door = Door()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with door.entered(), pytest.raises(KeyboardInterrupt), door.shut(interrupt):
        pytest.fail("nobody had to leave")
    inside = threading.Event()

    def enter() -> None:
        with door.entered():
            inside.set()

    threading.Thread(target=enter, daemon=True).start()
    assert inside.wait(10)


@pytest.fixture
def handlers() -> Iterator[Callable[[], list[Any]]]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        signal.signal(number, _raising)
    yield lambda: [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def _raising(number: int, _frame: object) -> None:
    raise InterruptedError(number)


def test_handlers_are_put_back_also_when_one_raises_meanwhile(
    handlers: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, put_back = signal.signal, []

    def interrupted(number: int, handler: Any) -> Any:
        found = real(number, handler)
        if handler is _raising:
            put_back.append(number)
            if len(put_back) == 1:
                raise InterruptedError
        return found

    with duckdb.connect() as connection:
        with pytest.raises(InterruptedError), ended_by_signals(connection):
            assert _raising not in handlers()
            signal.raise_signal(signal.SIGINT)
        assert handlers() == [_raising, _raising]
        monkeypatch.setattr(signal, "signal", interrupted)
        with pytest.raises(InterruptedError), ended_by_signals(connection):
            pass
        assert handlers() == [_raising, _raising]
        assert connection.execute("select 1").fetchall() == [(1,)]
