"""What somebody else made in a mirror's file: no table or view of theirs is replaced by a copy."""

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import duckdb

from rhei_pipeline.errors import RheiError, SchemaDriftError
from rhei_pipeline.mirrors.duckdb.connecting import CONFIG, connect_once_free
from rhei_pipeline.mirrors.duckdb.tables import SNAPSHOTS, folded
from rhei_pipeline.model.schema import RESERVED_PREFIX, TableSchema

#: The names of a mirror's own tables, and those of a file without one.
_RECORDED = (
    "select concat_ws('.', namespace, relation) from _rhei_table"
    " union all select table_name from _rhei_watermark"
    " union all select table_name from _rhei_history"
)
_NOTHING = "select '' where false"
#: To look for them takes half as long as to open a mirror.
_MACROS = (
    "select distinct lower(function_name) as name from duckdb_functions() where not internal"
    " and name in (select function_name from duckdb_functions() where internal) order by all"
)


class ForeignTables:
    """What stood in a file besides mirrored tables; looked for before the first copy.

    While a mirror is open, nobody else makes tables in its file.

    Args:
        is_new: The file has just been made, and holds nothing.
    """

    def __init__(self, *, is_new: bool = False) -> None:
        self._found: frozenset[tuple[str, str]] | None = frozenset() if is_new else None

    def refuse(self, connection: duckdb.DuckDBPyConnection, schema: TableSchema) -> None:
        """Do nothing where no table or view of others has the name of a mirrored table.

        Raises:
            SchemaDriftError: One has it.
        """
        if self._found is None:
            self._found = _found(connection)
        if folded(schema) in self._found:
            raise made_by_others(schema.name)


def made_by_others(name: str) -> SchemaDriftError:
    """Return the error for what stands in the place of a table of ours."""
    return SchemaDriftError(
        "the mirror's file has a table or view of this name that somebody else made",
        table=name,
        hint="rename that one in DuckDB while nothing has the file open, or give another"
        " mirror.path",
    )


@dataclass(frozen=True, slots=True)
class FileContents:
    """What a DuckDB file holds, as far as it matters before a mirror is opened in it.

    Attributes:
        is_mirror: Whether a mirror was opened in it before.
        foreign: The folded schemas and names of what others made there.
    """

    is_mirror: bool
    foreign: frozenset[tuple[str, str]]


def read_contents(file: Path) -> FileContents | None:
    """Read what is in a file, and change nothing; None where it cannot be read now."""
    try:
        with closing(_opened_to_read(file)) as connection:
            connection.execute("select 1 from duckdb_tables() where table_name = '_rhei_mirror'")
            is_mirror = connection.fetchone() is not None
            return FileContents(is_mirror, _found(connection, _RECORDED if is_mirror else _NOTHING))
    except (RheiError, duckdb.Error):  # it is held, damaged, or older than these records
        return None


def read_macros(file: Path) -> list[str]:
    """Return the macros in a file that DuckDB would take for functions of its own; change nothing.

    None is found where the file cannot be read now.
    """
    try:
        with closing(_opened_to_read(file)) as connection:
            found = connection.execute(_MACROS).fetchall()
    except (RheiError, duckdb.Error):
        return []
    return [name for (name,) in found]


def _opened_to_read(file: Path) -> duckdb.DuckDBPyConnection:
    config = CONFIG | {"access_mode": "READ_ONLY"}
    return connect_once_free(str(file), config, time.monotonic())


def _found(
    connection: duckdb.DuckDBPyConnection, recorded: str = _RECORDED
) -> frozenset[tuple[str, str]]:
    """Return the folded names of what no record names: not this version's, nor an older one's."""
    rows = connection.execute(
        "with relation(namespace, name) as ("
        " select schema_name, table_name from duckdb_tables()"
        "  where database_name = current_database() and not internal"
        " union all select schema_name, view_name from duckdb_views()"
        "  where database_name = current_database() and not internal"
        f"), known(name) as ({recorded})"
        " select lower(namespace), lower(name) from relation"
        f" where namespace <> '{SNAPSHOTS}' and not starts_with(lower(name), '{RESERVED_PREFIX}')"
        "  and lower(name) not in (select lower(name) from known)"
        "  and lower(namespace || '.' || name) not in (select lower(name) from known)"
    ).fetchall()
    return frozenset(rows)
