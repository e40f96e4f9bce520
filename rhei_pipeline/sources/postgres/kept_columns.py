"""Which columns of a PostgreSQL table a schema change has left alone."""

from collections.abc import Mapping

from rhei_pipeline.model.schema import TableSchema


def former_names(known: TableSchema, schema: TableSchema) -> Mapping[str, str] | None:
    """Return the name that each column had; see `capabilities.KnowsKept`.

    A mark is another one after whatever was done to a column.
    """
    before = {column.name: column for column in known.columns}
    is_kept = all(column.mark and before.get(column.name) == column for column in schema.columns)
    return {name: name for name in schema.names} if is_kept else None
