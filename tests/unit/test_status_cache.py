"""What is told of the tables to those who do not wait, or while nothing can be read."""

from types import MappingProxyType

import pytest

from rhei_pipeline.errors import SourceBusyError
from rhei_pipeline.model.reports import Standing
from rhei_pipeline.sync.status import StatusCache

NOTHING = Standing(MappingProxyType({}), MappingProxyType({}))
PATIENCE = 60.0


def test_it_is_read_again_whenever_somebody_asks() -> None:
    cache, held = StatusCache(), iter((1, 2))

    def read() -> Standing:
        return cache.keep(Standing(MappingProxyType({}), MappingProxyType({"log": next(held)})))

    told = [cache.within(PATIENCE, read).held_bytes["log"] for _ in range(2)]
    assert told == [1, 2]


def test_while_it_cannot_be_read_the_last_is_told_with_its_age_and_why() -> None:
    cache = StatusCache()
    cache.within(PATIENCE, lambda: cache.keep(NOTHING))

    def fail() -> None:
        raise SourceBusyError("locked")

    told = cache.within(PATIENCE, fail)
    assert told.unreadable == "locked"
    assert told.age_seconds > 0
    cache.note_readable()
    assert cache.last().unreadable is None


def test_an_unknown_error_is_told_by_its_type_alone() -> None:
    cache = StatusCache()

    def fail() -> None:
        raise ZeroDivisionError("a row's value")

    told = cache.within(PATIENCE, fail)
    assert told.unreadable is not None
    assert "ZeroDivisionError" in told.unreadable
    assert "a row's value" not in told.unreadable


@pytest.mark.parametrize("seconds", [10.0, 0.0])
def test_its_age_counts_from_when_it_was_kept(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    now = [100.0]
    monkeypatch.setattr("rhei_pipeline.sync.status.time.monotonic", lambda: now[0])
    cache = StatusCache()
    now[0] += 1000.0
    cache.keep(NOTHING)
    now[0] += seconds
    assert cache.last().age_seconds == seconds
