"""Columns of text that DuckDB keeps as more: UUIDs, JSON, intervals, maps and arrays.

Everything else meets them as text, and each table keeps what it has until it is copied.
"""

from collections.abc import Callable, Mapping
from functools import partial

import duckdb
import pyarrow as pa

from rhei_pipeline.mirrors.duckdb.housekeeping import COPY_PREFIX
from rhei_pipeline.mirrors.duckdb.tables import LOGICAL, MAIN, copy_name
from rhei_pipeline.model.array_texts import NEEDS_QUOTES, as_texts, lists_of
from rhei_pipeline.model.interval_texts import INTERVAL_TYPE, intervals_of
from rhei_pipeline.model.map_texts import MAP_TYPE, maps_of
from rhei_pipeline.model.schema import TableSchema
from rhei_pipeline.model.type_names import ARRAYS, INTERVAL, JSON, MAP
from rhei_pipeline.sql.intervals import interval_sql, interval_text_sql
from rhei_pipeline.sql.maps import map_sql, map_text_sql
from rhei_pipeline.sql.text import duckdb_type, literal, mirror_table, quote

_TEXT = "VARCHAR"
_INTERVAL, _MAP = (duckdb_type(pa.string(), of).upper() for of in (INTERVAL, MAP))
#: What makes such a type of a text, and the text of it.
_READ = {_INTERVAL: interval_sql, _MAP: map_sql}
_WRITTEN = {_INTERVAL: interval_text_sql, _MAP: map_text_sql}
#: What Arrow has otherwise than as text, or under a label.
_CONVERTED = {JSON, INTERVAL, MAP, *ARRAYS}
#: How many values of a column are compared at once.
_ROWS = 65_536
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
        old, name = standing.get(column.name.lower()), column.name
        new = duckdb_type(column.type, schema.logical.get(name)).upper()
        if old not in {_TEXT, *LOGICAL} or new not in {_TEXT, *LOGICAL} or old == new:
            continue
        target = mirror_table(schema)
        if new != _TEXT and stays_as_it_is:
            continue
        if new != _TEXT and not _stays(connection, target, name, (old, new)):
            new = _TEXT
        _alter(connection, target, name, (old, new))
        if name.lower() in copied:
            _alter(connection, copy_name(schema), name, (copied[name.lower()], new))


def as_kept(connection: duckdb.DuckDBPyConnection, rows: pa.Table, schema: TableSchema) -> pa.Table:
    """Return rows as the mirror keeps them: no array, map or interval is text, JSON is unread.

    So are rows that are to be compared with those of the mirror.
    """
    logical = schema.logical
    if not any(of in _CONVERTED for of in logical.values()):
        return rows
    kept = kept_logical(connection, schema)
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
    made = {INTERVAL: (INTERVAL_TYPE, intervals_of), MAP: (MAP_TYPE, maps_of)}
    return made.get(logical or "")


def _stays(
    connection: duckdb.DuckDBPyConnection, target: str, name: str, kinds: tuple[str, str]
) -> bool:
    """Return whether every value of a column is the same text after its cast."""
    cast = _cast(name, *kinds)
    found = connection.sql(f"select {quote(name)} as old, {cast} as new from {target}")
    for batch in found.to_arrow_reader(_ROWS):
        texts = as_texts(pa.Table.from_batches([batch]))
        if not texts["old"].equals(texts["new"]):
            return False
    return True


def _alter(
    connection: duckdb.DuckDBPyConnection, target: str, name: str, kinds: tuple[str, str]
) -> None:
    if kinds[0] != kinds[1]:
        cast = _cast(name, *kinds)
        connection.execute(
            f"alter table {target} alter column {quote(name)} set data type {kinds[1]} using {cast}"
        )


def _cast(name: str, old: str, new: str) -> str:
    """Return SQL that casts a column's text to another type; null where that is not possible."""
    column = quote(name)
    written = _WRITTEN.get(old)
    text = f"{column}::varchar" if written is None else written(column)
    read = _READ.get(new)
    if read is not None:
        return read(text)
    was_array, is_array = old.endswith("[]"), new.endswith("[]")
    if is_array and old == _TEXT:
        flat = f"'[' || {column}[2:-2] || ']'"
        nested = f"translate({column}, '{{}}', '[]')"
        return f"try_cast({nested if new.endswith('[][]') else flat} as {new})"
    if was_array and new == _TEXT:
        return _array_text(column, old)
    return f"try_cast({column if was_array else text} as {new})"


def _array_text(column: str, kind: str) -> str:
    """Return SQL of an array as PostgreSQL writes it."""
    shown = "e::varchar"
    if kind.endswith("[][]"):
        rows = f"list_transform({column}, lambda r: {_array_text('r', kind.removesuffix('[]'))})"
        return f"'{{' || array_to_string({rows}, ',') || '}}'"
    if kind == "BOOLEAN[]":
        shown = "case when e then 't' when not e then 'f' end"
    elif kind == "VARCHAR[]":
        escaped = "regexp_replace(e, '([\\\\\"])', '\\\\\\1', 'g')"
        quoted = f"'\"' || {escaped} || '\"'"
        shown = f"case when regexp_matches(e, {literal(NEEDS_QUOTES)}) then {quoted} else e end"
    elements = f"list_transform({column}, lambda e: coalesce({shown}, 'NULL'))"
    return f"'{{' || array_to_string({elements}, ',') || '}}'"


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
