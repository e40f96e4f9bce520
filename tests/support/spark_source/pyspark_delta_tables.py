"""Delta tables for a Spark without Delta's jars, which no wheel carries: delta-rs reads them.

Spark finds this by the beginning of its name, in a directory of its server's PYTHONPATH.
"""

from collections.abc import Iterator, Mapping

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
from pyspark.sql.types import StructType


class DefaultSource(DataSource):  # type: ignore[misc]
    """A table at one version."""

    @classmethod
    def name(cls) -> str:
        return "delta"

    def schema(self) -> StructType:
        return from_arrow_schema(pa.schema(_opened(self.options).schema().to_arrow()))

    def reader(self, schema: StructType) -> DataSourceReader:
        return _Reader(dict(self.options), to_arrow_schema(schema, timezone="UTC"))


class _Reader(DataSourceReader):  # type: ignore[misc]
    def __init__(self, options: Mapping[str, str], schema: pa.Schema) -> None:
        self._options, self._schema = options, schema

    def partitions(self) -> list[InputPartition]:
        return [InputPartition(0)]

    def read(self, _partition: InputPartition) -> Iterator[pa.RecordBatch]:
        asked = QueryBuilder().register("t", _opened(self._options)).execute("select * from t")
        yield from pa.table(asked.read_all()).cast(self._schema).to_batches()


def _opened(options: Mapping[str, str]) -> DeltaTable:
    version = options.get("versionAsOf") or options.get("versionasof")
    return DeltaTable(options["path"], version=None if version is None else int(version))
