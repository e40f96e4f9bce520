"""Scripted faults: the work ends at a named step, as if the process had died there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rhei_pipeline.protocols import Step


class Crash(BaseException):
    """Not an Exception on purpose: nothing in the engine may catch it."""


class CrashAt:
    """Passed as `on_step`: crashes at the n-th time that a step is reached, once.

    Or does other work there, such as a write that comes between two steps.
    """

    def __init__(self) -> None:
        self._step: Step | None = None
        self._left = 0
        self._due: list[tuple[Step, Callable[[], object]]] = []
        self.seen: list[Step] = []

    def arm(self, step: Step, occurrence: int = 1) -> None:
        """Crash at the step's next n-th occurrence."""
        self._step, self._left = step, occurrence

    def disarm(self) -> None:
        """Crash no more."""
        self._step = None

    def do_at(self, step: Step, work: Callable[[], object], times: int = 1) -> None:
        """Do work at the step's next occurrences, so many times; what it raises ends the step."""
        self._due += [(step, work)] * times

    def __call__(self, step: Step) -> None:
        """Note the step; crash, or do the work that is due, where it is the one."""
        self.seen.append(step)
        if step is self._step:
            self._left -= 1
            if self._left == 0:
                self._step = None
                raise Crash(step)
        due = next((each for each in self._due if each[0] is step), None)
        if due is not None:
            self._due.remove(due)
            due[1]()


class FaultIn:
    """Raises an error while one table is worked on: at a named step, or at the n-th piece of work.

    Patched into `Blame.of`, which surrounds each piece of work on one table, and passed as
    `on_step`.
    """

    def __init__(self, table: str) -> None:
        self.table = table
        self.fired = 0
        self._at: Step | int | None = None
        self._error: Callable[[], Exception] = RuntimeError
        self.pieces = 0
        self._is_at_work = False

    def arm(self, at: Step | int, error: Callable[[], Exception]) -> None:
        """Fail from now on: at a step, or from the n-th piece of work of each sync on."""
        self._at, self._error, self.pieces, self.fired = at, error, 0, 0

    def disarm(self) -> None:
        """Fail no more."""
        self._at = None

    def begin(self) -> None:
        """Count pieces of work again."""
        self.pieces = 0

    def patched(self, of: Callable[..., Any]) -> Callable[..., Any]:
        """Return what stands in the place of `Blame.of`."""

        @contextmanager
        def faulty(blame: object, table: str) -> Iterator[None]:
            with of(blame, table):
                self._is_at_work = table == self.table
                try:
                    if self._is_at_work:
                        self.pieces += 1
                        if isinstance(self._at, int) and self.pieces >= self._at:
                            self._raise()
                    yield
                finally:
                    self._is_at_work = False

        return faulty

    def __call__(self, step: Step) -> None:
        """Fail where the step is the one, and the table is worked on."""
        if self._is_at_work and step is self._at:
            self._raise()

    def _raise(self) -> None:
        self.fired += 1
        raise self._error()
