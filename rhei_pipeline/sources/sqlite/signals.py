"""Has a statement of the main thread end at a signal, such as Ctrl-C, while SQLite works on it."""

import sqlite3
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager

#: Of SQLite's virtual machine; they take some ten milliseconds.
_INSTRUCTIONS = 1_000_000


@contextmanager
def signals_heard(connection: sqlite3.Connection) -> Iterator[None]:
    """Within the block, end a statement whose time a signal interrupts, and raise what that raises.

    Python hears signals in its main thread alone, and only between two steps of its own: SQLite
    asks it for one from time to time.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raised: list[BaseException] = []
    listening = _listening(raised)
    next(listening)
    connection.set_progress_handler(listening.__next__, _INSTRUCTIONS)
    try:
        yield
    except Exception:
        if raised:
            raise raised[0] from None
        raise
    finally:
        connection.set_progress_handler(None, _INSTRUCTIONS)


def _listening(raised: list[BaseException]) -> Generator[int]:
    """Yield 0 each time that SQLite asks; 1, which ends its statement, once a signal has raised.

    A function would not do: Python handles a signal before the first line of it, where nothing
    catches the error, and SQLite's module drops it. A generator that has begun goes on within its
    `try`.
    """
    try:
        while True:
            yield 0
    except GeneratorExit:  # the block has ended
        return
    except BaseException as error:  # noqa: BLE001  (whatever the signal's handler raises)
        raised.append(error)
    while True:
        yield 1
