"""Checks of the mirrors: lag, dead letters, and every row compared."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from assets.initial_sync import WRITER_POOL
from assets.mirrors import mirror_key
from resources.olap import OlapResource
from rhei_pipeline import Settings, Table, TableVerification


def lag_checks(tables: Sequence[Table], settings: Settings) -> Sequence[dg.AssetChecksDefinition]:
    """Fail when the latest report of a mirror shows more lag than declared."""
    return dg.build_metadata_bounds_checks(
        assets=[mirror_key(table) for table in tables],
        metadata_key="lag_ms_max",
        max_value=settings.schedule.max_lag_seconds * 1000,
    )


def equality_check(table: Table) -> dg.AssetChecksDefinition:
    """Make the check that compares every row of source and mirror at one source state."""

    @dg.asset_check(
        asset=mirror_key(table),
        name="equals_source",
        description="Every row is equal in source and mirror, compared at one source state.",
        pool=WRITER_POOL,
    )
    def equals_source(olap: OlapResource) -> dg.AssetCheckResult:
        with olap.open() as htap:
            found = htap.verify(table.name).tables[table.name]
        return dg.AssetCheckResult(passed=found.equal, metadata=_metadata(found))

    return equals_source


def _metadata(found: TableVerification) -> dict[str, Any]:
    samples = {kind: list(keys) for kind, keys in found.samples.items() if keys}
    return {
        "source_rows": found.rows,
        "missing_keys": found.missing,
        "extra_keys": found.extra,
        "different_keys": found.different,
        "duplicate_keys": found.duplicate,
        "broken_histories": found.broken_history,
        "dead_letters": found.dead_letters,
        "examples": samples,
    }
