"""Every declared table on its way: source, changes, first copy, mirror, snapshots; their checks."""

import dagster as dg

from rhei_pipeline.dagster import Declaration, load_assets, mirror_checks


def tables(declaration: Declaration) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """Return the assets of the declaration's tables."""
    return load_assets(declaration)


def checks(declaration: Declaration) -> list[dg.AssetChecksDefinition]:
    """Return the checks of the declaration's mirrors."""
    return mirror_checks(declaration)
