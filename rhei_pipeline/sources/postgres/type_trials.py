"""Which types would take a column's values that were rejected: found by trying them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
from psycopg.sql import Literal

from rhei_pipeline.model.reports import TypeProposal
from rhei_pipeline.model.schema import Column, TableSchema
from rhei_pipeline.model.type_names import named_type, type_name
from rhei_pipeline.sources.postgres.catalog import Connection, qualified
from rhei_pipeline.sources.postgres.row_texts import copied
from rhei_pipeline.sources.postgres.types import admit_text
from rhei_pipeline.sql.text import quote

#: The types that are tried, the one that tells most first. The server has types of its own: what is
#: rejected is beyond its type's form in Arrow, or beyond a type that was declared. Text, as the
#: server writes it, takes everything.
TRIED = ("timestamp", "date", "int64", "decimal(38,9)", "string")
#: So many letters, and other rows, are tried.
_MOST = 10_000


def proposals(
    connection: Connection, table: TableSchema, column: str, keys: Sequence[tuple[object, ...]]
) -> Iterator[TypeProposal]:
    """Yield each other type that takes some of the values of a column in rows with these keys.

    Args:
        connection: Open on the source.
        table: The table as it is mirrored.
        column: The column.
        keys: The keys of its dead letters.
    """
    present = next(each for each in table.columns if each.name == column)
    letters = _texts(connection, table, column, _are(connection, table, keys[:_MOST]))
    others = _texts(connection, table, column, "true")
    fitting = len(others) - _refused(others, present)
    for name in TRIED:
        kind, epoch, logical = named_type(name)
        tried = replace(present, type=kind, epoch=epoch, logical=logical)
        healed = len(letters) - _refused(letters, tried)
        if healed and name != type_name(present.type, present.epoch, present.logical):
            refused = max(0, _refused(others, tried) - (len(others) - fitting))
            yield TypeProposal(table.name, column, name, len(letters), healed, refused, fitting)


def _refused(texts: pa.Array, column: Column) -> int:
    return len(admit_text(texts, column)[1])


def _are(connection: Connection, table: TableSchema, keys: Sequence[tuple[object, ...]]) -> str:
    names = ", ".join(map(quote, table.primary_key))
    listed = ", ".join(
        f"({', '.join(Literal(part).as_string(connection) for part in key)})" for key in keys
    )
    return f"({names}) in ({listed})"


def _texts(connection: Connection, table: TableSchema, column: str, where: str) -> pa.Array:
    query = f"select {quote(column)} from {qualified(table)} where {where} limit {_MOST}"
    found = next(copied(connection, query, [column]), None)
    return pa.array([], pa.string()) if found is None else found[column].combine_chunks()
