"""Whatever is done to a table: its mirror is equal again, or it is named with a way that works.

`make drift` plays the whole matrix and prints it; the suite plays a sample in which every drift,
every capture, every mirror and every moment has its turn. Each run of the suite draws another half
of the sample, in which all of them are still; `make combinations` plays the sample.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from examples.postgres_server import Server
from tests.support.drift.drifts import DRIFTS
from tests.support.drift.matrix import CAPTURES, MIRRORS, MODES, MOMENTS, Cell, cells
from tests.support.drift.play import play
from tests.support.drift.stage import staged
from tests.support.drift.table import CELL, ENDED

Record = Callable[[str, object], None]


def sample() -> Iterator[Cell]:
    """Choose two cells for each drift, one of either source, all others taking turns."""
    for turn, drift in enumerate(DRIFTS):
        for source in ("sqlite", "postgres"):
            own = [capture.name for capture in CAPTURES.values() if capture.source == source]
            cell = Cell(
                drift.name,
                MOMENTS[(turn + turn // 3) % len(MOMENTS)],
                own[turn % len(own)],
                MODES[(turn + (source == "sqlite")) % len(MODES)],
                MIRRORS[(turn // 2 + (source == "sqlite")) % len(MIRRORS)],
            )
            if cell.statements:
                yield cell


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make thousands of tests only where they were asked for."""
    soaks = metafunc.function is test_every_cell_of_the_drift_matrix
    expression = metafunc.config.option.markexpr
    asked = "soak" in expression and "not soak" not in expression
    chosen = cells() if soaks and asked else sample()
    metafunc.parametrize("cell", list(chosen), ids=str)


@pytest.fixture
def postgres(cell: Cell, request: pytest.FixtureRequest) -> Server | None:
    """Return the server, where the cell has need of one."""
    needed = cell.captures.source == "postgres"
    return request.getfixturevalue("server") if needed else None


@pytest.mark.long
@pytest.mark.each
def test_a_sample_of_the_drift_matrix(cell: Cell, tmp_path: Path, postgres: Server | None) -> None:
    with staged(cell, tmp_path, postgres) as stage:
        play(cell, stage)


@pytest.mark.soak
def test_every_cell_of_the_drift_matrix(
    cell: Cell, tmp_path: Path, postgres: Server | None, record_property: Record
) -> None:
    record_property(CELL, str(cell))
    with staged(cell, tmp_path, postgres) as stage:
        record_property(ENDED, play(cell, stage))
