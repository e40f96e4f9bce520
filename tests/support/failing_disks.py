"""A disk that fails: strace has a system call of a process fail, wherever it is made from."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: How each call fails.
ERRORS: Mapping[str, str] = {
    "write": "ENOSPC",
    "pwrite64": "ENOSPC",
    "ftruncate": "EIO",
    "fsync": "EIO",
    "fdatasync": "EIO",
    "rename": "EIO",
    "pread64": "EIO",
}
_CALL = re.compile(r'^(\d+) +(\w+)\((?:\d+<([^>]*)>|"([^"]*)")')
_RHEI = (sys.executable, "-m", "rhei_pipeline.cli.main")


@dataclass(frozen=True)
class Point:
    """A call that fails: the how-many-th of its kind in a thread of the process."""

    call: str
    number: int

    @property
    def injected(self) -> tuple[str, ...]:
        """How strace is told so."""
        fails = f"inject={self.call}:error={ERRORS[self.call]}:when={self.number}"
        return "-e", f"trace={self.call}", "-e", fails


def synced(told: Sequence[str], directory: Path, log: Path) -> subprocess.CompletedProcess[str]:
    """Run `rhei sync` on what is declared in the directory, as strace is told."""
    command = (*_RHEI, "sync", "--config", "pipeline.yaml")
    return subprocess.run(
        [_strace(), "-f", "-y", "-o", str(log), *told, *command],
        cwd=directory,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextmanager
def failing(process: int, calls: str, file: Path) -> Iterator[None]:
    """Have calls of a process on a file fail during a block."""
    fails = f"inject={calls}:error=EIO"
    command = [_strace(), "-f", "-p", str(process), "-P", str(file), "-e", fails]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        try:
            while "attached" not in strace.stderr.readline():
                assert strace.poll() is None
            yield
        finally:
            strace.terminate()


def _strace() -> str:
    found = shutil.which("strace")
    assert found is not None
    return found


def points(log: Path, directory: Path) -> Iterator[Point]:
    """Yield the calls of a log that were made on files of a directory, each once."""
    counts = Counter[tuple[str, str]]()
    met = set[Point]()
    for line in log.read_text(errors="replace").splitlines():
        if (call := _CALL.match(line)) is None:
            continue
        thread, name, of_file, of_path = call.groups()
        counts[thread, name] += 1
        point = Point(name, counts[thread, name])
        place = directory / (of_file or of_path or "/")
        if name in ERRORS and place.is_relative_to(directory) and point not in met:
            met.add(point)
            yield point
