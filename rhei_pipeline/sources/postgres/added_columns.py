"""What columns that were added to a PostgreSQL table are in the rows that stood before.

A column whose default is a constant, or that has none, is added without writing a row. What the
rows that stood before have in it, the server keeps beside the column: `attmissingval`. It forgets
that when it writes the table again, and then the rows are elsewhere.
"""

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from rhei_pipeline.model.schema import Column, TableSchema
from rhei_pipeline.sources.postgres.catalog import is_logged
from rhei_pipeline.sources.postgres.connection import Connection
from rhei_pipeline.sources.postgres.kept_columns import files_of
from rhei_pipeline.sources.postgres.table_facts import HOLDING, STORAGE
from rhei_pipeline.sources.postgres.types import admit_text

#: A value is the text of the only element of the array that holds it. Partitions have each their
#: own, and can be the tables of another server.
_ADDED = f"""
select {STORAGE}, a.attname, a.attnum, a.attgenerated <> '' or held.kinds > 1, held.has_value,
    held.value
from pg_class c join pg_attribute a on a.attrelid = c.oid cross join lateral (
    select bool_or(own.atthasmissing) as has_value,
        min((own.attmissingval::text::text[])[1]) as value,
        count(distinct concat_ws(' ', own.atthasmissing, own.attmissingval::text))
        + count(*) filter (where held.relkind <> 'r') as kinds
    from {HOLDING} held join pg_attribute own on own.attrelid = held.oid
    where own.attname = a.attname
) held
where c.oid = %s and a.attname = any(%s) and a.attnum > 0 and not a.attisdropped
"""
_NAMES = """
select attname, attgenerated <> '', attgenerated::text from pg_attribute
where attrelid = %s and attnum > 0 and not attisdropped order by attnum
"""


def added_values(
    connection: Connection, oid: int, known: TableSchema, schema: TableSchema
) -> Mapping[str, pa.Scalar] | None:
    """Return what each column that is new since is in rows that nobody has written since.

    None where one was there before and was not mirrored, or is not all that was added; where the
    rows were written again; or where a column's values are computed, or differ among partitions.
    """
    place, _, most = files_of(known).partition(":")
    columns = {column.name: column for column in schema.columns[len(known.columns) :]}
    found = connection.execute(_ADDED, (oid, list(columns))).fetchall() if place else []
    expected = f"{place}:{int(most or 0) + len(columns)}"
    values = {}
    for now, name, number, differs, has_value, text in found:
        if now != expected or number <= int(most) or differs or (has_value and text is None):
            return None
        values[name] = _value(columns[name], text)
    told = {name: value for name in columns if (value := values.get(name)) is not None}
    return told if len(told) == len(columns) else None


def _value(column: Column, text: str | None) -> pa.Scalar | None:
    """Return a value in the mirror's type; None where it does not fit."""
    values, rejections = admit_text(pa.array([text], pa.large_string()), column)
    return None if rejections else values[0]


def logged_names(connection: Connection, oid: int) -> tuple[str, ...]:
    """Return the names of all columns of a table that its changes are logged with, in order."""
    found = connection.execute(_NAMES, (oid,)).fetchall()
    return tuple(name for name, _, generated in found if is_logged(connection, generated))


def leads_here(connection: Connection, oid: int, logged: Iterable[Sequence[str]]) -> bool:
    """Return whether a table had its first columns, by these names, whenever it was logged.

    A column that was renamed since it was added would be taken for another one.
    """
    names = {name: computed for name, computed, _ in connection.execute(_NAMES, (oid,))}
    stored = [name for name, computed in names.items() if not computed]
    return all(
        own == stored[: len(own)]
        for columns in logged
        for own in [[name for name in columns if not names.get(name, False)]]
    )
