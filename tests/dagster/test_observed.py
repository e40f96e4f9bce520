"""What the sensor reports beside a session: nothing green of what nobody knows, nothing twice."""

import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from rhei_pipeline.dagster.check_records import last_evaluations
from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.observing import DATA_VERSION, Observer
from rhei_pipeline.errors import SourceBusyError, SourceError
from rhei_pipeline.model.standing import SourceStanding
from tests.support.dagster_shop import Shop

MIRROR = dg.AssetKey(["mirror", "orders"])


class Watch:
    """An observer, and the clock and the source that it looks at."""

    def __init__(self, shop: Shop, patch: pytest.MonkeyPatch) -> None:
        self.shop, self.now, self.asked = shop, 1e6, 0
        self.observer = Observer(Declaration.of(shop.settings))
        clock = SimpleNamespace(monotonic=lambda: self.now, time=time.time)
        patch.setattr("rhei_pipeline.dagster.observing.time", clock)

    def look(
        self, found: SourceStanding | Exception, *, is_open: bool = False, later: float = 61.0
    ) -> None:
        def standing() -> SourceStanding:
            self.asked += 1
            if isinstance(found, Exception):
                raise found
            return found

        self.now += later
        cdc: Any = SimpleNamespace(standing=standing, settings=lambda: self.shop.settings)
        context: Any = SimpleNamespace(
            instance=self.shop.instance, code_location_origin=None, repository_name=None
        )
        self.observer.look(context, cdc, is_open=is_open)

    def said(self, name: str) -> tuple[bool, str] | None:
        """Return whether a check of the mirror passed last, and why; None where it never ran."""
        key = dg.AssetCheckKey(MIRROR, name)
        last = last_evaluations(self.shop.instance, [key]).get(key)
        return None if last is None else (last.passed, last.description or "")


@pytest.fixture
def watch(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(shop, monkeypatch)


def late(seconds: float = 3600.0) -> SourceStanding:
    return SourceStanding(1, waiting={"orders": datetime.now(UTC) - timedelta(seconds=seconds)})


def test_a_source_that_does_not_answer_now_is_no_fault_and_one_that_is_gone_is(
    watch: Watch,
) -> None:
    watch.look(SourceBusyError("somebody writes"))
    assert watch.said("followed") is watch.said("lag") is None
    watch.look(SourceError("it does not exist any more"), is_open=True)  # a session says so
    assert watch.said("followed") is None
    watch.look(SourceError("it does not exist any more"))
    followed, lag = watch.said("followed"), watch.said("lag")
    assert followed is not None
    assert not followed[0]
    assert "it does not exist any more" in followed[1]
    assert lag is not None
    assert not lag[0]
    # How far it is behind, nobody knows: no number takes the place of that.
    watch.look(late(), is_open=True)
    assert watch.said("lag") == lag


def test_changes_that_wait_too_long_are_red_whatever_a_session_does(watch: Watch) -> None:
    watch.look(late(1.0), is_open=True)
    assert watch.said("lag") is None
    watch.look(late(), is_open=True)
    lag = watch.said("lag")
    assert lag is not None
    assert not lag[0]


def test_the_source_is_looked_at_once_a_minute(watch: Watch) -> None:
    changes = dg.AssetKey(["cdc", "changes"])
    for number, later in enumerate((61.0, 1.0, 30.0, 61.0)):
        watch.look(SourceStanding(number + 1), later=later)
    records = watch.shop.instance.fetch_observations(changes, limit=9, ascending=True).records
    told = [
        event.metadata["pending_events"].value for r in records if (event := r.asset_observation)
    ]
    assert told == [1, 4]
    assert watch.asked == 2


def test_a_mirror_is_asked_for_until_a_session_has_reported_it(watch: Watch) -> None:
    instance = watch.shop.instance
    assert watch.observer.never_told(instance) == ["items", "orders"]
    instance.report_runless_asset_event(dg.AssetObservation(MIRROR))
    for _ in range(2):
        assert watch.observer.never_told(instance) == ["items", "orders"]
    watch.look(SourceError("it does not exist any more"))
    assert watch.observer.never_told(instance) == []  # no session could
    instance.report_runless_asset_event(dg.AssetMaterialization(MIRROR))
    assert watch.observer.never_told(instance) == []


def test_a_mirror_that_is_left_out_is_not_reported_as_up_to_date(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert watch.shop.sync().success
    instance, nothing = watch.shop.instance, SourceStanding(0)

    def reported() -> int:
        return len(instance.fetch_materializations(MIRROR, limit=9).records)

    before = reported()
    watch.look(nothing)
    assert reported() == before  # it was told just now
    clock = SimpleNamespace(monotonic=lambda: watch.now, time=lambda: time.time() + 1e6)
    monkeypatch.setattr("rhei_pipeline.dagster.observing.time", clock)
    left_out = dg.AssetCheckEvaluation(asset_key=MIRROR, check_name="followed", passed=False)
    instance.report_runless_asset_event(left_out)
    watch.look(nothing)
    assert reported() == before
    followed = dg.AssetCheckEvaluation(asset_key=MIRROR, check_name="followed", passed=True)
    instance.report_runless_asset_event(followed)
    version = instance.get_latest_materialization_event(MIRROR)
    watch.look(nothing)
    assert reported() == before + 1
    again = instance.get_latest_materialization_event(MIRROR)
    tags = [
        (event.asset_materialization.tags or {}).get(DATA_VERSION)
        for event in (version, again)
        if event is not None and event.asset_materialization is not None
    ]
    assert len(tags) == 2
    assert tags[0] == tags[1] is not None
