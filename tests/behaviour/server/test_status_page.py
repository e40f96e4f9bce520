"""The page for people: what it shows, that it runs nothing of others, and how a browser sees it."""

import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import pytest

from rhei_pipeline import TableState
from rhei_pipeline.model.reports import CopyStatus, SyncStatus, TableStatus
from rhei_pipeline.monitoring.recent import POINT_SECONDS, POINTS, Recent
from rhei_pipeline.monitoring.status_page import sparkline, status_page
from tests.support.fix_world import World

HOSTILE = "<script>document.title='owned'</script>"
NOW = 1_800_000_000.0
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def page_of(world: World) -> str:
    assert world.htap.monitoring is not None
    address = f"http://127.0.0.1:{world.htap.monitoring.port}/"
    with urllib.request.urlopen(address) as answer:
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        return str(answer.read().decode())


def test_the_page_shows_tables_lag_and_dead_letters(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.run("create table t(id integer primary key, v integer)", "insert into t values (1, 1)")
    world.run(f'create table "{HOSTILE}"(id integer primary key)', "create table keyless(v)")
    world.tables = [{"name": "t"}, {"name": HOSTILE}, {"name": "keyless"}]
    world.htap.sync_now()
    world.run("insert into t values (2, 'no number')")
    background = world.htap.start_sync(3600, metrics_port=0)
    while not background.take_reports():  # its first cycle takes the row
        time.sleep(0.01)
    world.run("insert into t values (3, 3), (4, 4)")
    page = page_of(world)
    assert "2 changes wait" in page
    assert "The background sync runs." in page
    (row,) = re.findall(r"<tr><td>t</td>.*?</tr>", page)
    assert '<td class="n">2</td>' in row
    assert '<span class="bad">1</span>' in row
    assert "<polyline" in row
    assert "left out" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    world.htap.close()
    with pytest.raises(OSError, match="refused"):
        page_of(world)


def test_every_text_of_others_is_escaped() -> None:
    table = TableStatus(HOSTILE, HOSTILE, None, None, 0, 0.0, 0, error=HOSTILE, doubt=HOSTILE)
    status = SyncStatus(
        running=True,
        tables={HOSTILE: table},
        last_error=HOSTILE,
        copying={HOSTILE: CopyStatus(1, 4)},
        held_bytes={HOSTILE: 1},
        not_published=HOSTILE,
        unreadable=HOSTILE,
    )
    page = status_page(status, Recent(), NOW)
    assert page.count("&lt;script&gt;") == 9
    assert "<script" not in page
    assert '<progress value="1" max="4">' in page
    # Where the source can be read, the tables are named whose lag nobody knows, and who was left.
    untold = replace(table, lag_events=None, lag_seconds=None)
    left = {HOSTILE: datetime(2026, 11, 1, tzinfo=UTC)}
    page = status_page(
        SyncStatus(running=False, tables={HOSTILE: untold}, not_followed=left), Recent(), NOW
    )
    assert f"the mirror of {escape(HOSTILE)} is behind is not known" in page
    assert f"{escape(HOSTILE)} is no longer followed since 2026-11-01" in page
    assert "<script" not in page
    assert "The background sync does not run" in page
    assert "Every change is in the mirror" not in page


def test_a_line_of_lag_holds_ten_minutes_and_its_highest_point() -> None:
    recent = Recent()
    for second in range(0, 2 * POINTS * POINT_SECONDS, POINT_SECONDS):
        lag = 90.0 if second == POINTS * POINT_SECONDS + 50 else 0.01
        table = TableStatus("t", "temporal", TableState.READY, 1, 1, lag, 0)
        recent.note_status(SyncStatus(running=True, tables={"t": table}), NOW + second)
    points = recent.lags("t", NOW + second)
    assert len(points) == POINTS
    assert max(lag for _, lag in points) == 90.0
    line = sparkline(points)
    assert "at most 1 min 30 s" in line
    (drawn,) = re.findall(r'points="([^"]+)"', line)
    places = [tuple(map(float, place.split(","))) for place in drawn.split()]
    assert all(0 <= x <= 160 and 0 <= y <= 28 for x, y in places)
    recent.note_status(SyncStatus(running=True, tables={"other": table}), NOW)
    assert recent.lags("t", NOW) == []


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_the_page_and_runs_nothing(world: World, tmp_path: Path) -> None:
    world.run(f'create table "{HOSTILE}"(id integer primary key)')
    world.htap.sync_now()
    world.htap.start_sync(3600, metrics_port=0)
    assert world.htap.monitoring is not None
    done = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"),
            *("--dump-dom", f"http://127.0.0.1:{world.htap.monitoring.port}/"),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert "<title>Rhei Pipeline</title>" in done.stdout
    assert "<td>orders</td>" in done.stdout
    assert "Every change is in the mirror" in done.stdout
