"""The first copy of a table, and any repeated one: rows beside the table, then handed over to sync.

The copy is read in short snapshots, each from where the last one ended, so it holds no lock and
keeps no write-ahead log long. Rows read early may have changed since; the log holds every key
touched after the copy's position, and the next sync cycle reads those again before it puts the
copy in the table's place. What readers of the mirror see is one state of the source, never a mix.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

import pyarrow as pa

from rhei_pipeline.capabilities import (
    CopiesRanges,
    beginning_of,
    keyless_rows,
    snapshot_for_copy,
    snapshot_of_rows,
)
from rhei_pipeline.model.changes import Position, RowBatch
from rhei_pipeline.model.portions import PORTION_BYTES
from rhei_pipeline.model.progress import CopyProgress, Ledger, TableState, Watermark
from rhei_pipeline.model.reports import CopyReport, TableReport
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.protocols import (
    ChangeSource,
    Mirror,
    MirrorTransaction,
    OnStep,
    SourcePositions,
    SourceRows,
    Step,
)
from rhei_pipeline.sql.text import mirror_table
from rhei_pipeline.sync.copy_ranges import (
    RangeMemory,
    RangeWork,
    SharedCopy,
    WorkEnd,
    has_shape,
)
from rhei_pipeline.sync.cycle import acknowledge
from rhei_pipeline.sync.options import SyncOptions
from rhei_pipeline.sync.quarantine import refuse_overflow

#: How long one read transaction of a copy may last, about: the source's WAL grows meanwhile.
SNAPSHOT_SECONDS = 5.0

#: Of a table of so many rows, a commit holds so many batches at most, or what so many seconds read.
LARGE_TABLE_ROWS, PART_BATCHES, PART_SECONDS = 250_000, 5, 1.0

#: A table that is copied at once has no more rows.
SMALL_ROWS = 1_000

#: Called after each batch: the table, rows copied so far by this call, the table's rows.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class CopyTurn:
    """How long a copy goes on before other tables have their turn.

    Attributes:
        until: When it is over, by `time.monotonic`; a copy reads one part at least.
        rows: What the turns before it have read.
        ranges: What is remembered of copies in ranges.
    """

    until: float = math.inf
    rows: int = 0
    ranges: RangeMemory = field(default_factory=RangeMemory)


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy read.

    Attributes:
        is_complete: All rows are there; otherwise it goes on at its next turn.
    """

    rows: int
    dead_letters: int
    resumed: bool
    is_complete: bool = True

    def after(self, earlier: "Copied | None") -> "Copied":
        """Return both as one, where this one went on where the earlier ended."""
        if earlier is None or not self.resumed:
            return self
        letters = earlier.dead_letters + self.dead_letters
        return Copied(earlier.rows + self.rows, letters, earlier.resumed, self.is_complete)


@dataclass(frozen=True, slots=True)
class _Start:
    """A copy as it goes on from here; one that is complete at once has read these batches."""

    progress: CopyProgress
    resumed: bool
    batches: Sequence[RowBatch] = ()


def needs_copy(table: Table, snapshot: SourcePositions, ledger: Ledger) -> bool:
    """Return whether only a copy can make the table equal to its source again."""
    if ledger.state(table.name) is not TableState.READY:
        return True
    return not snapshot.proves(table, ledger.watermarks[table.name].position)


@dataclass(frozen=True, slots=True)
class TableCopy:
    """Copies all rows of a table beside it; a copy that was cut off goes on where it ended.

    Attributes:
        table: What is copied.
        source, mirror: From where, and to where.
        options: How much at once.
        on_step: Called at each named step.
        on_progress: Called after each part.
        turn: How long it goes on.
    """

    table: Table
    source: ChangeSource
    mirror: Mirror
    options: SyncOptions
    on_step: OnStep
    on_progress: OnProgress
    turn: CopyTurn

    def run(self, *, same_shape: bool = False, at_once: bool = False) -> Copied | None:
        """Copy until all is there, or the turn is over.

        Afterwards the table is in state COPIED and the next sync cycle puts the copy in place.
        Where the turn is over before, it is in state COPYING, and the next call goes on.
        `same_shape`: the mirror's table has the columns and the key that its source has now.
        `at_once`: the copy of a small table is begun and completed by one commit, and the caller
        tells the source of it, together with others.

        Returns:
            What was read; None where the source gave the table another shape meanwhile. What is
            copied by then is of no use: the copy is to be begun again, in that shape.
        """
        name = self.table.name
        is_shared = self.options.copy_ranges(name) > 1
        small_rows = min(SMALL_ROWS, self.options.batch_rows) if at_once and not is_shared else 0
        start = self._start(small_rows, same_shape=same_shape)
        if not isinstance(start, _Start):
            return start
        progress, resumed = start.progress, start.resumed
        self.on_step(Step.COPY_BEGUN)
        if not (at_once and progress.complete):
            # From now on no other mirror's sync may let the source forget what this copy needs.
            acknowledge(self.source, self.mirror.ledger(), [name], prune=False)
        rows = sum(batch.rows.num_rows for batch in start.batches)
        letters = sum(len(batch.rejected) for batch in start.batches)
        if progress.complete and not resumed:
            self.on_progress(name, rows, rows)
            self.on_step(Step.COPY_COMPLETE)
        shared = self._shared(progress)
        ended = None if shared is None else shared.copy()
        if shared is not None and ended is not None:
            return _copied_by_all(shared.work, ended, resumed=resumed)
        read = self._read_rest(progress)
        return read and replace(
            read, rows=rows + read.rows, dead_letters=letters + read.dead_letters, resumed=resumed
        )

    def _start(self, small_rows: int, *, same_shape: bool) -> _Start | Copied | None:
        """Begin, or go on; where nothing is to be read, return what was copied."""
        table, source, mirror = self.table, self.source, self.mirror
        with source.snapshot() as snapshot:
            if not has_shape(table, source):
                return None
            if _replays(table, snapshot, mirror):
                return Copied(0, 0, resumed=False)
            progress = _resumable(table, snapshot, mirror.ledger())
            if progress is not None:
                return _Start(progress, resumed=True)
            mark = _watermark(table, snapshot, mirror.ledger()) if same_shape else None
            progress = CopyProgress(table.name, mark or snapshot.origin(table), fingerprint(table))
            keyless, clock = keyless_rows(snapshot, table), snapshot.clock
        batches = _all_rows(table, source, small_rows) if small_rows else None
        with mirror.transaction() as transaction:
            transaction.begin_copy(table, progress)
            # Every row is about to be read again, and what does not fit will be named again.
            transaction.release(table, transaction.quarantined(table), clock)
            transaction.quarantine(keyless)
            if batches is not None:
                batch = next(iter(batches), None)
                progress = _append(table, progress, batch, transaction, is_last=True)
            self._refuse_overflow(transaction)
        return _Start(progress, resumed=False, batches=batches or ())

    def _refuse_overflow(self, transaction: MirrorTransaction) -> None:
        bounds = self.options.letter_bounds(self.table.name)
        refuse_overflow(self.table, transaction, self.mirror, bounds)

    def _read_rest(self, progress: CopyProgress) -> Copied | None:
        """Read and write what is left, in order; None if the table has another shape now."""
        table, rows, letters = self.table, 0, 0
        is_first = True
        while not progress.complete and (is_first or time.monotonic() < self.turn.until):
            with snapshot_for_copy(self.source) as snapshot:
                if not has_shape(table, self.source):
                    return None
                total = snapshot.count(table)
                until = min(time.monotonic() + SNAPSHOT_SECONDS, self.turn.until)
                most = PART_BATCHES if total >= LARGE_TABLE_ROWS else 1
                while not progress.complete and (is_first or time.monotonic() < until):
                    is_first = False
                    with self.mirror.transaction() as transaction:
                        part, is_last = _part(
                            table, snapshot, progress.resume, self.options.batch_rows, most
                        )
                        progress = _append(table, progress, part, transaction, is_last=is_last)
                        rows += part.rows.num_rows if part else 0
                        letters += len(part.rejected) if part else 0
                        del part
                        self._refuse_overflow(transaction)
                    self.on_progress(table.name, self.turn.rows + rows, total)
                    self.on_step(Step.COPY_COMPLETE if progress.complete else Step.COPY_BATCH)
        return Copied(rows, letters, resumed=False, is_complete=progress.complete)

    def _shared(self, progress: CopyProgress) -> SharedCopy | None:
        """Return the copy as one that several processes share; None where it is not to be one."""
        count = self.options.copy_ranges(self.table.name)
        is_begun = progress.complete or progress.resume is not None
        if count == 1 or is_begun or not isinstance(self.mirror, CopiesRanges):
            return None
        work = RangeWork(
            self.table,
            self.source,
            self.mirror.ranges,
            self.options.batch_rows,
            self.on_step,
            partial(self.on_progress, self.table.name),
            until=self.turn.until,
            memory=self.turn.ranges,
        )
        return SharedCopy(work, self.mirror, count, progress, self._refuse_overflow)


def _copied_by_all(work: RangeWork, ended: WorkEnd, *, resumed: bool) -> Copied | None:
    """Return what a turn of a copy in ranges read; the last one tells of all that was read."""
    if ended is WorkEnd.MIGRATED:
        return None
    if ended is WorkEnd.PAUSED:
        return Copied(0, 0, resumed, is_complete=False)
    return Copied(work.rows, work.letters, resumed)


def _part(
    table: Table, snapshot: SourceRows, resume: str | None, batch_rows: int, most: int
) -> tuple[RowBatch | None, bool]:
    """Return what a commit of a copy holds, and whether the rows end behind it.

    A mirror writes rows by some hundred thousands: fewer are written again by the next commit, and
    to write them in turns takes longer than at once.
    """
    until = time.monotonic() + PART_SECONDS
    found: list[RowBatch] = []
    size = 0
    while (batch := snapshot.rows(table, resume, batch_rows)) is not None:
        found.append(batch)
        resume, size = batch.resume, size + batch.rows.nbytes
        if len(found) == most or size >= PORTION_BYTES or time.monotonic() >= until:
            break
    if not found:
        return None, True
    rejected = tuple(letter for batch in found for letter in batch.rejected)
    rows = pa.concat_tables(batch.rows for batch in found)
    return RowBatch(rows, found[-1].resume, rejected), batch is None


def _replays(table: Table, snapshot: SourcePositions, mirror: Mirror) -> bool:
    """Begin a new history before the first change that there ever was, where the source has all."""
    if table.mode is Mode.DESTRUCTIVE or mirror_table(table.schema) in mirror.tables():
        return False
    found = beginning_of(snapshot, table)
    if found is None or mirror.ledger().state(table.name) is not TableState.NEW:
        return False
    position, began = found
    with mirror.transaction() as transaction:
        transaction.begin_copy(table, CopyProgress(table.name, position, fingerprint(table)))
        transaction.adopt_copy(table, began)
        transaction.drop_copy(table)
        transaction.record(Watermark(table.name, position, snapshot.clock))
    return True


def take_on_shape(table: Table, mirror: Mirror, at: datetime) -> None:
    """Give a history the columns and the key that its source had once, and change no row of it.

    Raises:
        SchemaDriftError: Its past does not fit them.
    """
    standing = mirror.tables().get(mirror_table(table.schema))
    if standing is None or standing.mode is Mode.DESTRUCTIVE:
        return
    position = mirror.ledger().watermarks[table.name].position
    with mirror.transaction() as transaction:
        transaction.begin_copy(table, CopyProgress(table.name, position, fingerprint(table)))
        transaction.adopt_copy(table, at)
        transaction.drop_copy(table)


def copy_report(copied: Copied, report: TableReport, started: float) -> CopyReport:
    """Report a copy together with the sync that put it in place."""
    return CopyReport(
        report.table,
        rows=copied.rows,
        resumed=copied.resumed,
        inserted=report.inserted,
        updated=report.updated,
        deleted=report.deleted,
        dead_letters=report.dead_letters,
        watermark=report.watermark or 0,
        duration_seconds=time.monotonic() - started,
    )


def _resumable(table: Table, snapshot: SourcePositions, ledger: Ledger) -> CopyProgress | None:
    progress = ledger.copies.get(table.name)
    if progress is None or progress.shape != fingerprint(table):
        return None
    return progress if snapshot.proves(table, progress.position) else None


def _all_rows(table: Table, source: ChangeSource, most: int) -> Sequence[RowBatch] | None:
    """Return all rows of a small table, in one batch or none; None where it has more."""
    with snapshot_of_rows(source) as snapshot:
        if not has_shape(table, source):
            return None
        batch = snapshot.rows(table, None, most)
        if batch is None:
            return []
        return [batch] if snapshot.rows(table, batch.resume, most) is None else None


def _watermark(table: Table, snapshot: SourcePositions, ledger: Ledger) -> Position | None:
    """Return where a history goes on, so that no version between there and the copy is lost."""
    mark = ledger.watermarks.get(table.name)
    if table.mode is Mode.DESTRUCTIVE or mark is None:
        return None
    return mark.position if snapshot.proves(table, mark.position) else None


def _append(
    table: Table,
    progress: CopyProgress,
    batch: RowBatch | None,
    transaction: MirrorTransaction,
    *,
    is_last: bool,
) -> CopyProgress:
    resume = progress.resume if batch is None else batch.resume
    progress = replace(progress, resume=resume, complete=is_last)
    rows = table.schema.arrow.empty_table() if batch is None else batch.rows
    transaction.append_copy(table, rows, progress)
    if batch is not None:
        transaction.quarantine(batch.rejected)
    return progress


def fingerprint(table: Table) -> str:
    """Name a table's columns, types and key in few characters."""
    form = json.dumps(table.schema.to_json(), sort_keys=True)
    return hashlib.sha256(form.encode()).hexdigest()[:16]
