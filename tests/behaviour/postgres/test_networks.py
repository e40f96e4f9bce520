"""Networks that fail between a PostgreSQL source and the pipeline."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from rhei_pipeline.errors import SourceUnreachableError
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.logical.source import LogicalSource
from tests.support.tcp_relay import Wire, tcp_relay


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def tcp_dsn(dsn: str, wire: Wire) -> Iterator[str]:
    """Yield how to connect to the server by TCP, as over a network."""
    place = conninfo_to_dict(dsn)
    if not str(place["host"]).startswith("/"):
        pytest.skip("the server has no Unix socket")
    socket = f"{place['host']}/.s.PGSQL.{place.get('port', 5432)}"
    with tcp_relay(socket, 64 << 20, wire) as port:
        yield make_conninfo(dsn, host="127.0.0.1", port=port)


@pytest.mark.parametrize(("said", "ends_after"), [({}, 60), ({"tcp_user_timeout": 5000}, 5)])
def test_no_connection_outlives_its_network_for_more_than_a_minute(
    tcp_dsn: str, said: dict[str, int], ends_after: int
) -> None:
    port = int(conninfo_to_dict(tcp_dsn).get("port") or 5432)
    with (
        closing(PostgresDatabase(make_conninfo(tcp_dsn, **said))) as database,
        database.connect(),
        database.connect_replicating(),
    ):
        database.query("select 1 as a")
        found = list(_limits(port))
    assert len(found) >= 4  # one for writes, and one for queries
    assert set(found) == {(30, 10, 3, ends_after * 1000)}


def test_what_cuts_a_connection_while_a_source_opens_is_named(tcp_dsn: str, wire: Wire) -> None:
    def open_source() -> None:
        with closing(PostgresDatabase(tcp_dsn)) as database:
            LogicalSource(database, "a mirror").close()

    open_source()
    errors = []
    for piece in range(wire.passed):
        wire.left = piece
        try:
            open_source()
        except SourceUnreachableError as error:
            errors.append(str(error))
    assert any("server closed the connection unexpectedly" in error for error in errors)


def _limits(port: int) -> Iterator[tuple[int, ...]]:
    """Yield what the system does about the network of each connection of ours to a port."""
    for file in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if not file.is_socket():
                continue
            with socket.socket(fileno=os.dup(int(file.name))) as found:
                if found.family == socket.AF_INET and found.getpeername()[1] == port:
                    options = ("KEEPIDLE", "KEEPINTVL", "KEEPCNT", "USER_TIMEOUT")
                    yield tuple(
                        found.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{option}"))
                        for option in options
                    )
