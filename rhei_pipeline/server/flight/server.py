"""The Flight SQL server: translates each client message to a call of the engine."""

import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
from google.protobuf.message import Message
from pyarrow import flight

from rhei_pipeline.errors import QueryError, TransientError
from rhei_pipeline.holder.place import sever
from rhei_pipeline.htap import HTAP
from rhei_pipeline.model.forking import keep_from_forks
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.query.planner import Prepared
from rhei_pipeline.server.flight import catalog
from rhei_pipeline.server.flight.access import (
    IDLE_SECONDS,
    AuthMiddleware,
    Credentials,
    NoHandshake,
    in_addresses,
    refuse_open_server,
)
from rhei_pipeline.server.flight.call_headers import CHOICES, hint_of, write_options
from rhei_pipeline.server.flight.catalog import DEFAULT_NAMESPACE, VIEW, ListedRelation
from rhei_pipeline.server.flight.generated import flight_sql_pb2 as wire
from rhei_pipeline.server.flight.messages import MalformedError, pack, parse, unpack
from rhei_pipeline.server.flight.running import FlightLimits, QueryRegistry, answered, translated
from rhei_pipeline.sql.text import quote

_log = logging.getLogger(__name__)

#: Prepared statements that are kept; the one unused for longest goes first.
_MAX_PREPARED = 4096
_NOTHING = pa.schema([])
_ONLY_READS = QueryError(
    "this server only reads", hint="write to the source, or start the server with --writes"
)
#: So many bytes of a ticket make it another one than that of the same query asked again.
_OWN_BYTES = 8
#: How long queries under way have, when it closes, before more is done to end them.
_GRACE_SECONDS = 2.0


@dataclass
class _Prepared:
    sql: str
    params: list[tuple[Any, ...]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The options of a server.

    Attributes:
        access: The credentials that clients must present.
        limits: How many queries run at once, and for how long.
        writes: Whether writing statements are accepted and run in the source.
        tls: Certificate and key as PEM.
        idle_seconds: How long a token that was given for a password is valid after its last use.
    """

    access: Credentials = field(default_factory=Credentials)
    limits: FlightLimits = field(default_factory=FlightLimits)
    writes: bool = False
    tls: tuple[bytes, bytes] | None = field(default=None, repr=False)
    idle_seconds: float = IDLE_SECONDS


class FlightSqlServer(flight.FlightServerBase):  # type: ignore[misc]
    """Serves an open engine over Flight SQL.

    Args:
        htap: The caller closes it, after the server.
        host, port: Where to listen; port 0 for any that is free.
        terms: The server's options.

    Raises:
        SettingsError: Other machines could connect without credentials.
    """

    def __init__(
        self,
        htap: HTAP,
        host: str = "127.0.0.1",
        port: int = 0,
        options: ServerOptions | None = None,
    ) -> None:
        keep_from_forks(self)
        options = options or ServerOptions()
        refuse_open_server(host, options.access)
        scheme = "grpc+tls" if options.tls else "grpc"
        super().__init__(
            f"{scheme}://{in_addresses(host)}:{port}",
            auth_handler=NoHandshake(),
            tls_certificates=[options.tls] if options.tls else None,
            middleware={
                "gate": AuthMiddleware(options.access, options.idle_seconds),
                **{choice.header: choice for choice in CHOICES},
            },
        )
        self._htap = htap
        self._writes = options.writes
        self._running = QueryRegistry(options.limits)
        self._prepared: OrderedDict[bytes, _Prepared] = OrderedDict()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Listen no more. What is under way may end for a few seconds, and is then cancelled.

        Flight's own `shutdown` waits until the last client has taken its answer.
        """
        ending = threading.Thread(target=self.shutdown, name="rhei-closing", daemon=True)
        ending.start()
        ending.join(_GRACE_SECONDS)
        if ending.is_alive():
            self._running.end()
            ending.join(_GRACE_SECONDS)
        if ending.is_alive():  # a client takes nothing of what it is sent
            sever(self.port)
            ending.join(_GRACE_SECONDS)

    @answered
    def get_flight_info(
        self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor
    ) -> flight.FlightInfo:
        """Return a FlightInfo whose endpoint is this server."""
        message = _read(descriptor.command)
        ticket = descriptor.command
        # A schema that is left out is not known before the run; an empty one would be a promise.
        schema: pa.Schema | None = None
        if isinstance(message, wire.CommandStatementQuery):
            schema = self._judged(context, message.query)
            handle = secrets.token_bytes(_OWN_BYTES) + message.query.encode()
            ticket = pack(wire.TicketStatementQuery(statement_handle=handle))
        elif isinstance(message, wire.CommandPreparedStatementQuery):
            found = self._find(message)
            schema = self._judged(context, found.sql, found.params[0] if found.params else ())
        else:
            _refuse_unknown(message)
            schema = catalog.schema_of(message)
        return flight.FlightInfo(schema, descriptor, [flight.FlightEndpoint(ticket, [])], -1, -1)

    def get_schema(
        self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor
    ) -> flight.SchemaResult:
        """Return the schema of an answer; an empty one where it is not known, or there is none."""
        try:
            return self._get_schema(context, descriptor)
        except flight.FlightError as error:
            # pyarrow sends what this call raises with all places in the code; whoever goes on to
            # ask for the answer is told.
            _log.info("no schema: %s", error)
            return flight.SchemaResult(_NOTHING)

    @answered
    def _get_schema(
        self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor
    ) -> flight.SchemaResult:
        message = _read(descriptor.command)
        if isinstance(message, wire.CommandStatementQuery):
            return flight.SchemaResult(self._described(context, message.query) or _NOTHING)
        if isinstance(message, wire.CommandPreparedStatementQuery):
            known = self._known(context, self._find(message).sql)
            return flight.SchemaResult(known.schema or _NOTHING)
        _refuse_unknown(message)
        return flight.SchemaResult(catalog.schema_of(message))

    @answered
    def do_get(
        self, context: flight.ServerCallContext, ticket: flight.Ticket
    ) -> flight.FlightDataStream:
        """Send an answer, as fast as the client reads it."""
        message = _read(ticket.ticket)
        if isinstance(message, wire.TicketStatementQuery):
            return self._send(context, ticket.ticket, _asked(message.statement_handle), ())
        if isinstance(message, wire.CommandPreparedStatementQuery):
            found = self._find(message)
            if len(found.params) > 1:
                raise flight.FlightServerError("a query takes exactly one row of parameters")
            params = found.params[0] if found.params else ()
            return self._send(context, ticket.ticket, found.sql, params)
        _refuse_unknown(message)
        with translated():
            told = catalog.answer(message, self._relations, read_only=not self._writes)
        return flight.RecordBatchStream(told)

    def _relations(self) -> list[ListedRelation]:
        """Return what clients are shown: the mirrored tables, and the source's views."""
        tables = [
            ListedRelation(
                table.schema.namespace or DEFAULT_NAMESPACE,
                table.schema.relation,
                partial(getattr, table.schema, "arrow"),
                primary_key=table.schema.primary_key,
            )
            for table in self._htap.table_schemas().values()
        ]
        try:
            views = self._htap.views()
        except TransientError as error:
            _log.warning("clients are shown no views: %s", error)
            views = []
        shown = [
            ListedRelation(
                space or DEFAULT_NAMESPACE, name, partial(self._shape, space, name), VIEW
            )
            for space, name in views
        ]
        found = [*tables, *shown]
        return sorted(found, key=lambda relation: (relation.namespace, relation.name))

    def _shape(self, namespace: str | None, view: str) -> pa.Schema:
        """Return the best guess at a view's columns; none where the source refuses to read it."""
        named = ".".join(quote(part) for part in (namespace, view) if part is not None)
        return self._htap.prepare(f"select * from {named}").schema or _NOTHING

    def _send(
        self,
        context: flight.ServerCallContext,
        handle: bytes,
        sql: str,
        params: tuple[Any, ...],
    ) -> flight.FlightDataStream:
        def ask(begun: Begun) -> Streamed:
            if hint == "auto" and self._writes and not self._htap.reads(sql):
                return _affected(self._htap.execute(sql, params))
            return self._htap.stream(sql, params, self._running.limits.batch_rows, begun, hint)

        hint = hint_of(context)
        is_short = hint == "auto" and self._htap.reads_single_rows(sql, params)
        schema, batches = self._running.send(handle, ask, context.is_cancelled, is_short=is_short)
        return flight.GeneratorStream(schema, batches, write_options(context))

    @answered
    def do_put(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.FlightMetadataWriter,
    ) -> None:
        """Bind parameters to a prepared statement, or run a write."""
        del context
        message = _read(descriptor.command)
        if isinstance(message, wire.CommandPreparedStatementQuery):
            self._find(message).params = _rows(reader)
            handle = message.prepared_statement_handle
            bound = wire.DoPutPreparedStatementResult(prepared_statement_handle=handle)
            writer.write(pa.py_buffer(bound.SerializeToString()))
            return
        if isinstance(message, wire.CommandStatementUpdate):
            rows = self._write(message.query, [()])
        elif isinstance(message, wire.CommandPreparedStatementUpdate):
            found = self._find(message)
            found.params = _rows(reader)
            rows = self._write(found.sql, found.params or [()])
        else:
            raise _unsupported(message)
        written = wire.DoPutUpdateResult(record_count=rows)
        writer.write(pa.py_buffer(written.SerializeToString()))

    def _refuse_writing(self, sql: str) -> None:
        with translated():
            if not self._writes and not self._htap.reads(sql):
                raise _ONLY_READS

    def _write(self, sql: str, params: list[tuple[Any, ...]]) -> int:
        with translated():
            if not self._writes:
                raise _ONLY_READS
            return int(self._htap.execute_batch([(sql, each) for each in params]))

    @answered
    def list_actions(self, context: flight.ServerCallContext) -> list[tuple[str, str]]:
        """Return the actions."""
        del context
        return [
            ("CreatePreparedStatement", "Create a prepared statement."),
            ("ClosePreparedStatement", "Forget a statement."),
            ("CancelFlightInfo", "Cancel a running query."),
        ]

    @answered
    def do_action(
        self, context: flight.ServerCallContext, action: flight.Action
    ) -> Iterator[flight.Result]:
        """Create, close, or cancel a statement."""
        body = action.body.to_pybytes()
        if action.type == "CancelFlightInfo":
            return iter([flight.Result(pa.py_buffer(self._cancel(body)))])
        message = _read(body)
        if isinstance(message, wire.ActionCreatePreparedStatementRequest):
            return iter([flight.Result(pa.py_buffer(self._prepare(context, message.query)))])
        if isinstance(message, wire.ActionClosePreparedStatementRequest):
            with self._lock:
                self._prepared.pop(message.prepared_statement_handle, None)
            return iter([])
        raise flight.FlightServerError(f"action {action.type!r} is not supported")

    @answered
    def list_flights(self, context: flight.ServerCallContext, criteria: bytes) -> None:
        """Refuse: clients ask for tables by Flight SQL's messages."""
        del context, criteria
        raise flight.FlightServerError("list_flights is not supported: ask for CommandGetTables")

    @answered
    def do_exchange(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.MetadataRecordBatchWriter,
    ) -> None:
        """Refuse: nothing is exchanged."""
        del context, descriptor, reader, writer
        raise flight.FlightServerError("do_exchange is not supported")

    def _prepare(self, context: flight.ServerCallContext, sql: str) -> bytes:
        handle = secrets.token_bytes(16)
        with translated():
            known = self._known(context, sql)
        with self._lock:
            self._prepared[handle] = _Prepared(sql)
            while len(self._prepared) > _MAX_PREPARED:
                self._prepared.popitem(last=False)
        answered = wire.ActionCreatePreparedStatementResult(
            prepared_statement_handle=handle, is_update=not known.reads
        )
        # JDBC takes a statement without a schema for a write, and binds what it was described.
        if known.schema is not None:
            answered.dataset_schema = known.schema.serialize().to_pybytes()
        if len(known.parameters):
            answered.parameter_schema = known.parameters.serialize().to_pybytes()
        return pack(answered)

    def _find(
        self, message: wire.CommandPreparedStatementQuery | wire.CommandPreparedStatementUpdate
    ) -> _Prepared:
        handle = message.prepared_statement_handle
        with self._lock:
            found = self._prepared.get(handle)
            if found is None:
                raise flight.FlightServerError("the prepared statement is closed or expired")
            self._prepared.move_to_end(handle)
            return found

    def _judged(
        self, context: flight.ServerCallContext, sql: str, params: tuple[Any, ...] = ()
    ) -> pa.Schema | None:
        """Return the schema of a query's answer, if it is known; refuse what may not be asked."""
        if hint_of(context) == "auto":
            self._refuse_writing(sql)
        return self._described(context, sql, params)

    def _described(
        self, context: flight.ServerCallContext, sql: str, params: tuple[Any, ...] = ()
    ) -> pa.Schema | None:
        if hint_of(context) != "auto":
            return None  # in another SQL, which is judged, and has its schema, when it is asked
        with translated():
            return self._htap.describe(sql, params)

    def _known(self, context: flight.ServerCallContext, sql: str) -> Prepared:
        if hint_of(context) != "auto":
            return Prepared(None, _NOTHING, reads=True)
        return self._htap.prepare(sql)

    def _cancel(self, body: bytes) -> bytes:
        request = parse(wire.CancelFlightInfoRequest, body)
        try:
            info = flight.FlightInfo.deserialize(request.info)
        except (pa.ArrowException, flight.FlightError, OSError, ValueError):
            raise MalformedError("it names no query") from None
        found = [self._running.cancel(endpoint.ticket.ticket) for endpoint in info.endpoints]
        result = wire.CancelFlightInfoResult
        status = result.CANCELLED if any(found) else result.NOT_CANCELLABLE
        return bytes(result(status=status).SerializeToString())


def _read(data: bytes | None) -> Message:
    if not data:
        raise MalformedError("it is no command")
    return unpack(data)


def _asked(handle: bytes) -> str:
    """Return the query that a ticket holds."""
    try:
        return handle[_OWN_BYTES:].decode()
    except UnicodeDecodeError:
        raise MalformedError("a text in it is not UTF-8") from None


def _unsupported(message: Message) -> flight.FlightServerError:
    return flight.FlightServerError(f"{message.DESCRIPTOR.name} is not supported")


def _refuse_unknown(message: Message) -> None:
    if type(message) not in catalog.ANSWERS:
        raise _unsupported(message)


def _affected(rows: int) -> Streamed:
    table = pa.table({"rows_affected": pa.array([int(rows)], pa.int64())})
    return Streamed(table.schema, iter(table.to_batches()))


def _rows(reader: flight.MetadataRecordBatchReader) -> list[tuple[Any, ...]]:
    table = reader.read_all()
    columns = [column.to_pylist() for column in table.columns]
    return list(zip(*columns, strict=True))
