"""Which versions of a temporal table are more than its declaration keeps, in a mirror's SQL.

Only versions that have ended go, and of each row the oldest ones: what stays of a row is the end of
its history. The latest end of a version that went is the cut. From there on every instant is
answered from whole history; an earlier one could be answered from a hole, and is refused.
"""

import pyarrow as pa

from rhei_pipeline.model.retention import Ageing
from rhei_pipeline.model.schema import VALID_FROM, VALID_TO, TableSchema
from rhei_pipeline.sql.text import listed, mirror_table, quote


def identity(schema: TableSchema) -> tuple[str, ...]:
    """Return the columns that tell a table's versions apart."""
    return (*schema.primary_key, VALID_FROM, VALID_TO)


def expired_sql(ageing: Ageing, until: str) -> str:
    """Write a query for the versions to remove; `until` is the SQL of that instant."""
    schema = ageing.table.schema
    parts = []
    if ageing.until is not None:
        own = listed(identity(schema))
        parts.append(f"select {own} from {mirror_table(schema)} where {VALID_TO} <= {until}")
    if ageing.versions is not None:
        parts.append(surplus_sql(schema, ageing.versions))
    return " union ".join(parts)


def surplus_sql(schema: TableSchema, versions: int) -> str:
    """Write a query for the ended versions beyond the newest so many of their row.

    Rows with few versions are left out before those of the others are put in order. Versions that
    ended as they began may be alike in all that tells them apart: they stay, or go, together.
    """
    name, key = mirror_table(schema), [_plain(schema, name) for name in schema.primary_key]
    shown = [f"{plain} as {quote(own)}" for plain, own in zip(key, schema.primary_key, strict=True)]
    many = (
        f"select {', '.join(shown)} from {name} t group by {', '.join(key)}"
        f" having count(*) > {versions}"
    )
    same = (f"{plain} = m.{quote(own)}" for plain, own in zip(key, schema.primary_key, strict=True))
    return (
        f"select {listed(identity(schema))} from (select {listed(identity(schema), 't')},"
        f" rank() over (partition by {', '.join(key)} order by t.{VALID_FROM} desc,"
        f" t.{VALID_TO} desc nulls first) as _rhei_age from {name} t join ({many}) m"
        f" on {' and '.join(same)}) v where _rhei_age > {versions} and {VALID_TO} is not null"
    )


def _plain(schema: TableSchema, name: str) -> str:
    """Write a part of a key so that 0.0 and -0.0, which are one key, are equal."""
    kinds = {column.name: column.type for column in schema.key_columns}
    part = f"t.{quote(name)}"
    return f"({part} + 0.0)" if pa.types.is_floating(kinds[name]) else part
