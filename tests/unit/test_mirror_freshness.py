"""How new the mirror has to be, and what is done where it is older."""

import time
from typing import TYPE_CHECKING, cast

import pytest

from rhei_pipeline.errors import MirrorError, QueryError, SourceBusyError
from rhei_pipeline.query.freshness import (
    Freshness,
    MirrorFreshness,
    WhenStale,
    Writes,
    Written,
    moment_of,
)

if TYPE_CHECKING:
    from rhei_pipeline.sync.pipeline import Pipeline

BUSY = SourceBusyError("somebody writes")
BROKEN = MirrorError("the disk is full")


class Synced:
    """What of a pipeline freshness depends on: since when the mirror is as the source."""

    def __init__(self, *seen: int | None, error: Exception | None = None) -> None:
        self._seen = list(seen)
        self._error = error
        self.syncs = 0

    @property
    def synced_from(self) -> int | None:
        """What is seen at one look after the other; the last stays."""
        return self._seen.pop(0) if len(self._seen) > 1 else self._seen[0]

    def sync_round(self, *, goes_on: bool) -> None:
        """Count the call, and fail or be fresh."""
        assert not goes_on  # a query waits for no copy that is under way
        self.syncs += 1
        if self._error is not None:
            raise self._error
        self._seen = [time.monotonic_ns()]


def of(synced: Synced, when_stale: WhenStale = "sync", wait_seconds: float = 0) -> MirrorFreshness:
    return MirrorFreshness(cast("Pipeline", synced), Freshness(when_stale, wait_seconds))


# When it is stale, whether the source may answer, what a sync ends in: the answer, and the syncs.
STALE: list[tuple[WhenStale, bool, Exception | None, bool | type[Exception], int]] = [
    ("sync", True, None, True, 1),
    ("sync", True, BUSY, False, 1),
    ("sync", False, BUSY, SourceBusyError, 1),
    ("sync", True, BROKEN, MirrorError, 1),
    ("oltp", True, None, False, 0),
    ("oltp", False, None, True, 1),
    ("wait", True, None, True, 1),
    ("wait", False, BUSY, SourceBusyError, 1),
]


@pytest.mark.parametrize(("when_stale", "may_leave", "error", "expected", "syncs"), STALE)
def test_a_stale_mirror_is_synced_or_left_as_is_declared(
    when_stale: WhenStale,
    may_leave: bool,  # noqa: FBT001
    error: Exception | None,
    expected: bool | type[Exception],  # noqa: FBT001
    syncs: int,
) -> None:
    for synced_from in (None, 10):  # never synced, or too long ago
        synced = Synced(synced_from, error=error)
        freshness = of(synced, when_stale)
        if isinstance(expected, bool):
            assert freshness.reach(11, may_leave=may_leave) is expected
        else:
            with pytest.raises(expected):
                freshness.reach(11, may_leave=may_leave)
        assert synced.syncs == syncs


@pytest.mark.parametrize(("synced_from", "needed"), [(None, 0), (10, 10), (10, 9)])
def test_a_mirror_that_is_new_enough_is_asked_as_it_is(
    synced_from: int | None, needed: int
) -> None:
    synced = Synced(synced_from, error=BROKEN)
    assert of(synced).reach(needed, may_leave=False)
    assert synced.syncs == 0


def test_who_waits_is_answered_by_the_background_sync_that_comes() -> None:
    synced = Synced(None, 1, 1, 11, error=BROKEN)
    assert of(synced, "wait", wait_seconds=60).reach(11, may_leave=False)
    assert synced.syncs == 0


def test_what_an_answer_must_show_is_the_later_of_its_age_and_a_write() -> None:
    freshness, now = of(Synced(None)), time.monotonic_ns()
    assert freshness.needed(None, 0) == 0
    assert freshness.needed(None, 7) == 7
    assert freshness.needed(3600, now) == now
    assert 0 <= freshness.needed(1, 7) - (now - 10**9) < 60 * 10**9
    assert freshness.needed(0, 7) >= now
    with pytest.raises(QueryError, match="negative"):
        freshness.needed(-0.1, 0)


def test_the_last_write_is_the_one_that_was_committed_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two threads, the one that committed first may note it last."""
    instants = iter([20, 10, 30])
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(instants))
    writes = Writes()
    late, _ = writes.note(1), writes.note(1)
    assert writes.last is late
    assert writes.note(1) is writes.last


def test_a_write_is_a_moment_also_as_a_token() -> None:
    writes = Writes()
    first, second = writes.note(3), writes.note(0)
    assert (int(first), int(second), writes.last) == (3, 0, second)
    assert moment_of(first) == moment_of(first.token) == first.committed_at
    assert moment_of(first) <= moment_of(second)
    assert moment_of(None) == 0
    # Of before the machine was started: it lies in the past.
    assert moment_of(Written(1, 2**62)) <= time.monotonic_ns()
    for none in (3, "3", "3@", "x@1", "3@-1"):
        with pytest.raises(QueryError, match="not a write"):
            moment_of(none)  # type: ignore[arg-type]
