"""Makes a copy the table in a DuckDB mirror, and fits temporal tables to changed schemas."""

from collections.abc import Mapping
from datetime import datetime

import duckdb
import pyarrow as pa

from rhei_pipeline.changes.scd2 import refuse_lost_history, refuse_unknown_key
from rhei_pipeline.errors import SchemaDriftError
from rhei_pipeline.mirrors.duckdb.housekeeping import rename_records
from rhei_pipeline.mirrors.duckdb.left_columns import (
    drop_columns,
    drop_left,
    keep_left,
    left_columns,
    rename_columns,
)
from rhei_pipeline.mirrors.duckdb.logical import as_copied, fit_texts, is_indexed, kept_logical
from rhei_pipeline.mirrors.duckdb.past import note_beginning, note_columns, rename_left
from rhei_pipeline.mirrors.duckdb.tables import (
    Built,
    TableNames,
    arrow_type,
    copy_name,
    create,
    in_utc,
    read_built,
    registered,
    write_built,
)
from rhei_pipeline.mirrors.exact_casts import (
    InexactError,
    cast_exactly,
    goes_by_text,
    in_other_types,
    is_castable,
    keys_in_types,
    past_does_not_fit,
    same_bits,
)
from rhei_pipeline.mirrors.key_change import refuse_unfit_key
from rhei_pipeline.model.array_texts import as_texts
from rhei_pipeline.model.changes import Operation
from rhei_pipeline.model.schema import (
    OPERATION,
    VALID_FROM,
    VALID_TO,
    Column,
    FormerNames,
    Mode,
    Table,
)
from rhei_pipeline.model.set_aside import with_former
from rhei_pipeline.sql.text import (
    duckdb_type,
    is_other_spelling,
    listed,
    literal,
    matching,
    mirror_table,
    quote,
)

#: How many values of a column are cast at once.
_ROWS = 65_536
#: A copy of so many rows at most gets the columns of its history. Of more it is written again, in
#: six times the time: until the next checkpoint, DuckDB holds added columns in memory.
_ADDED_ROWS = 2_000_000


def adopt_copy(
    connection: duckdb.DuckDBPyConnection, table: Table, at: datetime, names: TableNames
) -> int | None:
    """Make the copy the table unless one exists; see `MirrorTransaction.adopt_copy`.

    Raises:
        SchemaDriftError: History would be lost, or does not fit the new schema.
    """
    target = mirror_table(table.schema)
    if names.find(table.schema) is not None:
        built = _refuse_other_table(connection, table, names)
        if not _is_outgrown(connection, table, built):
            fit_texts(connection, table.schema)
            write_built(connection, table.schema)
            drop_left(connection, table)
            note_columns(connection, table, at)
            return None
        if not _has_other_key(table, built):
            keep_left(connection, table)
        connection.execute(f"drop table {target}")
    if table.mode is Mode.DESTRUCTIVE:
        connection.execute(
            f"alter table {copy_name(table.schema)} rename to {quote(table.schema.mirror_relation)}"
        )
    else:
        _adopt_as_versions(connection, table, at)
    names.note(table.schema)
    note_beginning(connection, table, at)
    write_built(connection, table.schema)
    return int(connection.execute(f"select count(*) from {target}").fetchall()[0][0])


def keep_unknown(
    connection: duckdb.DuckDBPyConnection, table: Table, keys: pa.Table, names: TableNames
) -> None:
    """Add present rows to the copy for keys that it could not read."""
    schema, key = table.schema, table.schema.primary_key
    if names.find(schema) is None:
        return
    standing = _types(connection, table)
    if not set(key) <= set(standing):
        return
    held = [name for name in schema.names if name in standing]
    present = f"t.{VALID_TO} is null" if VALID_TO in standing else "true"
    # No row has a key that is none of the former type.
    former = pa.schema([(name, standing[name]) for name in key])
    with registered(connection, "_rhei_keys", keys_in_types(keys.select(list(key)), former)):
        found = connection.sql(
            f"select {listed(held, 't')} from {mirror_table(schema)} t"
            f" semi join _rhei_keys k on {matching('t', 'k', key)} where {present}"
        )
        texts = as_texts(in_utc(found.to_arrow_table()))
    kept = as_copied(connection, in_other_types(texts, schema.arrow), schema)
    with registered(connection, "_rhei_kept", kept):
        connection.execute(
            f"insert into {copy_name(schema)}({listed(held)}) select {listed(held)} from _rhei_kept"
            f" k anti join {copy_name(schema)} c on {matching('k', 'c', key)}"
        )


def _adopt_as_versions(connection: duckdb.DuckDBPyConnection, table: Table, at: datetime) -> None:
    schema, target, copy = table.schema, mirror_table(table.schema), copy_name(table.schema)
    first = Operation.INSERT.value
    count = connection.execute(f"select count(*) from {copy}").fetchall()[0][0]
    # Columns of text may have a type of their own in the table, and not yet in the copy.
    if count <= _ADDED_ROWS and not schema.logical:
        begun = f"{literal(at.isoformat())}::timestamptz"
        for name, value in ((VALID_FROM, begun), (VALID_TO, None), (OPERATION, literal(first))):
            kind = duckdb_type(table.mirror_schema.field(name).type)
            default = f" default {value}" if value else ""
            connection.execute(f"alter table {copy} add column {name} {kind}{default}")
            if value:
                connection.execute(f"alter table {copy} alter column {name} drop default")
        connection.execute(f"alter table {copy} rename to {quote(schema.mirror_relation)}")
        return
    create(connection, target, table.mirror_schema, logical=schema.logical)
    connection.execute(f"insert into {target} select *, ?, null, ? from {copy}", [at, first])
    connection.execute(f"drop table {copy}")


def _refuse_other_table(
    connection: duckdb.DuckDBPyConnection, table: Table, names: TableNames
) -> Built | None:
    """Refuse another table's rows; rename a table whose name changed its case.

    In a source without schemas, names that differ by case only belong to one renamed table.
    """
    schema, built = table.schema, read_built(connection, table.schema)
    standing = names.find(schema) or schema.mirror_relation
    renamed = standing != schema.mirror_relation
    if (built is not None and built.set_aside) or (renamed and schema.namespace):
        raise SchemaDriftError(
            f"the mirror already has another table of this name, {standing!r}",
            table=table.name,
            hint=f"rename that one with 'rhei drop-table {standing} --keep-as NAME'",
        )
    if renamed:
        connection.execute(
            f"alter table {quote(standing)} rename to {quote(schema.mirror_relation)}"
        )
        names.note(schema)
    former = standing if built is None else built.name
    if not schema.namespace and is_other_spelling(former, table.name):
        rename_records(connection, former, table)
    return built


def _is_outgrown(connection: duckdb.DuckDBPyConnection, table: Table, built: Built | None) -> bool:
    """Fit the table to the schema; return whether it must be created again instead."""
    standing = _types(connection, table)
    if VALID_TO in standing:
        standing = _renamed_by_case(connection, table, standing)
    wanted = {field.name: field.type for field in table.mirror_schema}
    other_key = _has_other_key(table, built)
    if VALID_TO not in standing:
        kept = {*left_columns(connection, table)} if table.keeps_dropped else ()
        own = [(name, kind) for name, kind in standing.items() if name not in kept]
        return other_key or own != list(wanted.items())
    refuse_lost_history(table)
    refuse_unknown_key(table.schema, standing)
    if built is not None and other_key:
        refuse_unfit_key(table.schema, built.primary_key, _versions(connection, table))
    for column in table.schema.columns:
        old = standing.get(column.name)
        if old is None:
            add_column(connection, table, column)
        elif not old.equals(column.type):
            _retype(connection, table, column.name, old, column.type)
    return False


def _has_other_key(table: Table, built: Built | None) -> bool:
    return built is not None and built.primary_key != table.schema.primary_key


def _types(connection: duckdb.DuckDBPyConnection, table: Table) -> Mapping[str, pa.DataType]:
    found = connection.sql(f"select * from {mirror_table(table.schema)} limit 0")
    types = map(arrow_type, map(str, found.types))
    return {
        name: pa.null() if kind is None else kind
        for name, kind in zip(found.columns, types, strict=True)
    }


def _renamed_by_case(
    connection: duckdb.DuckDBPyConnection, table: Table, standing: Mapping[str, pa.DataType]
) -> Mapping[str, pa.DataType]:
    """Rename columns whose names changed their case: in DuckDB they are the same."""
    known = {name.lower(): name for name in standing}
    renamed = {
        known[name.lower()]: name
        for name in table.schema.names
        if name not in standing and name.lower() in known
    }
    for old, new in renamed.items():
        connection.execute(
            f"alter table {mirror_table(table.schema)} rename {quote(old)} to {quote(new)}"
        )
    return {renamed.get(name, name): kind for name, kind in standing.items()}


def _versions(connection: duckdb.DuckDBPyConnection, table: Table) -> pa.Table:
    names = listed([*table.schema.primary_key, VALID_FROM, VALID_TO, OPERATION])
    found = connection.sql(f"select {names} from {mirror_table(table.schema)}")
    return in_utc(found.to_arrow_table())


def add_column(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    column: Column,
    value: pa.Scalar | None = None,
) -> None:
    """Add a column to a table; every row has the value in it, or null."""
    wanted, name = duckdb_type(column.type, column.logical), quote(column.name)
    alter, default = f"alter table {mirror_table(table.schema)}", ""
    if value is not None and value.is_valid:
        default = f" default {_as_literal(connection, value)}::{wanted}"
    connection.execute(f"{alter} add column if not exists {name} {wanted}{default}")
    if default:  # it is a value of the rows that stand, and of no others
        connection.execute(f"{alter} alter column {name} drop default")


def reshape(
    connection: duckdb.DuckDBPyConnection, table: Table, at: datetime, former: FormerNames
) -> None:
    """Give a table fewer, renamed or wider columns; see `MirrorTransaction.reshape`."""
    names = with_former(former, _types(connection, table))
    if rename_columns(connection, table, names):
        rename_left(connection, table, names)
        write_built(connection, table.schema)
    standing = _types(connection, table)
    wanted = {column.name: column.type for column in table.schema.columns}
    other = [name for name, kind in wanted.items() if not kind.equals(standing[name])]
    if table.mode is Mode.TEMPORAL:
        drop_left(connection, table)
        note_columns(connection, table, at)
    elif not table.keeps_dropped:
        drop_columns(connection, table.schema, left_columns(connection, table))
    if other and table.mode is Mode.DESTRUCTIVE and is_indexed(connection, table.schema):
        _build_again(connection, table)
        return
    for name in other:
        _retype(connection, table, name, standing[name], wanted[name])


def _build_again(connection: duckdb.DuckDBPyConnection, table: Table) -> None:
    """Write the rows into another table, because somebody's index keeps this one as it is."""
    target, other = mirror_table(table.schema), copy_name(table.schema)
    logical, left = kept_logical(connection, table.schema), left_columns(connection, table)
    create(connection, other, table.schema.arrow, logical=logical)
    for name, kind in left.items():
        connection.execute(f"alter table {other} add column {quote(name)} {kind}")
    names = listed([*table.schema.names, *left])
    connection.execute(f"insert into {other}({names}) select {names} from {target}")
    connection.execute(f"drop table {target}")
    connection.execute(f"alter table {other} rename to {quote(table.schema.mirror_relation)}")


def _as_literal(connection: duckdb.DuckDBPyConnection, value: pa.Scalar) -> str:
    """Write a value as DuckDB writes it; that is read back as the same."""
    with registered(connection, "_rhei_value", pa.table({"value": pa.repeat(value, 1)})):
        (text,) = connection.execute("select value::varchar from _rhei_value").fetchall()[0]
    return literal(text)


def _retype(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    name: str,
    old: pa.DataType,
    new: pa.DataType,
) -> None:
    """Change a column's type if that changes none of its values."""
    target, column, wanted = mirror_table(table.schema), quote(name), duckdb_type(new)
    cast = f"null::{wanted}"
    if is_castable(old, new):
        value = f"{column}::varchar" if goes_by_text(old, new) else column
        cast = f"try_cast({value} as {wanted})"
    found = connection.sql(f"select {column}, {cast} from {target} where {column} is not null")
    if not all(_is_exact(batch, old, new) for batch in found.to_arrow_reader(_ROWS)):
        raise past_does_not_fit(table.name, name, old, new)
    connection.execute(
        f"alter table {target} alter column {column} set data type {wanted} using {cast}"
    )


def _is_exact(cast: pa.RecordBatch, old: pa.DataType, new: pa.DataType) -> bool:
    """Return whether DuckDB's cast, in the second column, is an exact one of the first."""
    try:
        exact = cast_exactly(cast.column(0).cast(old), new)
    except InexactError:
        return False
    return same_bits(exact, cast.column(1).cast(new))
