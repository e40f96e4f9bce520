"""A Spark Connect endpoint: Sail, or Spark."""

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import chain
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa

from rhei_pipeline.errors import (
    ComputeUnreachableError,
    QueryError,
    RheiError,
    needs_extra,
    shown_cause,
    without_values,
)
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.streaming import Streamed

#: What is imported of the client: all that looks, as it is imported, what process this is.
_CLIENT = (
    *("pyspark.sql", "pyspark.sql.connect.session", "pyspark.sql.connect.client.retries"),
    "pyspark.logger",
)
#: The client repeats for minutes what a server that is gone does not answer: this ends it soon.
_RETRIES = {"max_retries": 3, "max_backoff": 1000}
#: What the client raises where the statement itself is at fault, and the classes of SQL's codes for
#: that, which Spark gives and Sail does not.
_REFUSALS = {
    *("AnalysisException", "ParseException", "IllegalArgumentException"),
    *("ArithmeticException", "ArrayIndexOutOfBoundsException", "DateTimeException"),
    *("NumberFormatException", "UnsupportedOperationException"),
}
_REFUSED_CLASSES = {"0A", "21", "22", "42"}
#: Where the client writes statements, and values of rows, whenever Spark refuses one.
_LOGGERS = ("SQLQueryContextLogger", "DataFrameQueryContextLogger")

_Found = TypeVar("_Found")


class _Session(Protocol):
    """What is used of a session of the client, which is optional."""

    version: str
    read: Any
    client: Any
    conf: Any

    def sql(self, query: str, args: list[Any] | None) -> Any: ...  # noqa: ANN401

    def interruptAll(self) -> object: ...  # noqa: N802

    def stop(self) -> None: ...


class SparkConnect:
    """What speaks Spark Connect at an address; each query has a session for itself.

    A session that a query leaves is held for the next one, as a server starts workers for each.
    Not more than one is held: of queries at once, each begins its own.

    Args:
        endpoint: Such as `sc://127.0.0.1:50051`.
        token: Proves who asks; it goes over TLS alone.
        tls: Whether the endpoint is reached by TLS.
        connect_seconds: How long a connection may take.
    """

    def __init__(
        self, endpoint: str, token: str | None, *, tls: bool, connect_seconds: float
    ) -> None:
        self.endpoint = endpoint
        parts = [f"token={token}"] if token else []
        parts += ["use_ssl=true"] if tls or token else []
        self._url = f"{endpoint}/;{';'.join(parts)}" if parts else endpoint
        self._connect_seconds = connect_seconds
        self._lock = threading.Lock()
        self._held: _Session | None = None
        self._is_closed = False
        self._process = os.getpid()

    def close(self) -> None:
        """End the session that is held; none is held from then on."""
        self._is_closed = True
        self._end(self._taken())

    def refuse_unreachable(self) -> None:
        """Return at once where something listens at the address.

        Raises:
            ComputeUnreachableError: Nothing does.
        """
        place = urlsplit(self.endpoint)
        try:
            address = (place.hostname or "", place.port or 0)
            socket.create_connection(address, self._connect_seconds).close()
        except OSError as error:
            raise ComputeUnreachableError(
                f"nothing answers at {self.endpoint!r} ({error.strerror or error})",
                hint="start the server there, or correct compute.endpoint",
            ) from error

    def version(self) -> str:
        """Return the version of Spark's protocol that the server speaks.

        Raises:
            ComputeUnreachableError: It does not answer.
        """
        self.refuse_unreachable()
        with self._using(self._begun()) as session:
            return str(session.version)

    def query(
        self,
        sql: str,
        params: Sequence[Any],
        tables: Mapping[str, tuple[str, int]],
        cancel: Cancel,
    ) -> pa.Table:
        """Run one statement over Delta tables, each at one version.

        Args:
            sql: The statement, which was judged before.
            params: Values for its `?`.
            tables: Where each table is, and its version, by the name in the statement.
            cancel: Ends the query from another thread.

        Raises:
            QueryError: The cluster refuses it, or it was cancelled.
            ComputeUnreachableError: The cluster does not answer.
        """

        def answer(session: _Session) -> pa.Table:
            with self._asking(session, cancel):
                frame = _frame(session, sql, params, tables)
                with _reading(frame):
                    return frame.toArrow()

        found = self._asked(answer)
        return found.cast(_nullable(found.schema))

    def stream(
        self,
        sql: str,
        params: Sequence[Any],
        tables: Mapping[str, tuple[str, int]],
        cancel: Cancel,
        rows: int,
    ) -> Streamed:
        """Run one statement as `query` does; return its answer in batches, once there is one.

        An answer that breaks off ends in an error, whatever has come of it.
        """

        def begin(session: _Session) -> Streamed:
            def frame() -> Any:  # noqa: ANN401
                return _frame(session, sql, params, tables)

            batches = self._batches(session, frame, cancel, rows)
            return Streamed(next(batches).schema, batches, cancel)

        return self._asked(begin)

    def _asked(self, ask: Callable[[_Session], _Found]) -> _Found:
        """Ask in the session that is held, or in a new one."""
        self.refuse_unreachable()
        held = self._taken()
        if held is not None and not self._is_alive(held):
            held = None
        return ask(held or self._begun())

    def _is_alive(self, session: _Session) -> bool:
        """Return whether a session that was held is there still; one that is not is given up.

        It may have ended with its server, or because nobody used it.
        """
        with suppress(Exception):
            _set_zone(session)  # a session that has ended refuses that
            return True
        self._end(session)
        return False

    @contextmanager
    def _asking(self, session: _Session, cancel: Cancel) -> Iterator[None]:
        """Use a session for a query that may be cancelled."""
        try:
            with self._using(session), cancel.ending_by(session.interruptAll):
                yield
        except RheiError:
            cancel.refuse_cancelled()  # where it was, what it then fails with says something else
            raise
        cancel.refuse_cancelled()

    def _batches(
        self,
        session: _Session,
        frame: Callable[[], Any],
        cancel: Cancel,
        rows: int,
    ) -> Iterator[pa.RecordBatch]:
        """Yield an empty batch once there is a first one, then all of them."""
        with self._asking(session, cancel):
            asked = frame()
            shape, parts = _nullable(_shape(asked)), _parts(session, asked)
            with _reading(asked):
                first = next(parts, None)
            yield pa.RecordBatch.from_pylist([], schema=shape)
            try:
                for part in chain([] if first is None else [first], parts):
                    cancel.refuse_cancelled()
                    yield from part.cast(shape).to_batches(rows)
            except QueryError:
                raise
            except Exception as error:  # noqa: BLE001  (the client's errors are of many kinds)
                if _is_refusal(error):
                    raise _refused_at_rows(error) from None
                raise self._broken_off(error) from shown_cause(error)

    def _taken(self) -> _Session | None:
        """Return the session that was held, for one query alone; None where there is none."""
        with self._lock:
            held, self._held = self._held, None
            # A process that was forked has none of the threads that its connection needs.
            return held if self._process == os.getpid() else None

    def _begun(self) -> _Session:
        """Return a new session."""
        with needs_extra("cluster", "a query of a cluster"), _as_a_program():
            # Not imported before it is asked for: it is optional, and brings pandas.
            sql, _, retries, loggers = map(import_module, _CLIENT)
        for name in _LOGGERS:
            loggers.PySparkLogger.getLogger(name).setLevel(logging.CRITICAL + 1)
        try:
            session: Any = sql.SparkSession.builder.remote(self._url).create()
            session.client.set_retry_policies([retries.DefaultPolicy(**_RETRIES)])
            _set_zone(session)
        except Exception as error:  # noqa: BLE001  (the client's errors are of many kinds)
            raise self._refused(error) from shown_cause(error)
        begun: _Session = session
        return begun

    @contextmanager
    def _using(self, session: _Session) -> Iterator[_Session]:
        """Use a session, and hold it then, unless it failed in whatever way."""
        is_whole = False
        try:
            yield session
            is_whole = True
        except RheiError:
            raise
        except Exception as error:  # noqa: BLE001  (the client's errors are of many kinds)
            raise self._refused(error) from shown_cause(error)
        finally:
            with self._lock:
                is_held = is_whole and self._held is None and not self._is_closed
                if is_held:
                    self._held, self._process = session, os.getpid()
            if not is_held:
                self._end(session)

    def _end(self, session: _Session | None) -> None:
        if session is not None:
            with suppress(Exception):  # its server may be gone, and has ended it then
                session.stop()

    def _broken_off(self, error: Exception) -> ComputeUnreachableError:
        return ComputeUnreachableError(
            f"the answer of the cluster at {self.endpoint!r} broke off ({_reason(error)})",
            hint="use nothing of it; ask again, or with the hint 'auto'",
        )

    def _refused(self, error: Exception) -> RheiError:
        if _is_refusal(error):
            return QueryError(
                f"the cluster refused the query: {_first_line(error)}", hint="ask it in Spark's SQL"
            )
        return ComputeUnreachableError(
            f"the cluster at {self.endpoint!r} failed ({_reason(error)})",
            hint="see the server's log; whether it is there, 'rhei check' says",
        )


@contextmanager
def _reading(frame: Any) -> Iterator[None]:  # noqa: ANN401  (a frame of the client)
    """Work a statement out within the block: what is then said of it may quote a row."""
    try:
        yield
    except Exception as error:
        if not _is_refusal(error):
            raise
        _ = frame.schema  # raises what is wrong with the statement itself, which quotes no row
        raise _refused_at_rows(error) from None


def _is_refusal(error: Exception) -> bool:
    """Return whether a statement is at fault, and not the cluster."""
    code = error.getSqlState() if hasattr(error, "getSqlState") else None
    return type(error).__name__ in _REFUSALS or (code or "")[:2] in _REFUSED_CLASSES


def _refused_at_rows(error: Exception) -> QueryError:
    condition = error.getCondition() if hasattr(error, "getCondition") else None
    return QueryError(
        f"the cluster cannot work out the query for some row: {condition or type(error).__name__}",
        hint="use what gives null there, such as 'try_cast'; or ask the mirror, by the hint 'olap'",
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {without_values(_first_line(error))[:200]}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _set_zone(session: _Session) -> None:
    """Let an instant in a statement be in UTC, and not in the zone that the server is in."""
    session.conf.set("spark.sql.session.timeZone", "UTC")


def _frame(
    session: _Session, sql: str, params: Sequence[Any], tables: Mapping[str, tuple[str, int]]
) -> Any:  # noqa: ANN401  (a frame of the client, which is optional)
    """Return a statement over Delta tables, each at one version."""
    for name, (place, version) in tables.items():
        reading = session.read.format("delta").option("versionAsOf", version)
        reading.load(place).createOrReplaceTempView(name)
    return session.sql(sql, args=list(params) or None)


def _shape(frame: Any) -> pa.Schema:  # noqa: ANN401
    """Return the schema that the client gives a whole answer."""
    types = import_module("pyspark.sql.pandas.types")
    found: pa.Schema = types.to_arrow_schema(frame.schema, timezone="UTC")
    return found


def _parts(session: _Session, frame: Any) -> Iterator[pa.Table]:  # noqa: ANN401
    """Yield parts of an answer as they come."""
    client, plan = session.client, frame._plan  # noqa: SLF001  (the client streams rows alone)
    found = client.to_table_as_iterator(plan.to_proto(client), plan.observations)
    return (part for part in found if isinstance(part, pa.Table))


def _nullable(shape: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(nullable=True) for field in shape])


@contextmanager
def _as_a_program() -> Iterator[None]:
    """Give the main module a file within the block, where it has none, as with `python -c`.

    The client takes a process without one for its own tests, looks for Spark, and exits.
    """
    main = sys.modules["__main__"]
    if getattr(main, "__file__", None) or main.__spec__ is not None:
        yield
        return
    main.__file__ = "-c"
    try:
        yield
    finally:
        del main.__file__  # or processes that are spawned would look for it
