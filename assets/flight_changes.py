"""An asset that follows changes: what happened to flights since it was last materialized.

The pattern for others: the position is in the metadata of the asset's own latest materialization.
What a run wrote without reporting it, as after a crash, is overwritten by the next one, which goes
on from the same position and writes the same file.
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq

import rhei_pipeline as rhei
from rhei_pipeline.dagster import Declaration, OlapResource

_FIRST = "0"


def flight_changes(declaration: Declaration) -> list[dg.AssetsDefinition]:
    """Return the asset, where flights are mirrored with their history."""
    spec = declaration.spec_over(
        "flights",
        *("marts", "flight_changes"),
        kinds={"parquet"},
        description="Every flight that was entered, changed or cancelled, once, with its values "
        "before and after: a Parquet file for what came between two runs.",
        # Once an hour, after its mirror has reported: a run costs more than what is in it.
        automation_condition=dg.AutomationCondition.on_cron("0 * * * *"),
    )
    if spec is None:
        return []
    names, key = declaration.names, spec.key
    directory = declaration.settings.mirror.path.parent / "marts" / "flight_changes"

    @dg.multi_asset(
        name=names.named("flight_changes"),
        specs=[spec],
        required_resource_keys={names.olap},
    )
    def follow_flights(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        olap: OlapResource = getattr(context.resources, names.olap)
        with _alone(directory):
            after, folder = _reached(context.instance, key)
            with olap.reader() as mirror:
                found = mirror.changes("flights", after=after, on_lost="snapshot")
            if found.snapshot:  # the whole table: what was told before goes, once this is reported
                folder = directory / str(found.position)
            _write(found, folder / f"{after or _FIRST}.parquet")
            yield dg.MaterializeResult(
                asset_key=key,
                metadata={
                    "position": str(found.position),
                    "folder": dg.MetadataValue.path(folder),
                    "inserted": found.inserted,
                    "updated": found.updated,
                    "deleted": found.deleted,
                },
            )
            for other in directory.iterdir():
                if other.is_dir() and other != folder:
                    shutil.rmtree(other)

    return [follow_flights]


def _reached(instance: dg.DagsterInstance, key: dg.AssetKey) -> tuple[str | None, Path]:
    """Return the position that the latest run reported, and its folder; before the first, none."""
    event = instance.get_latest_materialization_event(key)
    told = event.asset_materialization if event else None
    if told is None:
        return None, Path()
    folder = Path(str(told.metadata["folder"].value))
    return (str(told.metadata["position"].value) if folder.exists() else None), folder


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let one run after the other in: two at once would go on from the same position."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(found: rhei.TableChanges, file: Path) -> None:
    """Write beside the file and rename over it: a reader sees the old one or the new one."""
    file.parent.mkdir(exist_ok=True)
    beside = file.with_suffix(".part")
    pq.write_table(found.rows, beside)
    beside.replace(file)
