"""A source whose changes go through a durable buffer, so that the source may delete them early.

A drain reads the pending changes of all tables from one state of the source and writes them to
the log at once: each position in the log is one state of the source. Rows are read in the
snapshot that was drained, so that changes and rows agree.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from rhei_pipeline.buffer.codec import seal
from rhei_pipeline.buffer.confirmation import Confirmation
from rhei_pipeline.buffer.log import ChangeLog
from rhei_pipeline.buffer.snapshot import BufferedSnapshot, FollowedTable
from rhei_pipeline.buffer.writer import LogWriter
from rhei_pipeline.capabilities import (
    bytes_held_by,
    changed_unseen,
    end_capture,
    is_retained_for,
    reading_together,
    reads_wider,
    redeclare,
    rescan_due,
    snapshot_for_copy,
    snapshot_of_rows,
)
from rhei_pipeline.errors import (
    BufferFullError,
    PermanentError,
    RheiError,
    SchemaError,
    SourceBusyError,
)
from rhei_pipeline.model.blame import Blame, own_fault
from rhei_pipeline.model.changes import ChangeBatch, Position
from rhei_pipeline.model.polling import PollOptions
from rhei_pipeline.model.progress import changed_positions
from rhei_pipeline.model.schema import Mode, Table, TableOptions, TableSchema
from rhei_pipeline.protocols import ChangeSource, OnStep, Rescan, SourceSnapshot, Step

_log = logging.getLogger(__name__)

#: How often tables without changes follow those that have some, at most.
FOLLOWS_SECONDS = 1.0
_TABLES = "bridge/"
_MIRROR = "mirror/"


def is_begun(log: ChangeLog) -> bool:
    """Return whether the changes of any table have gone through a log."""
    # What the mirror had of a table stays on record when the table is declared no more.
    return bool(log.facts(_TABLES) or log.facts(f"watermark/{_MIRROR}"))


def _no_step(_step: Step) -> None:
    """Do nothing (the default callback)."""


@dataclass(frozen=True, slots=True)
class BufferOptions:
    """How the buffer is filled and pruned.

    Attributes:
        batch_rows: About how many rows are held in memory.
        prune: Delete from source and log what is no longer needed.
    """

    batch_rows: int = 50_000
    prune: bool = True


def _snapshot(source: ChangeSource) -> AbstractContextManager[SourceSnapshot]:
    return source.snapshot()


class BufferedSource:
    """A `ChangeSource` that reads another one through a `ChangeLog`.

    Args:
        inner: The source; the log is its only reader under its name.
        log: Stores changes until the mirror has them.
        draining: How the buffer is filled and pruned.
        on_step: Called at each named step.

    Not for several threads at once; the caller holds a lock around its work.
    """

    def __init__(
        self,
        inner: ChangeSource,
        log: ChangeLog,
        draining: BufferOptions | None = None,
        on_step: OnStep = _no_step,
    ) -> None:
        self._inner = inner
        self._log = log
        self._draining = draining or BufferOptions()
        self._on_step = on_step
        self._read_log()
        self._pruned: dict[str, Position] = {}
        self._confirmation = Confirmation(log.path, log.log_id)
        self._drifted: set[str] = set()
        self._waited_at: dict[str, int] = {}
        self._rescanned: set[str] = set()
        self._releasable: dict[str, Position] = {}
        self._is_behind, self._followed_at = True, -math.inf
        self._full: BufferFullError | None = None
        self._lifted = False
        self._failing: dict[str, PermanentError] = {}
        self._blame = Blame()

    def _read_log(self) -> None:
        facts = self._log.facts(_TABLES)
        self._bridged = {name: _bridged(form) for name, form in facts.items()}
        self._confirmed = {name: self._log.watermark(_MIRROR + name) for name in self._bridged}

    def _renew(self) -> None:
        """Go on after a write that failed from what the log then holds."""
        if self._log.renew():
            self._read_log()

    def describe(self, name: str) -> TableSchema:
        """Read a table's schema as it is now."""
        return self._inner.describe(name)

    def reading_together(self, names: Collection[str]) -> AbstractContextManager[None]:
        """Read these tables together, as the source does."""
        return reading_together(self._inner, names)

    def schema_version(self) -> int:
        """Return the source's schema version."""
        return self._inner.schema_version()

    def install(self, table: Table, least: int) -> None:
        """Install capture in the source, and start the table's stream in the buffer.

        Where the log does not continue to what the source holds, or ends before `least`, it
        starts again: no older position is proved, so the table is copied again. After a schema
        change, the changes in the former schema are drained first.
        """
        self._renew()
        known = self._bridged.get(table.name)
        self._inner.install(table, known.read_to if known else 0)
        with self._inner.snapshot() as snapshot:
            if known is not None and self._may_go_on(known, table, least, snapshot):
                self._go_on(replace(known, table=table, begins=least))
            elif (
                known is None
                or self._log.head(table.name).order < least
                or not known.leads_on(snapshot)
            ):
                self._start_anew(table, snapshot.origin(table), least)
            elif known.table != table:
                self._change_shape(known, table, snapshot, least)

    def _change_shape(
        self, known: FollowedTable, table: Table, snapshot: SourceSnapshot, least: int
    ) -> None:
        """Continue in another schema, once the mirror has all changes of the former one."""
        name, after = table.name, known.inner
        if after is not None and table.mode is known.table.mode is Mode.TEMPORAL:
            reached = self._log.head(name).order
            waits = reached != self._confirmed_order(name)
            waits = waits or snapshot.pending(known.table, after) > 0
            if waits and self._waited_at.get(name) != reached:
                # The next drain takes in what is of the former shape, and the mirror applies it.
                self._waited_at[name] = reached
                return
        self._start_anew(table, snapshot.origin(table), least)

    def _may_go_on(
        self, known: FollowedTable, table: Table, least: int, snapshot: SourceSnapshot
    ) -> bool:
        """Return whether a history's log can continue in another schema.

        The mirror has all that the log holds, so nothing is read in a shape that it has not; and
        what the source holds since then can be read in the new one.
        """
        return (
            known.table != table
            and known.table.mode is table.mode is Mode.TEMPORAL
            and known.inner is not None
            and self._log.head(table.name).order == least
            and snapshot.proves(table, known.inner)
        )

    def _go_on(self, bridged: FollowedTable) -> None:
        name = bridged.table.name
        with self._log.writing() as writer:
            writer.set_fact(_TABLES + name, _form(bridged))
        self._bridged[name] = bridged
        self._waited_at.pop(name, None)

    @property
    def logs_rows(self) -> bool:
        """Return the source's answer."""
        return self._inner.logs_rows

    def is_installed(self, table: Table) -> bool:
        """Return whether the source captures the table and the buffer follows it."""
        known = self._bridged.get(table.name)
        return (
            known is not None
            and known.table == table
            and known.inner is not None
            and self._inner.is_installed(table)
        )

    def snapshot(self) -> AbstractContextManager[BufferedSnapshot]:
        """Drain the source into the buffer, then hold that state.

        Where the log is full, the changes end where the log does, and `acknowledge` says so.
        """
        return self._held(_snapshot, drains=True)

    def row_snapshot(self) -> AbstractContextManager[BufferedSnapshot]:
        """Hold a state with its rows and drain nothing.

        Changes end where the rows do, the last of them read from the source.
        """
        return self._held(snapshot_of_rows, drains=False)

    def copy_snapshot(self) -> AbstractContextManager[BufferedSnapshot]:
        """Hold a state as `row_snapshot` does; rows may be of later ones."""
        return self._held(snapshot_for_copy, drains=False)

    @contextmanager
    def _held(
        self,
        hold: Callable[[ChangeSource], AbstractContextManager[SourceSnapshot]],
        *,
        drains: bool,
    ) -> Iterator[BufferedSnapshot]:
        self._renew()
        self._release()
        self._failing.clear()
        while True:
            try:
                with hold(self._inner) as inner:
                    if drains:
                        self._drain_if_room(inner)
                    snapshot = self._over(inner, passes_on=not drains)
                    yield snapshot
                break
            except Exception as error:  # noqa: BLE001  (one table's, or raised again)
                self._note_failing(error)
        self._rescanned = snapshot.rescanned
        self._release()

    def _over(self, inner: SourceSnapshot, *, passes_on: bool) -> BufferedSnapshot:
        unreadable = {} if passes_on else {**self._failing, **_drifted(self._drifted)}
        bridged = dict(self._bridged)
        return BufferedSnapshot(
            inner,
            self._log,
            bridged,
            passes_on=passes_on,
            unreadable=unreadable,
            describe=self._inner.describe,
        )

    def _note_failing(self, error: Exception) -> None:
        """Stop draining the table that failed; raise an error that is not one table's fault.

        The next snapshot is another one of the source's: an error may have spoilt the last.
        """
        name = self._blame.table
        fault = own_fault(error, name) if name is not None else None
        self._blame.clear()
        if name is None or fault is None:
            raise error
        self._failing[name] = fault

    def drain(self) -> int:
        """Drain pending changes into the buffer while the mirror is unavailable; return the count.

        Raises:
            BufferFullError: The log has reached a limit, in bytes or in age.
        """
        self._renew()
        self._log.check_age({name: self._confirmed_order(name) for name in self._bridged})
        self._release()
        self._failing.clear()
        while True:
            try:
                with self._inner.snapshot() as inner:
                    count = self._drain(inner)
                break
            except Exception as error:  # noqa: BLE001  (one table's, or raised again)
                self._note_failing(error)
        self._release()
        for failure in self._failing.values():
            _log.error("%s; its changes wait in the source", failure)
        for name in self._drifted:
            _log.warning("table %r: its schema changed; its changes wait in the source", name)
        return count

    def acknowledge(self, needed_from: Mapping[str, Position], *, prune: bool) -> int:
        """Record the mirror's positions and delete the changes it has.

        Raises:
            BufferFullError: The source has more than the buffer had room for. With `made_room`,
                the next snapshot takes all of it, whatever the limit: the mirror applies it at
                once.
        """
        news = changed_positions(needed_from, self._confirmed)
        if news:
            # Lost in a power cut, it is only said again.
            with self._log.writing(durably=False) as writer:
                for name, position in news.items():
                    writer.set_watermark(_MIRROR + name, position)
            self._confirmed |= news
        self._forget_rescans(needed_from)
        forgotten = self._prune(needed_from) if prune else 0
        self._confirm()
        if prune or not self._draining.prune:
            self._go_on_after_full()
        return forgotten

    def _go_on_after_full(self) -> None:
        full, self._full = self._full, None
        self._lifted = full is not None and self._draining.prune and not self._lifted
        if self._lifted and full is not None:
            hint = "the changes that it held are applied now: sync again to read the rest"
            raise BufferFullError(full.message, hint=hint, made_room=True)
        if full is not None:
            raise full

    def _forget_rescans(self, applied: Mapping[str, Position]) -> None:
        """Record which requested rescans the mirror has made and committed."""
        done = {n for n in self._rescanned if self._log.head(n) == applied.get(n)}
        self._rescanned -= done
        for name in done:
            self._bridged[name] = replace(self._bridged[name], rescan=False)
            with self._log.writing() as writer:
                writer.set_fact(_TABLES + name, _form(self._bridged[name]))

    def touch(self, table: Table, keys: Sequence[tuple[Any, ...]]) -> None:
        """Make the source report these keys as changed."""
        self._inner.touch(table, keys)

    def held_bytes(self) -> dict[str, int]:
        """Return the bytes in the buffer, and those that the source still keeps for it."""
        return {"buffer": self._log.held_bytes, **bytes_held_by(self._inner)}

    def erase_pruned(self) -> None:
        """Remove from the disk the events that the mirror has, and that were pruned."""
        self._log.erase()

    def redeclare(self, name: str, options: TableOptions, polling: PollOptions) -> None:
        """Give the source what is said of a table."""
        redeclare(self._inner, name, options, polling)

    def changed_unseen(self) -> Collection[str]:
        """Return the source's answer."""
        return changed_unseen(self._inner)

    def end_capture(self, name: str) -> None:
        """Keep nothing more of a table, here or in the source."""
        end_capture(self._inner, name)
        self._forget(name)

    def forget_all_but(self, names: Sequence[str]) -> None:
        """Delete the changes of tables that are no longer declared."""
        kept = {name.lower() for name in names}
        gone = [
            name
            for name, known in self._bridged.items()
            if kept.isdisjoint((name.lower(), known.table.schema.full_name.lower()))
        ]
        for name in gone:
            self._forget(name)

    def _forget(self, name: str) -> None:
        if self._bridged.pop(name, None) is not None:
            with self._log.writing() as writer:
                writer.restart(name, self._log.head(name).order + 1)
                writer.set_fact(_TABLES + name, None)

    def _start_anew(self, table: Table, inner: Position, least: int) -> None:
        order = max(self._log.head(table.name).order, least) + 1
        bridged = FollowedTable(table, inner, inner.order)
        with self._log.writing() as writer:
            writer.restart(table.name, order, source_order=inner.order)
            writer.set_fact(_TABLES + table.name, _form(bridged))
        self._bridged[table.name] = bridged
        self._waited_at.pop(table.name, None)
        if self._releasable:  # of all tables; one alone would give away what others need
            self._releasable[table.name] = inner
        self._confirm()

    def _drain_if_room(self, inner: SourceSnapshot) -> None:
        """Drain; if the buffer is full, wait until the mirror has made room."""
        self._full = None
        try:
            self._drain(inner, limited=not self._lifted)
        except BufferFullError as error:
            if self._draining.prune and self._prune(self._known_confirmed()):
                self._drain_if_room(inner)
                return
            self._full = error

    def _drain(self, inner: SourceSnapshot, *, limited: bool = True) -> int:
        lost, due = self._look_at(inner)
        if not lost and not due:
            return 0
        before = {name: self._log.head(name).order for name in due}
        moved: dict[str, FollowedTable] = {}
        with self._log.writing(self._on_part, limited=limited) as writer:
            for name in lost:
                moved[name] = self._cut_off(self._bridged[name], writer)
            for name, after in due.items():
                with self._blame.of(name):
                    moved[name] = self._drain_table(self._bridged[name], after, inner, writer)
            for name, bridged in moved.items():
                writer.set_fact(_TABLES + name, _form(bridged))
        self._bridged |= moved
        self._releasable |= {name: moved[name].inner or after for name, after in due.items()}
        self._on_step(Step.BRIDGED)
        return sum(self._log.head(name).order - order for name, order in before.items())

    def _look_at(self, inner: SourceSnapshot) -> tuple[list[str], dict[str, Position]]:
        """Return tables whose changes were lost, and the positions from which others have some."""
        lost: list[str] = []
        due, quiet = dict[str, Position](), dict[str, Position]()
        self._drifted.clear()
        self._releasable.clear()
        for name, bridged in self._bridged.items():
            after = bridged.inner
            if after is None:
                continue
            if name in self._failing:
                self._releasable[name] = after
                continue
            with self._blame.of(name):
                has_more = _has_more(bridged, after, inner)
                if has_more is None:
                    lost.append(name)
                    continue
                self._releasable[name] = after
                if not has_more:
                    quiet[name] = after
                    continue
                if self._has_drifted(bridged.table):
                    self._drifted.add(name)
                else:
                    due[name] = after
        if inner.shares_log and self._lets_follow(is_due=bool(due)):
            due |= {n: at for n, at in quiet.items() if inner.head(self._bridged[n].table) != at}
        return lost, due

    def _lets_follow(self, *, is_due: bool) -> bool:
        """Return whether tables without changes go to the end of the shared log, which they hold.

        What is stored of each is written for it, so not with every change of another one.
        """
        self._is_behind |= is_due
        now = time.monotonic()
        if not self._is_behind or now < self._followed_at + FOLLOWS_SECONDS:
            return False
        self._is_behind, self._followed_at = False, now
        return True

    def _cut_off(self, bridged: FollowedTable, writer: LogWriter) -> FollowedTable:
        """Stop proving a table's positions: it is copied again once capture is repaired."""
        name = bridged.table.name
        _log.warning("table %r: changes after the buffered ones are lost; it is copied again", name)
        writer.restart(name, self._log.head(name).order + 1)
        return replace(bridged, inner=None)

    def _drain_table(
        self, bridged: FollowedTable, after: Position, inner: SourceSnapshot, writer: LogWriter
    ) -> FollowedTable:
        table = bridged.table
        rescan = bridged.rescan or rescan_due(inner, table, after) is not Rescan.NONE
        head = inner.head(table)
        oldest = inner.oldest_pending(table, after)
        oldest_us = 0 if oldest is None else int(oldest.timestamp() * 1_000_000)
        for batch in self._pending(bridged, after, inner):
            writer.put(
                table.name,
                seal(batch),
                batch.count,
                oldest_us=oldest_us,
                source_order=head.order,
            )
        return replace(bridged, inner=head, read_to=head.order, rescan=rescan)

    def _pending(
        self, bridged: FollowedTable, after: Position, inner: SourceSnapshot
    ) -> Iterator[ChangeBatch]:
        """Yield what is pending; then the rows as they are now, where that may not tell of them.

        The first changes that are read in another shape may have been logged in the former one,
        without values for the columns that the table did not have. These rows count for no event.
        """
        table, limit, is_any = bridged.table, self._draining.batch_rows, False
        for batch in inner.changes(table, after, limit):
            is_any = True
            yield batch
        if is_any and self._may_be_of_former_shape(bridged):
            for batch in inner.net_changes(table, after, limit):
                if batch.truncated_at is None:
                    yield replace(batch, count=0, net=False)

    def _may_be_of_former_shape(self, bridged: FollowedTable) -> bool:
        table = bridged.table
        is_first = 0 < bridged.begins == self._log.head(table.name).order
        if not is_first or reads_wider(self._inner):
            return False
        try:
            return self._inner.describe(table.name) == table.schema
        except SchemaError:
            return False  # gone, or of another shape again, in which it will be copied

    def _has_drifted(self, table: Table) -> bool:
        """Return whether rows no longer fit the table's schema; logged row images always do."""
        if table.mode is Mode.TEMPORAL:
            return False
        try:
            return self._inner.describe(table.name) != table.schema
        except SchemaError:
            return not self._inner.logs_rows

    def _release(self) -> None:
        """Let the source delete what the buffer holds; first record that the mirror may lack it."""
        self._confirm()
        self._inner.acknowledge(self._releasable, prune=self._draining.prune)
        self._on_step(Step.BRIDGE_ACKNOWLEDGED)

    def _confirm(self) -> None:
        self._confirmation.record(self._unapplied())

    def _unapplied(self) -> int:
        """Count the buffered events that the mirror is not known to have."""
        return sum(
            self._log.head(name).order - position.order
            for name, position in self._known_confirmed().items()
        )

    def _known_confirmed(self) -> dict[str, Position]:
        found = ((name, self._confirmed.get(name)) for name in self._bridged)
        return {name: position for name, position in found if position is not None}

    def _confirmed_order(self, name: str) -> int:
        position = self._confirmed.get(name)
        return 0 if position is None else position.order

    def _prune(self, positions: Mapping[str, Position]) -> int:
        """Delete what the mirror has; nothing is behind a position that was pruned to before."""
        news = changed_positions(positions, self._pruned)
        self._pruned |= news
        return sum(self._log.prune(position.order, stream=name) for name, position in news.items())

    def _on_part(self) -> None:
        self._on_step(Step.BUFFERING)


def _drifted(names: Iterable[str]) -> dict[str, RheiError]:
    """Return an error for each table that could not be drained because its schema changed."""
    return {
        name: SourceBusyError("its schema changed while it was read", table=name, hint="sync again")
        for name in names
    }


def _has_more(bridged: FollowedTable, after: Position, inner: SourceSnapshot) -> bool | None:
    """Return whether the source has more than was drained of a table; None where that is lost."""
    if not bridged.leads_on(inner):
        return None
    if not (inner.pending(bridged.table, after) or is_retained_for(inner, after)):
        return False
    # What is pending may tell that it cannot be read.
    return True if bridged.leads_on(inner) else None


def _form(bridged: FollowedTable) -> bytes:
    inner = bridged.inner
    return json.dumps(
        {
            "schema": bridged.table.schema.to_json(),
            "mode": bridged.table.mode.value,
            "inner": None if inner is None else [inner.order, inner.proof],
            "read_to": bridged.read_to,
            "audit": bridged.rescan,
            "begins": bridged.begins,
        }
    ).encode()


def _bridged(value: bytes) -> FollowedTable:
    form = json.loads(value)
    table = Table(TableSchema.from_json(form["schema"]), Mode(form["mode"]))
    inner = None if form["inner"] is None else Position(*form["inner"])
    # Buffers of before say nothing of the last two.
    own = form.get("audit", False), form.get("begins", 0)
    return FollowedTable(table, inner, form["read_to"], *own)
