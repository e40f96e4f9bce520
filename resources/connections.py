"""The operational database, the source of changes, and the mirror, as the declaration has them."""

from typing import Any

import dagster as dg

from rhei_pipeline.dagster import Declaration, pipeline_resources


def connections(declaration: Declaration) -> dict[str, dg.ConfigurableResource[Any]]:
    """Return the three resources of the declaration, by their keys."""
    return pipeline_resources(declaration.settings)
