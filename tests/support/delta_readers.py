"""What foreign readers of Delta see in a published table."""

import pyarrow as pa
from deltalake import DeltaTable


def read_by_delta_rs(table: DeltaTable) -> pa.Table:
    """Return the rows as delta-rs's own engine reads them, in the table's types."""
    found = pa.RecordBatchReader.from_stream(table.scan()).read_all()
    return found.cast(pa.schema(table.schema().to_arrow()))
