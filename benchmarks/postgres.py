"""PostgreSQL to the mirror through the server's own log."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg

import rhei_pipeline as rhei
from benchmarks.postgres_floor import PostgresFloor
from benchmarks.timing import median, prove, timed
from examples.postgres_server import Server

ROWS, EVENTS, ROUNDS = 1_000_000, 100_000, 3
#: Changes of a cycle that are measured against the floor, and how many such cycles.
FLOOR_CHANGES = {10: 20, 10_000: 1}

_TABLE = """
create table orders(
    id int primary key, customer_id int not null, status text not null, amount float8 not null,
    note text, created_at timestamptz not null, total numeric(12, 2)
);
insert into orders select i, i % 1000, 'paid', i / 100.0, 'note ' || i || ' of some length',
    '2026-01-01'::timestamptz + i * interval '1 second', i from generate_series(1, 1000000) i;
analyze orders;
"""
_CHANGES = """
with chosen as (select (random() * 999999)::int + 1 as id from generate_series(1, {updates}))
update orders o set amount = random() * 100, status = 'sent' from chosen where o.id = chosen.id;
insert into orders select nextval('ids'), 7, 'new', 1.5, 'a new order', now(), 1
    from generate_series(1, {inserts});
delete from orders where id in
    (select (random() * 999999)::int + 1 from generate_series(1, {deletes}));
"""


@contextmanager
def orders() -> Iterator[tuple[psycopg.Connection[tuple[int]], str, Path]]:
    """Make a server with a table of a million rows, removed at the end."""
    with TemporaryDirectory(prefix="rhei-postgres-") as data, TemporaryDirectory() as directory:
        server = Server(Path(data))
        try:
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute(_TABLE.encode())
                connection.execute("create sequence ids start 2000000")
                yield connection, server.dsn(), Path(directory)
        finally:
            server.stop()


def settings(dsn: str, directory: Path, mode: str) -> rhei.Settings:
    """Declare the pipeline."""
    return rhei.Settings(
        source={"kind": "postgres", "dsn": dsn},
        mirror={"path": directory / f"{mode}.duckdb"},
        registry={"path": directory / f"{mode}.json"},
        tables=[{"name": "orders", "mode": mode}],
    )


def measure() -> Iterator[tuple[str, str]]:
    """Measure the copy, cycles of many changes, of ten, and of none, and a point read."""
    with orders() as (connection, dsn, directory):
        for mode in ("destructive", "temporal"):
            with rhei.open(settings(dsn, directory, mode)) as htap:
                with timed() as timing:
                    htap.sync_now()
                rate = ROWS / timing.cpu_seconds
                yield f"PostgreSQL, {mode}: initial sync", f"{rate:,.0f} rows/s CPU"
                yield f"PostgreSQL, {mode}: mixed changes", _many(connection, htap)
                yield f"PostgreSQL, {mode}: cycle of ten changes", _few(connection, htap)
                if mode == "destructive":
                    yield (
                        "PostgreSQL: point read against the bare driver (bar: 2 x)",
                        _point(connection, htap),
                    )
                prove(htap)
        yield from against_the_floor(connection, dsn, directory)


def against_the_floor(
    connection: psycopg.Connection[tuple[int]], dsn: str, directory: Path, rounds: int = ROUNDS
) -> Iterator[tuple[str, str]]:
    """Measure our CPU against what a program written by hand takes for the same, in turns."""
    ratios: dict[str, list[float]] = {}
    for turn in range(rounds):
        own = directory / f"floor{turn}"
        own.mkdir()
        with (
            rhei.open(settings(dsn, own, "destructive")) as htap,
            closing(PostgresFloor(dsn, own / "floor.duckdb")) as floor,
        ):
            ours, bytes_alone = _cpu(htap.sync_now), _cpu(floor.read)
            rows = htap.query("select * from orders", hint="olap")
            load = _cpu(partial(floor.load, rows))
            ratios.setdefault("first copy", []).append(ours / (bytes_alone + load))
            for count, cycles in FLOOR_CHANGES.items():
                ours = theirs = 0.0
                for _ in range(cycles):
                    connection.execute(_mixed(count))
                    ours += _cpu(htap.sync_now)
                    theirs += _cpu(floor.sync)
                ratios.setdefault(f"{count:,} mixed changes", []).append(ours / theirs)
            prove(htap)
            floor.prove()
    for case, found in ratios.items():
        shown = ", ".join(f"{ratio:.2f}" for ratio in sorted(found))
        yield f"PostgreSQL, {case}: our CPU, the floor's is 1", shown


def _cpu(act: Callable[[], object]) -> float:
    with timed() as timing:
        act()
    return timing.cpu_seconds


def _mixed(count: int) -> bytes:
    sizes = {"updates": count // 2, "inserts": count * 35 // 100, "deletes": count * 15 // 100}
    return _CHANGES.format(**sizes).encode()


def _point(connection: psycopg.Connection[tuple[int]], htap: rhei.HTAP) -> str:
    sql, key = "select * from orders where id = %s", (777,)
    bare = median(lambda: connection.execute(sql.encode(), key).fetchall(), 3000)
    ours = median(lambda: htap.query(sql, key), 3000)
    return f"{ours * 1e6:.0f} us against {bare * 1e6:.0f} us: {ours / bare:.1f} x"


def _many(connection: psycopg.Connection[tuple[int]], htap: rhei.HTAP) -> str:
    rates, walls = [], []
    for _ in range(ROUNDS):
        connection.execute(_mixed(EVENTS))
        with timed() as timing:
            report = htap.sync_now()
        rates.append(report.events / timing.cpu_seconds)
        walls.append(report.events / timing.wall_seconds)
    cpu, wall = statistics.median(rates), statistics.median(walls)
    return f"{cpu:,.0f} events/s CPU, {wall:,.0f} events/s with the server's part"


def _few(connection: psycopg.Connection[tuple[int]], htap: rhei.HTAP) -> str:
    def cycle(changes: int) -> float:
        if changes:
            connection.execute(
                "update orders set amount = amount + 1 where id between 5000 and %s",
                (4999 + changes,),
            )
        started = time.perf_counter()
        htap.sync_now()
        return (time.perf_counter() - started) * 1000

    few, none = sorted(cycle(10) for _ in range(60)), sorted(cycle(0) for _ in range(60))
    return f"p50 {few[30]:.1f} ms, p99 {few[59]:.1f} ms; without changes p50 {none[30]:.1f} ms"
