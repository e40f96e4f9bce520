"""A plugin of pytest's that prints the drift matrix: `make drift`."""

from collections.abc import Iterator
from typing import Any

import pytest

#: Under these names a test's report carries its cell, and how it ended.
CELL, ENDED = "drift_cell", "drift_ended"

_ended: dict[tuple[str, ...], str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how a cell ended; the tests run in other processes."""
    told = dict(report.user_properties)
    if CELL not in told or report.when != "call":
        return
    cell, ended = told[CELL], told.get(ENDED)
    _ended[tuple(str(cell).split("-"))] = str(ended) if report.passed else f"FAIL {_cause(report)}"


def _cause(report: pytest.TestReport) -> str:
    crash: Any = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr).splitlines()[0][:300]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table: a row for each drift, a column for each way to mirror it."""
    for line in _table():
        terminalreporter.write_line(line)


def _table() -> Iterator[str]:
    columns = sorted({cell[2:] for cell in _ended})
    rows = list(dict.fromkeys(cell[:2] for cell in _ended))
    if not rows:
        return
    marks = {cell: ended.split()[0] for cell, ended in _ended.items()}
    for number, column in enumerate(columns):
        yield f"  column {number:2}: {' '.join(column)}"
    yield f"  {'drift':32} {' '.join(f'{number:>5}' for number in range(len(columns)))}"
    for row in sorted(rows):
        found = (marks.get((*row, *column), "-") for column in columns)
        yield f"  {' '.join(row):32} {' '.join(f'{mark:>5}' for mark in found)}"
    for cell, ended in sorted(_ended.items()):
        if ended.startswith("FAIL"):
            yield f"  {'-'.join(cell)}: {ended}"
    counts = {mark: list(marks.values()).count(mark) for mark in ("equal", "named", "FAIL")}
    yield f"  {counts}"
