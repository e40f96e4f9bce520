"""The work on a mirror that its contract suites consist of: merges, copies, versions."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from rhei_pipeline.changes.scd2 import supersede
from rhei_pipeline.model.changes import Counts, NetChanges, Position, event_schema
from rhei_pipeline.model.progress import CopyProgress
from rhei_pipeline.model.schema import OPERATION, VALID_FROM, VALID_TO, Column, Mode, Table
from rhei_pipeline.model.schema import TableSchema as Schema
from rhei_pipeline.protocols import Mirror, MirrorTransaction
from rhei_pipeline.sql.text import mirror_table

SCHEMA = Schema("t", (Column("k", pa.string()), Column("v", pa.float64())), ("k",))
TABLE = Table(SCHEMA)
HISTORY = Table(
    Schema("h", (Column("k", pa.string()), Column("v", pa.float64())), ("k",)), Mode.TEMPORAL
)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
#: A key, its value, and when it became so, in seconds after `NOW`; value "gone": it was deleted.
Event = tuple[str | int, float | str | None, int]


def rows(**values: float | None) -> pa.Table:
    """Return rows of the suites' tables: values by key."""
    return pa.table({"k": list(values), "v": pa.array(values.values(), pa.float64())})


def keys(*names: str) -> pa.Table:
    """Return keys of the suites' tables."""
    return pa.table({"k": pa.array(names, pa.string())})


def merge(mirror: Mirror, upserts: pa.Table, tombstones: pa.Table) -> Counts:
    """Merge into the destructive table, and commit."""
    with mirror.transaction() as transaction:
        return transaction.merge(TABLE, NetChanges(upserts, tombstones))


def held(mirror: Mirror) -> dict[str, float | None]:
    """Return what the destructive table holds."""
    found = mirror.query("select * from t").to_pylist()
    assert len({row["k"] for row in found}) == len(found)
    return {row["k"]: row["v"] for row in found}


def copy(mirror: Mirror, table: Table, values: pa.Table, at: datetime = NOW) -> int | None:
    """Copy these rows whole, put the copy in place, and commit."""
    progress = CopyProgress(table.name, Position(1, "p"), "shape", complete=True)
    with mirror.transaction() as transaction:
        transaction.begin_copy(table, progress)
        transaction.append_copy(table, values, progress)
        adopted = transaction.adopt_copy(table, at)
        if adopted is None:
            transaction.drop_copy(table)
        return adopted


def apply(transaction: MirrorTransaction, table: Table, *happened: Event) -> Counts:
    """Give a history the versions of these events."""
    rows = [
        {
            "_rhei_sequence": number,
            "_rhei_changed_at": NOW + at * SECOND,
            "_rhei_live": value != "gone",
            "k": key,
            "v": None if value == "gone" else value,
        }
        for number, (key, value, at) in enumerate(happened)
    ]
    events = pa.Table.from_pylist(rows, schema=event_schema(table.schema))
    opened, floors = transaction.open_versions(table, events)
    versions = supersede(events, opened, floors, table.schema)
    transaction.supersede(table, versions)
    return Counts(versions.inserted, versions.updated, versions.deleted)


def versions(mirror: Mirror, table: Table = HISTORY) -> list[tuple[Any, ...]]:
    """Return a history's versions: key, value, from and to in seconds after `NOW`, operation."""
    sql = f"select k, v, {VALID_FROM}, {VALID_TO}, {OPERATION} from {mirror_table(table.schema)}"
    found = [tuple(row.values()) for row in mirror.query(sql).to_pylist()]

    def seconds(at: datetime | None) -> float | None:
        return None if at is None else (at - NOW) / SECOND

    rows = [(k, v, seconds(begin), seconds(end), what) for k, v, begin, end, what in found]
    return sorted(rows, key=lambda each: (each[0], each[2]))
