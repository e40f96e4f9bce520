"""What a server lets its clients write, however the statement reaches it."""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import flight

from rhei_pipeline.server.flight.generated import flight_sql_pb2 as wire
from rhei_pipeline.server.flight.messages import pack, unpack
from rhei_pipeline.server.flight.server import FlightSqlServer, ServerOptions
from tests.support.fix_world import World

Serve = Callable[..., flight.FlightClient]
DELETE = "delete from orders"
OLAP = flight.FlightCallOptions(headers=[(b"rhei-hint", b"OLAP")])


@pytest.fixture
def serve(world: World) -> Iterator[Serve]:
    """Return a client of a server on the world."""
    world.htap.sync_now()
    opened: list[Any] = []

    def start(*, writes: bool) -> flight.FlightClient:
        server = FlightSqlServer(world.htap, options=ServerOptions(writes=writes))
        client = flight.FlightClient(f"grpc://127.0.0.1:{server.port}")
        opened.extend((server.shutdown, client.close))
        return client

    yield start
    for close in reversed(opened):
        close()


def ticket(sql: str) -> flight.Ticket:
    """Make a ticket by hand, of which no server has heard."""
    return flight.Ticket(pack(wire.TicketStatementQuery(statement_handle=bytes(8) + sql.encode())))


def prepared(client: flight.FlightClient, sql: str, rows: pa.Table, command: Any) -> bytes:
    """Prepare a statement and bind rows to it; return what the server answered."""
    request = pack(wire.ActionCreatePreparedStatementRequest(query=sql))
    (made,) = client.do_action(("CreatePreparedStatement", request))
    known = unpack(made.body.to_pybytes()).prepared_statement_handle
    told = pack(command(prepared_statement_handle=known))
    writer, metadata = client.do_put(flight.FlightDescriptor.for_command(told), rows.schema)
    with writer:
        writer.write_table(rows)
        writer.done_writing()
        metadata.read()
    return told


def count(world: World) -> int:
    (found,) = world.app.execute("select count(*) from orders").fetchone()
    return int(found)


def test_a_ticket_made_by_hand_writes_nothing_where_the_server_only_reads(
    serve: Serve, world: World
) -> None:
    client = serve(writes=False)
    for options in (None, OLAP):
        with pytest.raises(flight.FlightError):
            client.do_get(ticket(DELETE), options).read_all()
    assert count(world) == 3


def test_who_asks_the_mirror_writes_nothing_though_the_server_accepts_writes(
    serve: Serve, world: World
) -> None:
    client = serve(writes=True)
    with pytest.raises(flight.FlightError, match="not a reading statement"):
        client.do_get(ticket(DELETE), OLAP).read_all()
    assert count(world) == 3
    answer = client.do_get(ticket("select count(*) // 2 as n from orders"), OLAP).read_all()
    assert answer.schema.metadata[b"rhei.reason"] == b"asked for"
    assert client.do_get(ticket(DELETE)).read_all().to_pylist() == [{"rows_affected": 3}]
    assert count(world) == 0


def test_a_prepared_write_takes_all_rows_and_a_query_no_more_than_one(
    serve: Serve, world: World
) -> None:
    client = serve(writes=True)
    rows = pa.table({"id": pa.array([7, 8, 9], pa.int64())})
    insert = "insert into orders(id) values (?)"
    prepared(client, insert, rows, wire.CommandPreparedStatementUpdate)
    assert count(world) == 6
    select = "select id from orders where id = ?"
    asked = prepared(client, select, rows, wire.CommandPreparedStatementQuery)
    with pytest.raises(flight.FlightError, match="exactly one row"):
        client.do_get(flight.Ticket(asked)).read_all()


@pytest.mark.parametrize("writes", [True, False])
def test_a_server_says_whether_it_only_reads(serve: Serve, *, writes: bool) -> None:
    asked = flight.Ticket(pack(wire.CommandGetSqlInfo(info=[3])))
    told = serve(writes=writes).do_get(asked).read_all().to_pylist()
    assert told == [{"info_name": 3, "value": not writes}]
