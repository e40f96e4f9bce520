"""Debian's sysbench against PostgreSQL, mirrored meanwhile: copies, lag, log held, and CPU."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg

import rhei_pipeline as rhei
from benchmarks.source_lag import SourceLag
from benchmarks.timing import prove, server_seconds, timed
from examples.postgres_server import Server
from rhei_pipeline.model.report import counted

#: Rows of each table to begin with, seconds of each load, and its transactions a second.
ROWS, SECONDS, RATE = 100_000, 10, 1_000
#: From the begin of a sync to that of the next; what is committed meanwhile is applied together.
INTERVAL_SECONDS = 0.03
TABLES, WORKLOADS = (1, 4), ("oltp_insert", "oltp_read_write")
MIRRORS = {
    "DuckDB": {"path": "mirror.duckdb"},
    "Parquet": {"kind": "datafusion", "storage": "parquet", "path": "mirror"},
}
#: Transactions asked for in a second, and as many as the server takes.
LOADS = {
    f"{RATE:,} a second asked for": (f"--rate={RATE}", "--threads=8"),
    "4 threads without a pause": ("--threads=4",),
}


@dataclass(frozen=True)
class Load:
    """What sysbench does to how many tables of a database."""

    workload: str
    tables: int
    server: Server
    database: str

    def prepare(self) -> None:
        """Make the tables."""
        subprocess.run(self._command("prepare"), check=True, capture_output=True)

    def run(self, *options: str) -> int:
        """Let it run, and return how many transactions it committed."""
        command = self._command(f"--time={SECONDS}", *options, "run")
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return int(done.stdout.split("transactions:")[1].split()[0])

    def dsn(self) -> str:
        """Return how to connect to its database."""
        return self.server.dsn(self.database)

    def _command(self, *arguments: str) -> list[str]:
        with psycopg.connect(self.dsn()) as connection:
            at = connection.info
            return [
                *("sysbench", self.workload, "--db-driver=pgsql", f"--pgsql-host={at.host}"),
                *(f"--pgsql-port={at.port}", f"--pgsql-user={at.user}"),
                *(f"--pgsql-db={self.database}", f"--tables={self.tables}"),
                *(f"--table-size={ROWS}", *arguments),
            ]


def measure() -> Iterator[tuple[str, str]]:
    """Measure each load on each mirror at a given rate, then loads without one."""
    if shutil.which("sysbench") is None:
        yield "sysbench", "left out: it is not installed"
        return
    with ExitStack() as stack:
        data = Path(stack.enter_context(TemporaryDirectory(prefix="rhei-postgres-")))
        server = Server(data)
        stack.callback(server.stop)
        cells = [(m, w, t) for m in MIRRORS for w in WORKLOADS for t in TABLES]
        for number, (mirror, workload, tables) in enumerate(cells):
            with _database(server, f"bench{number}"):
                load = Load(workload, tables, server, f"bench{number}")
                yield from _cell(load, mirror, data)


@contextmanager
def _database(server: Server, name: str) -> Iterator[None]:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
        yield
        connection.execute(
            b"select pg_drop_replication_slot(slot_name) from pg_replication_slots where not active"
        )
        connection.execute(f"drop database {name} with (force)".encode())


def _cell(load: Load, mirror: str, data: Path) -> Iterator[tuple[str, str]]:
    what = f"{mirror}, {load.workload}, {counted(load.tables, 'table')}"
    load.prepare()
    with TemporaryDirectory() as directory, rhei.open(_settings(load, mirror, directory)) as htap:
        with timed() as copy:
            htap.sync_now()
        yield f"{what}: first copy", f"{ROWS * load.tables / copy.wall_seconds:,.0f} rows/s"
        lag = SourceLag(htap, load.dsn())
        for asked, options in LOADS.items():
            yield f"{what}, {asked}", _under_load(htap, load, options, lag, data)
        prove(htap)


def _settings(load: Load, mirror: str, directory: str) -> rhei.Settings:
    return rhei.Settings(
        source={"kind": "postgres", "dsn": load.dsn()},
        mirror=MIRRORS[mirror],
        registry={"path": "registry.json"},
    ).anchored(Path(directory))


def _under_load(
    htap: rhei.HTAP, load: Load, options: Sequence[str], lag: SourceLag, data: Path
) -> str:
    """Sync in the background while the load runs, and once more behind it."""
    with lag.sampling() as found:
        htap.start_sync(INTERVAL_SECONDS)
        server, own, started = server_seconds(data), time.process_time(), time.perf_counter()
        transactions = load.run(*options)
        seconds = time.perf_counter() - started
        own, server = time.process_time() - own, server_seconds(data) - server
        syncs = found.syncs
    htap.stop_sync()
    with timed() as drained:
        htap.sync_now()
    own -= found.cpu_seconds
    return (
        f"{transactions / seconds:,.0f} a second, {found}, {drained.wall_seconds:.2f} s to drain;"
        f" {own / seconds:.0%} of a core in {syncs / seconds:.0f} syncs a second of"
        f" {own / syncs * 1000:.1f} ms, the server's {server / seconds:.0%}"
    )
