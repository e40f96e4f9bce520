"""How a SQLite table's columns behave in queries, beyond what their types say."""

import re
import sqlite3

import pyarrow as pa

from rhei_pipeline.model.schema import Column, Table, TableOptions
from rhei_pipeline.model.semantics import Kind, MirroredTable
from rhei_pipeline.sources.sqlite.catalog import declared_type

#: Digits of a decimal that a double tells apart.
_DOUBLE_DIGITS = 15
_KINDS = (
    (pa.int64(), Kind.INT),
    (pa.float64(), Kind.REAL),
    (pa.string(), Kind.TEXT),
    (pa.binary(), Kind.BLOB),
    (pa.bool_(), Kind.TRUTH),
    # Such a column holds text, YYYY-MM-DD and nothing else: it is ordered as the days are.
    (pa.date32(), Kind.DATE),
)


def meaning(connection: sqlite3.Connection, table: Table, options: TableOptions) -> MirroredTable:
    """Describe a table for translation.

    A column is comparable on both sides only where its declaration, not its values or the
    settings, gives it its type: then its affinity is the one that the type implies.
    """
    rows = connection.execute(
        "select name, type from temp.pragma_table_xinfo(?) where hidden <> 1", (table.name,)
    ).fetchall()
    declared = dict(rows)
    given = {name.lower() for name in options.types}
    kinds = {
        column.name: _kind(column, declared[column.name])
        for column in table.schema.columns
        if column.name in declared and column.name.lower() not in given
    }
    if not _compares_bytes(connection, table.name):
        kinds = {name: kind for name, kind in kinds.items() if kind is not Kind.TEXT}
    names = tuple(name for name, _ in rows)
    return MirroredTable(table.schema, table.mode, kinds, all_columns=names)


def _kind(column: Column, declared: str) -> Kind:
    kept = declared_type(declared)
    if column.epoch is not None or kept is None or not kept.equals(column.type):
        return Kind.OPAQUE
    if pa.types.is_decimal(kept):
        return Kind.NUMBER if kept.precision <= _DOUBLE_DIGITS else Kind.OPAQUE
    return next((kind for known, kind in _KINDS if known.equals(kept)), Kind.OPAQUE)


def _compares_bytes(connection: sqlite3.Connection, table: str) -> bool:
    """Return whether the table's text is compared byte by byte.

    No pragma tells a column's collation, so any mention of one in the declaration counts.
    """
    found = connection.execute(
        "select sql from sqlite_master where type = 'table' and name = ?", (table,)
    ).fetchone()
    (encoding,) = connection.execute("pragma encoding").fetchone()
    declaration = str(found[0]) if found else "collate"
    return encoding == "UTF-8" and not re.search(r"\bcollate\b", declaration, re.IGNORECASE)
