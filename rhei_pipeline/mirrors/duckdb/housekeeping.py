"""The housekeeping tables of a DuckDB mirror: their format, its owner, dead letters."""

import uuid
from collections.abc import Container, Iterable
from contextlib import suppress

import duckdb
import pyarrow as pa

from rhei_pipeline.errors import MirrorError
from rhei_pipeline.mirrors.duckdb.progress import forget_copies
from rhei_pipeline.model.changes import DeadLetter, LetterName, LetterReason
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.model.stored_format import too_new
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.sql.text import quote

#: How the names of tables begin that hold a copy under way.
COPY_PREFIX = "_rhei_copy_"

#: What this version writes and reads; an older one is brought up to it when it is opened.
FORMAT = 1

_TABLES = (
    "create table if not exists _rhei_mirror(id varchar)",
    "alter table _rhei_mirror add column if not exists format bigint",
    "alter table _rhei_mirror add column if not exists owner varchar",
    "create table if not exists _rhei_watermark(table_name varchar, position bigint,"
    " proof varchar, recorded_at timestamptz)",
    "create table if not exists _rhei_copies(table_name varchar, position bigint,"
    " proof varchar, shape varchar, resume varchar, complete boolean)",
    "create table if not exists _rhei_dead_letter(table_name varchar, key varchar,"
    " column_name varchar, reason varchar, captured_at timestamptz, resolved_at timestamptz)",
    # Without a column: when the table's history begins. With one: when the source lost it. With an
    # empty one: since when the history is kept; older versions were removed.
    "create table if not exists _rhei_history(table_name varchar, column_name varchar,"
    " noted_at timestamptz)",
    "create table if not exists _rhei_table(table_name varchar, namespace varchar,"
    " relation varchar, primary_key varchar, set_aside boolean)",
)
#: What fails if one of them is missing.
_ALL = (
    "select owner from _rhei_mirror, _rhei_watermark, _rhei_copies, _rhei_dead_letter,"
    " _rhei_history, _rhei_table limit 0"
)
#: Its name could be that of a copy under way, of a table named `progress`.
_FORMER_COPIES = "_rhei_copy_progress"

_LETTER = pa.schema(
    [
        ("table_name", pa.string()),
        ("key", pa.string()),
        ("column_name", pa.string()),
        ("reason", pa.string()),
        ("captured_at", INSTANT),
    ]
)
#: SQL of the open dead letters; a condition may follow.
OPEN_LETTERS = "select * exclude (resolved_at) from _rhei_dead_letter where resolved_at is null"


def silent(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """Return a connection that prints nothing while it works, not in a notebook either."""
    return connection.execute("set enable_progress_bar = false")


def prepare(connection: duckdb.DuckDBPyConnection, path: str, *, is_new: bool = False) -> str:
    """Create our tables in a new file, or upgrade older ones; return the mirror's id.

    Raises:
        MirrorError: A newer version of this package wrote the file; nothing is changed then.
    """
    # In a new file, not to find them would have DuckDB make all the views of its catalogue, to look
    # for similar names.
    if not is_new and (current := _current_id(connection)) is not None:
        return current
    # One transaction: a file is brought up to date whole, and to the disk once.
    connection.execute("begin transaction")
    connection.execute(_TABLES[0])
    mirror_id, written = _identity(connection)
    if written is not None and written > FORMAT:
        connection.execute("rollback")
        raise _too_new(path, written)
    if written is None:
        connection.execute(f"alter table if exists {_FORMER_COPIES} rename to _rhei_copies")
    for statement in _TABLES:
        connection.execute(statement)
    if mirror_id is None:
        mirror_id = uuid.uuid4().hex
        connection.execute("insert into _rhei_mirror(id) values (?)", [mirror_id])
    if written is None:
        connection.execute("update _rhei_mirror set format = ?", [FORMAT])
    connection.execute("commit")
    return mirror_id


def _current_id(connection: duckdb.DuckDBPyConnection) -> str | None:
    """Return the mirror's id if all our tables are there as this version makes them."""
    with suppress(duckdb.CatalogException, duckdb.BinderException):
        connection.execute(_ALL)
        mirror_id, written = _identity(connection)
        return mirror_id if written == FORMAT else None
    return None


def read_mirror_id(connection: duckdb.DuckDBPyConnection, path: str) -> str:
    """Return the id of a mirror that is only read.

    Raises:
        MirrorError: It is no mirror yet, or one of another version.
    """
    mirror_id, written = None, None
    with suppress(duckdb.CatalogException):
        mirror_id, written = _identity(connection)
    if mirror_id is None or written is None:
        raise MirrorError(f"{path!r} is no mirror yet", hint="sync once, then read")
    if written > FORMAT:
        raise _too_new(path, written)
    return mirror_id


def _too_new(path: str, written: int) -> MirrorError:
    return MirrorError(
        too_new(f"mirror {path!r}", written, FORMAT),
        hint="use the newer version of rhei-pipeline that wrote it, or give another path",
    )


def _identity(connection: duckdb.DuckDBPyConnection) -> tuple[str | None, int | None]:
    """Return the mirror's id and format, None of what is older than that record."""
    found = connection.execute("select * from _rhei_mirror")
    names = [name for name, *_ in found.description or ()]
    record = dict(zip(names, found.fetchone() or (), strict=False))
    return record.get("id"), record.get("format")


def read_owner(connection: duckdb.DuckDBPyConnection) -> str | None:
    """Return the source and pipeline the mirror belongs to; None if never recorded."""
    found = connection.execute("select owner from _rhei_mirror").fetchone()
    return None if found is None else found[0]


def write_owner(connection: duckdb.DuckDBPyConnection, owner: str, *, new_id: str | None) -> None:
    """Record the owner; under a new id, no recorded position is proved any more."""
    connection.execute("update _rhei_mirror set owner = ?", [owner])
    if new_id is not None:
        connection.execute("update _rhei_mirror set id = ?", [new_id])
        connection.execute("update _rhei_watermark set proof = ''")
        connection.execute("update _rhei_copies set proof = ''")


def drop_copies(
    connection: duckdb.DuckDBPyConnection, kept: Container[tuple[str, str]] = ()
) -> None:
    """Drop every running copy but those of these folded places; the records stay."""
    found = connection.execute(
        "select schema_name, table_name from duckdb_tables() where starts_with(table_name, ?)"
        " and database_name = current_database()",
        [COPY_PREFIX],
    ).fetchall()
    for namespace, name in found:
        if (namespace.lower(), name.lower()) not in kept:
            connection.execute(f"drop table {quote(namespace)}.{quote(name)}")


def rename_records(connection: duckdb.DuckDBPyConnection, old: str, table: Table) -> None:
    """Assign what is recorded of a table to its new name, under which it was copied again."""
    new, again, bound = table.name, "d.table_name = ? and d.resolved_at is null", [old]
    if table.mode is Mode.TEMPORAL:  # they may be of versions that the copy has not met
        again += (
            " and exists (from _rhei_dead_letter n where n.table_name = ? and n.key = d.key"
            " and n.column_name is not distinct from d.column_name and n.resolved_at is null)"
        )
        bound.append(new)
    connection.execute(f"delete from _rhei_dead_letter d where {again}", bound)
    connection.execute(
        "update _rhei_dead_letter set table_name = ? where table_name = ?", [new, old]
    )
    rename_history(connection, old, new)
    connection.execute("delete from _rhei_watermark where table_name = ?", [old])
    forget_copies(connection, [old])


def rename_history(connection: duckdb.DuckDBPyConnection, old: str, new: str) -> None:
    """Assign what is recorded of a table's history to another name."""
    connection.execute("update _rhei_history set table_name = ? where table_name = ?", [new, old])


def forget_table(connection: duckdb.DuckDBPyConnection, table: str) -> None:
    """Delete all records of a table."""
    for record in ("_rhei_watermark", "_rhei_copies", "_rhei_dead_letter", "_rhei_history"):
        connection.execute(f"delete from {record} where table_name = ?", [table])


def write_letters(connection: duckdb.DuckDBPyConnection, letters: Iterable[DeadLetter]) -> int:
    """Store dead letters, one per table, key and column; return the number of distinct ones."""
    latest = {(letter.table, letter.key, letter.column): letter for letter in letters}
    if not latest:
        return 0
    rows = pa.Table.from_pylist([_letter_row(letter) for letter in latest.values()], _LETTER)
    connection.register("_rhei_letters", rows)
    connection.execute(
        "delete from _rhei_dead_letter d using _rhei_letters l where d.table_name = l.table_name"
        " and d.key = l.key and d.column_name = l.column_name and d.resolved_at is null"
    )
    connection.execute("insert into _rhei_dead_letter select *, null from _rhei_letters")
    connection.unregister("_rhei_letters")
    return len(latest)


def count_reasons(connection: duckdb.DuckDBPyConnection, table: str) -> dict[LetterReason, int]:
    """Return how many of a table's open dead letters have each column and reason."""
    found = connection.execute(
        "select column_name, reason, count(*) from _rhei_dead_letter"
        " where table_name = ? and resolved_at is null group by all",
        [table],
    ).fetchall()
    return {(column, reason): count for column, reason, count in found}


def open_names(connection: duckdb.DuckDBPyConnection, table: str) -> set[LetterName]:
    """Return the names of a table's open dead letters."""
    found = connection.execute(
        "select key, column_name from _rhei_dead_letter"
        " where table_name = ? and resolved_at is null",
        [table],
    ).fetchall()
    return set(found)


def _letter_row(letter: DeadLetter) -> dict[str, object]:
    return {
        "table_name": letter.table,
        "key": letter.key,
        "column_name": letter.column,
        "reason": letter.reason,
        "captured_at": letter.captured_at,
    }
