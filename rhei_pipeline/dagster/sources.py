"""Source tables as external assets, and the stream of their changes: where lineage begins."""

import dagster as dg

from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.stages import Stage


def source_specs(declaration: Declaration) -> list[dg.AssetSpec]:
    """Describe the source's tables and the stream of their changes."""
    if not declaration.tables:
        return []
    tables = [declaration.spec(Stage.SOURCE, table) for table in declaration.tables]
    if declaration.settings.capture.buffer is not None:
        return tables  # a run takes the changes into the buffer: they are an asset of its own
    return [*tables, declaration.spec(Stage.CHANGES)]
