"""Texts that are more than text, cast from what they were to what they are, in DuckDB's SQL."""

import pyarrow as pa

from rhei_pipeline.model.type_names import ARRAYS, INTERVAL, MAP, structure
from rhei_pipeline.sql.arrays import array_sql, array_text_sql
from rhei_pipeline.sql.intervals import interval_sql, interval_text_sql
from rhei_pipeline.sql.maps import map_sql, map_text_sql
from rhei_pipeline.sql.structs import struct_sql, struct_text_sql
from rhei_pipeline.sql.text import duckdb_type

_READ = {INTERVAL: interval_sql, MAP: map_sql}
_WRITTEN = {INTERVAL: interval_text_sql, MAP: map_text_sql}


def cast_logical(column: str, old: str | None, new: str | None) -> str:
    """Return SQL of values as another type, by their texts; something else where they are none.

    Args:
        column: The values, as SQL.
        old: What their text is, such as `uuid`; None of text that is nothing more.
        new: What it is to be.
    """
    if old == new:
        return column
    text = _text(column, old)
    kept, kind = structure(new or ""), duckdb_type(pa.string(), new)
    if new in _READ:
        return _READ[new](text)
    if new in ARRAYS:
        return array_sql(text, kind)
    return f"try_cast({text} as {kind})" if kept is None else struct_sql(text, kept)


def _text(column: str, logical: str | None) -> str:
    """Return SQL of values as PostgreSQL writes them."""
    kept = structure(logical or "")
    if kept is not None:
        return struct_text_sql(column, kept)
    if logical in ARRAYS:
        return array_text_sql(column, duckdb_type(pa.string(), logical))
    return _WRITTEN[logical](column) if logical in _WRITTEN else f"({column}::varchar)"
