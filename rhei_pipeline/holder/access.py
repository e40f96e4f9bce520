"""How an object reaches its mirror: it holds it, or asks the process that does."""

import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast
from weakref import WeakSet

import pyarrow as pa
from pyarrow.flight import FlightError

from rhei_pipeline.errors import (
    BufferBusyError,
    BufferFullError,
    ForkedProcessError,
    MirrorBusyError,
    MirrorConflictError,
    MirrorError,
    MirrorOwnerError,
    MirrorUnreachableError,
    MissingExtraError,
    RheiError,
    SettingsError,
    SourceUnreachableError,
    mirror_closed,
)
from rhei_pipeline.holder.client import Holder, HolderGoneError
from rhei_pipeline.holder.gate import Gate, StoodAsideError
from rhei_pipeline.holder.held import Held, declared_source
from rhei_pipeline.holder.mirror_alone import MirrorAlone, MirrorLender, what_is_shut
from rhei_pipeline.holder.place import new_socket
from rhei_pipeline.holder.server import HolderServer
from rhei_pipeline.holder.source_alone import SourceAlone
from rhei_pipeline.holder.turn import Turn, TurnShutError, turn_file
from rhei_pipeline.mirrors.locking import LockNote, Waiting, announce, is_locked
from rhei_pipeline.model.change_feed import ChangeStream
from rhei_pipeline.model.reports import SyncReport
from rhei_pipeline.model.streaming import Streamed
from rhei_pipeline.protocols import Database, OnStep
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sync.background import KEPT_REPORTS, BackgroundSync
from rhei_pipeline.wiring.adoption import refuse_owner
from rhei_pipeline.wiring.engine import open_oltp, query_clock, query_limits
from rhei_pipeline.wiring.mirror import is_made, lock_file
from rhei_pipeline.wiring.source import open_database

_log = logging.getLogger(__name__)
_Found = TypeVar("_Found")
_Stream = TypeVar("_Stream", Streamed, ChangeStream)

#: How long one that asks for the mirror waits at a time for what is under way here.
_DRAIN_SECONDS = 5.0
#: For how long one that needs the mirror alone does not try again to reach the source.
_AWAY_SECONDS = 10.0
#: What the mirror does not answer after: its own fault, the declaration's or the process's.
_NOT_FOR_THE_MIRROR = (
    MirrorBusyError,
    MirrorUnreachableError,
    MirrorConflictError,
    SettingsError,
    MissingExtraError,
    ForkedProcessError,
)
#: What may be over at any moment, whoever waits for it: it keeps no process from starting.
_MAY_PASS = (SourceUnreachableError, BufferBusyError, BufferFullError)
_MEANWHILE = "until then, the hint 'olap' asks the mirror as it was synced last"
OnSync = Callable[[SyncReport], None]
OnQuery = Callable[[str, float], None]


class Access:
    """The mirror of a declaration, whichever process holds it.

    One process holds a mirror: it has it open, and answers for it at a socket. Another one asks
    that process, or has it step aside for as long as only an open mirror will do. Once nobody
    holds the mirror, whoever needs it next does.

    Args:
        settings: The declaration.
        on_step: Called at each named step.
        keep: Hold the mirror from now on, if it is free; otherwise for each call alone.
    """

    def __init__(self, settings: Settings, on_step: OnStep, *, keep: bool) -> None:
        self._settings, self._on_step, self._keep = settings, on_step, keep
        self._name = str(settings.mirror.path)
        self._lock = lock_file(settings.mirror)
        self._gate, self._moving = Gate(), threading.RLock()
        self._held: Held | None = None
        self._server: HolderServer | None = None
        self._ending: threading.Thread | None = None
        self._holder: Holder | None = None
        self._own = ExitStack()
        self._oltp: Database | None = None
        self._source: Database | None = None
        #: What opening has failed with: of the mirror, and of what the mirror can answer without.
        self._faults: WeakSet[MirrorError] = WeakSet()
        self._source_faults: WeakSet[RheiError] = WeakSet()
        self._away: SourceUnreachableError | None = None
        self._away_until = 0.0
        self._named = ""
        self._has_own = self._is_closed = False
        self._limits, self._clock = query_limits(settings), query_clock(settings)
        self._lender = MirrorLender(settings, self._clock)
        self._watchers: list[tuple[OnSync, OnQuery]] = []
        self._reports: deque[tuple[int, SyncReport]] = deque(maxlen=KEPT_REPORTS)
        self._number = 0
        self._followed: tuple[LockNote, int] | None = None
        self.background: BackgroundSync | None = None
        if keep:
            self._begin()

    def _begin(self) -> None:
        """Hold the mirror, or find who does; one that cannot be opened is tried at each call."""
        waiting = self._waiting()
        try:
            while not self._take(waiting) and self._found(waiting) is None:
                waiting.pause()
        except MirrorOwnerError:
            raise  # that of another is none to wait for
        except _MAY_PASS:
            if not is_made(self._settings.mirror):
                raise
            # It may be over at the first call; until then the mirror answers what it can.
        except MirrorError as error:
            if error not in self._faults:
                raise
            # The first call names it: it fails with it, or the source answers instead.

    # Calls of this process.

    def answer(self, ask: Callable[[Held], _Found]) -> _Found:
        """Return the answer of what this process holds, or of the process that holds the mirror.

        Raises:
            MirrorBusyError: Another process holds the mirror, and cannot be asked.
        """
        try:
            return self.answer_here(ask)
        except StoodAsideError:
            return self._elsewhere(ask, self.answer_here)
        finally:
            self._let_go()

    def answer_without(
        self, ask: Callable[[Held], _Found], alone: Callable[[SourceAlone], _Found]
    ) -> _Found:
        """Return the answer; where the mirror cannot be opened, what the source answers alone.

        Raises:
            MirrorError: The mirror cannot be opened, and only it can answer.
        """
        return self._answer_or_alone(lambda: self.answer(ask), alone)

    def stream_without(
        self, ask: Callable[[Held], Streamed], alone: Callable[[SourceAlone], Streamed]
    ) -> Streamed:
        """Return the same in batches.

        Raises:
            MirrorError: The mirror cannot be opened, and only it can answer.
        """
        return self._answer_or_alone(lambda: self.stream(ask), alone)

    def _answer_or_alone(
        self, answered: Callable[[], _Found], alone: Callable[[SourceAlone], _Found]
    ) -> _Found:
        try:
            return answered()
        except MirrorError as error:
            return self._asked_alone(error, alone)
        except RheiError as error:
            if error not in self._source_faults or not is_made(self._settings.mirror):
                raise
            raise _naming_mirror(error) from error

    def answer_of_mirror(
        self, ask: Callable[[Held | MirrorAlone], _Found], *, is_named: bool = False
    ) -> _Found:
        """Return the answer; where source, buffer or registry fail, what the mirror answers alone.

        Why it cannot is logged, unless the answer itself says so: `is_named`.
        A source that could not be opened just now is not tried for it again.
        """
        fault = self._known_fault()
        if fault is None:
            try:
                return self.answer(ask)
            except MirrorBusyError:  # it may be this process that asks it alone, and for long
                fault = self._lender.fault
                if fault is None:
                    raise
            except RheiError as error:
                if error not in self._source_faults:
                    raise
                fault = error
        found, of = self._asked_mirror(fault, ask)
        if of is not None and not is_named:
            what = f"{what_is_shut(fault)}; the mirror answers, its last change is of {of}"
            self._name_fault(fault, what)
        return found

    def _known_fault(self) -> RheiError | None:
        if self._held is not None:
            return None
        if self._lender.is_new:
            return self._lender.fault
        return self._away if time.monotonic() < self._away_until else None

    def _asked_mirror(
        self, fault: RheiError, ask: Callable[[Held | MirrorAlone], _Found]
    ) -> tuple[_Found, str | None]:
        """Return the answer of the mirror alone, and of when it is; None where another answered."""
        waiting = self._waiting()
        with ExitStack() as lent:
            while True:
                with suppress(MirrorBusyError), self._moving:
                    self.refuse_closed()
                    mirror = lent.enter_context(self._lender.lent(fault))
                    break
                if self._held is not None:
                    return self.answer_of_mirror(ask), None
                holder = self._found(waiting)
                if holder is not None:
                    with suppress(HolderGoneError):
                        return ask(cast("Held", holder)), None
                    self._forget(holder)
                waiting.pause()
            lent.enter_context(self._as_closed())
            return ask(mirror), f"{mirror.synced_at:%Y-%m-%d %H:%M:%S} UTC"

    def _asked_alone(self, error: MirrorError, alone: Callable[[SourceAlone], _Found]) -> _Found:
        if error not in self._faults:
            raise error
        oltp = self._own_database()
        if self._source is None:
            raise error
        with self._as_closed():
            found = alone(SourceAlone(self._settings, self._source, oltp, error, self._clock))
        self._name_fault(error, "the mirror cannot be opened, and the source answers")
        return found

    def _name_fault(self, fault: RheiError, what: str) -> None:
        """Log why one side answers alone, once as long as it is for the same."""
        if self._named != str(fault):
            self._named = str(fault)
            _log.warning("%s: %s", what, fault)

    def stream(self, ask: Callable[[Held], _Stream]) -> _Stream:
        """Return an answer in batches; the mirror is held until the last one is taken."""
        try:
            return self.stream_here(ask)
        except StoodAsideError:
            return self._elsewhere(ask, self.stream_here)

    def hold(self, work: Callable[[Held], _Found]) -> _Found:
        """Do what only the process can do that holds the mirror: the holder steps aside for it."""
        try:
            return self.answer_here(work)
        except StoodAsideError:
            self.refuse_closed()
        waiting = self._waiting()
        if self._lock is None:
            self._take(waiting)
            return self.answer_here(work)
        with Turn(self._lock, self._name, waiting):
            self._have_holder_leave(waiting)
            try:
                return self.answer_here(work)
            finally:
                self._give_back()

    @contextmanager
    def stepping_in(self) -> Iterator[None]:
        """Keep the mirror closed for the length of the block: who holds it steps aside."""
        if self._lock is None or not self._lock.exists():
            yield
            return
        waiting = self._waiting()
        with Turn(self._lock, self._name, waiting):
            while is_locked(self._lock) and not self._ask_aside(waiting):
                waiting.pause()
            yield

    def write(self, work: Callable[[Database | None], _Found]) -> _Found:
        """Write into the source, or the local database; the mirror takes no part in that."""
        try:
            return self.answer_here(lambda held: work(held.engine.oltp))
        except StoodAsideError:
            return work(self._own_database())

    def keep_up(self) -> list[SyncReport]:
        """Sync for one turn; or return what the holder has reported since, where that syncs itself.

        A holder that does not sync steps aside for good: this process then holds the mirror.
        """
        with suppress(StoodAsideError):
            return [self.answer_here(lambda held: held.sync_round())]
        if self._is_closed:
            return []
        holder = self._found(None)
        if holder is not None:
            try:
                return self._follow(holder)
            except HolderGoneError:
                self._forget(holder)
        return self.keep_up() if self._take(None) else []

    def watch(self, on_sync: OnSync, on_query: OnQuery) -> None:
        """Call `on_sync` with each sync's report, `on_query` with each query's side and seconds."""
        with self._moving:
            self.refuse_closed()
            self._watchers.append((on_sync, on_query))
            if self._held is not None:
                self._held.watch(on_sync, on_query)

    @property
    def held(self) -> Held:
        """What this process holds.

        Raises:
            StoodAsideError: Another process holds the mirror.
            MirrorError: It is closed.
        """
        self.refuse_closed()
        if self._held is None:
            raise StoodAsideError
        return self._held

    @property
    def holds(self) -> bool:
        """Whether this process holds the mirror."""
        return self._held is not None and not self._is_closed

    def close(self) -> None:
        """Close everything; safe to repeat."""
        with self._moving:
            self._is_closed = True
            self._lender.close()
            if self._server is not None:
                self._server.close()
            if self._held is not None:
                self._held.close()
            self._forget(self._holder)
            self._own.close()
        if self._ending is not None:
            self._ending.join(_DRAIN_SECONDS)

    # Calls of other processes: see `server.Desk`.

    def answer_here(self, ask: Callable[[Held], _Found]) -> _Found:
        """Answer from what this process holds.

        Raises:
            StoodAsideError: It does not hold the mirror.
        """
        with self._gate.passing(), self._as_closed():
            return ask(self.held)

    @contextmanager
    def _as_closed(self) -> Iterator[None]:
        """Raise what a call failed with because it was closed under way as what it is."""
        try:
            yield
        except Exception as error:
            if not self._is_closed or isinstance(error, StoodAsideError):
                raise
            raise mirror_closed() from error

    def stream_here(self, ask: Callable[[Held], _Stream]) -> _Stream:
        """Answer in batches from what this process holds; it is held until they are taken.

        Raises:
            StoodAsideError: It does not hold the mirror.
        """
        leave = self._gate.enter()
        try:
            streamed = ask(self.held)
        except BaseException:
            leave()
            self._let_go()
            raise
        batches = _until_closed(streamed.batches, self._as_closed(), leave, self._let_go)
        next(batches)  # begun, it lets go of the mirror even where nobody takes a row
        return replace(streamed, batches=batches)

    def step_aside(self) -> bool:
        """Close the mirror for the process that has the turn.

        Returns:
            False where work of this process goes on for too long.

        Raises:
            StoodAsideError: It does not hold the mirror.
        """
        if not self._moving.acquire(timeout=_DRAIN_SECONDS):
            return False
        with ExitStack() as moving:
            moving.callback(self._moving.release)
            _ = self.held
            if self._is_closed or self._lock is None or not is_locked(turn_file(self._lock)):
                return False
            if not self._gate.shut(_DRAIN_SECONDS):
                return False
            try:
                server = self._leave()
            finally:
                self._gate.let_in()
        self._end(server)
        return True

    def follow(self, after: int | None) -> tuple[bool, int, list[SyncReport]]:
        """Return whether this process syncs in the background, and its reports after a number."""
        _ = self.held
        background, known = self.background, list(self._reports)
        found = [] if after is None else [report for number, report in known if number > after]
        return background is not None and background.running, self._number, found

    # Taking the mirror, and giving it back.

    def _elsewhere(
        self, ask: Callable[[Held], _Found], here: Callable[[Callable[[Held], _Found]], _Found]
    ) -> _Found:
        """Return the answer of the process that holds the mirror; if none does, hold it."""
        waiting = self._waiting()
        while True:
            self.refuse_closed()
            holder = self._found(waiting)
            if holder is not None:
                try:
                    return ask(cast("Held", holder))
                except HolderGoneError:
                    self._forget(holder)
            if self._take(waiting):
                with suppress(StoodAsideError):
                    return here(ask)
            waiting.pause()

    def _found(self, waiting: Waiting | None) -> Holder | None:
        """Return the process that holds the mirror; None where it cannot be asked."""
        note = LockNote.read(self._lock) if self._lock is not None else None
        if note is None or note.socket is None or note.is_of_this_process:
            return None
        with self._moving:
            known = self._holder
            if known is not None and known.note == note:
                return known
            self._forget(known)
            try:
                holder = Holder(note, self._limits, self._tell)
                recorded = holder.owner_unless(declared_source(self._settings))
            except HolderGoneError:
                return None
            except MirrorBusyError as error:
                if waiting is not None:
                    waiting.reason = error
                return None
            if recorded is not None:
                refuse_owner(self._settings, recorded)
            self._holder = holder
            return holder

    def _forget(self, holder: Holder | None) -> None:
        with self._moving:
            if holder is not None:
                holder.close()
                if self._holder is holder:
                    self._holder = None

    def _tell(self, engine: str, seconds: float) -> None:
        for _, on_query in self._watchers:
            on_query(engine, seconds)

    def _follow(self, holder: Holder) -> list[SyncReport]:
        is_new = self._followed is None or self._followed[0] != holder.note
        after = None if self._followed is None else 0 if is_new else self._followed[1]
        syncs, number, reports = holder.follow(after)
        self._followed = (holder.note, number)
        if syncs:
            for report in reports:
                for on_sync, _ in self._watchers:
                    on_sync(report)
            return reports
        if self._lock is None:
            return []
        with suppress(MirrorBusyError), Turn(self._lock, self._name):
            if holder.step_aside():
                with self._moving:
                    self._opened(None)
        return reports

    def _take(self, waiting: Waiting | None) -> bool:
        """Hold the mirror if nobody else does; return whether this process holds it now."""
        with self._moving:
            if self._held is not None:
                return True
            if self._lock is None:
                self._open()
                return True
            try:
                with suppress(MirrorBusyError), Turn(self._lock, self._name):
                    return not is_locked(self._lock) and self._opened(waiting)
            except TurnShutError:  # another process may be asked; if not, opening says why
                if not is_locked(self._lock):
                    self._open()
                    return True
            return False

    def _opened(self, waiting: Waiting | None) -> bool:
        """Open the engine with the turn; return False where another process has the mirror."""
        try:
            self._open()
        except MirrorBusyError as error:
            if waiting is not None:
                waiting.reason = error
            return False
        return True

    def _have_holder_leave(self, waiting: Waiting) -> None:
        """Hold the mirror, with the turn; ask who holds it to step aside."""
        while True:
            self._ask_aside(waiting)
            with self._moving:
                if self._held is not None or self._opened(waiting):
                    return
            waiting.pause()

    def _ask_aside(self, waiting: Waiting) -> bool:
        """Ask who holds the mirror to step aside; return whether that was done."""
        holder = self._found(waiting)
        try:
            return holder is not None and holder.step_aside()
        except HolderGoneError:
            return False
        except MirrorBusyError as error:  # it takes its time, such as over a published copy
            waiting.reason = error
            return False

    def _open(self) -> None:
        """Open the engine at once, or not at all, and listen."""
        update = {} if self._lock is None else {"lock_timeout_seconds": 0.0}
        mirror = self._settings.mirror.model_copy(update=update)
        settings = self._settings.model_copy(update={"mirror": mirror})
        try:
            held = Held(settings, self._on_step, lambda: self.background)
        except MirrorError as error:
            self._faults.add(error)
            raise
        except _NOT_FOR_THE_MIRROR:
            raise
        except RheiError as error:
            self._source_faults.add(error)
            if isinstance(error, SourceUnreachableError):
                self._away, self._away_until = error, time.monotonic() + _AWAY_SECONDS
            raise
        self._away = None
        held.engine.pipeline.watch(self._note)
        for on_sync, on_query in self._watchers:
            held.watch(on_sync, on_query)
        self._held, self._named = held, ""
        if self._lock is not None:
            self._listen(self._lock)

    def _listen(self, lock: Path) -> None:
        try:
            socket = new_socket(lock)
            self._server = HolderServer(socket, self, self._limits.seconds)
            announce(lock, str(socket))
        except (OSError, pa.ArrowException, FlightError) as error:
            _log.warning(
                "other processes cannot ask this one for the mirror %r: %s", self._name, error
            )

    def _note(self, report: SyncReport) -> None:
        if report.did_something:
            self._number += 1
            self._reports.append((self._number, report))

    def _give_back(self) -> None:
        """Close the mirror, once no call of this process needs it any more."""
        while not self._gone(_DRAIN_SECONDS):
            _log.info("the mirror is given back once a query has ended")

    def _let_go(self) -> None:
        """Close the mirror, where it is not kept, and no other call needs it."""
        syncs = self.background is not None and self.background.running
        if self._held is not None and not self._keep and not syncs:
            self._gone(0)

    def _gone(self, seconds: float) -> bool:
        """Close the mirror; return False where that is not done in so many seconds."""
        with self._moving:
            if self._is_closed or self._held is None:
                return True
            if not self._gate.shut(seconds):
                return False
            try:
                server = self._leave()
            finally:
                self._gate.let_in()
        self._end(server)
        return True

    def _end(self, server: HolderServer | None) -> None:
        """Close a server; not in this thread, which may be in one of the calls it waits for."""
        if server is not None:
            ending = threading.Thread(target=server.close, name="rhei-aside", daemon=True)
            ending.start()
            self._ending = ending

    def _leave(self) -> HolderServer | None:
        """Close the engine; return the server, for the caller to close."""
        held, self._held = self._held, None
        server, self._server = self._server, None
        if held is not None:
            held.close()
        return server

    def _own_database(self) -> Database | None:
        with self._moving:
            self.refuse_closed()
            if not self._has_own:
                self._source = database = open_database(self._settings)
                self._own.callback(database.close)
                self._oltp = open_oltp(self._settings, database, self._own)
                self._has_own = True
            return self._oltp

    def _waiting(self) -> Waiting:
        def who() -> LockNote | None:
            if self._lock is None:
                return None
            turn = turn_file(self._lock)
            return LockNote.read(turn if is_locked(turn) else self._lock)

        return Waiting(self._name, self._settings.mirror.lock_timeout_seconds, who)

    def refuse_closed(self) -> None:
        """Raise an error once it is closed."""
        if self._is_closed:
            raise mirror_closed()


def _naming_mirror(error: RheiError) -> RheiError:
    """Return why the pipeline cannot be opened, with who can be asked meanwhile."""
    named = copy.copy(error)
    named.hint = f"{error.hint}; {_MEANWHILE}" if error.hint else _MEANWHILE
    return named


def _until_closed(
    batches: Iterator[pa.RecordBatch],
    as_closed: AbstractContextManager[None],
    leave: Callable[[], None],
    let_go: Callable[[], None],
) -> Generator[pa.RecordBatch, None, None]:
    """Yield an empty batch, then those of an answer; let go of the mirror when that is over."""
    with ExitStack() as held:
        held.callback(let_go)
        held.callback(leave)
        held.enter_context(as_closed)
        if isinstance(batches, Generator):
            held.callback(batches.close)
        yield pa.record_batch({})
        yield from batches
