"""A disk that fails: strace has a system call of a process fail, wherever it is made from."""

import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice, zip_longest
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
#: What tells files of one sort apart.
_NUMBERS = re.compile(r"[0-9a-f]{8,}|\d+")
_RHEI = (sys.executable, "-m", "rhei_pipeline.cli.main")


@dataclass(frozen=True)
class Point:
    """A call that fails: the how-many-th of its kind in a thread of the process.

    Attributes:
        file: On what sort of file it was made.
    """

    call: str
    number: int
    file: str = field(default="", compare=False)

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


def sampled(found: Sequence[Point], most: int, seed: int) -> list[Point]:
    """Return so many of the points, and of each sort of call on each sort of file as many."""
    chance, sorts = random.Random(seed), dict[tuple[str, str], list[Point]]()
    for point in found:
        sorts.setdefault((point.call, point.file), []).append(point)
    for each in sorts.values():
        chance.shuffle(each)
    turns = (point for turn in zip_longest(*sorts.values()) for point in turn if point)
    return list(islice(turns, max(most, len(sorts))))


def points(log: Path, directory: Path) -> Iterator[Point]:
    """Yield the calls of a log that were made on files of a directory, each once."""
    counts = Counter[tuple[str, str]]()
    met = set[Point]()
    for line in log.read_text(errors="replace").splitlines():
        if (call := _CALL.match(line)) is None:
            continue
        thread, name, of_file, of_path = call.groups()
        counts[thread, name] += 1
        place = directory / (of_file or of_path or "/")
        point = Point(name, counts[thread, name], _NUMBERS.sub("0", place.name))
        if name in ERRORS and place.is_relative_to(directory) and point not in met:
            met.add(point)
            yield point
