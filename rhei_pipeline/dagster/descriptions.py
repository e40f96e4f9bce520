"""What the UI says of an asset, derived from the declaration."""

from rhei_pipeline.dagster.stages import Stage
from rhei_pipeline.model.schema import VALID_FROM, VALID_TO, Column, Mode, Table
from rhei_pipeline.model.type_names import type_name
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sql.text import quote
from rhei_pipeline.sync.schema_registry import StoredRegistrations
from rhei_pipeline.wiring.table_options import table_options

_CAPTURED = {
    "append": "The application appends its events to the log.",
    "logical": "The server's own log is decoded, from a replication slot.",
    "polling": "The rows' own timestamps, and comparisons, show the changes; nothing is created in "
    "the source.",
}


def description(
    stage: Stage, settings: Settings, table: Table | None, fault: str | None = None
) -> str:
    """Return the description of a table at a stage, in Markdown, below what is wrong with it.

    Dagster's UI shows no metadata of a code location: what is wrong has no other place there
    before anything has run.
    """
    said = "" if fault is None else f"**Wrong when these definitions were loaded**: {fault}\n\n"
    return said + (_changes(settings) if table is None else _of_table(stage, settings, table))


def _of_table(stage: Stage, settings: Settings, table: Table) -> str:
    return {
        "oltp": _source(settings, table),
        "initial_sync": _initial_sync(table),
        "mirror": _mirror(settings, table),
        "snapshot": _snapshot(settings, table),
    }[stage.value]


def _changes(settings: Settings) -> str:
    buffered = " A buffer on disk keeps them from there on." if settings.capture.buffer else ""
    return (
        f"{_captured(settings, None)}{buffered}\n\n"
        "**Guaranteed**: a change is forgotten here only after its row is durable in the mirror."
    )


def _source(settings: Settings, table: Table) -> str:
    return (
        f"The table `{table.name}` of the operational database, as its application writes it.\n\n"
        f"**Captured**: {_captured(settings, table)}"
    )


def _captured(settings: Settings, table: Table | None) -> str:
    if settings.capture_method != "trigger":
        return _CAPTURED[settings.capture_method]
    logged = {
        None: "what was touched",
        Mode.TEMPORAL: "each version of a row",
        Mode.DESTRUCTIVE: "the keys of rows that were touched",
    }[None if table is None else table.mode]
    return f"Triggers log {logged}, in the transaction of the change itself."


def _initial_sync(table: Table) -> str:
    return (
        f"Copies `{table.name}` in short snapshots beside the mirror, applies the changes made "
        "since, and puts the copy in place. A repeated run applies only the difference, so history "
        "is kept.\n\n"
        "**Checked**: `row_parity` counts the rows of source and mirror at one watermark. Where it "
        "fails, what depends on this copy does not run."
    )


def _mirror(settings: Settings, table: Table) -> str:
    return "\n\n".join(
        [
            _kept(table),
            f"**Captured**: {_captured(settings, table)}",
            f"**Guaranteed**: {_guaranteed(settings)}",
            "**Checked**: `equals_source` compares every row of source and mirror at one state of "
            "the source.",
            _chosen(settings, table),
        ]
    ).rstrip()


def _guaranteed(settings: Settings) -> str:
    if settings.capture_method == "polling":
        return (
            "rows and watermark commit together, so after any crash nothing is lost and nothing is "
            "there twice. `proof` says how far the rows' own timestamps prove this equal to the "
            "source."
        )
    return (
        "rows and watermark commit together, so after any crash this equals the source at exactly "
        "the watermark. A reader sees only states that the source committed, across tables."
    )


def _kept(table: Table) -> str:
    if table.mode is Mode.DESTRUCTIVE:
        return f"The rows of `{table.name}` as they are in the source (mode `destructive`)."
    return (
        f"Every version of each row of `{table.name}` (mode `temporal`, SCD type 2). Rows as they "
        "were at an instant T:\n\n"
        f"    {VALID_FROM} <= T and ({VALID_TO} is null or {VALID_TO} > T)"
    )


def _chosen(settings: Settings, table: Table) -> str:
    said = StoredRegistrations(settings.registry.path)
    declared = table_options(settings, said).get(table.name)
    if declared is None or declared.columns is None:
        return ""
    return "The declaration leaves all columns out that are not listed below."


def column_description(column: Column, table: Table) -> str | None:
    """Return what is to be known of a column beside its type."""
    notes = ["primary key"] if column.name in table.schema.primary_key else []
    if column.overridden:
        notes.append(f"declared as {type_name(column.type, column.epoch, column.logical)}")
    return ", ".join(notes) or None


def snapshot_place(table: Table) -> str:
    """Return where a table's snapshots are, as a query has to write it."""
    name = table.schema.snapshot_name
    return f"snapshot.{name if name.isidentifier() else quote(name)}"


def _snapshot(settings: Settings, table: Table) -> str:
    return (
        f"`{table.name}` as it was at the end of each {_window(settings)}"
        f" ({settings.schedule.time_zone}), in `{snapshot_place(table)}` under `snapshot_date`."
        " Any can be rebuilt from history. The present one is as of now, and counts as taken once"
        " it is over. Dagster calls a backfill failed that has it, or one before the history began,"
        " though the run makes the others."
    )


def _window(settings: Settings) -> str:
    window = settings.schedule.snapshot_window
    return "day" if window == "0 0 * * *" else f"window (`{window}`)"
