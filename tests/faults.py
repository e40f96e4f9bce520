"""Scripted faults: the work ends at a named step, as if the process had died there."""

from rhei_pipeline.protocols import Step


class Crash(BaseException):
    """Not an Exception on purpose: nothing in the engine may catch it."""


class CrashAt:
    """Passed as `on_step`: crashes at the n-th time that a step is reached, once."""

    def __init__(self) -> None:
        self._step: Step | None = None
        self._left = 0
        self.seen: list[Step] = []

    def arm(self, step: Step, occurrence: int = 1) -> None:
        """Crash at the step's next n-th occurrence."""
        self._step, self._left = step, occurrence

    def disarm(self) -> None:
        """Crash no more."""
        self._step = None

    def __call__(self, step: Step) -> None:
        self.seen.append(step)
        if step is self._step:
            self._left -= 1
            if self._left == 0:
                self._step = None
                raise Crash(step)
