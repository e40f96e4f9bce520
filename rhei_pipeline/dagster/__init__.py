"""A pipeline in Dagster: three lines in a project of one's own.

    from rhei_pipeline import Settings
    from rhei_pipeline.dagster import build_definitions

    defs = build_definitions(Settings.load("config/pipeline.yaml"))

Or piece by piece: a `Declaration` goes into `load_assets`, `mirror_checks`, `load_jobs`,
`load_sensors`, `load_schedules`, and its settings into `pipeline_resources`. Or in YAML, in a
`dg` project: `type: rhei_pipeline.dagster.RheiComponent`.

This is the only part of the package that knows Dagster, and nothing else imports it.
"""

from rhei_pipeline.errors import needs_extra

with needs_extra("dagster", "Dagster definitions"):
    from rhei_pipeline.dagster.check_records import last_evaluations
    from rhei_pipeline.dagster.checks import mirror_checks
    from rhei_pipeline.dagster.component import RheiComponent
    from rhei_pipeline.dagster.declaration import Declaration
    from rhei_pipeline.dagster.definitions import (
        build_definitions,
        load_assets,
        load_jobs,
        load_schedules,
        load_sensors,
    )
    from rhei_pipeline.dagster.names import Names
    from rhei_pipeline.dagster.resources import (
        CdcResource,
        OlapResource,
        OltpResource,
        pipeline_resources,
    )
    from rhei_pipeline.dagster.stages import Stage
    from rhei_pipeline.dagster.translator import RheiAsset, RheiTranslator

__all__ = [
    "CdcResource",
    "Declaration",
    "Names",
    "OlapResource",
    "OltpResource",
    "RheiAsset",
    "RheiComponent",
    "RheiTranslator",
    "Stage",
    "build_definitions",
    "last_evaluations",
    "load_assets",
    "load_jobs",
    "load_schedules",
    "load_sensors",
    "mirror_checks",
    "pipeline_resources",
]
