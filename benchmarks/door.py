"""The door: what routing costs, a point read, an aggregate, and a full scan over Flight SQL."""

import sqlite3
from collections.abc import Iterator

import adbc_driver_flightsql.dbapi as flight_sql
import pyarrow as pa
from pyarrow import flight

from benchmarks.orders import orders
from benchmarks.timing import median, prove
from rhei_pipeline.server.flight.server import FlightSqlServer

_ROWS = 1_000_000
_POINT = "select * from orders where id = ?"
_GROUPED = "select status, count(*), sum(amount) from orders group by status"


def measure() -> Iterator[tuple[str, str]]:
    """Measure the door against the bare drivers."""
    with orders(_ROWS) as table, table.open() as htap:
        htap.sync_now()
        cold = median(
            lambda: htap.explain_route(f"{_GROUPED} having count(*) > {next(_count)}"), 200
        )
        warm = median(lambda: htap.explain_route(_GROUPED), 5000)
        yield "routing, p50: a new statement", f"{cold * 1000:.2f} ms"
        yield "routing, p50: a known statement (bar: 0.3 ms)", f"{warm * 1000:.4f} ms"
        bare = median(lambda: table.connection.execute(_POINT, (777,)).fetchall(), 5000)
        ours = median(lambda: htap.query(_POINT, (777,)), 5000)
        yield (
            "point read against the bare driver (bar: 2 x)",
            f"{ours * 1e6:.0f} us against {bare * 1e6:.0f} us: {ours / bare:.1f} x",
        )
        arrow = median(lambda: _as_arrow(table.connection.execute(_POINT, (777,))), 5000)
        yield (
            "point read against the bare driver and a plain Arrow table of its row",
            f"{ours * 1e6:.0f} us against {arrow * 1e6:.0f} us: {ours / arrow:.1f} x",
        )
        source = median(lambda: htap.query(_GROUPED, hint="oltp"), 3)
        mirror = median(lambda: htap.query(_GROUPED), 10)
        yield (
            f"grouping {_ROWS:,} rows: mirror against source",
            f"{mirror * 1000:.0f} ms against {source * 1000:.0f} ms",
        )
        whole = htap.query("select * from orders", hint="olap")
        server = FlightSqlServer(htap)
        with flight_sql.connect(f"grpc://127.0.0.1:{server.port}", autocommit=True) as connection:
            seconds = median(lambda: _scan(connection), 9)
        server.shutdown()
        prove(htap)
        bare = _bare_scan(whole)
        yield (
            f"full scan of {_ROWS:,} rows by ADBC, share of bare pyarrow.flight's pace (bar: 50 %)",
            f"{_ROWS / seconds:,.0f} rows/s: {bare / seconds:.0%}",
        )


_count = iter(range(1_000_000))


def _as_arrow(cursor: sqlite3.Cursor) -> pa.Table:
    names = [column[0] for column in cursor.description]
    columns = list(zip(*cursor.fetchall(), strict=True))
    return pa.table([pa.array(values) for values in columns], names)


def _scan(connection: flight_sql.Connection) -> None:
    with connection.cursor() as cursor:
        cursor.execute("select * from orders")
        if cursor.fetch_arrow_table().num_rows != _ROWS:
            raise SystemExit("rows are missing: these figures are worth nothing")


class _Bare(flight.FlightServerBase):  # type: ignore[misc]
    def __init__(self, table: pa.Table) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self._table = table

    def do_get(self, _context: object, _ticket: flight.Ticket) -> flight.FlightDataStream:
        """Send the table from memory."""
        return flight.RecordBatchStream(self._table)


def _bare_scan(table: pa.Table) -> float:
    server = _Bare(table)
    with flight.FlightClient(f"grpc://127.0.0.1:{server.port}") as client:
        seconds = median(lambda: client.do_get(flight.Ticket(b"")).read_all(), 9)
    server.shutdown()
    return seconds
