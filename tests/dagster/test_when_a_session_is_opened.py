"""What the sensor decides: by what is pending, and by what the last sessions left behind."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from rhei_pipeline.dagster import bridging, sensor
from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.relay import (
    COPYING,
    DECLARED,
    LEFT_BEHIND,
    NOTHING,
    OPENED_WITH,
    RETRY_SECONDS,
    SUCCESSOR,
    WAITING,
)
from rhei_pipeline.errors import SourceBusyError
from rhei_pipeline.settings.source import BufferSettings
from tests.support.dagster_shop import Shop

SUCCESS, FAILURE = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE
STARTED, STARTING = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING
LONG_AGO, LATER = -2 * RETRY_SECONDS, 2 * RETRY_SECONDS


def ended(status: dg.DagsterRunStatus, at: float = -1.0, tags: dict[str, str] | None = None) -> Any:
    """Return the record of a session that ended so many seconds from now."""
    begun = datetime.now(UTC) + timedelta(seconds=at - 1)
    run = dg.DagsterRun("sync", status=status, tags=tags or {})
    return SimpleNamespace(dagster_run=run, end_time=time.time() + at, create_timestamp=begun)


class Decisions:
    """What the sensor finds, and what it makes of it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.records: list[Any] = []
        patch.setattr(sensor, "own_records", lambda *_, limit: self.records[:limit])

    def opens(
        self,
        pending: int | Exception | None,
        *records: Any,
        exact: bool = True,
        never_told: Sequence[str] = (),
        unfollowed: Sequence[str] = (),
        again: bool = False,
    ) -> bool:
        def count() -> int | None:
            if isinstance(pending, Exception):
                raise pending
            return pending

        self.records = [*records]
        cdc: Any = SimpleNamespace(pending=count, counts_exactly=exact)
        observer: Any = SimpleNamespace(
            can_follow_again=again, unfollowed=unfollowed, never_told=lambda _: [*never_told]
        )
        context: Any = SimpleNamespace(instance=None)
        return isinstance(sensor._to_open(context, cdc, "sync", observer, "this"), dg.RunRequest)


@pytest.fixture
def decisions(monkeypatch: pytest.MonkeyPatch) -> Decisions:
    return Decisions(monkeypatch)


def test_a_session_is_opened_where_one_has_something_to_do(decisions: Decisions) -> None:
    opens = decisions.opens
    assert opens(None)
    assert opens(1)
    assert not opens(0)
    assert not opens(SourceBusyError("somebody writes"))
    assert opens(0, never_told=["t"])
    assert opens(0, unfollowed=["t"])
    assert opens(0, again=True)
    assert opens(0, ended(SUCCESS, tags={COPYING: "t"}))
    assert not opens(0, ended(SUCCESS, tags={COPYING: NOTHING}))


def test_what_tables_left_out_leave_pending_opens_none_until_it_is_time(
    decisions: Decisions,
) -> None:
    opens, left = decisions.opens, {LEFT_BEHIND: "3"}
    assert not opens(3, ended(SUCCESS, tags=left))
    assert opens(4, ended(SUCCESS, tags=left))
    assert opens(2, ended(SUCCESS, tags=left))
    assert opens(3, ended(SUCCESS, tags=left), exact=False)  # who knows which 3
    assert opens(3, ended(SUCCESS, LONG_AGO, tags=left))
    assert opens(3, ended(SUCCESS, LATER, tags=left))  # a clock that was set back


def test_a_session_that_failed_is_followed_and_several_are_waited_for(
    decisions: Decisions,
) -> None:
    opens = decisions.opens
    assert opens(0, ended(FAILURE))
    assert opens(0, ended(FAILURE), ended(SUCCESS))
    assert not opens(0, ended(SUCCESS), ended(FAILURE))
    assert not opens(0, ended(FAILURE), ended(FAILURE))
    assert opens(0, ended(FAILURE, LONG_AGO), ended(FAILURE, LONG_AGO))
    assert opens(0, ended(FAILURE, LATER), ended(FAILURE, LATER))
    many = [ended(FAILURE) for _ in range(9)]
    assert opens(1, *many[:2])
    assert not opens(1, *many)
    assert opens(1, *[ended(FAILURE, LONG_AGO) for _ in many])
    assert opens(1, *[ended(FAILURE, LATER) for _ in many])


@pytest.mark.parametrize("pending", [0, 1])
def test_what_sessions_of_another_declaration_failed_of_is_not_waited_for(
    decisions: Decisions, pending: int
) -> None:
    def failed(*declared: str) -> list[Any]:
        return [ended(FAILURE, tags={OPENED_WITH: each} if each else {}) for each in declared]

    opens = decisions.opens
    by_hand = ""
    assert not opens(pending, *failed(*["this"] * 4))
    assert not opens(pending, *failed(*[by_hand] * 4))
    assert not opens(pending, *failed(by_hand, "this", "this", "this"))
    assert opens(pending, *failed(*["before"] * 8))
    assert opens(pending, *failed("this", *["before"] * 7))
    assert opens(pending, *failed(by_hand, *["before"] * 7))
    assert opens(pending, *failed("this", "before", *["this"] * 6))


def test_what_tables_left_out_leave_pending_is_tried_with_another_declaration(
    decisions: Decisions,
) -> None:
    left = {LEFT_BEHIND: "3"}
    assert not decisions.opens(3, ended(SUCCESS, tags={**left, OPENED_WITH: "this"}))
    assert decisions.opens(3, ended(SUCCESS, tags={**left, OPENED_WITH: "before"}))


def test_a_session_is_followed_by_one_more_and_not_by_two() -> None:
    def follows(*runs: tuple[dg.DagsterRunStatus, dict[str, str]]) -> bool:
        made = [dg.DagsterRun("sync", status=status, tags=tags) for status, tags in runs]
        return isinstance(sensor._beside(made, "this"), dg.RunRequest)

    asks, other = {SUCCESSOR: "wanted"}, {DECLARED: "another"}
    assert not follows((STARTED, {}))
    assert follows((STARTED, asks))
    assert follows((STARTED, other))
    assert not follows((STARTED, {DECLARED: "this"}))
    assert not follows((STARTED, asks), (STARTING, {}))
    assert not follows((STARTED, asks), (STARTED, {}))
    assert not follows((STARTING, other))


@pytest.mark.parametrize(
    ("session", "pending", "bridges"),
    [
        (None, 3, False),  # nothing was synced yet
        (dg.DagsterRun("sync", status=STARTED), 3, False),
        (dg.DagsterRun("sync", status=STARTED, tags={WAITING: "yes"}), 3, True),
        (dg.DagsterRun("sync", status=STARTED, tags={WAITING: "yes"}), 0, False),
        (dg.DagsterRun("sync", status=SUCCESS, tags={WAITING: "yes"}), 3, False),
        (dg.DagsterRun("sync", status=FAILURE), 3, True),
        (dg.DagsterRun("sync", status=FAILURE), SourceBusyError("somebody writes"), False),
    ],
)
def test_changes_are_bridged_while_no_session_has_the_mirror(
    shop: Shop,
    session: dg.DagsterRun | None,
    pending: int | Exception,
    monkeypatch: pytest.MonkeyPatch,
    *,
    bridges: bool,
) -> None:
    def own_runs(_context: object, job: str, *_: object, **_more: object) -> list[dg.DagsterRun]:
        return [session] if session is not None and job == "sync" else []

    def unbridged() -> int:
        if isinstance(pending, Exception):
            raise pending
        return pending

    monkeypatch.setattr(bridging, "own_runs", own_runs)
    buffer = BufferSettings(path=shop.settings.sqlite_path.parent / "cdc")
    capture = shop.settings.capture.model_copy(update={"buffer": buffer})
    settings = shop.settings.model_copy(update={"capture": capture})
    (found,) = bridging.bridge_sensors(Declaration.of(settings))
    cdc = SimpleNamespace(unbridged=unbridged)
    with dg.build_sensor_context(instance=shop.instance, resources={"cdc": cdc}) as context:
        assert bool(found.evaluate_tick(context).run_requests) is bridges
