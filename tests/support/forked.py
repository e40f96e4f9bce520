"""Processes of their own, forked from one that has imported the package already.

An interpreter that is started anew imports for a second of the processor before it does anything;
a fork begins at once. It is a process like any other: it holds locks, and can be killed.
"""

import atexit
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

#: What most of the programs import; in one that forks, nothing is opened and no thread is started.
_IMPORTED = (
    "datafusion",
    "deltalake",
    "duckdb",
    "pyarrow.parquet",
    "rhei_pipeline.buffer.log",
    "rhei_pipeline.mirrors.datafusion.mirror",
    "rhei_pipeline.mirrors.duckdb.mirror",
    "rhei_pipeline.sources.postgres.database",
    "rhei_pipeline.sources.sqlite.triggers.source",
    "rhei_pipeline.wiring.engine",
)
_PROJECT = Path(__file__).parents[2]
_REQUEST_BYTES = 128 * 1024


class Forked:
    """A process that runs Python code, as `python -c` would.

    Args:
        code, arguments: What it runs, and its `sys.argv[1:]`.
        stderr: The file that it writes errors to.

    Attributes:
        pid: Its own, to send signals to.
        stdin, stdout: Its other ends, as text.
        returncode: As `subprocess.Popen` has it; None while it runs.
    """

    def __init__(self, code: str, *arguments: str, stderr: int = 2) -> None:
        self.returncode: int | None = None
        theirs_in, stdin = os.pipe()
        stdout, theirs_out = os.pipe()
        told, status = os.pipe()
        order = {"code": code, "arguments": arguments, "cwd": os.getcwd()}  # noqa: PTH109
        request = json.dumps({**order, "environment": dict(os.environ)}).encode()
        given = (theirs_in, theirs_out, stderr, status)
        socket.send_fds(_forking(), [request], given)
        for file in (theirs_in, theirs_out, status):
            os.close(file)
        self.stdin, self.stdout = os.fdopen(stdin, "w"), os.fdopen(stdout)
        # Nothing is read ahead, so that what has come can be waited for.
        self._told = os.fdopen(told, "rb", buffering=0)
        self.pid = int(self._told.readline())

    def poll(self) -> int | None:
        """Return its exit code; None while it runs."""
        if self.returncode is None and self._has_ended(0):
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; return its exit code.

        Raises:
            subprocess.TimeoutExpired: It runs on.
        """
        if self.returncode is None:
            if not self._has_ended(timeout):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self._told.readline())
            self._told.close()
        return self.returncode

    def _has_ended(self, seconds: float | None) -> bool:
        asked = select.poll()  # `select` itself knows no file beyond the first thousand
        asked.register(self._told, select.POLLIN)
        return bool(asked.poll(None if seconds is None else seconds * 1000))

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it is known to have ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it with SIGKILL, and wait until it is gone; safe to repeat."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self.stdin.close()
        self.stdout.close()


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own; return how it ended, and what it printed."""
    with (
        tempfile.TemporaryFile("w+") as errors,
        Forked(code, *arguments, stderr=errors.fileno()) as process,
    ):
        process.stdin.close()
        printed = process.stdout.read()
        status = process.wait()
        errors.seek(0)
        return subprocess.CompletedProcess(arguments, status, printed, errors.read())


def output_of(code: str, *arguments: str) -> str:
    """Run Python code in a process of its own, which has to end well; return what it printed."""
    done = run(code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def _forking() -> socket.socket:
    """Start the process that forks, once in each that runs tests; return the way to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-c", _FORKING, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd=_PROJECT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


_FORKING = "import sys; from tests.support.forked import fork_all; fork_all(int(sys.argv[1]))"


def fork_all(channel: int) -> None:
    """Fork a process for each request, which runs it; end when nobody can ask any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is meant for the programs
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for module in _IMPORTED:
        __import__(module)
    gc.freeze()  # what all of them share is not copied by looking for garbage
    with socket.socket(fileno=channel) as requests:
        while True:
            request, files, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 4)
            if not request:
                os._exit(0)  # without the list that DuckDB's bindings print
            if os.fork() == 0:
                break
            _close(files)
    _begin(json.loads(request), files)


def _begin(request: dict[str, Any], files: Sequence[int]) -> NoReturn:
    """Fork once more: the new process runs the code, and this one waits for its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *standard, status = files
    program = os.fork()
    if program:
        _close(standard)
        os.write(status, b"%d\n" % program)
        _, ended = os.waitpid(program, 0)
        os.write(status, b"%d\n" % os.waitstatus_to_exitcode(ended))
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate(standard):
        os.dup2(file, number)
    _close(files)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["-c", *request["arguments"]]
    os._exit(_status_of(request["code"]))


def _status_of(code: str) -> int:
    """Run code as a main module; return the exit code, once threads and exit functions are done."""
    status = 0
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
    except BaseException:  # noqa: BLE001  (shown, as the interpreter does)
        traceback.print_exc()
        status = 1
    # What else an interpreter does when it ends takes longer than most of the programs.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    return status


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)
