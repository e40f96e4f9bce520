"""Positions in PostgreSQL's log, as a mirror records them."""

import pytest

from rhei_pipeline.model.changes import Position
from rhei_pipeline.sources.postgres.logical.position import NO_COMMIT, LogPosition, TableCommit


@pytest.mark.parametrize("keys", [(), (16390, 16391)])
@pytest.mark.parametrize("taken", [0, 2])
@pytest.mark.parametrize("known", [0, 90])
@pytest.mark.parametrize("last", [None, NO_COMMIT, TableCommit(60, 7)])
def test_a_place_is_read_as_it_was_recorded(
    last: TableCommit | None, known: int, taken: int, keys: tuple[int, ...]
) -> None:
    place = LogPosition(70, "server:1:16384", 1000, last, known if last else 0, taken, keys)
    assert place.position().order == 1070
    assert LogPosition.parse(place.position()) == place


def test_what_is_recorded_of_most_places_is_what_earlier_versions_read() -> None:
    place = LogPosition(70, "server:1:16384", 1000, TableCommit(60, 7))
    assert place.position().proof == '["server:1:16384", 1000, 60, 7, 0]'
    noted = LogPosition.parse(Position(1070, '["server:1:16384", 1000]'))
    assert noted == LogPosition(70, "server:1:16384", 1000)
