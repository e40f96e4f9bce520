"""Checks of the mirrors: how each stands, and every row compared."""

from typing import Any

import dagster as dg

from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.resources import OlapResource
from rhei_pipeline.dagster.stages import Stage
from rhei_pipeline.dagster.state_checks import mirror_state_checks
from rhei_pipeline.model.reports import TableVerification
from rhei_pipeline.model.schema import Table


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
        name="equals_source",
        description="Every row is equal in source and mirror, compared at one source state.",
        pool=names.pool,
        required_resource_keys={names.olap},
    )
    def equals_source(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        olap: OlapResource = getattr(context.resources, names.olap)
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
