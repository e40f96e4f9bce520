"""The README's pictures of the Dagster UI, taken from the demo at work by a headless browser."""

import logging
import time
import warnings

import dagster as dg

from definitions import build as build_definitions
from examples.airline.browser import Browser, Clip, browser
from examples.airline.dev import ADDRESS, running, wait_until_up
from examples.airline.home import PROJECT
from rhei_pipeline import Settings

PICTURES = PROJECT / "docs" / "pictures"
WIDTH, HEIGHT = 1440, 860
_GRAPH = "/asset-groups?expanded=global@global:marts,global@global:snapshot"
_MIRROR = "/assets/mirror/flights"
_SNAPSHOT = "/assets/snapshot/flights"
_JANUARY = {
    "dagster/asset_partition_range_start": "2013-01-01",
    "dagster/asset_partition_range_end": "2013-01-31",
}
#: What of a page is shown: no navigation, and no place of this machine.
_CLIPS = {
    "backfill": Clip(370, 111, 700, 567),
    "graph": Clip(541, 110, 899, 690),
    "mirror": Clip(241, 0, 839, 860),
    "lag": Clip(241, 104, 839, 536),
}
#: Reports that a plot of lag should have.
_REPORTS = 6


def main() -> None:
    """Run the demo, and write its pictures to `docs/pictures`."""
    PICTURES.mkdir(exist_ok=True)
    with (
        running("make screenshots", _materialize) as dagster,
        browser(WIDTH, HEIGHT) as page,
    ):
        if not wait_until_up(dagster):
            raise SystemExit("Dagster ended before it answered.")
        _take(page)


def _take(page: Browser) -> None:
    page.go(f"{ADDRESS}{_MIRROR}?view=events")
    page.wait_for(f"(document.body.innerText.match(/\\d:\\d\\d [AP]M/g) || []).length > {_REPORTS}")
    _take_snapshots(page)
    for name, path, text in (
        ("graph", _GRAPH, "delay_by_airline"),
        ("mirror", f"{_MIRROR}?view=overview", "Row count"),
    ):
        page.go(ADDRESS + path)
        page.wait_for_text(text)
        _keep(page, name)
    page.click("Plots")
    page.wait_for("document.querySelectorAll('canvas').length > 3")
    page.scroll_to("lag_ms_max")
    _keep(page, "lag")


def _materialize(settings: Settings) -> None:
    """Do some work before the session begins, so that the graph shows what it comes to."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    job = build_definitions(settings).resolve_implicit_global_asset_job_def()
    instance = dg.DagsterInstance.get()
    copies = [dg.AssetKey(["initial_sync", table.name]) for table in settings.tables or ()]
    changes, delays = (
        dg.AssetKey(["marts", name]) for name in ("flight_changes", "delay_by_airline")
    )
    for keys, tags in ((copies, {}), ([changes], {}), ([delays], _JANUARY)):
        job.execute_in_process(asset_selection=keys, instance=instance, tags=tags)


def _take_snapshots(page: Browser) -> None:
    """Launch a backfill by clicks, as a user would."""
    page.go(f"{ADDRESS}{_SNAPSHOT}?view=overview")
    page.click("Materialize")
    page.click("All")
    _keep(page, "backfill")
    page.click("Launch backfill")
    page.wait_for_text("Created backfill")


def _keep(page: Browser, name: str) -> None:
    time.sleep(3)  # what a page loads after its first texts
    file = PICTURES / f"{name}.png"
    page.picture(file, _CLIPS[name])
    print(f"{file.relative_to(PROJECT)}: {file.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main()
