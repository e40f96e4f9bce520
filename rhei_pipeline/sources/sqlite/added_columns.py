"""What columns that were added to a SQLite table are in the rows that stood before.

`alter table ... add column` writes no row: one that stood before reads as the constant default that
is declared, as it would be if it had been written then.
"""

import sqlite3
from collections.abc import Mapping

import pyarrow as pa

from rhei_pipeline.model.schema import Column, TableSchema
from rhei_pipeline.sources.sqlite.column_identities import ColumnState
from rhei_pipeline.sources.sqlite.database import blank_database
from rhei_pipeline.sources.sqlite.types import admit_column
from rhei_pipeline.sql.text import quote

_DECLARED = "select name, type, dflt_value, hidden from temp.pragma_table_xinfo(?)"
_STRICT = "select strict from temp.pragma_table_list where schema = 'main' and name = ?"


def added_values(
    connection: sqlite3.Connection, known: TableSchema, schema: TableSchema
) -> Mapping[str, pa.Scalar] | None:
    """Return what each column that is new since is in rows that nobody has written since.

    None where one was there before and was not mirrored, or its values are computed.
    """
    state = ColumnState.of(known)
    if state is None:
        return None
    before = {*state.names}
    (strict,) = connection.execute(_STRICT, (schema.name,)).fetchone()
    declared = {
        name: (kind, default, hidden)
        for name, kind, default, hidden in connection.execute(_DECLARED, (schema.name,))
    }
    found = {}
    for column in schema.columns[len(known.columns) :]:
        kind, default, hidden = declared[column.name]
        value = None if hidden else _value(column, kind, default, "strict" if strict else "")
        if value is None or column.name.lower() in before:
            return None
        found[column.name] = value
    return found


def _value(column: Column, kind: str, default: str | None, strict: str) -> pa.Scalar | None:
    """Return a default as a row has it, in the mirror's type; None where it does not fit."""
    stored = (None,) if default is None else _stored(kind, default, strict)
    if stored is None:
        return None
    values, rejections = admit_column(stored, column)
    return None if rejections else values[0]


def _stored(kind: str, default: str, strict: str) -> tuple[object, ...] | None:
    """Ask SQLite itself what a row that stood before has; None where that is no constant."""
    with blank_database() as apart:
        apart.execute(f"create table t(before int) {strict}")
        apart.execute("insert into t values(1)")
        try:
            apart.execute(f"alter table t add column c {kind and quote(kind)} default {default}")
        except sqlite3.Error:
            return None
        return tuple(apart.execute("select c from t").fetchone())
