"""A copy whose ranges of keys several processes share out among themselves.

Whoever works on it reads the next part of a range, writes it, and records it. Of two that have read
the same part one records it; the other has only done work for nothing. So nobody has to be asked,
and a process that is killed leaves nothing behind that another one must put right.
"""

import logging
import math
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Self

import pyarrow as pa

from rhei_pipeline.capabilities import (
    AdmitsRanges,
    CopiesRanges,
    PlannedRanges,
    RangeStore,
    reads_ranges,
    snapshot_for_copy,
)
from rhei_pipeline.errors import MirrorDamagedError, MirrorError, RheiError, SchemaError
from rhei_pipeline.model.copy_plan import CopyPlan, RangePart, RangeStanding
from rhei_pipeline.model.portions import PORTION_BYTES
from rhei_pipeline.model.progress import CopyProgress
from rhei_pipeline.model.reports import CopyStatus
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import (
    ChangeSource,
    Mirror,
    MirrorRecords,
    MirrorTransaction,
    OnStep,
    Step,
)

if TYPE_CHECKING:
    from rhei_pipeline.model.changes import DeadLetter

#: A part of a range has so many batches at most, or bytes, or what so many seconds read: it is what
#: is lost with a process that is killed, and a segment each.
PART_BATCHES, PART_BYTES, PART_SECONDS = 10, 4 * PORTION_BYTES, 5.0
#: A range on which somebody else works is left to them, until nothing came of it for so long.
PATIENCE_SECONDS = 30.0
_LOOK_SECONDS = 0.5
#: How often a copy is begun, where what was recorded or written of it does not stay as it was.
ATTEMPTS = 3

_log = logging.getLogger(__name__)


class WorkEnd(StrEnum):
    """How work on ranges has ended.

    COMPLETE: all of them are complete. CLOSED: the copy is in place, or was given up.
    MIGRATED: the source gave the table another shape. PAUSED: other tables have their turn.
    """

    COMPLETE = "complete"
    CLOSED = "closed"
    MIGRATED = "migrated"
    PAUSED = "paused"


class RangeMemory:
    """What a process knows of copies in ranges from one turn to the next.

    That is on which ranges somebody else works, as far as it shows, and in `tries`, by table, how
    often what was recorded or written of a copy did not stay as it was.
    """

    def __init__(self) -> None:
        self.tries: Counter[str] = Counter()
        self._parts: dict[tuple[str, int], int] = {}
        self._seen_at: dict[tuple[str, int], float] = {}

    def idle(self, standing: RangeStanding, missing: Collection[int]) -> list[int]:
        """Return the ranges for which nobody else has recorded a part lately."""
        now, found = time.monotonic(), []
        for number in missing:
            own, parts = (standing.plan.plan_id, number), len(standing.parts.get(number, ()))
            if self._parts.setdefault(own, parts) != parts:
                self._parts[own], self._seen_at[own] = parts, now
            seen_at = self._seen_at.get(own)
            if seen_at is None or now - seen_at >= PATIENCE_SECONDS:
                found.append(number)
        return found

    def note(self, standing: RangeStanding, number: int, *, mine: bool) -> None:
        """Note who has recorded the next part of a range."""
        own = (standing.plan.plan_id, number)
        self._parts[own] = len(standing.parts.get(number, ())) + 1
        if not mine:
            self._seen_at[own] = time.monotonic()


@dataclass(slots=True)
class RangeWork:
    """What one process does for a copy.

    Attributes:
        rows, parts, letters: What it has read and recorded itself.
        numbers: The ranges on which it worked.
    """

    table: Table
    source: ChangeSource
    store: RangeStore
    batch_rows: int
    on_step: OnStep
    #: Called after each part with all rows that were read so far, and those of the table.
    on_rows: Callable[[int, int], None]
    #: When other tables have their turn, by `time.monotonic`.
    until: float = math.inf
    memory: RangeMemory = field(default_factory=RangeMemory)
    rows: int = 0
    parts: int = 0
    letters: int = 0
    numbers: set[int] = field(default_factory=set)

    def share(self, plan_id: str, chosen: Collection[int] | None = None) -> WorkEnd:
        """Copy what nobody else copies, until all ranges are complete, or those that were chosen.

        Or until the turn is over; where there is only others' work to wait for, that is soon.

        Raises:
            MirrorDamagedError: What is recorded cannot be read.
        """
        with _ReadAhead(self._read) as ahead:
            return self._shared(plan_id, chosen, ahead)

    def _shared(self, plan_id: str, chosen: Collection[int] | None, ahead: "_ReadAhead") -> WorkEnd:
        own: int | None = None
        is_over = False
        while True:
            standing = self._standing(plan_id)
            if standing is None:
                return WorkEnd.CLOSED
            missing = [n for n in standing.missing if chosen is None or n in chosen]
            if not missing:
                return WorkEnd.COMPLETE
            if is_over:
                return WorkEnd.PAUSED
            idle = self.memory.idle(standing, missing)
            if not idle:
                self.on_rows(standing.rows, standing.plan.rows)
                time.sleep(_LOOK_SECONDS)
                is_over = self.until < math.inf
                continue
            number = own if own in idle else _any_of(idle, standing)
            recorded = self._copied_part(standing, number, ahead)
            if isinstance(recorded, WorkEnd):
                return recorded
            own = number if recorded else None
            self.memory.note(standing, number, mine=recorded)
            is_over = time.monotonic() >= self.until

    def _standing(self, plan_id: str) -> RangeStanding | None:
        """Return how far a plan has come; None if it is open no more."""
        standing = self.store.standing(self.table.name)
        return standing if standing and standing.plan.plan_id == plan_id else None

    def _copied_part(
        self, standing: RangeStanding, number: int, ahead: "_ReadAhead"
    ) -> bool | WorkEnd:
        """Return whether this process recorded the next part of a range, or why there is an end."""
        try:
            recorded = self._copy_part(standing, number, ahead)
        except MirrorError:
            if self._standing(standing.plan.plan_id) is None:  # and what was written is deleted
                return WorkEnd.CLOSED
            raise
        return WorkEnd.MIGRATED if recorded is None else recorded

    def _copy_part(self, standing: RangeStanding, number: int, ahead: "_ReadAhead") -> bool | None:
        """Read and record the next part of a range; None if the table has another shape by now."""
        began = time.monotonic()
        part, rows = ahead.read(standing.plan, number, *standing.begin(number))
        if part is None:
            return None
        now = time.monotonic()
        # One that would come after the turn were read for nothing.
        if not part.is_last and now + 2 * (now - began) < self.until:
            ahead.begin(standing.plan, number, part.place + 1, part.resume)

        def written() -> None:
            self.on_step(Step.RANGE_WRITTEN)

        if not self.store.append(standing.plan, part, self.table, rows, written):
            return False
        self.rows, self.parts = self.rows + part.rows, self.parts + 1
        self.letters += len(part.letters)
        self.numbers.add(number)
        self.on_rows(standing.rows + part.rows, standing.plan.rows)
        self.on_step(Step.RANGE_RECORDED)
        return True

    def _read(
        self, plan: CopyPlan, number: int, place: int, after: str | None
    ) -> tuple[RangePart | None, pa.Table]:
        resume, (_, until) = after, plan.bounds(number)
        found, size = [self.table.schema.arrow.empty_table()], 0
        letters: list[DeadLetter] = []
        is_last, ends_at = False, time.monotonic() + PART_SECONDS
        with snapshot_for_copy(self.source) as snapshot:
            if not has_shape(self.table, self.source):
                return None, found[0]
            assert reads_ranges(snapshot)  # noqa: S101  (the plan is of such a source)
            for _ in range(PART_BATCHES):
                batch = snapshot.rows_within(self.table, resume, until, self.batch_rows)
                if batch is None:
                    is_last = True
                    break
                found.append(batch.rows)
                letters += batch.rejected
                resume, size = batch.resume, size + batch.rows.nbytes
                del batch
                if size >= PART_BYTES or time.monotonic() >= ends_at:
                    break
        rows = pa.concat_tables(found)
        own = (plan.plan_id, number, place, after, resume)
        part = RangePart(*own, is_last, rows.num_rows, tuple(letters), {})
        return part, rows


#: Reads a part of a plan: of this range, at this place, after this key.
_Read = Callable[[CopyPlan, int, int, str | None], tuple[RangePart | None, pa.Table]]


class _ReadAhead:
    """Reads the part that comes next while the one before it is written: one, and no more.

    The source is used by one thread at a time.
    """

    def __init__(self, read: _Read) -> None:
        self._read = read
        self._thread = ThreadPoolExecutor(1, "rhei-range")
        self._begun: tuple[object, Future[tuple[RangePart | None, pa.Table]]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def begin(self, plan: CopyPlan, number: int, place: int, after: str | None) -> None:
        """Begin to read a part."""
        wanted = (plan, number, place, after)
        self._begun = wanted, self._thread.submit(self._read, *wanted)

    def read(
        self, plan: CopyPlan, number: int, place: int, after: str | None
    ) -> tuple[RangePart | None, pa.Table]:
        """Return a part, which may have been begun; another one that was is of no use then."""
        wanted, begun = (plan, number, place, after), self._begun
        self._begun = None
        if begun is not None and begun[0] == wanted:
            return begun[1].result()
        if begun is not None:
            wait([begun[1]])
        return self._read(*wanted)


def _any_of(idle: Collection[int], standing: RangeStanding) -> int:
    """Return one of the ranges with the fewest parts; by lot, so that two take different ones."""
    fewest = min(len(standing.parts.get(number, ())) for number in idle)
    chosen = [n for n in idle if len(standing.parts.get(n, ())) == fewest]
    return random.choice(chosen)  # noqa: S311  (nothing secret)


def shared_copies(mirror: MirrorRecords) -> Mapping[str, CopyStatus]:
    """Return the copies that are under way in ranges, whoever works on them."""
    if not isinstance(mirror, CopiesRanges):
        return {}
    with suppress(RheiError):  # whoever copies names what is damaged, or away
        return {
            each.plan.table: CopyStatus(each.rows, each.plan.rows, each.plan.ranges, each.missing)
            for each in mirror.ranges.under_way()
        }
    return {}


def has_shape(table: Table, source: ChangeSource) -> bool:
    """Return whether a table's source still has it, in this shape."""
    try:
        return source.describe(table.name) == table.schema
    except SchemaError:
        return False


@dataclass(frozen=True, slots=True)
class SharedCopy:
    """A copy as the process that holds the mirror brings it about.

    Attributes:
        work: What this process does for it itself.
        count: How many ranges are declared.
        progress: That of the copy, which was just begun, or has no part yet.
    """

    work: RangeWork
    mirror: Mirror
    count: int
    progress: CopyProgress
    bounded: Callable[[MirrorTransaction], None]

    def copy(self) -> WorkEnd | None:
        """Plan the ranges, copy what nobody else does, and make all of it the copy.

        None: the table is not to be shared: it has too few rows, its source cannot, or what was
        written was lost each time.

        Raises:
            MirrorDamagedError: What is recorded was damaged each time.
        """
        name, tries = self.work.table.name, self.work.memory.tries
        while tries[name] < ATTEMPTS:
            try:
                found = self._shared()
            except MirrorDamagedError as error:
                tries[name] += 1
                if tries[name] == ATTEMPTS:
                    del tries[name]
                    raise
                self._begin_again(str(error))
                continue
            if found is WorkEnd.PAUSED:
                return found
            if found is WorkEnd.CLOSED:
                tries[name] += 1
                continue
            del tries[name]
            if not isinstance(found, RangeStanding):
                return found
            self._admit(found)
            return WorkEnd.COMPLETE
        del tries[name]
        return None

    def _shared(self) -> RangeStanding | WorkEnd | None:
        """Return what is recorded once all ranges are complete, or how the work ended before."""
        plan = self._planned()
        if plan is None:
            return None
        ended = self.work.share(plan.plan_id)
        if ended is not WorkEnd.COMPLETE:
            return ended
        standing = self._ranges.standing(plan.table)
        lost = self._ranges.lost(standing) if standing is not None else ()
        if lost:
            self._begin_again(f"{lost[0]!r} is lost")
        return WorkEnd.CLOSED if lost or standing is None else standing

    def _begin_again(self, why: str) -> None:
        _log.error("table %r: its ranges are copied again: %s", self.work.table.name, why)
        self._ranges.drop(self.work.table.name)

    @property
    def _ranges(self) -> PlannedRanges:
        assert isinstance(self.mirror, CopiesRanges)  # noqa: S101  (asked before)
        return self.mirror.ranges

    def _planned(self) -> CopyPlan | None:
        """Return the plan that is open, or a new one."""
        table, source = self.work.table, self.work.source
        standing = self._ranges.standing(table.name)
        if standing is not None:
            return standing.plan
        with snapshot_for_copy(source) as snapshot:
            rows = snapshot.count(table)
            ends = snapshot.range_ends(table, self.count) if reads_ranges(snapshot) else ()
        if not ends:
            return None
        own = self.progress
        plan_id = uuid.uuid4().hex
        plan = CopyPlan(plan_id, table.schema, own.position, own.shape, tuple(ends), rows)
        self._ranges.plan(plan)
        self.work.on_step(Step.RANGES_PLANNED)
        return plan

    def _admit(self, standing: RangeStanding) -> None:
        """Make all ranges the copy, in one commit."""
        parts = [part for number in sorted(standing.parts) for part in standing.parts[number]]
        with self.mirror.transaction() as transaction:
            assert isinstance(transaction, AdmitsRanges)  # noqa: S101  (of such a mirror)
            progress = replace(self.progress, complete=True)
            transaction.admit_ranges(self.work.table, parts, progress)
            transaction.quarantine([letter for part in parts for letter in part.letters])
            self.bounded(transaction)
        self.work.letters = sum(len(part.letters) for part in parts)
        self.work.rows = standing.rows
        self.work.on_step(Step.COPY_COMPLETE)
