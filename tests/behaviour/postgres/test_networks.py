"""Networks that fail between a PostgreSQL source and the pipeline."""

import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from rhei_pipeline.errors import SourceUnreachableError
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.logical.source import LogicalSource
from tests.support.fix_postgres import PostgresWorld
from tests.support.tcp_relay import Wire, tcp_relay

#: `select` knows no more files of a process.
_SELECTED = 1024


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


def test_connections_that_were_all_ended_are_made_anew_at_once(dsn: str) -> None:
    size = 6  # looked at one after the other, they would take longer than a caller waits
    with closing(PostgresDatabase(dsn, pool_size=size)) as database, psycopg.connect(dsn) as other:
        together = threading.Barrier(size)

        def hold(_: int) -> None:
            with database._lent(), database._reader._sessions.lend("select 1"):
                together.wait(60)

        with ThreadPoolExecutor(size) as threads:
            assert len(list(threads.map(hold, range(size)))) == size
        gone = other.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        assert len(gone.fetchall()) >= 2 * size
        assert database.query("select 1 as a").to_pylist() == [{"a": 1}]
        assert database.execute("create table made()") == 0


@pytest.mark.parametrize("capture", [{}, {"streaming": True}, {"method": "trigger"}])
def test_a_process_may_have_many_files_open(
    make_postgres: Callable[..., PostgresWorld], capture: dict[str, Any]
) -> None:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed[1] < 2 * _SELECTED:
        pytest.skip("no process may have so many files open here")
    world = make_postgres(capture=capture)
    world.run("create table t(id int primary key)", "insert into t values (1)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * _SELECTED, allowed[1]))
    files = [os.dup(1) for _ in range(_SELECTED)]
    try:
        for key in (2, 3):
            assert world.htap.sync_now().inserted == 1
            world.run(f"insert into t values ({key})")
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, allowed)


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
