"""A program that is measured, at work on its own copy of the table."""

import json
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from benchmarks.others.answering import PROOF
from benchmarks.timing import DIFFER

# A column that is polled has another value in each row, and a later one with each change.
_SPREAD = "update orders set updated_at = created_at"
_INSERT = (
    "insert into orders"
    " select id + :end, customer_id, status, amount, note, created_at, 18 * 100000000 + id + :end"
    " from orders where id <= :count"
)
_UPDATE = (
    "update orders set amount = amount + 1, updated_at = 19 * 100000000 + id where id % :step = 0"
)


class Running:
    """A program, and the application whose table it copies."""

    def __init__(
        self, name: str, source: sqlite3.Connection, process: subprocess.Popen[str]
    ) -> None:
        self._name = name
        self._source = source
        self._process = process
        (self._end,) = source.execute("select max(id) from orders").fetchone()

    def insert(self, count: int) -> None:
        """Insert rows behind the others, in one transaction."""
        self._source.execute(_INSERT, {"end": self._end, "count": count})
        self._end += count

    def update(self, count: int) -> None:
        """Update rows all over the table, in one transaction."""
        self._source.execute(_UPDATE, {"step": self._end // count})

    def sync(self) -> tuple[float, float]:
        """Let it copy what is new; return its seconds of CPU, and by the clock."""
        cpu, wall = self._ask("sync")
        return cpu, wall

    def prove(self) -> None:
        """End the run unless the copy is right: its figures were worth nothing."""
        if self._ask("prove") != list(self._source.execute(PROOF).fetchone()):
            raise SystemExit(f"{self._name}: {DIFFER}")

    def _ask(self, step: str) -> list[Any]:
        given, told = _pipes(self._process)
        print(step, file=given, flush=True)
        line = told.readline()
        if not line:
            raise SystemExit(f"{self._name}: it ended, see above")
        answer: list[Any] = json.loads(line)
        return answer


@contextmanager
def running(table: Path, python: Path, module: str, argument: str) -> Iterator[Running]:
    """Start a program on a copy of the table's file, and end it."""
    with TemporaryDirectory() as name:
        path = Path(name, "app.db")
        with closing(sqlite3.connect(table)) as original, closing(sqlite3.connect(path)) as copy:
            original.backup(copy)
            copy.execute(_SPREAD)
            copy.commit()
        command = (str(python), "-m", f"benchmarks.others.{module}", name, argument)
        with (
            closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as source,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as process,
        ):
            source.execute("pragma journal_mode = wal")
            try:
                yield Running(f"{module} {argument}", source, process)
            finally:
                _pipes(process)[0].close()


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    if process.stdin is None or process.stdout is None:
        raise TypeError("the program was started without pipes")
    return process.stdin, process.stdout
