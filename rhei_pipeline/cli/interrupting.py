"""Ends a query at Ctrl-C, whichever engine works on it."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from rhei_pipeline.holder.worker import Worker, awaited
from rhei_pipeline.model.streaming import Begun

_Found = TypeVar("_Found")

#: How soon a query is cancelled again: an engine about to begin may not have heard it.
_AGAIN_SECONDS = 0.2


def interruptible(ask: Callable[[Begun], _Found]) -> _Found:
    """Return the answer to a query, which is asked in another thread; Ctrl-C cancels it.

    An engine's own bindings hear Ctrl-C late, now and then never.

    Args:
        ask: Asks, given what takes the query's cancel function.
    """
    worker, answer = Worker(), Future[_Found]()
    cancels: list[Callable[[], None]] = []
    worker.put(answer, lambda: ask(cancels.append))
    try:
        return awaited(answer)
    except KeyboardInterrupt:
        while not answer.done():
            for cancel in cancels:
                cancel()
            with suppress(TimeoutError):
                answer.exception(_AGAIN_SECONDS)
        raise
    finally:
        worker.leave()
