"""The loop that syncs by itself: it goes on after failures, ever more slowly, and says why."""

import math
import threading
from types import MappingProxyType
from typing import Any

import pytest

from rhei_pipeline.errors import RheiError, SettingsError, SourceBusyError
from rhei_pipeline.model.reports import SyncReport, TableReport
from rhei_pipeline.sync.background import KEPT_REPORTS, MAX_BACKOFF_SECONDS, BackgroundSync
from tests.support.refusals import refused


class Failing:
    """Fails as it is told to, then succeeds; tells when it has been called so often."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.succeeded = threading.Event()

    def sync(self) -> SyncReport:
        if self.failures:
            raise self.failures.pop(0)
        self.succeeded.set()
        return SyncReport()


def made(pipeline: Failing, interval: float = 0.001) -> BackgroundSync:
    stand_in: Any = pipeline
    return BackgroundSync(stand_in, interval)


def test_it_goes_on_after_failures_and_forgets_them_after_a_success() -> None:
    errors = [SourceBusyError("locked"), ValueError("private"), RuntimeError("private")]
    pipeline = Failing(*errors, SourceBusyError("locked"))
    background = made(pipeline)
    background.start()
    assert pipeline.succeeded.wait(60)
    background.stop()
    assert not background.running
    assert background.last_error is None
    assert background._wait() == 0.001


def test_a_failure_is_kept_without_what_it_may_quote() -> None:
    background = made(Failing(ValueError("a row's value")))
    background._sync_once()
    assert isinstance(background.last_error, RheiError)
    assert "ValueError" in str(background.last_error)
    assert "a row's value" not in str(background.last_error)


def test_waits_grow_with_jitter_up_to_a_limit() -> None:
    background = made(Failing(*[SourceBusyError("locked")] * 12), interval=1.0)
    for failures in range(1, 12):
        background._sync_once()
        longest = min(2.0**failures, MAX_BACKOFF_SECONDS)
        assert longest / 2 <= background._wait() <= longest
    assert len({background._wait() for _ in range(5)}) > 1


def test_a_source_that_is_away_for_days_is_still_tried_again() -> None:
    background = made(Failing(SourceBusyError("locked")), interval=1.0)
    background._sync_once()
    background._failures = 1_000_000  # by half a minute each, a year
    assert MAX_BACKOFF_SECONDS / 2 <= background._wait() <= MAX_BACKOFF_SECONDS


def test_reports_that_nobody_takes_do_not_pile_up() -> None:
    class Busy(Failing):
        cycles = 0

        def sync(self) -> SyncReport:
            self.cycles += 1
            return SyncReport(MappingProxyType({"t": TableReport("t", events=self.cycles)}))

    background = made(Busy())
    for _ in range(KEPT_REPORTS + 5):
        background._sync_once()
    taken = [report.tables["t"].events for report in background.take_reports()]
    assert taken == list(range(6, KEPT_REPORTS + 6))
    assert not background.take_reports()


def test_a_sync_that_found_nothing_leaves_no_report() -> None:
    background = made(Failing())
    background._sync_once()
    assert background.last_error is None
    assert not background.take_reports()


def test_a_copy_that_goes_on_waits_for_no_interval() -> None:
    class Copying(Failing):
        is_copying = True

        def sync(self) -> SyncReport:
            if self.is_copying:
                self.is_copying = False
                return SyncReport(copying=("t",))
            return super().sync()

    pipeline = Copying()
    background = made(pipeline, interval=3600)
    background.start()
    assert pipeline.succeeded.wait(60)
    background.stop()


def test_a_failure_behind_a_turn_of_a_copy_is_not_tried_again_at_once() -> None:
    again = threading.Event()

    class Failed(Failing):
        turns = 0

        def sync(self) -> SyncReport:
            self.turns += 1
            if self.turns == 1:
                return SyncReport(copying=("t",))
            if self.turns > 2:
                again.set()
            self.succeeded.set()
            raise SourceBusyError("locked")

    pipeline = Failed()
    background = made(pipeline, interval=3600)
    background.start()
    assert pipeline.succeeded.wait(60)
    assert not again.wait(0.2)
    background.stop()


def test_a_new_interval_ends_the_wait_for_the_old_one() -> None:
    pipeline = Failing()
    background = made(pipeline, interval=3600)
    background.start()
    assert pipeline.succeeded.wait(60)
    pipeline.succeeded.clear()
    background.change_interval(0.001)
    assert pipeline.succeeded.wait(60)
    background.stop()


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, 1e12])
def test_an_interval_that_no_wait_has_is_refused(seconds: float) -> None:
    pipeline = Failing()
    with refused("give a number of seconds above 0, of up to {}", SettingsError) as met:
        made(pipeline, interval=seconds)
    longest = float(met.told[0].rstrip(")").replace(",", ""))
    background = made(pipeline, interval=longest)
    background.start()
    assert pipeline.succeeded.wait(60)
    with pytest.raises(SettingsError):
        background.change_interval(seconds)
    pipeline.succeeded.clear()
    background.change_interval(0.001)
    assert pipeline.succeeded.wait(60)
    background.stop()
