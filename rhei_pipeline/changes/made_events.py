"""Events that no source sent: made of rows, or of keys that have none any more."""

from datetime import datetime

import pyarrow as pa

from rhei_pipeline.model.changes import CHANGED_AT, LIVE, SEQUENCE, event_schema
from rhei_pipeline.model.schema import TableSchema
from rhei_pipeline.model.type_names import INSTANT


def as_events(table: TableSchema, rows: pa.Table, at: datetime, *, live: bool) -> pa.Table:
    """Make one event of each row, or of each key that has none any more."""
    count, schema = rows.num_rows, event_schema(table)
    own = {
        SEQUENCE: pa.repeat(pa.scalar(0, pa.int64()), count),
        CHANGED_AT: pa.repeat(pa.scalar(at, INSTANT), count),
        LIVE: pa.repeat(pa.scalar(live), count),
    }
    given = {name: rows[name] for name in rows.column_names}
    columns = [
        own.get(field.name, given.get(field.name, pa.nulls(count, field.type))) for field in schema
    ]
    return pa.table(columns, schema=schema)
