"""Whatever is declared of a table while it is written, and wherever the engine dies."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings

from tests.support.declarations import histories
from tests.support.declared_worlds import CAPTURES, MODES, STORAGES, Cell

pytestmark = pytest.mark.turns

#: `make torture` plays as many as there is time for.
EXAMPLES = 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("capture", [name for name in CAPTURES if name.startswith("sqlite")])
@settings(max_examples=EXAMPLES)
@given(played=histories(2, 8))
def test_a_mirror_of_sqlite_is_as_declared(
    played: Sequence[Any], capture: str, storage: str | None, mode: str
) -> None:
    Cell(capture, mode, storage).play(None, played, Counter())


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("capture", [name for name in CAPTURES if name.startswith("postgres")])
@settings(max_examples=EXAMPLES)
@given(played=histories(2, 8))
def test_a_mirror_of_postgres_is_as_declared(
    dsn: str, played: Sequence[Any], capture: str, storage: str | None, mode: str
) -> None:
    Cell(capture, mode, storage).play(dsn, played, Counter())
