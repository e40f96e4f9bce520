"""What the UI says of an asset, derived from the declaration."""

from typing import TYPE_CHECKING

from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.settings.model import Settings

if TYPE_CHECKING:
    from rhei_pipeline.dagster.translator import Stage

_CAPTURED = {
    "trigger": "The keys and row images that triggers log, in the transaction of the change "
    "itself.",
    "logical": "The server's own log, decoded from a replication slot.",
    "polling": "What a comparison with the rows seen last finds; nothing is installed in the "
    "source.",
}


def description(stage: "Stage", settings: Settings, table: Table | None) -> str:
    """Return the description of a table at a stage, in Markdown."""
    if table is None:
        return _CAPTURED[settings.capture_method]
    return {
        "oltp": f"The table `{table.name}` of the operational database.",
        "initial_sync": (
            f"Copies `{table.name}` in short snapshots beside the mirror, applies the changes "
            "made since, and puts the copy in place. A repeated run applies only the difference, "
            "so history is kept."
        ),
        "mirror": _mirror(table),
        "snapshot": (
            f"`{table.name}` as it was at the end of each {_window(settings)}"
            f" ({settings.schedule.time_zone}), in `snapshot.{table.name}` under `snapshot_date`."
            " Any can be rebuilt from history. The present one is as of now, and counts as taken "
            "once it is over."
        ),
    }[stage.value]


def _window(settings: Settings) -> str:
    window = settings.schedule.snapshot_window
    return "day" if window == "0 0 * * *" else f"window (`{window}`)"


def _mirror(table: Table) -> str:
    if table.mode is Mode.DESTRUCTIVE:
        return f"The rows of `{table.name}` in the source, up to the watermark."
    return (
        f"Every version of `{table.name}`. Rows as they were at an instant T:"
        " `_rhei_valid_from <= T and (_rhei_valid_to is null or _rhei_valid_to > T)`."
    )
