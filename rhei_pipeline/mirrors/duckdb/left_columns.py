"""Columns of a DuckDB mirror's table that its source has no more: kept with their values, or gone.

A history keeps them by itself: rows are closed, and new ones have null there. What this is about is
a plain table, whose rows are written again, and a history that is not to keep them.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import duckdb

from rhei_pipeline.mirrors.duckdb.lent_rows import UPSERTS
from rhei_pipeline.mirrors.duckdb.logical import is_indexed
from rhei_pipeline.mirrors.duckdb.tables import SNAPSHOTS, arrow_type, copy_name, standing_name
from rhei_pipeline.model.schema import (
    HISTORY_NAMES,
    NOTHING_RENAMED,
    VALID_TO,
    FormerNames,
    Mode,
    Table,
    TableSchema,
)
from rhei_pipeline.model.set_aside import is_set_aside, names_aside, others_by_now
from rhei_pipeline.sql.text import listed, matching, mirror_table, quote

#: A table that is written again, beside it; a copy may be there as well.
_AGAIN = "_rhei_again_"
_LEFT = "temp._rhei_left"


def left_columns(connection: duckdb.DuckDBPyConnection, table: Table) -> Mapping[str, str]:
    """Return the columns of the mirror's table that the source has no more, with their types."""
    found = connection.sql(f"select * from {mirror_table(table.schema)} limit 0")
    own = {name.lower() for name in table.schema.names} | HISTORY_NAMES
    columns = zip(found.columns, map(str, found.types), strict=True)
    return {name: kind for name, kind in columns if name.lower() not in own}


@contextmanager
def values_kept(connection: duckdb.DuckDBPyConnection, table: Table, target: str) -> Iterator[None]:
    """Let registered rows replace those of a table or a copy, and have what these had there."""
    is_mirror = target == mirror_table(table.schema)
    kept = left_columns(connection, table) if _keeps(table) and is_mirror else {}
    if not kept:
        yield
        return
    key = table.schema.primary_key
    connection.execute(
        f"create or replace temp table _rhei_left as select {listed([*key, *kept], 't')}"
        f" from {target} t semi join {UPSERTS} u on {matching('t', 'u', key)}"
    )
    yield
    _give_back(connection, table, target, kept, _LEFT)
    connection.execute(f"drop table {_LEFT}")


def keep_left(connection: duckdb.DuckDBPyConnection, table: Table) -> None:
    """Give the copy, which is to replace a plain table, the columns that the table keeps."""
    kept = left_columns(connection, table) if _keeps(table) else {}
    copy = copy_name(table.schema)
    for name, kind in kept.items():
        connection.execute(f"alter table {copy} add column {quote(name)} {kind}")
    if kept:
        _give_back(connection, table, copy, kept, mirror_table(table.schema), "::varchar")


def drop_left(connection: duckdb.DuckDBPyConnection, table: Table) -> None:
    """Drop such columns of a history that does not keep them, and of its snapshots."""
    if table.mode is Mode.DESTRUCTIVE or table.keeps_dropped:
        return
    own = table.schema.names
    gone = {name for name in left_columns(connection, table) if not is_set_aside(name, own)}
    drop_columns(connection, table.schema, gone)
    days = _days(table)
    if gone and standing_name(connection, days) is not None:
        drop_columns(connection, days, gone)


def set_aside(connection: duckdb.DuckDBPyConnection, table: Table) -> FormerNames:
    """Set aside the columns of a history whose values mean something else now.

    Returns:
        The names that they had, by those that they have now.
    """
    if standing_name(connection, table.schema) is None:
        return NOTHING_RENAMED
    target = mirror_table(table.schema)
    found = connection.sql(f"select * from {target} limit 0")
    kinds = zip(found.columns, map(arrow_type, map(str, found.types)), strict=True)
    types = {name: kind for name, kind in kinds if kind is not None}
    if VALID_TO not in types:
        return NOTHING_RENAMED
    others = [*others_by_now(table.schema, types)]
    filled = [name for name in others if _has_values(connection, target, name)]
    aside = names_aside(filled, found.columns)
    rename_columns(connection, table, aside)
    return aside


def _has_values(connection: duckdb.DuckDBPyConnection, target: str, name: str) -> bool:
    found = connection.execute(f"select exists (from {target} where {quote(name)} is not null)")
    return bool(found.fetchall()[0][0])


def rename_columns(
    connection: duckdb.DuckDBPyConnection, table: Table, former: FormerNames
) -> bool:
    """Rename columns of a table, and of its snapshots; return whether the table had any."""
    days = _days(table)
    if former and table.mode is Mode.TEMPORAL and standing_name(connection, days) is not None:
        # They may have the new name from a history that was lost, and keep both then.
        taken = connection.sql(f"from {mirror_table(days)} limit 0").columns
        _rename(connection, days, {new: old for new, old in former.items() if new not in taken})
    return _rename(connection, table.schema, former)


def _days(table: Table) -> TableSchema:
    schema = table.schema
    return replace(schema, namespace=SNAPSHOTS, mirror_name=schema.snapshot_name)


def _rename(
    connection: duckdb.DuckDBPyConnection, schema: TableSchema, former: FormerNames
) -> bool:
    """Rename columns; where somebody's index keeps the table as it is, it is written again."""
    target, other = mirror_table(schema), mirror_table(schema, _AGAIN)
    found = connection.sql(f"from {target} limit 0").columns
    left = [(quote(old), quote(new)) for new, old in former.items() if old in found]
    if left and is_indexed(connection, schema):
        names = ", ".join(f"{old} as {new}" for old, new in left)
        connection.execute(f"create table {other} as select * rename ({names}) from {target}")
        connection.execute(f"drop table {target}")
        connection.execute(f"alter table {other} rename to {quote(schema.mirror_relation)}")
        return True
    for old, new in left:
        connection.execute(f"alter table {target} rename {old} to {new}")
    return bool(left)


def drop_columns(
    connection: duckdb.DuckDBPyConnection, schema: TableSchema, gone: Collection[str]
) -> None:
    """Drop columns; where somebody's index keeps the table as it is, it is written again."""
    target, other = mirror_table(schema), mirror_table(schema, _AGAIN)
    found = {name.lower() for name in connection.sql(f"from {target} limit 0").columns}
    gone = [name for name in gone if name.lower() in found]
    if gone and is_indexed(connection, schema):
        connection.execute(
            f"create table {other} as select * exclude ({listed(gone)}) from {target}"
        )
        connection.execute(f"drop table {target}")
        connection.execute(f"alter table {other} rename to {quote(schema.mirror_relation)}")
        return
    for name in gone:
        connection.execute(f"alter table {target} drop column {quote(name)}")


def _keeps(table: Table) -> bool:
    return table.mode is Mode.DESTRUCTIVE and table.keeps_dropped


def _give_back(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    target: str,
    kept: Collection[str],
    rows: str,
    key_as: str = "",
) -> None:
    """Give rows the values that others of their keys have; `key_as` casts keys of other types."""
    values = ", ".join(f"{quote(name)} = l.{quote(name)}" for name in kept)
    others = " or ".join(f"t.{quote(n)} is distinct from l.{quote(n)}" for n in kept)
    keys = (quote(name) for name in table.schema.primary_key)
    same = " and ".join(f"t.{key}{key_as} = l.{key}{key_as}" for key in keys)
    connection.execute(f"update {target} t set {values} from {rows} l where {same} and ({others})")
