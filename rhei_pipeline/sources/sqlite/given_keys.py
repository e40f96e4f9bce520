"""Keys that are given from outside, such as those of dead letters, as their table has them."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

from rhei_pipeline.sources.sqlite.catalog import SqliteTable
from rhei_pipeline.sources.sqlite.cursors import RowCursor
from rhei_pipeline.sources.sqlite.types import InvalidText, plain
from rhei_pipeline.sql.text import conjunction, listed, quote

#: Keys taken at once: several rows may be meant where keys are compared in any case.
_KEYS = 1_000


class StoredKey(NamedTuple):
    """A key as SQL: the numbered placeholder of each part, and what is bound to them."""

    parts: list[str]
    values: list[Any]


def stored_keys(
    connection: sqlite3.Connection, table: SqliteTable, keys: Iterable[Sequence[Any]]
) -> Iterator[StoredKey]:
    """Yield the keys of the rows that are meant; a key that no row has, as it was given.

    Text that is not UTF-8 is given as its bytes, as a blob is: who asked for the blob alone would
    take the row for deleted. A number may be given as a text.
    """
    for key in keys:
        found = [own for way in _ways(key) for own in _matching(connection, table, way)]
        yield from found or [_way(key, [False] * len(key))]


def _ways(key: Sequence[Any]) -> Iterator[StoredKey]:
    """Yield a key with each of its bytes as a blob, and as a text."""
    for are_text in product(*([False, True] if isinstance(v, bytes) else [False] for v in key)):
        yield _way(key, are_text)


def _way(key: Sequence[Any], are_text: Iterable[bool]) -> StoredKey:
    parts = [
        f"cast(?{number} as text)" if is_text else f"?{number}"
        for number, is_text in enumerate(are_text, 1)
    ]
    return StoredKey(parts, [plain(value) for value in key])


def _matching(
    connection: sqlite3.Connection, table: SqliteTable, way: StoredKey
) -> Iterator[StoredKey]:
    names, nullable = table.schema.primary_key, table.nullable_key
    same = conjunction(
        f"{quote(name)} {'is' if name in nullable else '='} {part}"
        for name, part in zip(names, way.parts, strict=True)
    )
    sql = f"select distinct {listed(names)} from {quote(table.schema.name)} where {same}"
    cursor = RowCursor(connection, sql, way.values)
    while rows := cursor.take(_KEYS):
        for row in rows:
            yield _way(row, [isinstance(value, InvalidText) for value in row])
