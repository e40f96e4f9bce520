"""A process that holds a mirror, and others beside it; each can be killed at any instant."""

import json
import signal
from pathlib import Path
from types import TracebackType
from typing import Self

from rhei_pipeline import Settings
from tests.support.forked import Forked

_HOLD = """
import sys
from rhei_pipeline import HTAP, Settings
with HTAP(Settings.model_validate_json(sys.argv[1])) as htap:
    htap.sync_now()
    if len(sys.argv) > 2:
        htap.start_sync(0.02)
    print("ready", flush=True)
    sys.stdin.read()
"""
#: Copies a table, and stops within the copy until a line is given.
COPY = """
import sys
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.protocols import Step
def stop(step):
    if step is Step.COPY_BEGUN:
        print("ready", flush=True)
        sys.stdin.readline()
with HTAP(Settings.model_validate_json(sys.argv[1]), on_step=stop) as htap:
    htap.initial_sync(sys.argv[2])
"""


class OtherProcess:
    """A process that runs code until it is asked to end, or killed; a context manager.

    It has begun its work when it has printed a line.
    """

    def __init__(self, code: str, *arguments: str) -> None:
        self.process = Forked(code, *arguments)
        self.first = self.process.stdout.readline()
        if not self.first:
            self.process.__exit__(None, None, None)
            raise AssertionError("it has ended")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.__exit__(kind, error, trace)

    def kill(self) -> None:
        """Kill it with SIGKILL; safe to repeat."""
        self.process.kill()

    def stop(self) -> None:
        """Stop it with SIGSTOP, and wait until all of its threads have: one may answer before."""
        self.process.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self.process.pid}/task")
        while threads.exists() and not all(map(_is_stopped, threads.iterdir())):
            pass

    def end(self) -> int:
        """Let it end by itself; return its exit code."""
        self.process.stdin.close()
        return self.process.wait(60)


def _is_stopped(thread: Path) -> bool:
    try:
        told = (thread / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return True
    return told.rpartition(")")[2].split()[0] == "T"


def written(settings: Settings) -> str:
    """Return a declaration as JSON, with its connection string, for another process to read."""
    form = settings.model_dump(mode="json")
    if settings.source.kind == "postgres":
        form["source"]["dsn"] = settings.source.dsn.get_secret_value()
    return json.dumps(form)


def holding(settings: Settings, *, syncing: bool = False) -> OtherProcess:
    """Start a process that holds a mirror, and syncs it once or all the time."""
    return OtherProcess(_HOLD, written(settings), *(["syncing"] if syncing else []))
