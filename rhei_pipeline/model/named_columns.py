"""Columns named by whoever adds or drops them: found in any case, and refused by name."""

from collections.abc import Sequence

import pyarrow as pa

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.schema import Column, TableSchema, nearest
from rhei_pipeline.model.type_names import type_name


def find_column(schema: TableSchema, name: str) -> Column | None:
    """Return a table's column by its name, in any case; the very spelling comes first."""
    by_name = {column.name.lower(): column for column in schema.columns}
    by_name |= {column.name: column for column in schema.columns}
    return by_name.get(name) or by_name.get(name.lower())


def refuse_other_type(schema: TableSchema, column: Column, arrow_type: pa.DataType) -> None:
    """Refuse to add a column that is there already with another type.

    Raises:
        SchemaError: Names both types.
    """
    if column.type != arrow_type:
        standing = type_name(column.type, column.epoch, column.logical)
        raise SchemaError(
            f"it has a column {column.name!r} already, of type {standing}, not {arrow_type}",
            table=schema.name,
            hint="add a column of another name; or change the type in the source, and the next"
            " sync follows",
        )


def refuse_unknown_column(schema: TableSchema, name: str, known: Sequence[str]) -> None:
    """Refuse to drop a column that neither the source has nor, as is `known`, the mirror.

    Raises:
        SchemaError: Names the nearest column.
    """
    if name.lower() not in map(str.lower, known):
        raise SchemaError(
            f"it has no column {name!r}", table=schema.name, hint=nearest(name, schema.names)
        )
