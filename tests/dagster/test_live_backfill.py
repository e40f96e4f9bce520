"""A year of snapshots in one run, asked for by clicks as a person would."""

import random
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import duckdb
import pytest

import rhei_pipeline as rhei
from examples.airline.browser import Browser, browser
from tests.support.dagster_deployment import Deployment, awaited, deployment
from tests.support.live_worlds import World

pytestmark = pytest.mark.soak

TODAY = datetime.now(UTC).date()
DAYS = 365
FIRST = TODAY - timedelta(days=DAYS)
KEY = dg.AssetKey(["snapshot", "orders"])
SUCCESS = dg.DagsterRunStatus.SUCCESS


@dataclass
class Day:
    """What an application did on a day, and the rows that there were at its end."""

    rows: dict[int, str]
    written: int = 0
    statements: list[str] = field(default_factory=list)


def history(seed: int = 7) -> Iterator[tuple[date, Day]]:
    """Yield each day; no row is touched twice on one day."""
    chosen, rows = random.Random(seed), dict.fromkeys(range(1, 2001), "new")
    yield FIRST - timedelta(days=1), Day(dict(rows))
    for number in range(DAYS):
        day = Day({})
        touched = chosen.sample(sorted(rows), 40)
        for key in touched[:30]:
            rows[key] = f"day {number}"
            day.statements.append(f"update orders set status = 'day {number}' where id = {key}")
        for key in touched[30:]:
            del rows[key]
            day.statements.append(f"delete from orders where id = {key}")
        for key in range(max(rows) + 10, max(rows) + 50):
            rows[key] = "new"
            day.statements.append(f"insert into orders values ({key}, 'new')")
        day.written, day.rows = 70, dict(rows)
        yield FIRST + timedelta(days=number), day


def lived_through(world: World) -> dict[date, Day]:
    """Have the source and its mirror live through a year, dated as if it had passed."""
    days = history()
    before, first = next(days)
    values = ", ".join(f"({key}, '{status}')" for key, status in first.rows.items())
    world.write(f"insert into orders values {values}")
    with rhei.open(world.settings) as htap:
        htap.sync_now()
    with duckdb.connect(str(world.settings.mirror.path)) as mirror:  # nobody has it open now
        back = (TODAY - before).days
        for table, column in (("orders", "_rhei_valid_from"), ("_rhei_history", "noted_at")):
            mirror.execute(f"update {table} set {column} = {column} - interval {back} day")
    lived = {before: first}
    with closing(sqlite3.connect(world.root / "app.db")) as app, app:
        seen = app.execute("select coalesce(max(seq), 0) from _rhei_log_orders").fetchone()[0]
        for on, day in days:
            for statement in day.statements:
                app.execute(statement)
            noon = datetime.combine(on, datetime.min.time(), UTC) + timedelta(hours=12)
            app.execute(
                "update _rhei_log_orders set at = ? + seq where seq > ?",
                (int(noon.timestamp()) * 1_000_000, seen),
            )
            seen = app.execute("select max(seq) from _rhei_log_orders").fetchone()[0]
            lived[on] = day
    with rhei.open(world.settings) as htap:
        htap.sync_now()
    return lived


def backfilled(page: Browser, made: Deployment) -> dg.RunRecord:
    """Click on what a person would; return the run, once it has ended."""
    page.go(f"http://127.0.0.1:{made.web_port}/assets/snapshot/orders?view=overview")
    page.click("Materialize")
    page.click("Clear")  # the page shows a quarter of a year
    page.click("All")
    page.wait_for_text(f"{DAYS + 1} partitions")
    page.click("Launch backfill")
    page.wait_for_text("Created backfill")
    (record,) = awaited("the backfill has run", lambda: made.runs("__ASSET_JOB", SUCCESS), 1200)
    return record


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium not installed")
def test_a_year_is_backfilled_in_one_run(tmp_path: Path) -> None:
    world = World.made(
        tmp_path / "shop", schedule=f"snapshots_from: {FIRST}, idle_seconds: 5", tables=["orders"]
    )
    lived = lived_through(world)
    with deployment(tmp_path / "home", world.location, webserver=True) as made:
        world.order()  # which opens a session: Dagster asks twice where no mirror is reported
        awaited("a session has ended", lambda: made.runs("sync", SUCCESS))
        with browser(1440, 860) as page:
            record = backfilled(page, made)
        with made.instance as instance:
            events = instance.all_logs(record.dagster_run.run_id)
            found = {
                str(event.partition): event.metadata
                for logged in events
                if (event := logged.asset_materialization) is not None
            }
            green = instance.get_materialized_partitions(KEY)
    assert green == {str(on) for on in lived if on >= FIRST}
    sample = random.Random(1).sample(sorted(on for on in lived if on >= FIRST), 10)
    with rhei.open(world.settings) as htap:
        for on in sample:
            told = found[str(on)]
            assert told["dagster/partition_row_count"].value == len(lived[on].rows)
            assert told["versions_begun"].value == lived[on].written
            stored = htap.query(
                "select id, status from snapshot.orders where snapshot_date = ?", (on,), "olap"
            )
            assert dict(zip(*stored.to_pydict().values(), strict=True)) == lived[on].rows
        rows = htap.query("select count(*) as n from snapshot.orders", hint="olap")["n"][0]
    assert record.start_time is not None
    assert record.end_time is not None
    sys.stderr.write(
        f"\n{len(green)} days, {rows} rows, {len(events)} events: "
        f"{record.end_time - record.start_time:.1f} s\n"
    )
    at = [entry.timestamp for entry in events if entry.asset_materialization is not None]
    step = next(
        entry.timestamp
        for entry in events
        if entry.dagster_event is not None and entry.dagster_event.is_step_start
    )
    sys.stderr.write(f"taken in {at[0] - step:.1f} s, reported in {at[-1] - at[0]:.1f} s\n")
