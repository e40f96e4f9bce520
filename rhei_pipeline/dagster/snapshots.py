"""Temporal tables as of each day: re-derived from history, so any past day can be rebuilt.

A day may be any window of a day or longer. Its snapshot shows the last instant of the window.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.plain_failures import said_plainly
from rhei_pipeline.dagster.resources import OlapResource
from rhei_pipeline.dagster.stages import Stage
from rhei_pipeline.htap import HTAP
from rhei_pipeline.model.interval_texts import with_interval_texts
from rhei_pipeline.model.schema import VALID_FROM, Table
from rhei_pipeline.model.snapshot_rows import SnapshotRows
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sql.text import mirror_table, quote

#: The entry of a snapshot's metadata that tells since when the history is known.
KNOWN_FROM = "history_known_from"
#: The entry of an observation that tells how many windows of a run ended before that.
BEFORE_HISTORY = "windows_before_history"
#: What marks a run whose windows no person has chosen one by one.
_CHOSEN_BY_OTHERS = (
    *("dagster/schedule_name", "dagster/sensor_name"),
    *("dagster/auto_materialize", "dagster/backfill"),
)
#: Who found the rows of a snapshot, `cluster` or `mirror`, and why the cluster did not.
FOUND_BY, FOUND_BY_REASON = "rows_found_by", "rows_found_by_reason"
_TICK = timedelta(microseconds=1)
_INSTANT = pa.timestamp("us", "UTC")
#: Which side is asked.
_MIRROR: Literal["olap"] = "olap"
#: A window and a day of changed clocks: what is looked back to for the latest closed one.
_LOOK_BACK = timedelta(days=2)


def snapshot_windows(settings: Settings) -> dg.TimeWindowPartitionsDefinition:
    """Return the windows there are snapshots of, the present unfinished one included."""
    schedule = settings.schedule
    return dg.TimeWindowPartitionsDefinition(
        start=schedule.snapshots_from.isoformat(),
        fmt="%Y-%m-%d",
        timezone=schedule.time_zone,
        cron_schedule=schedule.snapshot_window,
        end_offset=1,
    )


def snapshot_assets(declaration: Declaration) -> list[dg.AssetsDefinition]:
    """Make an asset for the snapshots of each temporal table."""
    return [_snapshots(declaration, table) for table in declaration.temporal]


def _follows_its_mirror() -> Any:  # noqa: ANN401  (Dagster exports no name for its type)
    """Ask for the latest closed window once it is over, where automation is switched on."""
    latest = dg.AutomationCondition.in_latest_time_window
    closed_last = latest(_LOOK_BACK) & ~latest()
    missing = closed_last & dg.AutomationCondition.missing()
    return missing.newly_true() & ~dg.AutomationCondition.any_deps_missing()


def _snapshots(declaration: Declaration, table: Table) -> dg.AssetsDefinition:
    names, spec = declaration.names, declaration.spec(Stage.SNAPSHOT, table)
    windows = snapshot_windows(declaration.settings)

    @dg.multi_asset(
        name=names.named(f"snapshot_{declaration.plain_name(table.name)}"),
        specs=[
            spec.replace_attributes(
                # A translator may give another condition.
                automation_condition=spec.automation_condition or _follows_its_mirror(),
                skippable=True,
            )
        ],
        partitions_def=windows,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=names.pool,
        required_resource_keys={names.olap},
    )
    def snapshot(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        olap: OlapResource = getattr(context.resources, names.olap)
        asked = [SnapshotWindow.of(windows, key) for key in context.partition_keys]
        with said_plainly(), olap.open() as htap:
            files = olap.settings().schedule.snapshot_files
            folder = declaration.plain_name(table.name, table.schema.snapshot_name)
            taking = _Taking(htap, table, files / folder if files else None)
            taken = taking.take(asked, strict=context.run.tags.keys().isdisjoint(_CHOSEN_BY_OTHERS))
        yield from _events(context, spec.key, taken)

    return snapshot


@dataclass(frozen=True, slots=True)
class SnapshotWindow:
    """A snapshot's window of time; `end` is exclusive."""

    key: str
    start: datetime
    end: datetime

    @classmethod
    def of(cls, windows: dg.TimeWindowPartitionsDefinition, key: str) -> "SnapshotWindow":
        """Return the window of a partition."""
        found = windows.time_window_for_partition_key(key)
        return cls(key, found.start, found.end)

    @property
    def day(self) -> date:
        """The day under which the snapshot is stored: the one on which the window begins."""
        return date.fromisoformat(self.key)

    @property
    def last_instant(self) -> datetime:
        """The instant that the snapshot shows; while the window is open, that is the present.

        Never this machine's present: the source's clock, which dates versions, may be ahead of it.
        """
        return self.end - _TICK


@dataclass(frozen=True, slots=True)
class _Taken:
    """The snapshots of a run.

    Attributes:
        closed: The metadata of those that nothing changes any more, by partition.
        open: The same of a window that is not over yet.
        before_history: The windows of which nothing is known.
        not_begun: The windows that begin later than now.
        begins: When history begins.
        as_of: When the sync was whose rows they have, by the source's clock.
    """

    closed: Mapping[str, dict[str, Any]]
    open: Mapping[str, dict[str, Any]]
    before_history: tuple[str, ...]
    not_begun: tuple[str, ...]
    begins: datetime
    as_of: datetime


@dataclass(frozen=True, slots=True)
class _Taking:
    """Takes the snapshots of one table."""

    htap: HTAP
    table: Table
    folder: Path | None

    def take(self, asked: list[SnapshotWindow], *, strict: bool) -> _Taken:
        """Sync, then store the rows as of the end of each window.

        Args:
            asked: The windows.
            strict: Whether to refuse them where all of them ended before the history began.

        Raises:
            Failure: The table is left out of the sync, so nobody knows whether a window is over;
                or no window has begun.
            QueryError: The windows are refused.
        """
        name = self.table.name
        # What is pending belongs into the window that it was committed in.
        report = self.htap.sync_now().tables.get(name)
        if report is None or report.as_of is None:
            reason = "it is not synced" if report is None else report.error
            raise dg.Failure(f"table {name!r} is left out: {reason}", allow_retries=False)
        begins = self.htap.known_since(name)
        not_begun = tuple(window.key for window in asked if window.start > report.as_of)
        asked = [window for window in asked if window.key not in not_begun]
        if not asked:
            raise dg.Failure(_not_begun(not_begun, report.as_of), allow_retries=False)
        known = [window for window in asked if window.last_instant >= begins]
        # Where no window is known, the error says from when on they are.
        chosen = known or (asked if strict else [])
        instants = {window.day: window.last_instant for window in chosen}
        rows = self.htap.snapshot(name, instants) if instants else SnapshotRows({})
        told = self._metadata(known, rows, report.watermark)
        if self.folder is not None:
            for window in known:
                told[window.key]["file"] = dg.MetadataValue.path(self._write(window, self.folder))
        over = {window.key for window in known if window.end <= report.as_of}
        return _Taken(
            {key: values for key, values in told.items() if key in over},
            {key: values for key, values in told.items() if key not in over},
            tuple(window.key for window in asked if window not in known),
            not_begun,
            begins,
            report.as_of,
        )

    def _metadata(
        self, windows: Sequence[SnapshotWindow], rows: SnapshotRows, watermark: int | None
    ) -> dict[str, dict[str, Any]]:
        """Return what is told of each window, by its partition."""
        return {
            window.key: {
                "dagster/partition_row_count": rows[window.day],
                "versions_begun": versions,
                "watermark": watermark or 0,
                **self._found_by(rows, window.day),
            }
            for window, versions in zip(windows, self._versions_begun(windows), strict=True)
        }

    def _found_by(self, rows: SnapshotRows, day: date) -> dict[str, str]:
        """Return who found a day's rows, and why the cluster did not, where one is declared."""
        if self.htap.settings.compute is None:
            return {}
        engine = rows.engines[day]
        if engine == "cluster" or rows.reason is None:
            return {FOUND_BY: engine}
        return {FOUND_BY: engine, FOUND_BY_REASON: rows.reason}

    def _versions_begun(self, windows: Sequence[SnapshotWindow]) -> list[int]:
        """Count the versions that began in each window; one query for all, however many they are.

        A window begins and ends with a minute, as a cron expression has it.
        """
        if not windows:
            return []
        minute = f"date_trunc('minute', {VALID_FROM})"
        found = self.htap.query(
            f"select {minute} as began, count(*) as n from {mirror_table(self.table.schema)}"
            f" where {VALID_FROM} >= ? and {VALID_FROM} < ? group by 1 order by 1",
            (min(window.start for window in windows), max(window.end for window in windows)),
            hint=_MIRROR,
        )
        minutes = _microseconds(found["began"])
        before = np.concatenate(([0], np.cumsum(found["n"].to_numpy())))
        counts = []
        for window in windows:
            ends = _microseconds(pa.chunked_array([pa.array([window.start, window.end], _INSTANT)]))
            first, last = np.searchsorted(minutes, ends)
            counts.append(int(before[last] - before[first]))
        return counts

    def _write(self, window: SnapshotWindow, folder: Path) -> str:
        """Write beside the file and rename over it: a reader sees the old one or the new one."""
        name = self.table.schema.snapshot_name
        found = self.htap.query(
            f"select * from snapshot.{quote(name)} where snapshot_date = ?",
            (window.day,),
            hint=_MIRROR,
        )
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{window.key}.parquet"
        beside = file.with_suffix(".part")
        pq.write_table(with_interval_texts(found), beside)
        beside.replace(file)
        return str(file)


def _not_begun(windows: Sequence[str], now: datetime) -> str:
    return (
        f"it is {now.isoformat(timespec='seconds')} in the source: {len(windows)} of the windows"
        f" have not begun and have no snapshot ({_first_of(windows)})"
    )


def _first_of(windows: Sequence[str]) -> str:
    return ", ".join(windows[:3]) + (", ..." if windows[3:] else "")


def _microseconds(instants: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return instants as numbers."""
    found: npt.NDArray[np.int64] = instants.cast(_INSTANT).cast(pa.int64()).to_numpy()
    return found


def _events(
    context: dg.AssetExecutionContext, key: dg.AssetKey, taken: _Taken
) -> Iterator[dg.MaterializeResult[None]]:
    """Report the windows that are over as materialized, and no other."""
    begins = taken.begins.isoformat()
    if taken.before_history:
        known = dg.AssetObservation(
            key, metadata={BEFORE_HISTORY: len(taken.before_history), KNOWN_FROM: begins}
        )
        context.log_event(known)
        context.log.warning(
            "history begins at %s: %d of the windows ended before that and have no snapshot (%s)",
            begins,
            len(taken.before_history),
            _first_of(taken.before_history),
        )
    if taken.not_begun:
        context.log.warning(_not_begun(taken.not_begun, taken.as_of))
    for window, values in taken.open.items():
        context.log.info("window %s is not over yet: its snapshot is of the present", window)
        context.log_event(dg.AssetObservation(key, partition=window, metadata=values))
    closed = {window: {**values, KNOWN_FROM: begins} for window, values in taken.closed.items()}
    if taken.open or taken.before_history or taken.not_begun:
        # A result would report all partitions of the run.
        for window, told in closed.items():
            context.log_event(dg.AssetMaterialization(key, partition=window, metadata=told))
        return
    for window, told in closed.items():
        context.add_asset_metadata(told, key, partition_key=window)
    rows = sum(values["dagster/partition_row_count"] for values in taken.closed.values())
    yield dg.MaterializeResult(asset_key=key, metadata={"windows": len(taken.closed), "rows": rows})
