"""Plays random histories against every capture, mode and mirror for as long as there is time.

`python -m tests.torture [--minutes 60] [--seed N] [--only 'postgres temporal']`, or `make torture`.
What it covered is printed, and written to `build/torture/report.md`.
"""

import argparse
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.support.declarations import histories
from tests.support.declared_worlds import CAPTURES, MODES, STORAGES, Cell
from tests.support.fix_postgres import database, started

REPORT = Path("build/torture/report.md")
#: Histories of one cell before it is the next one's turn.
AT_ONCE = 6
#: The fewest and the most pieces of work in one.
PIECES = (5, 20)

CELLS = [Cell(*parts) for parts in product(CAPTURES, MODES, STORAGES)]

#: Gives an empty database where a cell's source is PostgreSQL.
NewDatabase = Callable[[], Iterator[str]]


@dataclass
class Covered:
    """What was played, and what failed.

    Attributes:
        histories: How many each cell has played.
        done: How often each operation was played, and each crash survived.
        failed: What is to be repeated, of each cell that failed.
    """

    histories: Counter[Cell] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    failed: dict[Cell, str] = field(default_factory=dict)

    def report(self, first: int, minutes: float) -> str:
        """Return it as markdown."""
        lines = [f"# Torture\n\nFrom seed {first}, {minutes:g} minutes.\n"]
        lines += ["| capture, mode, mirror | histories | |", "|---|---|---|"]
        for cell, played in self.histories.items():
            lines.append(f"| {cell} | {played} | {self.failed.get(cell, '')} |")
        lines += ["\n| operation, or crash that was survived | times |", "|---|---|"]
        lines += [f"| {what} | {times} |" for what, times in sorted(self.done.items())]
        return "\n".join([*lines, ""])


def torture(cells: Sequence[Cell], minutes: float, first: int, new: NewDatabase) -> Covered:
    """Play histories of each cell in turn until the time is over; each cell at least once.

    Args:
        cells: What is played. One that failed is not played again.
        minutes: For how long.
        first: The seed of the first histories.
        new: Makes an empty database.
    """
    covered, until = Covered(), time.monotonic() + 60 * minutes
    for turn in count(first):
        for cell in [each for each in cells if each not in covered.failed]:
            if turn > first and time.monotonic() > until:
                return covered
            _play(cell, turn, new, covered)
        if covered.failed.keys() >= set(cells):
            return covered
    return covered


def _play(cell: Cell, turn: int, new: NewDatabase, covered: Covered) -> None:
    """Play some histories of a cell; of one that fails, the shortest that does is shown."""
    with ExitStack() as stack:
        is_sqlite = cell.capture.startswith("sqlite")
        dsn = None if is_sqlite else stack.enter_context(contextmanager(new)())

        @seed(turn * len(CELLS) + CELLS.index(cell))
        @settings(
            max_examples=AT_ONCE,
            database=None,
            deadline=None,
            suppress_health_check=[*HealthCheck],
            phases=[Phase.generate, Phase.shrink],
        )
        @given(played=histories(*PIECES))
        def play(played: Sequence[Any]) -> None:
            covered.histories[cell] += 1
            cell.play(dsn, played, covered.done)

        try:
            play()
        except Exception:  # noqa: BLE001  (whatever it is, the other cells go on)
            traceback.print_exc()
            covered.failed[cell] = f"failed: --seed {turn} --only '{cell}'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 if a cell failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", default="", help="words that a cell's name has, all of them")
    chosen = parser.parse_args(arguments)
    cells = [each for each in CELLS if set(chosen.only.split()) <= {*str(each).split()}]
    if not cells:
        parser.error(f"no cell is {chosen.only!r}; they are such as {str(CELLS[0])!r}")
    with ExitStack() as stack:
        servers: list[Any] = []

        def new() -> Iterator[str]:
            if not servers:
                servers.append(stack.enter_context(started(None)))
            yield from database(servers[0])

        covered = torture(cells, chosen.minutes, chosen.seed, new)
    report = covered.report(chosen.seed, chosen.minutes)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(report)
    sys.stdout.write(report)
    return bool(covered.failed)


if __name__ == "__main__":
    sys.exit(main())
