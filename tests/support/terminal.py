"""The command line in a terminal of its own, where keys are pressed and Ctrl-C is a signal."""

import os
import pty
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

#: A background job inherits that SIGINT is ignored. Whoever asks is told that a query begins.
_RUN = """
import fcntl, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
from rhei_pipeline.model.query_limits import TimedQuery
begun = TimedQuery.begun
TimedQuery.begun = lambda *given: (print("<begun>", flush=True), begun(*given))[1]
from rhei_pipeline.cli.main import main
main()
"""
_PATIENCE_SECONDS = 60.0
_TICKS = 20
INTERRUPT = "\x03"


class Terminal:
    """`rhei` with these arguments, as it is in a terminal of 80 columns."""

    def __init__(self, *arguments: str, cwd: Path, kind: str = "dumb") -> None:
        self._screen, end = pty.openpty()
        os.environ.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUN, *arguments],
            stdin=end,
            stdout=end,
            stderr=end,
            start_new_session=True,
            cwd=cwd,
            env={**os.environ, "TERM": kind, "COLUMNS": "80", "PYTHONPATH": _PROJECT},
        )
        os.close(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._screen)

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._screen, keys.encode())

    def shows(self, text: str) -> str:
        """Wait until a text is shown; return all that was shown since the last call."""
        shown = b""
        while text.encode() not in shown:
            ready, _, _ = select.select([self._screen], [], [], _PATIENCE_SECONDS)
            assert ready, shown.decode()
            try:
                shown += os.read(self._screen, 65_536)
            except OSError:  # it has ended
                break
        assert text.encode() in shown, shown.decode()
        return shown.decode()

    def is_at_work(self) -> None:
        """Wait until a query has begun, and the processor is busy with it."""
        self.shows("<begun>")
        before = self._ticks()
        while self._ticks() < before + _TICKS:
            assert self.process.poll() is None
            select.select([], [], [], 0.01)

    def exit_code(self) -> int:
        """Wait until it ends; return its exit code."""
        return self.process.wait(_PATIENCE_SECONDS)

    def _ticks(self) -> int:
        """Return how long its threads have worked."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])


_PROJECT = str(Path(__file__).parents[2])
