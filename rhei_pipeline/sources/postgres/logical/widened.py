"""Values that were logged in a narrower type than their column has by now.

PostgreSQL writes each type by the fewest digits that are read back as the same value of that type.
Of a `real`, these are the digits of another `double precision` than the one that it becomes.
"""

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.model.schema import Column, TableSchema
from rhei_pipeline.model.selection import as_one
from rhei_pipeline.sources.postgres.logical.pgoutput import LoggedRelation
from rhei_pipeline.sources.postgres.types import admit_text

#: The oid of `real`.
_REAL = 700


def with_widened(texts: pa.Table, schema: TableSchema, logged: LoggedRelation) -> pa.Table:
    """Return logged texts, those of reals as the texts of the doubles that they became.

    Where a declaration makes doubles of a column of reals, their texts are taken as they are.
    """
    types = dict(zip(logged.columns, logged.types, strict=True))
    for place, column in enumerate(schema.columns):
        is_double = column.type.equals(pa.float64()) and not column.overridden
        if is_double and types.get(column.name) == _REAL:
            own = _as_doubles(as_one(texts.column(column.name)))
            texts = texts.set_column(place, column.name, own)
    return texts


def _as_doubles(texts: pa.Array) -> pa.Array:
    reals, _ = admit_text(texts, Column("", pa.float32()))
    doubles = reals.cast(pa.float64()).cast(texts.type)
    return pc.if_else(pc.is_finite(reals), doubles, texts)
