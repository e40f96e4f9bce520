"""Reports as a terminal shows them: whatever is in them, no column is lost."""

import random

import pytest
from rich.console import Console

from rhei_pipeline.cli.output import _report

NAMES = ("at", "table", "what", "old", "new", "rows_read", "seconds")


def drawn(random_: random.Random) -> list[str]:
    """Return a row with words of all lengths in its texts."""
    texts = [
        " ".join("w" * random_.choice((3, 8, 12, 13, 40)) for _ in range(random_.randint(1, 4)))
        for _ in range(4)
    ]
    return ["2026-11-30 04:01", *texts, f"{random_.randint(0, 10**6):,}", "0.02"]


@pytest.mark.long
def test_a_report_fits_whatever_words_it_has_and_cuts_no_number() -> None:
    random_ = random.Random(1)
    for _ in range(200):
        rows = [drawn(random_) for _ in range(random_.randint(1, 4))]
        width = random_.choice((80, 100, 140))
        console = Console(width=width)
        with console.capture() as shown:
            console.print(_report(NAMES, rows, [False] * 5 + [True] * 2, width))
        lines = shown.get().splitlines()
        assert {len(line) for line in lines} == {len(lines[0])}
        assert len(lines[0]) <= width
        assert all(line[-1] in "┓┃┩│┘" for line in lines)
        for row in rows:
            assert any(f" {row[5]} │" in line for line in lines)
            assert any(f" {row[6]} │" in line for line in lines)
