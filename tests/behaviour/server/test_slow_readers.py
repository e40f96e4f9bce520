"""A server and a hundred clients who are slow to read: what it holds is bounded."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from pyarrow import flight

from rhei_pipeline.server.flight.generated import flight_sql_pb2 as wire
from rhei_pipeline.server.flight.messages import pack
from tests.support.fix_world import World

_CLIENTS = 100
#: Each answer takes about 100 MB, and a hundred of them ten gigabytes.
_LARGE = "select a.*, b.status as s from orders a cross join orders b"
#: Of each client a few batches: on their way from the engine, being sent, and with gRPC.
_HELD_BYTES = 3 * 2**30
_QUIET_SECONDS = 1.0


@pytest.fixture
def served(world: World, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """The address of a server in a process of its own, and the process."""
    world.run(
        "with recursive n(i) as (select 10 union all select i + 1 from n where i < 1200)"
        " insert into orders select i, 'a status of some length', i from n"
    )
    config = tmp_path / "pipeline.yaml"
    config.write_text(
        f"source: {{path: {world.path}}}\nmirror: {{path: {tmp_path / 'm.duckdb'}}}\n"
        f"registry: {{path: {tmp_path / 'r.json'}}}\nqueries: {{at_once: {_CLIENTS}}}\n"
        "sync: {interval_seconds: 3600}\n"
    )
    command = [sys.executable, "-m", "rhei_pipeline.cli.main", "serve", "--config", str(config)]
    with subprocess.Popen(
        [*command, "--port", "0", "--queries", str(_CLIENTS)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1], process.pid
        process.kill()  # its clients are gone, and nothing of it is looked at any more


@pytest.mark.soak
def test_a_hundred_slow_readers_take_bounded_memory(served: tuple[str, int]) -> None:
    address, process = served
    with ExitStack() as held, ThreadPoolExecutor(_CLIENTS) as pool:
        clients = [held.enter_context(flight.FlightClient(address)) for _ in range(_CLIENTS)]
        assert clients[0].do_get(_ticket("select count(*) as n from orders")).read_all()
        before = peak_bytes(process)
        readers = list(pool.map(lambda client: client.do_get(_ticket(_LARGE)), clients))
        for reader in readers:
            held.callback(reader.cancel)
        assert all(chunk.data.num_rows for chunk in pool.map(next_chunk, readers))
        # Nobody reads on. A server that does would be at work until it held all of it.
        wait_until_idle(process)
        point = clients[0].do_get(_ticket("select id from orders where id = 2"))
        assert point.read_all().num_rows == 1
        assert peak_bytes(process) - before < _HELD_BYTES


def _ticket(sql: str) -> flight.Ticket:
    return flight.Ticket(pack(wire.TicketStatementQuery(statement_handle=bytes(8) + sql.encode())))


def next_chunk(reader: flight.FlightStreamReader) -> flight.FlightStreamChunk:
    return reader.read_chunk()


def peak_bytes(process: int) -> int:
    """Return the most memory that a process has held so far."""
    told = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert told is not None
    return int(told[1]) * 1024


def wait_until_idle(process: int) -> None:
    """Wait until a process has used hardly any time of the processor for a while."""
    used = -1.0
    while (now := processor_seconds(process)) - used > _QUIET_SECONDS / 4:
        used = now
        time.sleep(_QUIET_SECONDS)


def processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
