"""By which collation a table's columns compare: SQLite has no pragma that says so."""

import sqlite3
from collections.abc import Sequence

from rhei_pipeline.sql.text import quote

BINARY, NOCASE, RTRIM = "BINARY", "NOCASE", "RTRIM"
BUILTIN = {BINARY, NOCASE, RTRIM}
#: Of a column whose collation only the application defines.
OWN = "own"


def compare_by(connection: sqlite3.Connection, table: str, names: Sequence[str]) -> list[str]:
    """Return the collation of each column; no row of the table is read.

    Raises:
        OperationalError: The database cannot be read now.
    """
    return [_collation(connection, table, name) for name in names]


def _collation(connection: sqlite3.Connection, table: str, name: str) -> str:
    probed = (
        f"with probe(value) as materialized (select {quote(name)} from {quote(table)} where false"
        " union all select 'A') select value = 'a', value = 'A ' from probe"
    )
    try:
        ignores_case, ignores_spaces = connection.execute(probed).fetchone()
    except sqlite3.OperationalError as error:
        if "no such collation" not in str(error):
            raise
        return OWN
    return NOCASE if ignores_case else RTRIM if ignores_spaces else BINARY
