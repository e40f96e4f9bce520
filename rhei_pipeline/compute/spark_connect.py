"""A Spark Connect endpoint: Sail, or Spark."""

import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from rhei_pipeline.errors import (
    ComputeUnreachableError,
    QueryError,
    RheiError,
    needs_extra,
    without_values,
)
from rhei_pipeline.model.cancellation import Cancel

#: What is imported of the client: all that looks, as it is imported, what process this is.
_CLIENT = ("pyspark.sql", "pyspark.sql.connect.session", "pyspark.sql.connect.client.retries")
#: The client repeats for minutes what a server that is gone does not answer: this ends it soon.
_RETRIES = {"max_retries": 3, "max_backoff": 1000}
#: What the client raises where the statement itself is at fault.
_REFUSALS = {"AnalysisException", "ParseException", "IllegalArgumentException"}


class SparkConnect:
    """What speaks Spark Connect at an address; each query has a session of its own.

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
        with self._session() as session:
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
        with self._session() as session, cancel.ending_by(session.interruptAll):
            for name, (place, version) in tables.items():
                reading = session.read.format("delta").option("versionAsOf", version)
                reading.load(place).createOrReplaceTempView(name)
            found = session.sql(sql, args=list(params) or None).toArrow()
            cancel.refuse_cancelled()
        return found.cast(pa.schema([field.with_nullable(nullable=True) for field in found.schema]))

    @contextmanager
    def _session(self) -> Iterator[Any]:
        self.refuse_unreachable()
        with needs_extra("cluster", "a query of a cluster"), _as_a_program():
            # Not imported before it is asked for: it is optional, and brings pandas.
            sql, _, retries = map(import_module, _CLIENT)
        try:
            session = sql.SparkSession.builder.remote(self._url).create()
            session.client.set_retry_policies([retries.DefaultPolicy(**_RETRIES)])
            try:
                yield session
            finally:
                session.stop()
        except RheiError:
            raise
        except Exception as error:  # the client's errors are of many kinds
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> RheiError:
        kind = type(error).__name__
        first = (str(error).strip().splitlines() or [kind])[0]
        if kind in _REFUSALS:
            return QueryError(
                f"the cluster refused the query: {first}", hint="ask it in Spark's SQL"
            )
        return ComputeUnreachableError(
            f"the cluster at {self.endpoint!r} failed ({kind}: {without_values(first)[:200]})",
            hint="see the server's log; whether it is there, 'rhei check' says",
        )


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
