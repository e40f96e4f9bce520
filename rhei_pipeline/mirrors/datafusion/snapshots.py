"""A temporal table's rows as of instants, stored under the days that they are of."""

from collections.abc import Mapping
from datetime import date

import pyarrow as pa

from rhei_pipeline.mirrors.datafusion.buffered_rows import rows_as_of
from rhei_pipeline.mirrors.datafusion.manifest import SNAPSHOTS
from rhei_pipeline.mirrors.datafusion.write_buffer import WriteBuffer
from rhei_pipeline.model.progress import AsOf
from rhei_pipeline.model.schema import TableSchema
from rhei_pipeline.protocols import FindRows
from rhei_pipeline.sql.text import quote

#: The day that a row of a snapshot is of.
DAY = pa.field("snapshot_date", pa.date32())


def snapshots_of(schema: TableSchema) -> str:
    """Return the name of a table's snapshots."""
    return f"{SNAPSHOTS}.{quote(schema.snapshot_name)}"


def add_snapshots(
    target: WriteBuffer, history: WriteBuffer, days: Mapping[date, AsOf], find: FindRows
) -> dict[date, int]:
    """Store the rows of each day, in place of those it had; return how many they are."""
    asked = dict.fromkeys(column for then in days.values() for column in then.columns)
    new = [history.schema.field(n) for n in asked if n not in target.schema.names]
    target.reshape(pa.schema([*target.schema, *new]))
    written = {}
    for day, then in days.items():
        shape = pa.schema([history.schema.field(name) for name in then.columns])
        rows = find(day, then, shape)
        if rows is None:
            rows = rows_as_of(history, then)
        dated = rows.add_column(0, DAY, pa.repeat(pa.scalar(day), rows.num_rows))
        target.append_tagged(dated, day.isoformat())
        written[day] = rows.num_rows
    return written
