"""The sync cycle: capture, compact, apply, record, acknowledge."""

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from rhei_pipeline.capabilities import rescan_due, snapshot_of_rows
from rhei_pipeline.changes.compaction import compact
from rhei_pipeline.changes.made_events import as_events
from rhei_pipeline.changes.null_keys import without_keyless
from rhei_pipeline.changes.scd2 import supersede
from rhei_pipeline.changes.toast import complete, wanted_keys
from rhei_pipeline.errors import BufferFullError
from rhei_pipeline.model.blame import Blame
from rhei_pipeline.model.changes import ChangeBatch, Counts, NetChanges, Position
from rhei_pipeline.model.progress import Ledger, TableState, Watermark
from rhei_pipeline.model.reports import TableReport
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.protocols import (
    ChangeApply,
    ChangeSource,
    CopyPromotion,
    Mirror,
    MirrorTransaction,
    OnStep,
    ProgressRecord,
    Rescan,
    RowApply,
    SourceChanges,
    SourcePositions,
    SourceSnapshot,
    Step,
)
from rhei_pipeline.sync.added_columns import with_added
from rhei_pipeline.sync.alterations import NOTHING_ALTERED, Alteration, alter, altered_of
from rhei_pipeline.sync.column_reads import read_columns
from rhei_pipeline.sync.cycle_reports import age_of_oldest, with_unchanged, with_waiting
from rhei_pipeline.sync.due_tables import all_parted, find_due
from rhei_pipeline.sync.options import SyncOptions
from rhei_pipeline.sync.quarantine import (
    keep_letters,
    letter_names,
    refuse_overflow,
    unknown_keys,
    without_unknown,
)
from rhei_pipeline.sync.repair_keys import Mending, untouched
from rhei_pipeline.sync.rescan import find_drift


@dataclass(frozen=True, slots=True)
class AppliedCycle:
    """What one cycle did.

    Attributes:
        tables: A report for each table.
        rows_pruned: Rows that the source, or the buffer, deleted from its log.
    """

    tables: dict[str, TableReport]
    rows_pruned: int = 0

    def after(self, earlier: dict[str, TableReport]) -> "AppliedCycle":
        """Return the sum of an earlier state's reports and this cycle."""
        told = {name: report.after(earlier[name]) for name, report in self.tables.items()}
        return replace(self, tables=told)


def sync_cycle(  # noqa: PLR0913  (the seams, the options, and callbacks)
    tables: Collection[Table],
    source: ChangeSource,
    mirror: Mirror,
    options: SyncOptions,
    on_step: OnStep,
    *,
    schema_version: int | None,
    blame: Blame,
    held: Collection[str] = (),
    mending: Mending | None = None,
    altered: Mapping[str, Alteration] = NOTHING_ALTERED,
) -> AppliedCycle | None:
    """Bring every table up to one source state, in one mirror transaction.

    `schema_version` is that at which the tables were described; None: they are to be described
    again. `blame` is left with the table whose work an error ended, if it was one table's. Of the
    tables `held`, which take no part now, the source keeps what they need. `mending` is what a
    repair found to differ: it is applied in the same transaction. `altered` says how tables are
    altered, by name: so does the same transaction.

    Returns:
        What it did; None when the source is no longer as it was looked at (another
        schema, an older state put back), and nothing was done.

    Raises:
        BufferFullError: The source has more than a buffer can take.
    """
    seams = (tables, source, mirror, options, on_step)
    reports = _apply_one_state(
        *seams, schema_version=schema_version, blame=blame, mending=mending, altered=altered
    )
    if reports is None:
        return None
    try:
        names = {*(table.name for table in tables), *held}
        pruned = acknowledge(source, mirror.ledger(), names, prune=options.prune)
    except BufferFullError as error:
        if not error.made_room:
            raise
        later = sync_cycle(*seams, schema_version=schema_version, blame=blame, held=held)
        # Where the source has changed meanwhile, the rest waits for the next sync.
        return later.after(reports) if later else AppliedCycle(reports)
    on_step(Step.ACKNOWLEDGED)
    return AppliedCycle(reports, pruned)


def _apply_one_state(  # noqa: PLR0913  (the seams, the options, and callbacks)
    tables: Collection[Table],
    source: ChangeSource,
    mirror: Mirror,
    options: SyncOptions,
    on_step: OnStep,
    *,
    schema_version: int | None,
    blame: Blame,
    mending: Mending | None,
    altered: Mapping[str, Alteration],
) -> dict[str, TableReport] | None:
    is_read = any(alteration.read for alteration in altered.values())
    with snapshot_of_rows(source) if is_read else source.snapshot() as snapshot:
        on_step(Step.SNAPSHOT)
        if snapshot.schema_version != schema_version:
            return None
        started = time.monotonic()
        found = find_due(tables, snapshot, mirror.ledger(), blame)
        if found is None:
            return None
        if is_read and not all_parted(tables, snapshot, mirror.ledger(), blame):
            return None
        due, behind = found
        mended = [t for t in tables if mending is not None and t.name == mending.table]
        due += [table for table in (*mended, *altered_of(tables, altered)) if table not in due]
        if due:
            with mirror.transaction() as transaction:
                reports = _apply_all(due, snapshot, transaction, options, on_step, blame, altered)
                left = [table for table in behind if table.name not in reports]
                reports |= _follow(left, snapshot, transaction, blame)
                for table in due:
                    with blame.of(table.name):
                        _refuse_overflow(table, reports, transaction, mirror, options)
                for table in mended:
                    with blame.of(table.name):
                        _mend(table, mending, snapshot, transaction, options)
                on_step(Step.RECORDED)
            on_step(Step.COMMITTED)
        else:
            reports = {}
            if tables:
                mirror.confirm()
        clock = snapshot.clock
    waited = time.monotonic() - started
    reports = {name: with_waiting(report, waited) for name, report in reports.items()}
    return with_unchanged(tables, mirror.ledger(), reports, clock)


def _apply_all(  # noqa: PLR0913, PLR0917  (the seams, the options, and what else is to be done)
    due: Iterable[Table],
    snapshot: SourceSnapshot,
    transaction: MirrorTransaction,
    options: SyncOptions,
    on_step: OnStep,
    blame: Blame,
    altered: Mapping[str, Alteration],
) -> dict[str, TableReport]:
    reports = {}
    for table in due:
        with blame.of(table.name):
            reports[table.name] = apply_pending(
                table, snapshot, transaction, options, on_step, altered.get(table.name)
            )
    return reports


def _follow(
    behind: Iterable[Table], snapshot: SourceSnapshot, transaction: MirrorTransaction, blame: Blame
) -> dict[str, TableReport]:
    """Move tables without changes to the head; however many they are, nothing is asked for them.

    One transaction is paid for anyway, and a table that stays behind holds the source's log.
    """
    marks, moved = transaction.ledger().watermarks, {}
    for table in behind if snapshot.shares_log else ():
        mark = marks[table.name]
        with blame.of(table.name):
            if snapshot.head(table) != mark.position:
                order = _record(table, snapshot, transaction, mark)
                moved[table.name] = TableReport(table.name, watermark=order)
    return moved


def _refuse_overflow(
    table: Table,
    reports: Mapping[str, TableReport],
    transaction: MirrorTransaction,
    mirror: Mirror,
    options: SyncOptions,
) -> None:
    """Refuse too many dead letters of a table that has done more than follow the head."""
    report = reports[table.name]
    if report != TableReport(table.name, watermark=report.watermark):
        bounds = options.letter_bounds(table.name)
        refuse_overflow(table, transaction, mirror, bounds, report.dead_letters)


def _mend(
    table: Table,
    mending: Mending | None,
    snapshot: SourceSnapshot,
    transaction: MirrorTransaction,
    options: SyncOptions,
) -> None:
    """Put right what a repair found to differ; what was changed since has just been applied."""
    if mending is not None:
        changes = untouched(mending, table, snapshot, options.batch_rows)
        mending.done.append(_apply_difference(table, changes, snapshot, transaction))


def apply_pending(
    table: Table,
    snapshot: SourceSnapshot,
    transaction: MirrorTransaction,
    options: SyncOptions,
    on_step: OnStep,
    alteration: Alteration | None = None,
) -> TableReport:
    """Apply and record all of one table's changes up to the snapshot; first alter it."""
    ledger = transaction.ledger()
    if ledger.state(table.name) is TableState.COPIED:
        return _put_copy_in_place(table, snapshot, transaction, options, on_step)
    if alteration is not None:
        alter(table, alteration, transaction, snapshot.clock)
    mark = ledger.watermarks[table.name]
    after = mark.position
    is_read = alteration is not None and bool(alteration.read)
    is_due = is_read or rescan_due(snapshot, table, after) is not Rescan.NONE
    if not snapshot.pending(table, after) and not is_due:
        return TableReport(table.name, watermark=_record(table, snapshot, transaction, mark))
    counts, events, letters = Counts(), 0, 0
    for captured in snapshot.changes(table, after, options.batch_rows):
        on_step(Step.CAPTURED)
        batch = _completed(captured, table, transaction)
        if alteration is not None:
            batch = with_added(batch, alteration.added)
        if table.mode is Mode.DESTRUCTIVE:
            counts += transaction.merge(table, compact(batch, table.schema))
        else:
            counts += keep_versions(table, batch, transaction)
        letters += keep_letters(table, batch, snapshot, transaction)
        events += batch.count
        on_step(Step.APPLIED)
        del captured, batch  # it may be large, and the next one is read now
    if alteration is not None and alteration.read:
        found, unfit = _read_columns(table, alteration, snapshot, transaction)
        counts, letters = counts + found, letters + unfit
    counts += _rescan(table, snapshot, transaction, after, on_step)
    watermark = _record(table, snapshot, transaction, mark)
    return TableReport.of(
        table.name,
        counts,
        events=events,
        dead_letters=letters,
        watermark=watermark,
        lag_seconds=age_of_oldest(table, snapshot, after),
    )


def _completed(
    batch: ChangeBatch, table: Table, transaction: ChangeApply, copy: CopyPromotion | None = None
) -> ChangeBatch:
    """Add what the source left to be known: the keys that were truncated, values left alone.

    With `copy`, of its rows. Rows that no key tells apart are taken out and become dead letters.
    """
    batch = without_keyless(batch, table.schema)
    if batch.truncated_at is not None:
        keys = copy.copied_keys(table) if copy else transaction.present_keys(table)
        events = as_events(table.schema, keys, batch.truncated_at, live=False)
        return replace(batch, events=events)
    if not batch.unchanged:
        return batch
    rows_of = copy.copied_rows if copy else transaction.present_rows
    held = rows_of(table, wanted_keys(batch, table.schema))
    unknown = {key for key, _ in transaction.quarantined(table)}
    return complete(batch, held, table.schema, unknown)


def keep_versions(table: Table, batch: ChangeBatch, transaction: RowApply) -> Counts:
    """Close and open the versions that a batch of events asks for."""
    opened, floors = transaction.open_versions(table, batch.events)
    versions = supersede(
        batch.events,
        opened,
        floors,
        table.schema,
        seen_at=batch.seen_at,
        whole_transactions=batch.whole_transactions,
    )
    transaction.supersede(table, versions)
    return Counts(versions.inserted, versions.updated, versions.deleted)


def acknowledge(source: ChangeSource, ledger: Ledger, tables: Iterable[str], *, prune: bool) -> int:
    """Report what this mirror still needs to the source, and let it delete the rest.

    Returns:
        How many rows of its log it deleted.
    """
    known = {name: ledger.needed_from(name) for name in tables}
    return source.acknowledge({name: place for name, place in known.items() if place}, prune=prune)


def _rescan(
    table: Table,
    snapshot: SourceSnapshot,
    transaction: MirrorTransaction,
    after: Position,
    on_step: OnStep,
) -> Counts:
    """If a rescan is due, compare the whole table and apply the differences."""
    counts, due = Counts(), rescan_due(snapshot, table, after)
    if due is Rescan.NONE:
        return counts
    for changes in find_drift(table, snapshot, transaction, deletes=due is Rescan.ALL):
        counts += _apply_difference(table, changes, snapshot, transaction)
    on_step(Step.AUDITED)
    return counts


def _read_columns(
    table: Table, alteration: Alteration, snapshot: SourceSnapshot, transaction: MirrorTransaction
) -> tuple[Counts, int]:
    """Read the columns of which no change tells what is in them; apply what differs.

    Returns:
        What was changed, and how many values do not fit.
    """
    counts, letters = Counts(), 0
    alteration.rows_read.clear()  # of a cycle in which another table failed
    for batch, changes in read_columns(table, alteration, snapshot, transaction):
        counts += _apply_difference(table, changes, snapshot, transaction)
        alteration.rows_read.append(batch.rows.num_rows)
        letters += len(batch.rejected)
    return counts, letters


def _put_copy_in_place(
    table: Table,
    snapshot: SourceSnapshot,
    transaction: MirrorTransaction,
    options: SyncOptions,
    on_step: OnStep,
) -> TableReport:
    """Catch the copy up to the snapshot, then make it the table, or apply what differs."""
    ledger = transaction.ledger()
    after = ledger.copies[table.name].position
    events = letters = 0
    for captured in snapshot.net_changes(table, after, options.batch_rows):
        on_step(Step.CAPTURED)
        batch = _completed(captured, table, transaction, copy=transaction)
        transaction.heal_copy(table, compact(batch, table.schema))
        letters += keep_letters(table, batch, snapshot, transaction)
        events += batch.count
        del captured, batch
    unknown = unknown_keys(table, transaction)
    transaction.keep_unknown(table, unknown)
    adopted = transaction.adopt_copy(table, snapshot.clock)
    counts = Counts(inserted=adopted or 0)
    if adopted is None:
        counts += transaction.mend_keys(table, snapshot.clock)
        versions, unfit = _apply_versions(table, after, snapshot, transaction, options)
        counts, letters = counts + versions, letters + unfit
        for changes in transaction.copy_differences(table, options.batch_rows):
            known = without_unknown(changes, unknown)
            counts += _apply_difference(table, known, snapshot, transaction)
    elif rescan_due(snapshot, table, after) is not Rescan.NONE:
        # Read before and after a change of the table's key, a row may be there twice.
        counts += transaction.mend_keys(table, snapshot.clock)
    on_step(Step.PROMOTED)
    counts += _rescan(table, snapshot, transaction, after, on_step)
    watermark = _record(table, snapshot, transaction, ledger.watermarks.get(table.name))
    return TableReport.of(
        table.name, counts, events=events, dead_letters=letters, watermark=watermark
    )


def _apply_versions(
    table: Table,
    after: Position,
    snapshot: SourceChanges,
    transaction: ChangeApply,
    options: SyncOptions,
) -> tuple[Counts, int]:
    """Give a temporal table each version that events tell of since the copy began.

    A copy knows the last of them only; its difference then adds what no event showed. A version
    that does not fit is named by a dead letter, which is resolved where the row that is there now
    fits; these are counted as well.
    """
    counts, letters = Counts(), 0
    if table.mode is Mode.TEMPORAL:
        unknown = transaction.quarantined(table)
        for captured in snapshot.changes(table, after, options.batch_rows):
            batch = _completed(captured, table, transaction)
            counts += keep_versions(table, batch, transaction)
            transaction.quarantine(batch.rejected)
            mended = letter_names(batch) - unknown
            if mended:
                transaction.release(table, mended, snapshot.clock)
            letters += len(mended)
            del captured, batch
    return counts, letters


def _apply_difference(
    table: Table, changes: NetChanges, snapshot: SourcePositions, transaction: RowApply
) -> Counts:
    if table.mode is Mode.DESTRUCTIVE:
        return transaction.merge(table, changes)
    events = pa.concat_tables(
        [
            # When they came about, nobody saw.
            as_events(table.schema, changes.upserts, snapshot.clock, live=True),
            as_events(table.schema, changes.tombstones, snapshot.clock, live=False),
        ]
    )
    return keep_versions(table, ChangeBatch(events, events.num_rows), transaction)


def _record(
    table: Table,
    snapshot: SourcePositions,
    transaction: ProgressRecord,
    mark: Watermark | None,
) -> int:
    head = snapshot.head(table)
    # What a source reads nothing for, it does not move on: the head is still as of then.
    if mark is None or mark.position != head:
        transaction.record(Watermark(table.name, head, snapshot.clock))
    return head.order
