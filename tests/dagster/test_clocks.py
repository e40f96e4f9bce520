"""Clocks that are set, differ between machines, or stood still while a laptop slept."""

import time
from uuid import uuid4

import dagster as dg
import pytest

from rhei_pipeline.dagster.heartbeat import ALIVE, SignsOfLife
from tests.support.dagster_shop import Shop

STARTED, FAILURE = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.FAILURE
HOURS = 3 * 3600.0


class Watch:
    """A sensor that looks at one run, by a clock that is set by hand."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.now = 0.0
        self.instance = instance
        self.signs = SignsOfLife(lambda: self.now)
        self.run = instance.add_run(
            dg.DagsterRun(job_name="sync", run_id=str(uuid4()), status=STARTED)
        )

    def gives_up(self, after: float, sign: float | None = None) -> bool:
        """Look again after so many seconds; `sign`: what the run has said meanwhile."""
        self.now += after
        if sign is not None:
            self.instance.add_run_tags(self.run.run_id, {ALIVE: str(int(sign))})
        found = self.instance.get_run_by_id(self.run.run_id)
        assert found is not None
        return self.signs.end_the_dead(self.instance, [found])


@pytest.mark.parametrize("ahead", [-400 * 86_400, -HOURS, 0.0, HOURS])
def test_a_run_lives_while_its_signs_change_whatever_its_clock_says(ahead: float) -> None:
    """Its clock may be another machine's, or this one's before it was set, or before it slept."""
    with dg.instance_for_test() as instance:
        watch = Watch(instance)
        stamp = time.time() + ahead
        assert not any(watch.gives_up(140, stamp + beat) for beat in range(5))
        assert not watch.gives_up(140, stamp - HOURS)  # set back: a sign like any other
        assert not watch.gives_up(140)
        assert watch.gives_up(20)
        ended = instance.get_run_by_id(watch.run.run_id)
        assert ended is not None
        assert ended.status is FAILURE
        assert not watch.signs.end_the_dead(instance, [ended])


@pytest.mark.long
def test_a_session_that_failed_by_a_clock_ahead_is_tried_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shop.sync().success
    reasons = []
    for _ in range(2):
        run = dg.DagsterRun(job_name="sync", run_id=str(uuid4()), status=STARTED)
        shop.instance.report_run_failed(shop.instance.add_run(run))
        reasons.append(str(shop.tick()))
    assert "the last sessions failed" in reasons[1]
    true = time.time() - HOURS
    monkeypatch.setattr("rhei_pipeline.dagster.sensor.time.time", lambda: true)
    asked = shop.tick()
    assert isinstance(asked, dg.RunRequest)
    assert asked.tags["rhei/reason"] == "the last session failed"


def test_the_sensor_gives_up_a_session_without_signs_and_opens_the_next(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dg.DagsterRun(job_name="sync", run_id=str(uuid4()), status=STARTED)
    shop.instance.add_run(run)
    assert "is open" in str(shop.tick())
    monkeypatch.setattr("rhei_pipeline.dagster.heartbeat._DEAD_SECONDS", -1.0)
    assert "has died" in str(shop.tick())
    ended = shop.instance.get_run_by_id(run.run_id)
    assert ended is not None
    assert ended.status is FAILURE
    assert isinstance(shop.tick(), dg.RunRequest)
