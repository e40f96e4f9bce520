"""A connection that leaves no state in its session, which a pooler may give to other clients.

Settings are made for one transaction only, and nothing is prepared where the server's sessions
are shared. So a pooler may give every transaction another session. Only if the server itself
answers, the session is our own: then most settings are made once for the session.
Source: pgbouncer.org/features.html (what breaks with transactions pooled).
"""

import select
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Self, TypeVar

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg_pool import ConnectionPool

from rhei_pipeline.model.forking import leave_to_parent
from rhei_pipeline.sources.postgres.types import SESSION_SETTINGS
from rhei_pipeline.sql.text import literal, quote

#: How long a connection that rested is taken to stand: a look would cost as much as a point read.
_TRUSTED_SECONDS = 1.0
#: Whose operators compare keys: only a superuser makes operator classes. The catalogue's first, and
#: temporary objects last, so that no table or function of somebody else stands for one of these.
_NAMESPACES = """
select pg_catalog.pg_backend_pid(),
    pg_catalog.current_setting('default_transaction_read_only')::boolean, array(
    select distinct n.nspname::text from pg_catalog.pg_opclass c
    join pg_catalog.pg_amop a on a.amopfamily = c.opcfamily
    join pg_catalog.pg_operator o on o.oid = a.amopopr
    join pg_catalog.pg_namespace n on n.oid = o.oprnamespace
    where n.nspname not in ('pg_catalog', 'information_schema') order by 1)
"""


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection in autocommit whose settings last for a transaction, or for our session.

    A statement outside a transaction is sent as one transaction with the settings it needs.

    Attributes:
        settings: The settings of every transaction, unless it overrides them.
        is_pooled: Whether a pooler stands between us and the server.
        keeps_path: Whether our session keeps our search path; an application's statements use the
            path of its own sessions.
        namespaces: The schemas of others on our path, as they have operators of keys' types.
    """

    settings: Mapping[str, str] = SESSION_SETTINGS
    is_pooled = False
    keeps_path = True
    namespaces: Sequence[str] = ()
    _reads_by_default = False
    _held: Mapping[str, str] = MappingProxyType({})

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*arguments, **options)
        leave_to_parent(self)

    def execute(  # type: ignore[override]
        self,
        query: bytes | str,
        params: Any = None,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> psycopg.Cursor[tuple[Any, ...]]:
        """Run a statement; outside a transaction, in its own."""
        outside = self.pgconn.transaction_status == TransactionStatus.IDLE
        if not outside or self.pgconn.pipeline_status != PipelineStatus.OFF:
            return super().execute(query, params, **options)
        chosen = self.lacking(self.settings)
        if self._held and not chosen:
            return super().execute(query, params, **options)
        text = query.encode() if isinstance(query, str) else query
        cursor = psycopg.ClientCursor(self)
        if self._reads_by_default:
            # What the server's administrator chose for others; ours say themselves what they do.
            chosen = {"transaction_read_only": "off", **chosen}
        cursor.execute(_set_local(chosen) + text, params)
        while cursor.nextset():
            pass
        return cursor

    def execute_alone(self, query: str, params: Any) -> psycopg.Cursor[tuple[Any, ...]]:  # noqa: ANN401
        """Run a statement outside any transaction of ours, with no settings."""
        return super().execute(query.encode(), params)

    def begin(self, words: str = "", settings: Mapping[str, str] | None = None) -> None:
        """Begin a transaction, and make its settings before it reads anything."""
        chosen = self.settings if settings is None else settings
        reads = "read only" in words or chosen.get("transaction_read_only") == "on"
        if self._reads_by_default and not reads:
            words = f"{words} read write"
        super().execute(f"begin {words}; ".encode() + _set_local(self.lacking(chosen)))

    def end_reading(self) -> None:
        """End a transaction that has only read; safe to repeat, and where none is open.

        By a commit: at a rollback the driver forgets what it has prepared, and the server would
        plan every statement of the next snapshot again.
        """
        if not self.closed:
            self.commit()

    def lacking(self, settings: Mapping[str, str]) -> Mapping[str, str]:
        """Return those settings that the session does not have."""
        return {name: value for name, value in settings.items() if self._held.get(name) != value}

    def also_set(self, settings: Mapping[str, str]) -> None:
        """Add settings to every transaction."""
        self.settings = {**self.settings, **settings}
        if not self.is_pooled:
            self._hold(settings)

    def hold_again(self) -> None:
        """Make the session's settings again: a statement may have changed them."""
        if self._held:
            self._hold(self._held)

    def _hold(self, settings: Mapping[str, str]) -> None:
        """Make settings for our whole session, and allow its transactions to write."""
        chosen = {**settings, "default_transaction_read_only": "off"}
        if chosen.pop("transaction_read_only", "off") == "on":
            chosen["default_transaction_read_only"] = "on"
        assignments = (f"set {name} = {_value(name, value)}; " for name, value in chosen.items())
        super().execute("".join(assignments).encode())
        self._held = {**self._held, **settings}
        self._reads_by_default = False

    @contextmanager
    def atomic(self, words: str = "", settings: Mapping[str, str] | None = None) -> Iterator[Self]:
        """Run a transaction."""
        self.begin(words, settings)
        try:
            yield self
        except BaseException:
            if not self.closed:
                self.rollback()
            raise
        self.commit()

    @contextmanager
    def settled(self) -> Iterator[Self]:
        """Run a block with our settings: the session's own, or else those of a transaction."""
        if self._held and not self.lacking(self.settings):
            yield self
        else:
            with self.atomic():
                yield self

    def look_around(self) -> None:
        """Detect whether the server itself answers, and where operators of keys are found.

        A pooler reports a process number that no process of the server has.
        """
        with self.atomic():  # a pooler that has no transactions refuses here
            found = self.execute(_NAMESPACES.encode()).fetchone()
        pid, self._reads_by_default, namespaces = found or (0, False, [])
        self.is_pooled = pid != self.info.backend_pid
        if self.is_pooled:
            self.prepare_threshold = None
        self.namespaces = tuple(namespaces)
        path = {"search_path": ", ".join(map(quote, ["pg_catalog", *namespaces, "pg_temp"]))}
        if not self.is_pooled:
            self._hold({**self.settings, **path} if self.keeps_path else self.settings)
        self.settings = {**self.settings, **path}


class PooledConnection(Connection):
    """A connection that is asked whether it still stands only where that may be in doubt."""

    keeps_path = False
    rested_from = 0.0

    def check(self) -> None:
        """Ask, where there is a doubt; see `ConnectionPool`."""
        # A server that went away has closed the socket, which is then ready to be read.
        rested = time.monotonic() - self.rested_from
        if rested > _TRUSTED_SECONDS or readable(self.fileno(), 0):
            ConnectionPool.check_connection(self)


_Kept = TypeVar("_Kept", bound=PooledConnection)


class StandingPool(ConnectionPool[_Kept]):
    """A pool that returns open connections.

    A server that ended one has probably ended others, so all idle ones are replaced then: the pool
    itself checks one after the other, and waits twice as long before each. It stops trying to make
    one after as long as a caller waits, and the next caller starts it again: otherwise it would
    wait up to two minutes between two tries, although the server is back.
    """

    def __init__(self, dsn: str, *, timeout: float, **how: Any) -> None:  # noqa: ANN401
        how |= {"check": self._look_at, "timeout": timeout, "reconnect_timeout": timeout}
        super().__init__(dsn, open=True, **how)

    def _look_at(self, connection: _Kept) -> None:
        try:
            connection.check()
        except psycopg.Error:
            self.drain()
            raise


def readable(fd: int, seconds: float | None = None) -> bool:
    """Wait until something is to be read from a connection, so long at most; return whether.

    Not by `select`, which knows no files beyond the first 1,024 of a process.
    """
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(None if seconds is None else 1000 * seconds))


def set_config(settings: Mapping[str, str]) -> bytes:
    """Return one statement that makes all settings for its transaction."""
    calls = (f"set_config({literal(n)}, {literal(v)}, true)" for n, v in settings.items())
    return f"select {', '.join(calls)}".encode()


def _set_local(settings: Mapping[str, str]) -> bytes:
    return "".join(f"set local {n} = {_value(n, v)}; " for n, v in settings.items()).encode()


def _value(name: str, value: str) -> str:
    return value if name == "search_path" else literal(value)
