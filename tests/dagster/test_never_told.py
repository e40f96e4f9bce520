"""A table is shown as mirrored while its session is open, though nothing changes in it."""

import dagster as dg
import pytest

import rhei_pipeline as rhei
from rhei_pipeline.settings.sections import TableSettings
from tests.support.dagster_shop import Shop


def told_while_open(shop: Shop, *path: str) -> bool:
    """Return whether a session reports an asset before it ends: in its end it does anyway."""
    found = shop.instance.fetch_materializations(dg.AssetKey(path), limit=10).records
    return len(found) > (path[0] == "mirror")


@pytest.mark.parametrize("copied_before", [True, False])
def test_tables_without_rows_or_changes_are_reported_while_a_session_is_open(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, *, copied_before: bool
) -> None:
    monkeypatch.setattr("rhei_pipeline.dagster.session.FIRST_REPORT_SECONDS", 0.0)
    shop.write("create table refunds(id integer primary key)")
    tables = [*(shop.settings.tables or ()), TableSettings(name="refunds")]
    schedule = shop.settings.schedule.model_copy(update={"report_seconds": 0.1, "idle_seconds": 1})
    shop.settings = shop.settings.model_copy(update={"tables": tables, "schedule": schedule})
    if copied_before:
        with rhei.open(shop.settings) as htap:
            htap.sync_now()
    assert shop.sync().success
    for table in ("orders", "items", "refunds"):
        for stage in ("initial_sync", "mirror"):
            assert told_while_open(shop, stage, table), (stage, table)
        copies = shop.instance.fetch_materializations(dg.AssetKey(["initial_sync", table]), 10)
        assert len(copies.records) == 1
    made = copies.records[0].asset_materialization
    assert made is not None
    assert made.metadata["dagster/row_count"].value == 0
