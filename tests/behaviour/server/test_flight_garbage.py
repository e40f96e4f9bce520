"""What the server makes of garbage: errors of ours, which tell nothing of the server."""

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import flight

from rhei_pipeline.errors import without_places
from rhei_pipeline.server.flight.generated import flight_sql_pb2 as wire
from rhei_pipeline.server.flight.messages import pack, unpack
from rhei_pipeline.server.flight.server import FlightSqlServer
from tests.support.fix_world import World

COUNT = "select count(*) as n from orders"
QUERIES = [
    b"\xff\xfe select 1",
    b"select '\xff'",
    b"",
    b";",
    b"select \x00",
    b"select " + b"(" * 3000 + b"1" + b")" * 3000,
    b"select " + b"1 + " * 5000 + b"1",
    b"select * from nowhere where _rhei_valid_from is null",
    b"select _rhei_valid_from, * from duckdb_databases()",
    b"select _rhei_valid_from from (select 1 as _rhei_valid_from), duckdb_settings()",
    b"select _rhei_valid_from from _rhei_mirror",
    b"explain /**/ (analyze) set global default_collation = 'nocase'",
    b"select load_extension('x')",
    b"pragma database_list",
    b"select * from pragma_database_list",
]


@pytest.fixture
def server(world: World) -> Iterator[FlightSqlServer]:
    world.htap.sync_now()
    with FlightSqlServer(world.htap) as made:
        yield made


def field(number: int, value: bytes) -> bytes:
    """Encode a field by hand: protobuf refuses to write what must be refused when it is read."""
    return bytes([number << 3 | 2]) + varint(len(value)) + value


def varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def packed(name: str, fields: bytes) -> bytes:
    return field(1, b"type.googleapis.com/arrow.flight.protocol.sql." + name.encode()) + field(
        2, fields
    )


def ticket_of(sql: str) -> flight.Ticket:
    return flight.Ticket(pack(wire.TicketStatementQuery(statement_handle=bytes(8) + sql.encode())))


def bodies() -> Iterator[bytes]:
    chance = random.Random(7)
    names = ["CommandStatementQuery", "CommandPreparedStatementQuery", "TicketStatementQuery"]
    names += ["CommandGetTables", "CommandGetSqlInfo", "CommandStatementUpdate", "Nothing", "é"]
    for name, value in itertools.product(names, [b"\xff", b"\x0a\x7f", b"", field(2, b"\xff")]):
        odd = [(1, value), (2, value), (3, b"\xff"), (4, b"\x80" * 12)]
        yield packed(name, b"".join(field(*each) for each in odd))
    for sql in QUERIES:
        yield packed("CommandStatementQuery", field(1, sql))
        yield packed("TicketStatementQuery", field(1, bytes(8) + sql))
        yield packed("ActionCreatePreparedStatementRequest", field(1, sql))
        yield packed("CommandStatementUpdate", field(1, sql))
    for length in (0, 1, 7, 60):
        yield chance.randbytes(length)


def calls(client: flight.FlightClient, body: bytes) -> list[Callable[[], Any]]:
    asked = flight.FlightDescriptor.for_command(body)
    named = flight.FlightDescriptor.for_path("a", "b/c")
    rows = pa.record_batch({"a": [1]})

    def put(descriptor: flight.FlightDescriptor) -> None:
        writer, reader = client.do_put(descriptor, rows.schema)
        with writer, contextlib.suppress(StopIteration):
            writer.write_batch(rows)
            writer.done_writing()
            reader.read()

    def exchange() -> None:
        writer, reader = client.do_exchange(asked)
        with writer:
            writer.begin(rows.schema)
            writer.done_writing()
            reader.read_all()

    actions = ["CancelFlightInfo", "CreatePreparedStatement", "ClosePreparedStatement", "x"]
    return [
        lambda: client.get_flight_info(asked),
        lambda: client.get_flight_info(named),
        lambda: client.get_schema(asked),
        lambda: client.get_schema(named),
        lambda: client.do_get(flight.Ticket(body)).read_all(),
        lambda: put(asked),
        lambda: put(named),
        exchange,
        lambda: list(client.list_flights(body[:20])),
        *(lambda kind=kind: list(client.do_action((kind, body))) for kind in actions),
        lambda: list(client.do_action(("CancelFlightInfo", field(1, body)))),
    ]


@pytest.mark.long
def test_garbage_is_answered_with_errors_that_tell_nothing_of_the_server(
    server: FlightSqlServer, world: World
) -> None:
    told = list[str]()
    with flight.FlightClient(f"grpc://127.0.0.1:{server.port}") as client:
        for body in bodies():
            for call in calls(client, body):
                try:
                    call()
                except (flight.FlightError, pa.ArrowException, OSError) as error:
                    told.append(str(error))
        info = client.get_flight_info(
            flight.FlightDescriptor.for_command(pack(wire.CommandStatementQuery(query=COUNT)))
        )
        assert client.do_get(info.endpoints[0].ticket).read_all().to_pylist() == [{"n": 3}]
    assert len(told) > 500
    places = ("Traceback", ".py", str(world.directory), str(Path(__file__).parents[3]))
    assert not [text for text in told if any(place in text for place in places)]
    # Nothing was unforeseen.
    assert not [text for text in told if "for a reason in its log" in text]


def test_an_unforeseen_error_is_named_by_a_number_that_the_log_has(
    server: FlightSqlServer, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        flight.FlightClient(f"grpc://127.0.0.1:{server.port}") as client,
    ):
        patch.setattr(world.htap, "table_schemas", lambda: dict[str, str]()["/secret/place"])
        with pytest.raises(flight.FlightServerError, match=r"error [0-9a-f]{8}") as caught:
            client.do_get(flight.Ticket(pack(wire.CommandGetTables()))).read_all()
    assert "secret" not in str(caught.value)
    number = str(caught.value).split("error ")[1][:8]
    assert number in caplog.text
    assert "/secret/place" in caplog.text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mirror '/data/a b/m.duckdb' is damaged", "mirror 'm.duckdb' is damaged"),
        ("cannot open /var/lib/x/app.db: locked", "cannot open app.db: locked"),
        (
            "near '/': syntax error in a / b / c, 1/2/3",
            "near '/': syntax error in a / b / c, 1/2/3",
        ),
    ],
)
def test_files_are_told_by_their_names_alone(text: str, told: str) -> None:
    assert without_places(text) == told


@pytest.mark.long
def test_slow_readers_take_bounded_memory(server: FlightSqlServer, world: World) -> None:
    world.run(
        "with recursive n(i) as (select 10 union all select i + 1 from n where i < 3000)"
        " insert into orders select i, 'a status of some length', i from n"
    )
    world.htap.sync_now()
    # Each answer would take more than a gigabyte.
    ticket = ticket_of("select a.*, b.status as s from orders a cross join orders b")
    before = held_bytes()
    with (
        flight.FlightClient(f"grpc://127.0.0.1:{server.port}") as client,
        ThreadPoolExecutor(20) as pool,
    ):
        readers = list(pool.map(lambda _: client.do_get(ticket), range(20)))
        try:
            assert all(chunk.data.num_rows for chunk in pool.map(next_chunk, readers))
            point = ticket_of("select id from orders where id = 2")
            assert client.do_get(point).read_all().num_rows == 1
            # Twenty answers whole would take over twenty gigabytes.
            assert held_bytes() - before < 2**31
        finally:
            for reader in readers:
                reader.cancel()


def next_chunk(reader: flight.FlightStreamReader) -> flight.FlightStreamChunk:
    return reader.read_chunk()


def held_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_a_statement_prepared_long_ago_is_forgotten_unless_it_is_used(
    server: FlightSqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhei_pipeline.server.flight.server._MAX_PREPARED", 2)
    with flight.connect(f"grpc://127.0.0.1:{server.port}") as client:

        def prepared() -> bytes:
            body = pack(wire.ActionCreatePreparedStatementRequest(query=COUNT))
            (result,) = client.do_action(flight.Action("CreatePreparedStatement", body))
            made = unpack(result.body.to_pybytes())
            return bytes(made.prepared_statement_handle)

        def ask(handle: bytes) -> int:
            command = pack(wire.CommandPreparedStatementQuery(prepared_statement_handle=handle))
            return int(client.do_get(flight.Ticket(command)).read_all()["n"][0].as_py())

        used, idle = prepared(), prepared()
        assert ask(used) == 3
        newest = prepared()
        assert (ask(used), ask(newest)) == (3, 3)
        for unknown in (idle, b"", used[:-1], bytes(16)):
            with pytest.raises(flight.FlightServerError, match="closed or expired"):
                ask(unknown)


def test_the_same_query_asked_twice_has_two_tickets(server: FlightSqlServer) -> None:
    """Who cancels the one must not end the other."""
    command = flight.FlightDescriptor.for_command(pack(wire.CommandStatementQuery(query=COUNT)))
    with flight.connect(f"grpc://127.0.0.1:{server.port}") as client:
        tickets = [client.get_flight_info(command).endpoints[0].ticket for _ in range(2)]
        assert tickets[0].ticket != tickets[1].ticket
        assert [client.do_get(each).read_all()["n"].to_pylist() for each in tickets] == [[3], [3]]
