"""What is shown of a pipeline's state: each trouble alone makes it not ready, and not green."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rhei_pipeline import TableState
from rhei_pipeline.errors import MirrorError
from rhei_pipeline.model.reports import CopyStatus, SyncReport, SyncStatus, TableReport, TableStatus
from rhei_pipeline.monitoring.metrics import Monitoring
from rhei_pipeline.monitoring.recent import POINT_SECONDS, POINTS, Recent
from rhei_pipeline.monitoring.status_page import status_page

NOW = 1_800_000_000.0
READY = TableStatus("t", "temporal", TableState.READY, 7, 0, 0.0, 0)
LATE = replace(READY, lag_events=3, lag_seconds=4.0)
GOOD = SyncStatus(running=True, tables={"t": READY})


def of(**changed: Any) -> SyncStatus:
    """Return the state of a pipeline whose table differs so from one that is up to date."""
    return replace(GOOD, tables={"t": replace(READY, **changed)})


class Shown:
    """A pipeline in a given state."""

    def __init__(self, status: SyncStatus | None) -> None:
        self.status = status
        self.on_sync: Callable[[SyncReport], None] = lambda _report: None

    def sync_status(self, patience_seconds: float | None = None) -> SyncStatus:
        assert patience_seconds is not None, "a scrape does not wait for a sync"
        if self.status is None:
            raise MirrorError("the mirror is closed")
        return self.status

    def watch(
        self, on_sync: Callable[[SyncReport], None], on_query: Callable[[str, float], None]
    ) -> None:
        del on_query
        self.on_sync = on_sync


def scraped(monitoring: Monitoring) -> Mapping[tuple[str, str], float]:
    text = generate_latest(monitoring.registry).decode()
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def gauges(status: SyncStatus | None) -> Mapping[tuple[str, str], float]:
    return scraped(Monitoring(Shown(status)))


def page(status: SyncStatus, recent: Recent | None = None) -> str:
    return status_page(status, recent or Recent(), NOW)


def test_nobody_is_sent_to_a_pipeline_that_cannot_answer() -> None:
    def readiness(status: SyncStatus | None) -> str | None:
        return Monitoring(Shown(status)).readiness()

    assert readiness(GOOD) is None
    assert readiness(of(error="left out", state=None)) is None  # the source answers for it
    assert readiness(replace(GOOD, unreadable="locked")) == "locked"  # though all was known
    assert readiness(replace(GOOD, last_error="full")) == "the background sync fails: full"
    assert readiness(of(state=None)) == "not copied yet: t"
    assert readiness(of(state=TableState.COPYING)) == "not copied yet: t"
    assert readiness(replace(GOOD, tables={})) == "not copied yet: any table"
    assert readiness(replace(GOOD, tables={}, copying={"u": CopyStatus(1, 2)})) is not None
    assert readiness(None) is not None


def test_each_trouble_has_its_own_number() -> None:
    good = gauges(GOOD)
    assert (
        good["rhei_up", ""] == good["rhei_sync_running", ""] == good["rhei_table_ready", "t"] == 1
    )
    assert good["rhei_sync_watermark", "t"] == 7
    for gauge in (
        *("rhei_sync_failing", "rhei_publishing_failing", "rhei_status_age_seconds"),
        *("rhei_table_left_out", "rhei_dead_letters_open"),
        *("rhei_sync_cdc_lag_events", "rhei_sync_cdc_lag_seconds"),
    ):
        assert good.get((gauge, ""), 0.0) == good.get((gauge, "t"), 0.0) == 0, gauge
    for trouble, name, expected in (
        (replace(GOOD, running=False), ("rhei_sync_running", ""), 0),
        (replace(GOOD, last_error="full"), ("rhei_sync_failing", ""), 1),
        (replace(GOOD, not_published="full"), ("rhei_publishing_failing", ""), 1),
        (replace(GOOD, unreadable="locked"), ("rhei_up", ""), 0),
        (replace(GOOD, age_seconds=9.0), ("rhei_status_age_seconds", ""), 9),
        (replace(GOOD, held_bytes={"slot": 5}), ("rhei_capture_held_bytes", "slot"), 5),
        (replace(GOOD, copying={"t": CopyStatus(2, 4)}), ("rhei_copy_rows", "t"), 2),
        (replace(GOOD, copying={"t": CopyStatus(2, 4)}), ("rhei_copy_expected_rows", "t"), 4),
        (of(error="left out"), ("rhei_table_left_out", "t"), 1),
        (of(state=TableState.COPYING), ("rhei_table_ready", "t"), 0),
        (of(dead_letters=3), ("rhei_dead_letters_open", "t"), 3),
        (of(lag_events=4), ("rhei_sync_cdc_lag_events", "t"), 4),
        (of(lag_seconds=2.5), ("rhei_sync_cdc_lag_seconds", "t"), 2.5),
        (None, ("rhei_up", ""), 0),
    ):
        assert gauges(trouble)[name] == expected, name
    unknown = gauges(of(lag_events=None, lag_seconds=None))
    assert not {name for name, _ in unknown} & {
        "rhei_sync_cdc_lag_events",
        "rhei_sync_cdc_lag_seconds",
    }


def test_the_age_of_changes_is_that_of_syncs_that_had_some() -> None:
    shown = Shown(GOOD)
    monitoring = Monitoring(shown)
    shown.on_sync(SyncReport(tables={"t": TableReport("t", events=2, lag_seconds=3.0)}))
    shown.on_sync(SyncReport(tables={"t": TableReport("t")}))
    found = scraped(monitoring)
    assert found["rhei_sync_apply_lag_seconds_count", "t"] == 1
    assert found["rhei_sync_apply_lag_seconds_sum", "t"] == 3
    assert found["rhei_sync_events_processed_total", "t"] == 2


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (replace(GOOD, tables={"t": LATE}), "3 changes wait, the oldest for 4.0 s"),
        (
            replace(GOOD, tables={"t": LATE, "u": replace(READY, table="u", lag_events=None)}),
            "3 changes wait, the oldest for 4.0 s; how far the mirror of u",
        ),
        (of(lag_events=None), "how far the mirror of t is behind is not known"),
        (replace(GOOD, tables={}), "How far the mirror is behind is not known"),
        (replace(GOOD, unreadable="locked"), "How far the mirror is behind is not known"),
    ],
)
def test_the_page_says_that_all_is_there_only_where_it_is(status: SyncStatus, told: str) -> None:
    everything = "Every change is in the mirror"
    assert everything in page(GOOD)
    assert told in page(status)
    assert everything not in page(status)


def test_the_page_names_what_is_wrong_with_a_table() -> None:
    def cells(**changed: Any) -> str:
        rows = r"<tr><td>t</td>.*?</tr>(?:\n<tr><td></td>.*?</tr>)*"
        (row,) = re.findall(rows, page(of(**changed)))
        return str(row)

    assert '<td class="good">ready</td>' in cells()
    assert cells().count("not known") == 0
    assert '<td class="bad">left out</td>' in cells(error="it has no key")
    assert "it has no key" in cells(error="it has no key")
    assert "a rescan is due" in cells(doubt="a rescan is due")
    assert '<td class="">not copied yet</td>' in cells(state=None)
    assert '<td class="">copying</td>' in cells(state=TableState.COPYING)
    assert cells(lag_events=None, lag_seconds=None).count("not known") == 2
    assert '<span class="bad">12</span>' in cells(dead_letters=12)
    assert "The numbers are 9.0 s old" in page(replace(GOOD, age_seconds=9.0))
    more_than_expected = page(replace(GOOD, copying={"t": CopyStatus(6, 4)}))
    assert '<progress value="6" max="6">' in more_than_expected


def test_a_line_of_lag_keeps_the_longest_of_a_point_and_nothing_that_is_not_known() -> None:
    recent = Recent()
    recent.note_status(of(lag_events=1, lag_seconds=60.0), NOW)
    recent.note_status(GOOD, NOW + 0.5)
    assert [lag for _, lag in recent.lags("t", NOW + 1)] == [60.0]
    recent.note_status(of(lag_events=None, lag_seconds=None), NOW + POINT_SECONDS)
    left_out = TableReport("t", error="no key", lag_seconds=5.0, events=1)
    recent.note_sync(SyncReport(tables={"t": left_out}), NOW + POINT_SECONDS)
    assert len(recent.lags("t", NOW + POINT_SECONDS)) == 1
    nothing = TableReport("t", lag_seconds=5.0)
    recent.note_sync(SyncReport(tables={"t": nothing}), NOW + 2 * POINT_SECONDS)
    assert [lag for _, lag in recent.lags("t", NOW + 2 * POINT_SECONDS)] == [60.0, 0.0]
    assert recent.lags("t", NOW + (POINTS + 3) * POINT_SECONDS) == []
