"""The floor: what a loop written by hand for one table would cost. Our cost is told against it.

It has nothing that a mirror needs beside the rows: no types to admit, no dead letters, no schema
changes, no copy that can be resumed.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from benchmarks.others.answering import PROOF
from benchmarks.timing import DIFFER

_CAPTURE = """
create table floor_log(seq integer primary key, id integer not null);
create trigger floor_insert after insert on orders begin
    insert into floor_log(id) values (new.id); end;
create trigger floor_update after update on orders begin
    insert into floor_log(id) values (new.id); end;
create trigger floor_delete after delete on orders begin
    insert into floor_log(id) values (old.id); end;
"""
_MIRROR = """
create table orders(
    id bigint, customer_id bigint, status varchar, amount double, note varchar,
    created_at bigint, updated_at bigint
);
create table position(seq bigint);
insert into position values (0);
"""
_SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "customer_id": pa.int64(),
        "status": pa.string(),
        "amount": pa.float64(),
        "note": pa.string(),
        "created_at": pa.int64(),
        "updated_at": pa.int64(),
    }
)
_TOUCHED = (
    "(select id as touched from floor_log where seq > ? and seq <= ? group by id)"
    " left join orders on orders.id = touched"
)


class Floor:
    """A loop that mirrors the table `orders` of a SQLite file in a DuckDB file."""

    def __init__(self, source: Path, mirror: Path) -> None:
        self._source = sqlite3.connect(source, isolation_level=None)
        self._source.executescript(_CAPTURE)
        self._mirror = duckdb.connect(mirror)
        self._mirror.execute(_MIRROR)
        self._seq = 0

    def close(self) -> None:
        """Close both sides."""
        self._source.close()
        self._mirror.close()

    def copy(self) -> None:
        """Copy the table, with the position from which to go on."""
        self._source.execute("begin")
        self._seq = self._end()
        cursor = self._source.execute("select * from orders")
        self._mirror.execute("begin")
        while rows := cursor.fetchmany(50_000):
            self._insert(_arrow(rows))
        self._commit()

    def sync(self) -> None:
        """Apply what changed since."""
        self._source.execute("begin")
        end = self._end()
        between = (self._seq, end)
        touched = self._source.execute(f"select touched, orders.* from {_TOUCHED}", between)
        rows = touched.fetchall()
        keys = pa.table({"id": pa.array([row[0] for row in rows], pa.int64())})  # noqa: F841
        self._seq = end
        self._mirror.execute("begin")
        self._mirror.execute("delete from orders where id in (select id from keys)")
        self._insert(_arrow([row[1:] for row in rows if row[1] is not None]))
        self._commit()

    def prove(self) -> None:
        """End the run if the mirror is not what the source is: its figures were worth nothing."""
        if self._source.execute(PROOF).fetchone() != self._mirror.execute(PROOF).fetchone():
            raise SystemExit(f"the floor: {DIFFER}")

    def _end(self) -> int:
        (end,) = self._source.execute("select coalesce(max(seq), 0) from floor_log").fetchone()
        return int(end)

    def _insert(self, rows: pa.Table) -> None:
        if rows.num_rows:
            self._mirror.execute("insert into orders select * from rows")

    def _commit(self) -> None:
        self._mirror.execute("update position set seq = ?", (self._seq,))
        self._mirror.execute("commit")
        self._source.execute("commit")


def _arrow(rows: Sequence[tuple[object, ...]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ((),) * len(_SCHEMA)
    arrays = [pa.array(values, kind) for values, kind in zip(columns, _SCHEMA.types, strict=True)]
    return pa.table(arrays, schema=_SCHEMA)
