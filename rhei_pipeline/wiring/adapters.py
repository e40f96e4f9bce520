"""A source of others, mirrored: the pipeline without a declaration, and without a source's SQL."""

from collections.abc import Mapping
from pathlib import Path

from rhei_pipeline.model.schema import Mode
from rhei_pipeline.protocols import ChangeSource, Mirror, OnStep
from rhei_pipeline.settings.sections import SyncSettings
from rhei_pipeline.sync.kept_history import Declared
from rhei_pipeline.sync.options import SyncOptions
from rhei_pipeline.sync.pipeline import Pipeline, no_step
from rhei_pipeline.sync.schema_registry import Registry


def open_with(
    source: ChangeSource,
    mirror: Mirror,
    tables: Mapping[str, Mode | str],
    *,
    registry: Path | None = None,
    sync: SyncSettings | None = None,
    on_step: OnStep = no_step,
) -> Pipeline:
    """Keep a mirror equal to a source of your own.

    Such a source need not speak SQL, so there is no routing: ask the mirror. Source and mirror stay
    yours to close, and it is yours to give a mirror the same source every time.

    Args:
        source: Where changes come from.
        mirror: Where they go: as `open_mirror` opens it, or one of your own.
        tables: What is mirrored, each with its mode.
        registry: Where the schemas that the mirror was built with are kept, as JSON. Left out,
            every process copies all tables again.
        sync: How a sync works.
        on_step: Called at each named step; in tests, where work crashes.
    """
    options = sync or SyncSettings()
    declared = [Declared(name, Mode(mode)) for name, mode in tables.items()]
    # A mirror of others need not tell itself from its like; then its registry has to.
    mirror_id = str(getattr(mirror, "mirror_id", ""))
    return Pipeline(
        lambda: declared,
        source,
        mirror,
        Registry(registry, mirror_id),
        SyncOptions(options.batch_rows, options.prune),
        on_step,
    )
