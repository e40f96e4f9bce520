"""Sessions that only read: what a query may take of them, and that nothing of it stays in them.

A query that takes long never holds the last session: where all others are taken by long ones, the
last one is lent for a second at a time. A read has no effect, so one that turns out to be longer
is ended and begun again once there is room for it.
"""

import fcntl
import random
import socket
import struct
import termios
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from rhei_pipeline.errors import QueryLimitError, SourceBusyError
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.places import Places
from rhei_pipeline.model.query_limits import NO_LIMITS, AnswerLimits
from rhei_pipeline.sources.postgres.connection import PooledConnection, StandingPool, set_config
from rhei_pipeline.sources.postgres.types import LEXED, SESSION_SETTINGS
from rhei_pipeline.sources.postgres.versions import never_idle

_Given = TypeVar("_Given")

#: How long a query may hold a session that is kept for short ones.
SHORT_SECONDS = 1.0
#: How often a wait for the server looks whether it was interrupted, as the driver does.
_WAKING_SECONDS = 0.1
_REMEMBERED = 1024
#: Where Linux tells how many bytes a TCP connection has received: `tcpi_bytes_received`.
_TCP_RECEIVED = slice(128, 136)
#: Behind all that the session's own path finds, so that no temporary table stands for another one.
_PATH_AS_IT_IS = (
    b"select pg_catalog.set_config('search_path', pg_catalog.concat_ws(', ',"
    b" nullif(pg_catalog.current_setting('search_path'), ''), 'pg_temp'), true)"
)


class ReadSession(PooledConnection):
    """A session for queries, which takes no more of an answer than it may.

    Attributes:
        reading: What holds in the transaction of a query.
        limits: How much of an answer it takes at once.
    """

    reading: Mapping[str, str] = SESSION_SETTINGS
    limits: AnswerLimits = NO_LIMITS
    _cleanings = 0

    def prepare_to_read(self, seconds: float) -> None:
        """Learn on which path the user's own sessions find names, and hold to it."""
        limits = {
            "statement_timeout": _milliseconds(seconds),
            "idle_in_transaction_session_timeout": _milliseconds(seconds),
        }
        waits = {**limits, **never_idle(self)}
        self.settings = {**SESSION_SETTINGS, **LEXED, **waits, "transaction_read_only": "on"}
        reading = self.settings
        found = psycopg.Connection.execute(self, "show search_path").fetchone()
        if found is not None:
            path = ", ".join(part for part in (found[0], "pg_temp") if part)
            self.settings = {**reading, "search_path": path}
        asked = self.settings
        self.look_around()
        # Behind a pooler the next transaction may have another session, with a path of its own.
        self.reading = reading if self.is_pooled else asked

    def begin_reading(self, seconds: float | None) -> None:
        """Begin the transaction of a query; within a pipeline."""
        self.execute("begin read only")
        wanted = dict(self.lacking(self.reading))
        if seconds is not None:
            wanted["statement_timeout"] = _milliseconds(seconds)
        if wanted:
            self.execute(set_config(wanted))
        if self.is_pooled:
            self.execute(_PATH_AS_IT_IS)

    def run(self, text: str, params: Any) -> psycopg.Cursor[tuple[Any, ...]]:  # noqa: ANN401
        """Send a statement as it is, in a pipeline, whose protocol takes one statement only."""
        return psycopg.RawCursor(self).execute(text.encode(), params or None)

    def clean(self, *, thoroughly: bool) -> None:
        """End what is under way; thoroughly: forget all that a function can leave in a session."""
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            self.rollback()
        if thoroughly and not self.is_pooled:
            # Not prepared: it would be gone by itself. And in new words each time: the driver looks
            # at how a statement ended only where it has not met it, to forget what it prepared.
            self._cleanings += 1
            discard = f"discard all -- {self._cleanings}"
            psycopg.Connection.execute(self, discard.encode(), prepare=False)
            self.hold_again()
            # Also where chance goes on from: whoever chose that would know what comes.
            chance = f"select pg_catalog.setseed({random.SystemRandom().uniform(-1, 1)})"
            psycopg.Connection.execute(self, chance.encode(), prepare=False)

    def wait(
        self,
        gen: Generator[Any, Any, _Given],
        interval: float = _WAKING_SECONDS,
        timeout: float | None = None,
    ) -> _Given:
        """Wait for the server, and take no more from it than is allowed."""
        if self.limits.held_bytes is not None:
            gen = self._metered(gen)
        return super().wait(gen, interval, timeout)

    def _metered(self, gen: Generator[Any, Any, _Given]) -> Generator[Any, Any, _Given]:
        come = _meter(self.pgconn.socket)
        ready: Any = None
        while True:
            self._refuse_bytes(come())
            try:
                wanted = gen.send(ready)
            except StopIteration as end:
                value: _Given = end.value
                return value
            self._refuse_bytes(come())
            ready = yield wanted

    def _refuse_bytes(self, come: int) -> None:
        """Hang up on an answer that is too large: a server sends a row whole."""
        try:
            self.limits.refuse_bytes(come)
        except QueryLimitError:
            self.pgconn.finish()
            raise


def _meter(fd: int) -> Callable[[], int]:
    """Return what tells how many bytes have come from now on: asked before and after each read.

    Of a connection on this machine alone, what came while it was read is not counted.
    """
    with socket.socket(fileno=socket.dup(fd)) as found:
        family = found.family
    if family == socket.AF_UNIX or not hasattr(socket, "TCP_INFO"):
        return _LocalMeter(fd)
    begun = _received(fd)
    return lambda: _received(fd) - begun


class _LocalMeter:
    """Counts what was waiting and was then taken, for a system that does not count."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._taken = self._left = 0

    def __call__(self) -> int:
        waiting = _waiting(self._fd)
        self._taken += max(self._left - waiting, 0)
        self._left = waiting
        return self._taken + waiting


def _waiting(fd: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
    return int(count)


def _received(fd: int) -> int:
    with socket.socket(fileno=socket.dup(fd)) as found:
        info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_RECEIVED.stop)
    return int.from_bytes(info[_TCP_RECEIVED], "little")


class Lent:
    """A session that is lent for one query.

    Attributes:
        seconds: How long the query may take; None: as long as the session's settings say.
        is_tainted: Whether a function of a user's may have left something in the session.
        is_expired: Whether it was taken back, its time being over.
    """

    def __init__(
        self, session: ReadSession, seconds: float | None, give_back: Callable[[], None]
    ) -> None:
        self.session = session
        self.seconds = seconds
        self.is_tainted = False
        self.is_expired = False
        self._give_back = give_back
        self._lock = threading.Lock()
        self._is_over = False

    @property
    def is_short(self) -> bool:
        """Whether it has to be given back within a second."""
        return self.seconds is not None

    def end(self, *, expired: bool = False) -> None:
        """Give it back; safe to repeat, and from any thread."""
        with self._lock:
            if self._is_over:
                return
            self._is_over, self.is_expired = True, expired
        try:
            with self.session.lock if expired else nullcontext():
                # Who is just reading from it comes first.
                self._clean()
        finally:
            self._give_back()

    def _clean(self) -> None:
        try:
            if self.is_expired:
                self.session.pgconn.finish()
            elif not self.session.closed:
                self.session.clean(thoroughly=self.is_tainted)
        except psycopg.Error:
            self.session.pgconn.finish()  # its pool makes another one


class ReadSessions:
    """Sessions for queries, apart from those that write.

    Args:
        dsn: Where they are.
        size: How many there are at most, at least two.
        seconds: How long a query may take; 0: as long as it likes.
        limits: How large an answer may be; of a streamed one, each batch.
        wait_seconds: How long a query waits for a session.
        started_with: What a connection starts with.
    """

    def __init__(
        self,
        dsn: str,
        *,
        size: int,
        seconds: float,
        limits: AnswerLimits,
        wait_seconds: float,
        started_with: Mapping[str, Any],
    ) -> None:
        size = max(size, 2)
        self.seconds = seconds
        self.limits = limits
        self._wait_seconds = wait_seconds
        self._long = Places(size - max(size // 4, 1))
        #: Statements that took longer than a second, newest last.
        self._slow: OrderedDict[str, None] = OrderedDict()
        self._pool: StandingPool[ReadSession] = StandingPool(
            dsn,
            connection_class=ReadSession,
            min_size=0,
            max_size=size,
            timeout=wait_seconds,
            kwargs=dict(started_with),
            configure=lambda session: session.prepare_to_read(seconds),
        )

    @contextmanager
    def lend(
        self, text: str, *, is_long: bool = False, cancel: Cancel | None = None
    ) -> Iterator[Lent]:
        """Lend a session for a statement.

        Where only a session for short queries is free, it is lent for a second: the query is then
        ended by the server, to be asked again with `is_long`. `cancel` ends the wait, too.

        Raises:
            SourceBusyError: None came free in time.
            QueryError: It was cancelled.
        """
        with ExitStack() as held:
            seconds = self._take_place(text, held, cancel or Cancel(), is_long=is_long)
            session = self._pool.getconn()
            session.limits = self.limits
            places = held.pop_all()
        lent = Lent(session, seconds, lambda: self._return(session, places))
        try:
            yield lent
        finally:
            lent.end()

    def _take_place(
        self, text: str, held: ExitStack, cancel: Cancel, *, is_long: bool
    ) -> float | None:
        if is_long:
            self._slow[text] = None
            while len(self._slow) > _REMEMBERED:
                self._slow.popitem(last=False)
        if not self._long.take(0):
            if text not in self._slow:
                return min(SHORT_SECONDS, self.seconds or SHORT_SECONDS)
            if not self._long.take(self._wait_seconds, cancel):
                cancel.refuse_cancelled()
                raise SourceBusyError(
                    f"{self._long.number} long queries are under way at the source, and none"
                    f" ended within {self._wait_seconds:g} s",
                    hint="ask again later, or raise 'source.pool_size'",
                )
        held.callback(self._long.give_back)
        return None

    def _return(self, session: ReadSession, places: ExitStack) -> None:
        session.rested_from = time.monotonic()
        with places:
            self._pool.putconn(session)

    def expiring(self, lent: Lent) -> threading.Timer | None:
        """Return a session to the pool when its query's time is over, even while it is read."""
        if not self.seconds:
            return None
        timer = threading.Timer(self.seconds, lent.end, kwargs={"expired": True})
        timer.daemon = True
        timer.start()
        return timer

    def close(self) -> None:
        """Close every session; safe to repeat."""
        self._pool.close()


def _milliseconds(seconds: float) -> str:
    return str(max(int(seconds * 1000), 1) if seconds else 0)
