"""TPC-H on three schemas and both mirrors: who answers, whether equally, and how fast."""

import argparse
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pyarrow as pa
from rich.console import Console
from rich.table import Table

import rhei_pipeline as rhei
from benchmarks.tpch_data import KEYS, TABLES, Made, Row
from benchmarks.tpch_queries import QUERIES, written
from examples.postgres_server import Server
from rhei_pipeline.holder.held import Hint

SCALE = 0.1
#: How often each side is asked, in turn, so that both meet the machine as busy as it is.
ROUNDS = 5
#: How much slower than the source the mirror may be before it is counted.
SLOWER_MS = 20
#: How each schema declares a date and an amount of money.
SCHEMAS = {
    "sqlite, text and real": {"date": "text", "money": "real"},
    "sqlite, date and decimal": {"date": "date", "money": "decimal(15, 2)"},
    "postgres, date and numeric": {"money": "numeric(15, 2)", "int": "integer"},
}
MIRRORS: dict[str, dict[str, Any]] = {
    "duckdb": {"kind": "duckdb"},
    "datafusion": {"kind": "datafusion", "storage": "parquet"},
}


def _declared(table: str, schema: str) -> str:
    words = SCHEMAS[schema]
    columns = [
        f"{name} {words.get(kind, kind)} not null"
        for name, kind in (column.split() for column in TABLES[table])
    ]
    return f"create table {table} ({', '.join(columns)}, primary key ({KEYS[table]}))"


def _plain(table: str, rows: Sequence[Row]) -> Iterator[Row]:
    money = [column.endswith(" money") for column in TABLES[table]]
    for row in rows:
        yield tuple(
            value.isoformat()
            if isinstance(value, date)
            else int(str(value)) / 100
            if is_money
            else value
            for value, is_money in zip(row, money, strict=True)
        )


@contextmanager
def source(schema: str, made: Made, directory: Path) -> Iterator[dict[str, Any]]:
    """Make a source of a schema with all rows."""
    if schema.startswith("sqlite"):
        path = directory / "app.db"
        connection = sqlite3.connect(path)
        for table, rows in made.rows():
            marks = ", ".join("?" * len(TABLES[table]))
            connection.execute(_declared(table, schema))
            connection.executemany(f"insert into {table} values ({marks})", _plain(table, rows))
        connection.execute("create index by_customer on orders (o_custkey)")
        connection.execute("create index by_part on lineitem (l_partkey, l_suppkey)")
        connection.commit()
        connection.execute("analyze")
        connection.close()
        yield {"kind": "sqlite", "path": path}
        return
    server = Server(directory / "server")
    try:
        with psycopg.connect(server.dsn(), autocommit=True) as writer:
            for table, rows in made.rows():
                writer.execute(_declared(table, schema).encode())
                with writer.cursor().copy(f"copy {table} from stdin".encode()) as copy:
                    for row in _plain(table, rows):
                        copy.write_row(row)
            writer.execute("create index by_customer on orders (o_custkey)")
            writer.execute("create index by_part on lineitem (l_partkey, l_suppkey)")
            writer.execute("vacuum analyze")
        yield {"kind": "postgres", "dsn": server.dsn()}
    finally:
        server.stop()


def compare(htap: rhei.HTAP, number: int, dialect: str) -> tuple[str, bool, float, float, str]:
    """Return who answers a query, whether both answer alike, and the milliseconds of both.

    Of each side it is the median of some rounds, after a first one that plans the query.
    """
    sql = written(number, dialect)
    expected, found = htap.query(sql, hint="oltp"), htap.query(sql)
    labels, same = found.schema.metadata, _same(found, expected)
    rounds = [(_taken(htap, sql, "auto"), _taken(htap, sql, "oltp")) for _ in range(ROUNDS)]
    taken, source_taken = (median(side) * 1e3 for side in zip(*rounds, strict=True))
    reason = labels[b"rhei.reason"].decode()
    return labels[b"rhei.engine"].decode(), same, taken, source_taken, reason


def _taken(htap: rhei.HTAP, sql: str, hint: Hint) -> float:
    started = time.perf_counter()
    htap.query(sql, hint=hint)
    return time.perf_counter() - started


def _same(found: pa.Table, expected: pa.Table) -> bool:
    if found.schema.remove_metadata() != expected.schema.remove_metadata():
        return False
    rows = [list(zip(*(c.to_pylist() for c in t.columns), strict=True)) for t in (found, expected)]
    return len(rows[0]) == len(rows[1]) and all(
        all(map(_near, ours, theirs)) for ours, theirs in zip(*rows, strict=True)
    )


def _near(ours: object, theirs: object) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return abs(ours - theirs) <= 1e-9 * max(abs(ours), abs(theirs), 1.0)
    return ours == theirs


def main(chosen: Sequence[str], scale: float) -> None:
    """Print a table for each schema and mirror whose name has all of the words."""
    made, console = Made(scale), Console(width=150)
    for schema in SCHEMAS:
        kinds = [name for name in MIRRORS if _is_chosen(f"{schema} {name}", chosen)]
        if not kinds:
            continue
        with TemporaryDirectory() as directory, source(schema, made, Path(directory)) as settings:
            for kind in kinds:
                mirror = {**MIRRORS[kind], "path": Path(directory) / kind}
                registry = {"path": Path(directory) / f"{kind}.json"}
                with rhei.open(
                    rhei.Settings(source=settings, mirror=mirror, registry=registry)
                ) as htap:
                    htap.sync_now()
                    console.print(_table(htap, schema, kind))


def _is_chosen(name: str, chosen: Sequence[str]) -> bool:
    return all(word in name for word in chosen)


def _table(htap: rhei.HTAP, schema: str, kind: str) -> Table:
    table = Table(
        "query", "engine", "equal", "ms", "ms source", "reason", title=f"{schema}: {kind}"
    )
    counted = slower = 0
    for number in QUERIES:
        engine, same, taken, source_taken, reason = compare(htap, number, schema.partition(",")[0])
        counted += engine == "olap"
        slower += engine == "olap" and taken > source_taken + SLOWER_MS
        figures = (f"{taken:.0f}", f"{source_taken:.0f}")
        table.add_row(str(number), engine, "yes" if same else "NO", *figures, reason)
    table.caption = (
        f"{counted} of {len(QUERIES)} on the mirror, {slower} more than {SLOWER_MS} ms slower there"
    )
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="of the schemas and mirrors to ask")
    parser.add_argument("--scale", type=float, default=SCALE, help="1 is six million line items")
    options = parser.parse_args()
    main(options.words, options.scale)
