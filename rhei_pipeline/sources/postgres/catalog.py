"""Reads tables from PostgreSQL's catalogue: columns as Arrow types, keys, replica identity."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import pyarrow as pa

from rhei_pipeline.errors import HiddenRowsError, SchemaError
from rhei_pipeline.model.missing_table import no_such_table
from rhei_pipeline.model.schema import (
    Column,
    TableOptions,
    TableSchema,
    nearest,
    refuse_reserved,
)
from rhei_pipeline.model.type_names import INSTANT, INTERVAL, JSON, UUID, named_type
from rhei_pipeline.sources.postgres import connection as postgres_connection
from rhei_pipeline.sources.postgres.kept_columns import storage_of
from rhei_pipeline.sources.postgres.table_facts import (
    DEFAULT_NAMESPACE,
    ColumnFacts,
    TableFacts,
    read_facts,
)
from rhei_pipeline.sources.postgres.versions import Since, has
from rhei_pipeline.sql.text import quote

_log = logging.getLogger(__name__)

Connection = postgres_connection.Connection

#: Where capture by triggers keeps what is ours.
OWN_NAMESPACE = "_rhei"
#: PostgreSQL's names have 63 bytes; so much of the mirror's id tells our slot from others'.
_ID_DIGITS = 16
#: Of so many columns it is remembered that they were said to be left out.
_TOLD = 1000
BYTEA, NUMERIC = 17, 1700
_MAX_DECIMAL_DIGITS = 38
#: Built-in types by oid; every other type is kept as the text that PostgreSQL writes for it.
_TYPES = {
    16: pa.bool_(),
    17: pa.binary(),
    20: pa.int64(),
    21: pa.int16(),
    23: pa.int32(),
    26: pa.int64(),
    700: pa.float32(),
    701: pa.float64(),
    1082: pa.date32(),
    1083: pa.time64("us"),
    1114: pa.timestamp("us"),
    1184: INSTANT,
}
#: Those whose text is more than text.
_LOGICAL = {2950: UUID, 114: JSON, 3802: JSON, 1186: INTERVAL}
_DECLARATIONS = {
    pa.bool_(): "boolean",
    pa.binary(): "bytea",
    pa.int64(): "bigint",
    pa.int32(): "integer",
    pa.int16(): "smallint",
    pa.float32(): "real",
    pa.float64(): "double precision",
    pa.string(): "text",
    pa.date32(): "date",
    pa.time64("us"): "time",
    pa.timestamp("us"): "timestamp",
    INSTANT: "timestamptz",
}
_KINDS = {"v": "view", "m": "materialized view", "f": "foreign table", "S": "sequence"}

_SYSTEM = (
    f"n.nspname not in ('pg_catalog', 'information_schema', '{OWN_NAMESPACE}')"
    " and n.nspname not like 'pg\\_%%'"
)
_TABLES = f"""
select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence = 'p' and {_SYSTEM}
  and c.relname not like '\\_rhei\\_%'
  and exists (select 1 from pg_index i where i.indrelid = c.oid and i.indisprimary)
order by 1, 2
"""
_OTHERS = f"""
select n.nspname, c.relname, c.relkind::text, c.relpersistence::text
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'v', 'm', 'f') and not c.relispartition
  and c.relpersistence <> 't' and {_SYSTEM} and c.relname not like '\\_rhei\\_%'
  and not (c.relkind in ('r', 'p') and c.relpersistence = 'p'
    and exists (select 1 from pg_index i where i.indrelid = c.oid and i.indisprimary))
order by 1, 2
"""
_VIEWS = f"""
select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('v', 'm') and c.relpersistence <> 't' and {_SYSTEM}
  and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')
order by 1, 2
"""


@dataclass(frozen=True, slots=True)
class PostgresTable:
    """A table as PostgreSQL's catalogue describes it.

    Attributes:
        oid: The table's; it changes when the table is dropped and created again.
        keys: The numbers of the indexes and constraints that make its key unique.
        is_deferred: Whether that is checked at commit only: before, two rows may share a key.
    """

    schema: TableSchema
    oid: int
    keys: tuple[int, ...] = ()
    is_deferred: bool = False


def table_names(connection: Connection) -> list[str]:
    """Return the names of all ordinary tables that have a primary key."""
    return [shown_name(*row) for row in connection.execute(_TABLES)]


def other_names(connection: Connection) -> dict[str, str]:
    """Return the names of all other tables and views, each with the reason.

    Partitions are mirrored with their partitioned table, and left out here.
    """
    return {
        shown_name(namespace, relation): f"it is a {_KINDS[kind]}"
        if kind in _KINDS
        else "the server does not log it"
        if persistence != "p"
        else "it has no primary key"
        for namespace, relation, kind, persistence in connection.execute(_OTHERS)
    }


def view_names(connection: Connection) -> list[tuple[str | None, str]]:
    """Return the schema and name of each view, materialized or not, that this user may read."""
    return [(namespace, relation) for namespace, relation in connection.execute(_VIEWS)]


def read_table(
    connection: Connection,
    name: str,
    options: TableOptions,
    *,
    reread: bool = False,
    facts: TableFacts | None = None,
) -> PostgresTable:
    """Read a table's schema from the catalogue.

    A table whose rows are `reread` may hold rows that no log shows, and needs a key without nulls.
    `facts` is what the catalogue says of it, where that was read before.

    Raises:
        SchemaError: No such table, not an ordinary one, no usable key, a reserved name, or a
            replica identity that does not identify rows; the hint says what to do.
    """
    facts = facts or read_facts(connection, [name]).get(name)
    if facts is None:
        raise no_such_table(name, table_names(connection))
    shown = shown_name(facts.namespace, facts.relation)
    _refuse_own(facts.namespace, shown)
    _refuse_unusual(facts, shown, reread=reread)
    columns = _columns(connection, facts, shown, options, reread=reread)
    refuse_reserved(facts.relation, [column.name for column in columns])
    # A full identity names rows by all they hold, unique or not.
    is_named = reread or facts.identity == "f"
    key = _key(facts, shown, options, is_named=is_named)
    if not is_named:
        _refuse_vague_identity(facts, shown, key)
    _refuse_loose_key(facts, shown, key)
    if not reread:
        _refuse_unfit_part(facts, shown)
    _refuse_unknown(shown, "primary_key", key, [column.name for column in columns])
    kept = tuple(_in_key(column) if column.name in key else column for column in columns)
    schema = TableSchema(
        *(shown, kept, key, facts.namespace, facts.marks.table),
        storage=storage_of(facts, [column.name for column in kept]),
        deleted_at=options.deleted_at,
    )
    unique = [index for index in facts.indexes if index.is_key and {*index.names} <= {*key}]
    keys = tuple(oid for index in unique for oid in index.oids)
    is_deferred = not any(index.is_immediate for index in unique)
    return PostgresTable(schema, facts.oid, keys, is_deferred)


def _in_key(column: Column) -> Column:
    """Return a column of the key; an interval is text there, whatever PostgreSQL takes for one."""
    return replace(column, logical=None) if column.logical == INTERVAL else column


def slot_name(mirror_id: str) -> str:
    """Return the name of a mirror's slot and publication."""
    return f"rhei_{mirror_id[:_ID_DIGITS]}"


def qualified(schema: TableSchema) -> str:
    """Return a table's quoted name in the source."""
    return f"{quote(schema.namespace or DEFAULT_NAMESPACE)}.{quote(schema.relation)}"


def arrow_type(oid: int, modifier: int) -> pa.DataType:
    """Return the Arrow type of a built-in type; text for every other one.

    A numeric of declared precision becomes a decimal; one without has no limit that a decimal
    could hold, and stays exact as text.
    """
    if oid == NUMERIC and modifier > 0:
        precision, scale = (modifier - 4) >> 16, ((modifier - 4) & 0x7FF ^ 1024) - 1024
        if precision <= _MAX_DECIMAL_DIGITS and 0 <= scale <= precision:
            return pa.decimal128(precision, scale)
    return _TYPES.get(oid, pa.string())


def logical_of(oid: int) -> str | None:
    """Return what the text of a built-in type is; None of one that is text alone, or no text."""
    return _LOGICAL.get(oid)


def declaration(kind: pa.DataType) -> str:
    """Return the declared type that is read back as this Arrow type.

    Raises:
        SchemaError: There is none.
    """
    if pa.types.is_decimal(kind):
        return f"numeric({kind.precision}, {kind.scale})"
    if kind in _DECLARATIONS:
        return _DECLARATIONS[kind]
    raise SchemaError(f"PostgreSQL has no column of type {kind}")


def shown_name(namespace: str, relation: str) -> str:
    """Return a table's name in settings and reports."""
    if namespace == DEFAULT_NAMESPACE and "." not in relation:
        return relation
    return f"{namespace}.{relation}"


def _refuse_own(namespace: str, shown: str) -> None:
    if namespace == OWN_NAMESPACE:
        raise SchemaError(
            f"the schema {OWN_NAMESPACE!r} holds capture's own tables",
            table=shown,
            hint="leave it out of 'tables'",
        )


def _refuse_unusual(facts: TableFacts, shown: str, *, reread: bool) -> None:
    """Refuse what is no ordinary table, or does not show all of its rows alone."""
    persistent = {"p", "u"} if reread else {"p"}
    if facts.kind not in {"r", "p"} or facts.persistence not in persistent:
        what = _KINDS.get(facts.kind, "table that PostgreSQL does not log")
        raise SchemaError(
            f"it is a {what}, and only ordinary tables can be captured",
            table=shown,
            hint="mirror the tables it is made from, or make it a logged table",
        )
    if facts.hides_rows:
        raise HiddenRowsError(
            "row security hides rows from this user",
            table=shown,
            hint="run 'alter role <user> bypassrls', or connect as a user without such a policy",
        )
    if facts.has_heirs:
        raise HiddenRowsError(
            "tables inherit from it, and no key distinguishes its rows from theirs",
            table=shown,
            hint="mirror those tables by their own names and leave this one out of 'tables', or"
            " make it a partitioned table",
        )


def _columns(
    connection: Connection, facts: TableFacts, shown: str, options: TableOptions, *, reread: bool
) -> list[Column]:
    names = [stored.name for stored in facts.columns]
    _refuse_unknown(shown, "columns", options.columns or (), names)
    _refuse_unknown(shown, "types", list(options.types), names)
    columns = []
    for stored in facts.columns:
        name = stored.name
        if options.columns is not None and name not in options.columns:
            continue
        if not reread and not is_logged(connection, stored.generated):
            _tell_left_out(connection.info.dsn, shown, name)
            continue
        declared = options.types.get(name)
        if declared is None and options.as_text and logical_of(stored.oid):
            declared = "string"
        columns.append(_column(facts, stored, declared))
    return columns


@lru_cache(maxsize=_TOLD)
def _tell_left_out(_database: str, table: str, column: str) -> None:
    """Say, once a process, that a column is not mirrored; a table is read again and again."""
    _log.warning(
        "table %r: generated column %r is left out: it is not in the server's log", table, column
    )


def _column(facts: TableFacts, stored: ColumnFacts, declared: str | None) -> Column:
    """Return a column as it is mirrored, with the type that the declaration gives it."""
    mark, natural = facts.marks.columns.get(stored.name, ""), logical_of(stored.oid)
    if declared is None:
        kind = arrow_type(stored.oid, stored.modifier)
        return Column(stored.name, kind, not stored.not_null, mark=mark, logical=natural)
    kind, epoch, logical = named_type(declared)
    if logical != natural:
        mark += f" as {declared}"  # one that is declared as something else by now is copied again
    return Column(
        stored.name,
        kind,
        not stored.not_null,
        epoch,
        overridden=logical not in {None, natural},
        mark=mark,
        logical=logical,
    )


def is_logged(connection: Connection, generated: str) -> bool:
    """Return whether the server's log has a column that is generated so, if it is."""
    if not generated:
        return True
    return generated == "s" and has(connection, Since.GENERATED_PUBLISHED)


def _key(
    facts: TableFacts, shown: str, options: TableOptions, *, is_named: bool
) -> tuple[str, ...]:
    """Return the key; `is_named` where changes name a row by it whatever it is made of."""
    if options.primary_key is not None:
        return tuple(options.primary_key)
    for index in facts.indexes:
        if index.is_primary:
            return index.names
    hint = "add one, or name a unique key without nulls as 'primary_key'"
    if not is_named:  # then either way has a second step
        hint = (
            "add one and run 'alter table ... replica identity default', or name a unique key"
            " without nulls as 'primary_key' and run 'alter table ... replica identity full'"
        )
    raise SchemaError("it has no primary key", table=shown, hint=hint)


def _refuse_vague_identity(facts: TableFacts, shown: str, key: Sequence[str]) -> None:
    """Refuse a table whose updates and deletes in the log do not contain our key."""
    for index in facts.indexes:
        # The server does not name rows by a key that is checked at commit only.
        is_default = index.is_primary and index.is_immediate
        if {"d": is_default, "i": index.is_identity}.get(facts.identity):
            if set(index.names) == set(key):
                return
            break
    raise SchemaError(
        f"its replica identity does not name rows by {', '.join(key)}",
        table=shown,
        hint="run 'alter table ... replica identity default' (by primary key), 'using index'"
        " (by another unique key) or 'full'",
    )


def _refuse_unfit_part(facts: TableFacts, shown: str) -> None:
    """Refuse a table of which the log lacks changes of a part, or does not say of which rows."""
    part = facts.unlogged_part
    if part is not None:
        raise SchemaError(
            f"the server does not log its partition {part}",
            table=shown,
            hint=f"run 'alter table {part} set logged', or capture it by 'polling'",
        )
    part = facts.nameless_part
    if part is not None:
        raise SchemaError(
            f"the replica identity of {part} does not name rows",
            table=shown,
            hint=f"run 'alter table {part} replica identity default' (by primary key), or 'full'",
        )


def _refuse_loose_key(facts: TableFacts, shown: str, key: Sequence[str]) -> None:
    """Refuse a key that is not unique, or may be null."""
    if not any(index.is_key and set(index.names) <= set(key) for index in facts.indexes):
        raise SchemaError(
            f"no valid unique index without nulls is on {', '.join(key)}",
            table=shown,
            hint="name a valid unique key as 'primary_key': its columns 'not null', its index of"
            " their types and collations",
        )


def _refuse_unknown(table: str, setting: str, named: Sequence[str], known: Sequence[str]) -> None:
    for name in named:
        if name not in known:
            raise SchemaError(
                f"{setting!r} names column {name!r}, which it does not have",
                table=table,
                hint=nearest(name, list(known)),
            )
