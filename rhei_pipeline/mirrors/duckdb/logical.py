"""Columns of text that DuckDB keeps as more: UUIDs, JSON, intervals, maps, arrays and structs.

Everything else meets them as text, and each table keeps what it has until it is copied.
"""

from collections.abc import Callable, Mapping
from functools import partial

import duckdb
import pyarrow as pa

from rhei_pipeline.mirrors.duckdb.housekeeping import COPY_PREFIX
from rhei_pipeline.mirrors.duckdb.tables import MAIN, arrow_type, copy_name, logical_of
from rhei_pipeline.model.array_texts import as_texts, lists_of
from rhei_pipeline.model.interval_texts import INTERVAL_TYPE, intervals_of
from rhei_pipeline.model.logical_texts import admit_texts
from rhei_pipeline.model.map_texts import MAP_TYPE, maps_of
from rhei_pipeline.model.schema import TableSchema
from rhei_pipeline.model.selection import columns_of
from rhei_pipeline.model.struct_texts import structs_of
from rhei_pipeline.model.type_names import ARRAYS, INTERVAL, JSON, MAP, UUID, structure
from rhei_pipeline.sql.logical_casts import cast_logical
from rhei_pipeline.sql.text import duckdb_type, mirror_table, quote

_TEXT = "VARCHAR"
#: How many values of a column are compared at once.
_ROWS = 65_536
#: What a text was and is to be; None where it is nothing more.
_Kinds = tuple[str | None, str | None]
_JSON_LABEL = {"ARROW:extension:name": "arrow.json"}


def kept_logical(connection: duckdb.DuckDBPyConnection, schema: TableSchema) -> Mapping[str, str]:
    """Return what the text of a table's columns is, but for those that its mirror has as text."""
    if not schema.logical:
        return {}
    standing = _declared_types(connection, schema)
    return {
        name: logical
        for name, logical in schema.logical.items()
        if standing.get(name.lower()) != _TEXT
    }


def fit_texts(connection: duckdb.DuckDBPyConnection, schema: TableSchema) -> None:
    """Give columns of text the type that their text is by now, history included.

    A column is text where one of its values would not be the same again, and stays what it is where
    somebody has put an index on the table. The table's copy gets what the table has.
    """
    standing, copied = (_declared_types(connection, schema, copy) for copy in ("", COPY_PREFIX))
    stays_as_it_is = is_indexed(connection, schema)
    for column in schema.columns:
        kind, name = standing.get(column.name.lower(), ""), column.name
        old, new = logical_of(kind), schema.logical.get(name)
        if {arrow_type(kind), column.type} != {pa.string()} or old == new:
            continue
        target = mirror_table(schema)
        if new is not None and stays_as_it_is:
            continue
        if new is not None and not _stays(connection, target, name, (old, new)):
            new = None
        alter_logical(connection, target, name, (old, new))
        if name.lower() in copied:
            alter_logical(
                connection, copy_name(schema), name, (logical_of(copied[name.lower()]), new)
            )


def as_kept(connection: duckdb.DuckDBPyConnection, rows: pa.Table, schema: TableSchema) -> pa.Table:
    """Return rows as the mirror keeps them: what has parts is no text, and JSON is unread.

    So are rows that are to be compared with those of the mirror.
    """
    logical = schema.logical
    if all(of == UUID for of in logical.values()):
        return rows
    return _converted(rows, kept_logical(connection, schema))


def as_copied(
    connection: duckdb.DuckDBPyConnection, rows: pa.Table, schema: TableSchema
) -> pa.Table:
    """Return rows as the table's copy keeps them; a column is text there where one does not fit."""
    copied, kept, own = _declared_types(connection, schema, COPY_PREFIX), {}, columns_of(rows)
    for name, logical in schema.logical.items():
        if logical_of(copied.get(name.lower(), "")) != logical:
            continue
        if name not in own or _are_all(own[name], logical):
            kept[name] = logical
        else:
            alter_logical(connection, copy_name(schema), name, (logical, None))
    return _converted(rows, kept)


def _are_all(texts: pa.ChunkedArray, logical: str) -> bool:
    try:
        for chunk in texts.chunks:
            admit_texts(chunk, logical, trusted=False)
    except pa.ArrowInvalid:
        return False
    return True


def _converted(rows: pa.Table, kept: Mapping[str, str]) -> pa.Table:
    for place, field in enumerate(rows.schema):
        of, values = kept.get(field.name), rows.column(place)
        made = _made_of(of)
        if made is not None:
            kind, convert = made
            chunks = [convert(chunk) for chunk in values.chunks]
            rows = rows.set_column(place, field.name, pa.chunked_array(chunks, kind))
        elif of == JSON:
            rows = rows.set_column(place, field.with_metadata(_JSON_LABEL), values)
    return rows


def _made_of(logical: str | None) -> tuple[pa.DataType, Callable[[pa.Array], pa.Array]] | None:
    """Return what such texts are to Arrow, and what converts them; None where they stay texts."""
    if logical in ARRAYS:
        return pa.list_(ARRAYS[logical]), partial(lists_of, logical=logical)
    kept = structure(logical or "")
    if kept is not None:
        return kept.type, partial(structs_of, logical=kept.name)
    made = {INTERVAL: (INTERVAL_TYPE, intervals_of), MAP: (MAP_TYPE, maps_of)}
    return made.get(logical or "")


def _stays(connection: duckdb.DuckDBPyConnection, target: str, name: str, kinds: _Kinds) -> bool:
    """Return whether every value of a column is the same text after its cast."""
    cast = cast_logical(quote(name), *kinds)
    found = connection.sql(f"select {quote(name)} as old, {cast} as new from {target}")
    for batch in found.to_arrow_reader(_ROWS):
        texts = as_texts(pa.Table.from_batches([batch]))
        if not texts["old"].equals(texts["new"]):
            return False
    return True


def alter_logical(
    connection: duckdb.DuckDBPyConnection, target: str, name: str, kinds: _Kinds
) -> None:
    """Change what the text of a column is; see `cast_logical`."""
    if kinds[0] != kinds[1]:
        column, kind = quote(name), duckdb_type(pa.string(), kinds[1])
        cast = cast_logical(column, *kinds)
        connection.execute(
            f"alter table {target} alter column {column} set data type {kind} using {cast}"
        )


def _declared_types(
    connection: duckdb.DuckDBPyConnection, schema: TableSchema, prefix: str = ""
) -> dict[str, str]:
    """Return the types of a mirrored table's columns, by their names in lower case."""
    return dict(
        connection.execute(
            "select lower(column_name), data_type from duckdb_columns()"
            " where database_name = current_database()"
            " and lower(schema_name) = lower(?) and lower(table_name) = lower(?)",
            [schema.namespace or MAIN, prefix + schema.mirror_relation],
        ).fetchall()
    )


def is_indexed(connection: duckdb.DuckDBPyConnection, schema: TableSchema) -> bool:
    """Return whether somebody has put an index on a table; such a table cannot be altered."""
    found = connection.execute(
        "select exists (from duckdb_indexes() where database_name = current_database()"
        " and lower(schema_name) = lower(?) and lower(table_name) = lower(?))",
        [schema.namespace or MAIN, schema.mirror_relation],
    )
    return bool(found.fetchall()[0][0])
