"""Checks of the mirrors: how each stands, and every row compared."""

from typing import Any

import dagster as dg

from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.plain_failures import said_plainly
from rhei_pipeline.dagster.resources import OlapResource
from rhei_pipeline.dagster.stages import Stage
from rhei_pipeline.dagster.state_checks import mirror_state_checks
from rhei_pipeline.model.coverage import Coverage
from rhei_pipeline.model.reports import TableVerification
from rhei_pipeline.model.schema import Table

EQUALS_SOURCE = "equals_source"


def mirror_checks(declaration: Declaration) -> list[dg.AssetChecksDefinition]:
    """Make the checks of all mirrors: how each stands, and whether it equals its source."""
    return [
        *mirror_state_checks(declaration),
        *(_equality_check(declaration, table) for table in declaration.tables),
    ]


def _equality_check(declaration: Declaration, table: Table) -> dg.AssetChecksDefinition:
    """Make the check that compares every row of source and mirror at one source state."""
    names = declaration.names

    @dg.asset_check(
        asset=declaration.key(Stage.MIRROR, table),
        name=EQUALS_SOURCE,
        description="Every row is equal in source and mirror, or those whose turn it is.",
        pool=names.pool,
        required_resource_keys={names.olap},
    )
    def equals_source(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        olap: OlapResource = getattr(context.resources, names.olap)
        with said_plainly(), olap.open() as htap:
            most = htap.settings.verify.max_rows
            found = htap.verify(table.name, max_rows=most).tables[table.name]
        return dg.AssetCheckResult(
            passed=found.equal, description=found.damage, metadata=_metadata(found)
        )

    return equals_source


def _metadata(found: TableVerification) -> dict[str, Any]:
    samples = {kind: list(keys) for kind, keys in found.samples.items() if keys}
    ranges = [f"{part.first} to {part.last}: {part.keys} keys" for part in found.ranges]
    return {
        **({"differing_ranges": ranges} if ranges else {}),
        **({} if found.coverage is None else _covered(found.coverage)),
        "source_rows": found.rows,
        "missing_keys": found.missing,
        "extra_keys": found.extra,
        "different_keys": found.different,
        "duplicate_keys": found.duplicate,
        "broken_histories": found.broken_history,
        "dead_letters": found.dead_letters,
        "examples": samples,
    }


def _covered(coverage: Coverage) -> dict[str, Any]:
    """Return how far a round of comparing parts has come; numbers are plotted."""
    oldest = coverage.oldest_checked_at
    known = (
        {}
        if oldest is None
        else {"oldest_part_checked_at": dg.TimestampMetadataValue(oldest.timestamp())}
    )
    return {
        "rows_of_this_round": coverage.rows,
        "round_complete": coverage.complete,
        "verified_through": coverage.through or "the end",
        **known,
    }
