"""A thread that makes the calls of the main one, so that Ctrl-C is heard while they last."""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

_Found = TypeVar("_Found")

#: How late Ctrl-C may be heard.
_STEP_SECONDS = 1.0


class Worker:
    """A thread that makes the calls of the main one: no signal is heard within them.

    After Ctrl-C the thread may still be waiting: the next call gets another one.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] | None = None

    def put(self, answer: "Future[Any]", call: Callable[[], Any]) -> None:
        """Make a call in the thread."""
        if self._calls is None:
            self._calls = queue.SimpleQueue()
            threading.Thread(
                target=_work, args=(self._calls,), name="rhei-worker", daemon=True
            ).start()
        self._calls.put((answer, call))

    def leave(self) -> None:
        """Let the thread end once it has done what it does."""
        calls, self._calls = self._calls, None
        if calls is not None:
            calls.put(None)


def awaited(answer: "Future[_Found]") -> _Found:
    """Return an answer once it is there, so that Ctrl-C is heard before.

    Waited for in steps: a signal that comes just before a wait has no effect until it ends.
    """
    while not answer.done():
        with suppress(TimeoutError):
            answer.exception(_STEP_SECONDS)
    return answer.result()


def _work(calls: "queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]") -> None:
    while (asked := calls.get()) is not None:
        answer, call = asked
        try:
            answer.set_result(call())
        except BaseException as error:  # noqa: BLE001  (it is raised where it is waited for)
            answer.set_exception(error)
        del answer, call, asked
