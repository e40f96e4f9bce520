"""The floor beside PostgreSQL: its bytes and a load, and a loop over its log written by hand.

Like `benchmarks.floor`, it knows one table and its changes, and nothing that may go wrong.
"""

from collections.abc import Iterable
from pathlib import Path

import duckdb
import psycopg
import pyarrow as pa

from benchmarks.timing import DIFFER

_MIRROR = """
create table orders(
    id integer, customer_id integer, status varchar, amount double, note varchar,
    created_at timestamptz, total decimal(12, 2)
);
create table position(lsn varchar);
insert into position values ('0/0');
"""
_NAMES = ("id", "customer_id", "status", "amount", "note", "created_at", "total")
_PENDING = (
    "select lsn::text, data from pg_logical_slot_peek_binary_changes('floor', null, null,"
    " 'proto_version', '1', 'publication_names', 'floor')"
)
_PROOF = "select count(*), sum(id), sum(customer_id), sum(total), count(note), min(id) from orders"
#: Where a message has the first of its values: behind its kind, the table's oid, and what it is.
_VALUES = 6
_INSERT, _UPDATE, _DELETE, _COMMIT = b"IUDC"
_TEXT = ord("t")

_Row = list[str | None]


class PostgresFloor:
    """A loop that mirrors the table `orders` of a PostgreSQL database in a DuckDB file."""

    def __init__(self, dsn: str, mirror: Path) -> None:
        self._source = psycopg.connect(dsn, autocommit=True)
        self._source.execute("create publication floor for table orders")
        self._source.execute("select pg_create_logical_replication_slot('floor', 'pgoutput')")
        self._mirror = duckdb.connect(mirror)
        self._mirror.execute(_MIRROR)

    def close(self) -> None:
        """Close both sides; the slot would keep the log."""
        self._mirror.close()
        self._source.execute("select pg_drop_replication_slot('floor')")
        self._source.execute("drop publication floor")
        self._source.close()

    def read(self) -> None:
        """Read all bytes of the table, and drop them."""
        statement = "copy orders to stdout (format binary)"
        with self._source.cursor() as cursor, cursor.copy(statement) as messages:
            for _ in messages:
                pass

    def load(self, rows: pa.Table) -> None:  # noqa: ARG002  (DuckDB finds it by its name)
        """Write rows that are Arrow already."""
        self._mirror.execute("insert into orders select * from rows")

    def sync(self) -> None:
        """Apply what changed since: the last change of each key."""
        with self._source.cursor(binary=True) as cursor:
            messages = cursor.execute(_PENDING).fetchall()
        if not messages:
            return
        end, last = "0/0", dict[str | None, _Row | None]()
        for _, data in messages:
            kind = data[0]
            if kind in {_INSERT, _UPDATE}:
                values = _values(data)
                last[values[0]] = values
            elif kind == _DELETE:
                last[_values(data)[0]] = None
            elif kind == _COMMIT:
                place = int.from_bytes(data[10:18], "big")
                end = f"{place >> 32:X}/{place & 0xFFFFFFFF:X}"
        keys = pa.table({"id": pa.array(last, pa.string())})  # noqa: F841
        rows = _arrow(values for values in last.values() if values is not None)  # noqa: F841
        self._mirror.execute("begin")
        self._mirror.execute("delete from orders where id in (select id::integer from keys)")
        self._mirror.execute("insert into orders select * from rows")
        self._mirror.execute("update position set lsn = ?", (end,))
        self._mirror.execute("commit")
        self._source.execute("select pg_replication_slot_advance('floor', %s)", (end,))

    def prove(self) -> None:
        """End the run if the mirror is not what the source is: its figures were worth nothing."""
        if self._source.execute(_PROOF).fetchone() != self._mirror.execute(_PROOF).fetchone():
            raise SystemExit(f"the floor: {DIFFER}")


def _values(message: bytes) -> _Row:
    """Return the texts of a row (postgresql.org/docs/18/protocol-logicalrep-message-formats)."""
    place, values = _VALUES + 2, _Row()
    for _ in range(int.from_bytes(message[_VALUES : _VALUES + 2], "big")):
        is_text = message[place] == _TEXT
        place += 1
        if not is_text:
            values.append(None)
            continue
        end = place + 4 + int.from_bytes(message[place : place + 4], "big")
        values.append(message[place + 4 : end].decode())
        place = end
    return values


def _arrow(rows: Iterable[_Row]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(_NAMES)
    return pa.table([pa.array(values, pa.string()) for values in columns], _NAMES)
