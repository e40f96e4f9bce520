"""The Flight SQL server under the real ADBC driver."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import adbc_driver_flightsql.dbapi as flight_sql
import adbc_driver_manager
import pyarrow as pa
import pytest
from adbc_driver_flightsql import DatabaseOptions
from pyarrow import flight

from rhei_pipeline.errors import SettingsError
from rhei_pipeline.server.flight.access import Credentials
from rhei_pipeline.server.flight.generated import flight_sql_pb2 as wire
from rhei_pipeline.server.flight.messages import pack, unpack
from rhei_pipeline.server.flight.running import FlightLimits
from rhei_pipeline.server.flight.server import FlightSqlServer, ServerOptions
from tests.support.fix_world import World

Serve = Callable[..., FlightSqlServer]


@pytest.fixture
def serve(world: World) -> Iterator[Serve]:
    world.htap.sync_now()
    servers: list[FlightSqlServer] = []

    def start(**options: Any) -> FlightSqlServer:
        servers.append(FlightSqlServer(world.htap, options=ServerOptions(**options)))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()


def connect(server: FlightSqlServer, **options: str) -> Any:
    return flight_sql.connect(f"grpc://127.0.0.1:{server.port}", db_kwargs=options, autocommit=True)


def ask(connection: Any, sql: str, params: tuple[object, ...] = ()) -> pa.Table:
    with connection.cursor() as cursor:
        cursor.execute(sql, params or None)
        return cursor.fetch_arrow_table()


def test_statements_are_answered_by_the_side_that_suits(serve: Serve) -> None:
    with connect(serve()) as connection:
        found = ask(connection, "select status, count(*) as n from orders group by 1 order by 1")
        assert found.to_pylist() == [{"status": "new", "n": 2}, {"status": "paid", "n": 1}]
        rows = ask(connection, "select id, amount from orders where id = 3")
        assert rows.to_pylist() == [{"id": 3, "amount": 3.5}]


class Wire:
    """A way to a server that counts the bytes that come back."""

    def __init__(self, port: int) -> None:
        self.received = 0
        self._to = port
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._to))
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=(*ends, server), daemon=True).start()

    def _carry(self, taken: socket.socket, given: socket.socket, server: socket.socket) -> None:
        try:
            while part := taken.recv(65536):
                self.received += len(part) if taken is server else 0
                given.sendall(part)
        except OSError:
            pass
        given.close()

    def close(self) -> None:
        self._door.close()


@pytest.mark.parametrize("asked", ["zstd", "lz4"])
def test_an_answer_is_compressed_for_a_client_that_asks(
    serve: Serve, world: World, asked: str
) -> None:
    world.run(
        "insert into orders select value + 10, 'the same status', value from"
        " (with recursive n(value) as (select 1 union all select value + 1 from n"
        " where value < 20000) select value from n)"
    )
    world.htap.sync_now()
    sql, header = (
        "select id, status from orders",
        "adbc.flight.sql.rpc.call_header.rhei-compression",
    )
    server, found, sizes = serve(), [], []
    for options in ({}, {header: asked}):
        wire = Wire(server.port)
        address = f"grpc://127.0.0.1:{wire.port}"
        with flight_sql.connect(address, db_kwargs=options, autocommit=True) as connection:
            found.append(ask(connection, sql).sort_by("id"))
        sizes.append(wire.received)
        wire.close()
    assert found[0] == found[1]
    assert found[0].num_rows == 20003
    assert sizes[1] * 3 < sizes[0]
    with (
        connect(server, **{header: "zip"}) as connection,
        pytest.raises(adbc_driver_manager.Error, match="use zstd or lz4"),
    ):
        ask(connection, sql)


def test_a_hint_is_one_that_a_stream_takes(serve: Serve) -> None:
    header, server = "adbc.flight.sql.rpc.call_header.rhei-hint", serve()
    sql = "select count(*) as n from orders"
    with connect(server, **{header: "auto"}) as connection:
        assert ask(connection, sql).to_pylist() == [{"n": 3}]
    with connect(server, **{header: "olap"}) as connection:
        assert ask(connection, "select count(*) // 2 as n from orders").to_pylist() == [{"n": 1}]
        with pytest.raises(adbc_driver_manager.Error, match="not a reading statement"):
            ask(connection, "delete from orders")
    for hint, said in {"oltp": "use auto, olap or cluster", "cluster": "declare 'compute'"}.items():
        with (
            connect(server, **{header: hint}) as connection,
            pytest.raises(adbc_driver_manager.Error, match=said),
        ):
            ask(connection, sql)


def test_prepared_statements_take_parameters(serve: Serve) -> None:
    with connect(serve()) as connection:
        sql = "select count(*) as n from orders where status = ? and id < ?"
        assert ask(connection, sql, ("new", 9)).to_pylist() == [{"n": 2}]
        assert ask(connection, sql, ("new", 2)).to_pylist() == [{"n": 1}]
        assert ask(connection, "select amount from orders where id = ?", (2,)).num_rows == 1


@pytest.mark.parametrize(
    ("sql", "shape", "parameters"),
    [
        (
            "select id, amount from orders where id = ? and status like ?",
            {"id": pa.int64(), "amount": pa.float64()},
            [pa.int64(), pa.string()],
        ),
        (
            "select status, count(*) as n from orders where amount between ? and ? + 1 group by 1"
            " order by 1 limit ?",
            {"status": pa.string(), "n": pa.int64()},
            [pa.float64(), pa.float64(), pa.int64()],
        ),
        (
            "select group_concat(status) as all_of, id from orders where ? in (id, 2) group by id",
            {"all_of": pa.string(), "id": pa.int64()},
            [pa.int64()],
        ),
        ("insert into orders(status, id) values (?, ?)", {}, [pa.string(), pa.int64()]),
        ("update orders set amount = ? where id in (?, ?2)", {}, [pa.float64(), pa.int64()]),
        ("insert into orders values (?, ?, ?)", {}, [pa.int64(), pa.string(), pa.float64()]),
    ],
)
def test_a_statement_is_described_before_it_runs(
    serve: Serve, sql: str, shape: dict[str, pa.DataType], parameters: list[pa.DataType]
) -> None:
    # What JDBC goes by: a statement without a schema is a write there.
    server = serve(writes=True)
    with flight.FlightClient(f"grpc://127.0.0.1:{server.port}") as client:
        request = pack(wire.ActionCreatePreparedStatementRequest(query=sql))
        (result,) = client.do_action(flight.Action("CreatePreparedStatement", request))
    made = unpack(result.body.to_pybytes())
    schema = made.dataset_schema
    found = pa.ipc.read_schema(pa.py_buffer(schema)) if schema else pa.schema([])
    assert dict(zip(found.names, found.types, strict=True)) == shape
    assert pa.ipc.read_schema(pa.py_buffer(made.parameter_schema)).types == parameters
    assert made.is_update is not bool(shape)


def test_clients_find_the_catalogue(serve: Serve) -> None:
    with connect(serve()) as connection:
        objects = connection.adbc_get_objects(depth="all").read_all().to_pylist()
        schemas = objects[0]["catalog_db_schemas"]
        table = schemas[0]["db_schema_tables"][0]
        assert (objects[0]["catalog_name"], table["table_name"]) == ("rhei", "orders")
        assert [column["column_name"] for column in table["table_columns"]] == [
            "id",
            "status",
            "amount",
        ]
        assert connection.adbc_get_table_types() == ["TABLE", "VIEW"]
        assert connection.adbc_get_info()["vendor_name"] == "Rhei Pipeline"
        schema = connection.adbc_get_table_schema("orders")
        assert schema.names == ["id", "status", "amount"]


def test_primary_keys_are_told(serve: Serve) -> None:
    with flight.FlightClient(f"grpc://127.0.0.1:{serve().port}") as client:
        question = flight.FlightDescriptor.for_command(
            pack(wire.CommandGetPrimaryKeys(table="orders"))
        )
        info = client.get_flight_info(question)
        found = client.do_get(info.endpoints[0].ticket).read_all()
        assert found.schema == info.schema
        assert found.select(["column_name", "key_sequence"]).to_pylist() == [
            {"column_name": "id", "key_sequence": 1}
        ]


def test_a_server_only_reads_unless_it_is_started_otherwise(world: World, serve: Serve) -> None:
    with connect(serve()) as connection, connection.cursor() as cursor:
        with pytest.raises(adbc_driver_manager.Error, match="only reads"):
            cursor.executescript("delete from orders")
        with pytest.raises(adbc_driver_manager.Error, match="only reads"):
            cursor.execute("delete from orders")
    assert world.app.execute("select count(*) from orders").fetchone() == (3,)
    with connect(serve(writes=True)) as connection:
        with connection.cursor() as cursor:
            cursor.execute("delete from orders where id = ?", (1,))
            assert cursor.rowcount == 1
        assert ask(connection, "select count(*) as n from orders").to_pylist() == [{"n": 2}]


def test_errors_are_told_with_their_hint(serve: Serve) -> None:
    with (
        connect(serve()) as connection,
        pytest.raises(adbc_driver_manager.Error, match="no such table"),
    ):
        ask(connection, "select count(*) from nowhere")


def test_who_is_not_known_is_refused(serve: Serve) -> None:
    server = serve(access=Credentials(token="secret", user="ann", password="pass word"))  # noqa: S106
    sql = "select count(*) as n from orders"
    with pytest.raises(adbc_driver_manager.Error, match="token"), connect(server) as connection:
        ask(connection, sql)
    wrong = {DatabaseOptions.AUTHORIZATION_HEADER.value: "Bearer wrong"}
    with pytest.raises(adbc_driver_manager.Error), connect(server, **wrong) as connection:
        ask(connection, sql)
    right = {DatabaseOptions.AUTHORIZATION_HEADER.value: "Bearer secret"}
    with connect(server, **right) as connection:
        assert ask(connection, sql).to_pylist() == [{"n": 3}]
    with connect(server, username="ann", password="pass word") as connection:  # noqa: S106
        assert ask(connection, sql).to_pylist() == [{"n": 3}]
    with (
        pytest.raises(adbc_driver_manager.Error),
        connect(server, username="ann", password="guess") as connection,  # noqa: S106
    ):
        ask(connection, sql)


def test_a_client_whose_token_lay_idle_is_told_to_log_in_again(serve: Serve) -> None:
    server = serve(access=Credentials(user="ann", password="word"), idle_seconds=0)  # noqa: S106
    with (
        pytest.raises(adbc_driver_manager.Error, match="log in again"),
        connect(server, username="ann", password="word") as connection,  # noqa: S106
    ):
        ask(connection, "select count(*) as n from orders")


def test_an_open_server_stays_on_its_machine(world: World) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):  # noqa: S104
        with pytest.raises(SettingsError, match="other machines"):
            FlightSqlServer(world.htap, host=host)


def test_a_large_answer_comes_in_small_batches(world: World, serve: Serve) -> None:
    world.run(
        "with recursive n(i) as (select 10 union all select i + 1 from n where i < 50000)"
        " insert into orders select i, 'bulk', i from n"
    )
    world.htap.sync_now()
    server = serve(limits=FlightLimits(batch_rows=4096))
    with connect(server) as connection, connection.cursor() as cursor:
        cursor.execute("select a.id, a.amount from orders a join orders b on a.id = b.id")
        sizes = [batch.num_rows for batch in cursor.fetch_record_batch()]
    assert sum(sizes) == 49_994
    assert max(sizes) <= 4096


def _info(client: flight.FlightClient, sql: str) -> flight.FlightInfo:
    command = pack(wire.CommandStatementQuery(query=sql))
    return client.get_flight_info(flight.FlightDescriptor.for_command(command))


def test_a_query_under_way_can_be_cancelled(world: World, serve: Serve) -> None:
    world.run(
        "with recursive n(i) as (select 10 union all select i + 1 from n where i < 3000)"
        " insert into orders select i, 'bulk', i from n"
    )
    world.htap.sync_now()
    server = serve(limits=FlightLimits(queries=1, batch_rows=2048, turn_seconds=0))
    with flight.FlightClient(f"grpc://127.0.0.1:{server.port}") as client:
        sql = "select a.id, b.id as other from orders a cross join orders b"
        info = _info(client, sql)
        assert _info(client, sql).endpoints[0].ticket != info.endpoints[0].ticket
        reader = client.do_get(info.endpoints[0].ticket)
        reader.read_chunk()
        with pytest.raises(flight.FlightUnavailableError, match="turn did not come"):
            client.do_get(info.endpoints[0].ticket).read_chunk()
        # A read of single rows has a turn of its own.
        short = _info(client, "select id from orders where id = 1").endpoints[0].ticket
        assert client.do_get(short).read_all().num_rows == 1
        request = flight.Action(
            "CancelFlightInfo",
            wire.CancelFlightInfoRequest(info=info.serialize()).SerializeToString(),
        )
        (result,) = client.do_action(request)
        assert result.body.to_pybytes() == b"\x08\x01"  # field 1: cancelled
        with pytest.raises(flight.FlightCancelledError):
            while True:
                reader.read_chunk()


@pytest.mark.parametrize(
    "sql",
    [
        "select a.id, b.id as other from orders a cross join orders b",
        "select max(a.id * b.id % c.id) as n from orders a, orders b, orders c",
    ],
)
def test_a_query_that_takes_too_long_is_ended(world: World, serve: Serve, sql: str) -> None:
    world.run(
        "with recursive n(i) as (select 10 union all select i + 1 from n where i < 5000)"
        " insert into orders select i, 'bulk', i from n"
    )
    world.htap.sync_now()
    server = serve(limits=FlightLimits(seconds=0.05, batch_rows=2048))
    with (
        connect(server) as connection,
        pytest.raises((OSError, adbc_driver_manager.Error), match="longer than"),
    ):
        ask(connection, sql)
    with connect(serve()) as connection:
        assert ask(connection, "select count(*) as n from orders").num_rows == 1


def test_who_goes_before_the_first_rows_holds_no_turn(world: World, serve: Serve) -> None:
    """Neither that of a query under way, nor the next one in line: nobody waits for its rows."""
    world.run(
        "with recursive n(i) as (select 10 union all select i + 1 from n where i < 5000)"
        " insert into orders select i, 'bulk', i from n"
    )
    world.htap.sync_now()
    server = serve(limits=FlightLimits(queries=1, turn_seconds=60))
    sql = "select max(a.id * b.id % c.id) as n from orders a, orders b, orders c"
    with flight.FlightClient(f"grpc://127.0.0.1:{server.port}") as client:
        ticket = _info(client, sql).endpoints[0].ticket

        def go() -> None:
            with pytest.raises(flight.FlightTimedOutError):
                client.do_get(ticket, flight.FlightCallOptions(timeout=0.5)).read_all()

        with ThreadPoolExecutor(4) as pool:
            for gone in [pool.submit(go) for _ in range(4)]:
                gone.result()
        counted = _info(client, "select count(*) as n from orders").endpoints[0].ticket
        assert client.do_get(counted).read_all().num_rows == 1


def test_what_only_the_source_knows_reaches_a_client_from_there(world: World, serve: Serve) -> None:
    world.run("insert into orders values (10, 'pair', 1.5), (11, 'pair', -1.5)")
    world.htap.sync_now()
    with connect(serve()) as connection:
        found = ask(connection, "select sum(amount) as s from orders where status = 'pair'")
    assert found.to_pylist() == [{"s": 0.0}]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_what_is_sent_can_be_encrypted(serve: Serve, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out"]
    subprocess.run([*made, str(certificate)], check=True, capture_output=True)
    server = serve(tls=(certificate.read_bytes(), key.read_bytes()))
    trusted = {DatabaseOptions.TLS_ROOT_CERTS.value: certificate.read_text()}
    address = f"grpc+tls://localhost:{server.port}"
    with flight_sql.connect(address, db_kwargs=trusted, autocommit=True) as connection:
        assert ask(connection, "select count(*) as n from orders").to_pylist() == [{"n": 3}]
    with (
        pytest.raises(adbc_driver_manager.Error),
        flight_sql.connect(address, autocommit=True) as connection,
    ):
        ask(connection, "select count(*) as n from orders")


@pytest.mark.long
def test_many_clients_read_whole_states_while_syncs_run(world: World, serve: Serve) -> None:
    server = serve()
    done = threading.Event()

    def write() -> None:
        for number in range(100, 160, 2):
            world.htap.execute_batch(
                [
                    ("insert into orders values (?, 'pair', 1)", (number,)),
                    ("insert into orders values (?, 'pair', -1)", (number + 1,)),
                ]
            )
            world.htap.sync_now()
        done.set()

    def read(_client: int) -> int:
        asked = 0
        with connect(server) as connection:
            while not done.is_set() or asked < 3:
                sql = "select count(*) as n, sum(amount) as s from orders where status = 'pair'"
                (row,) = ask(connection, sql).to_pylist()
                assert row["n"] % 2 == 0
                assert row["s"] in {None, 0.0}
                asked += 1
        return asked

    with ThreadPoolExecutor(33) as pool:
        writing = pool.submit(write)
        assert min(pool.map(read, range(32))) >= 3
        writing.result()


def test_messages_are_those_of_other_implementations() -> None:
    # Taken down from what the ADBC driver sends, with a field that no version knows yet.
    name = b"type.googleapis.com/arrow.flight.protocol.sql.CommandGetTables"
    fields = b"\x1a\x03\xc3\xa9%" + b"\x22\x05TABLE" + b"\x22\x04VIEW" + b"\x28\x01" + b"\x7a\x01x"
    packed = b"\x0a" + bytes([len(name)]) + name + b"\x12" + bytes([len(fields)]) + fields
    found = unpack(packed)
    assert (found.table_name_filter_pattern, found.include_schema) == ("é%", True)
    assert list(found.table_types) == ["TABLE", "VIEW"]
    assert not found.HasField("catalog")
    # A field that is unknown is passed over, and goes on as it came.
    assert unpack(pack(found)) == found
    assert pack(found) == packed
