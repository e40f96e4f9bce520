"""Reads tables from PostgreSQL's catalogue: columns as Arrow types, keys, replica identity."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from rhei_pipeline.errors import HiddenRowsError, SchemaError
from rhei_pipeline.model.schema import (
    INSTANT,
    Column,
    TableOptions,
    TableSchema,
    nearest,
    parse_type,
    refuse_reserved,
)
from rhei_pipeline.sources.postgres import connection as postgres_connection
from rhei_pipeline.sources.postgres.marks import Marks, read_marks
from rhei_pipeline.sources.postgres.versions import Since, has
from rhei_pipeline.sql.text import quote

_log = logging.getLogger(__name__)

Connection = postgres_connection.Connection

DEFAULT_NAMESPACE = "public"
#: Where capture by triggers keeps what is ours.
OWN_NAMESPACE = "_rhei"
#: PostgreSQL's names have 63 bytes; so much of the mirror's id tells our slot from others'.
_ID_DIGITS = 16
NUMERIC = 1700
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
_RELATION = """
select c.oid::bigint, c.relkind::text, c.relpersistence::text, c.relreplident::text,
    row_security_active(c.oid),
    c.relkind = 'r' and exists (select from pg_inherits i where i.inhparent = c.oid)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = %s and c.relname = %s
"""
_COLUMNS = """
with recursive base(attnum, oid, modifier) as (
    select a.attnum, a.atttypid, a.atttypmod from pg_attribute a
    where a.attrelid = %s and a.attnum > 0 and not a.attisdropped
    union all
    select b.attnum, t.typbasetype, t.typtypmod from base b join pg_type t on t.oid = b.oid
    where t.typtype = 'd'
)
select a.attname, a.attnotnull, a.attgenerated::text, b.oid::bigint, b.modifier
from base b join pg_attribute a on a.attrelid = %s and a.attnum = b.attnum
join pg_type t on t.oid = b.oid and t.typtype <> 'd'
order by a.attnum
"""
_KEY = """
select array_agg(a.attname::text order by k.place)
from pg_index i cross join unnest(i.indkey) with ordinality as k(attnum, place)
join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
where i.indrelid = %s and k.place <= i.indnkeyatts and {which}
"""
_UNIQUE = """
select array_agg(a.attname::text)
from pg_index i join pg_attribute a on a.attrelid = i.indrelid
    and array_position(i.indkey::int2[], a.attnum) < i.indnkeyatts
where i.indrelid = %s and i.indisunique and i.indpred is null and i.indexprs is null
group by i.indexrelid having bool_and(a.attnotnull)
"""

#: Of a row `named` of pg_class: no replica identity names its rows. The server refuses updates and
#: deletes of such a table while it is published. Keep docs/postgres.md alike.
NAMELESS = """
named.relkind = 'r' and named.relreplident <> 'f' and not exists (
    select from pg_index i where i.indrelid = named.oid and i.indimmediate and case
        named.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident end)
"""
_NAMELESS_PART = f"""
select named.oid::regclass::text from pg_partition_tree(%s) part
join pg_class named on named.oid = part.relid where {NAMELESS} order by 1 limit 1
"""


@dataclass(frozen=True, slots=True)
class PostgresTable:
    """A table as PostgreSQL's catalogue describes it.

    Attributes:
        oid: The table's; it changes when the table is dropped and created again.
    """

    schema: TableSchema
    oid: int


@dataclass(frozen=True, slots=True)
class StoredColumn:
    """A column as the server stores it, mirrored or not.

    Attributes:
        oid: Its type's; for a domain, that of its base type.
    """

    name: str
    oid: int
    not_null: bool


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


def read_table(
    connection: Connection, name: str, options: TableOptions, *, reread: bool = False
) -> PostgresTable:
    """Read a table's schema from the catalogue.

    A table whose rows are `reread` may hold rows that no log shows, and needs a key without nulls.

    Raises:
        SchemaError: No such table, not an ordinary one, no usable key, a reserved name, or a
            replica identity that does not identify rows; the hint says what to do.
    """
    namespace, relation = _parts(connection, name)
    shown = shown_name(namespace, relation)
    _refuse_own(namespace, shown)
    oid, identity = _ordinary_table(connection, namespace, relation, reread=reread)
    # Read first: what changes while the columns are read has the marks be others next time.
    marks = read_marks(connection, oid)
    columns = _columns(connection, oid, shown, options, marks, reread=reread)
    refuse_reserved(relation, [column.name for column in columns])
    # A full identity names rows by all they hold, unique or not.
    is_named = reread or identity == "f"
    key = _key(connection, oid, shown, options, is_named=is_named)
    if is_named:
        _refuse_loose_key(connection, oid, shown, key)
    else:
        _refuse_vague_identity(connection, oid, shown, identity, key)
    if not reread:
        _refuse_nameless_part(connection, oid, shown)
    _refuse_unknown(shown, "primary_key", key, [column.name for column in columns])
    return PostgresTable(TableSchema(shown, tuple(columns), key, namespace, marks.table), oid)


def stored_columns(connection: Connection, oid: int) -> list[StoredColumn]:
    """Return all columns of a table, in order."""
    rows = connection.execute(_COLUMNS, (oid, oid))
    return [StoredColumn(name, type_oid, not_null) for name, not_null, _, type_oid, _ in rows]


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


def _parts(connection: Connection, name: str) -> tuple[str, str]:
    """Find the table that a name means: `schema.table`, or a table in `public`."""
    found = connection.execute(
        "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where (n.nspname || '.' || c.relname = %s or (n.nspname = %s and c.relname = %s))"
        " and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') order by n.nspname = %s desc",
        (name, DEFAULT_NAMESPACE, name, DEFAULT_NAMESPACE),
    ).fetchone()
    if found is None:
        hint = nearest(name, table_names(connection))
        raise SchemaError("no such table in the source", table=name, hint=hint)
    return found[0], found[1]


def _refuse_own(namespace: str, shown: str) -> None:
    if namespace == OWN_NAMESPACE:
        raise SchemaError(
            f"the schema {OWN_NAMESPACE!r} holds capture's own tables",
            table=shown,
            hint="leave it out of 'tables'",
        )


def _ordinary_table(
    connection: Connection, namespace: str, relation: str, *, reread: bool
) -> tuple[int, str]:
    found = connection.execute(_RELATION, (namespace, relation)).fetchone()
    if found is None:
        raise SchemaError("no such table in the source", table=shown_name(namespace, relation))
    oid, kind, persistence, identity, hides_rows, has_heirs = found
    if kind not in {"r", "p"} or persistence not in ({"p", "u"} if reread else {"p"}):
        what = _KINDS.get(kind, "table that PostgreSQL does not log")
        raise SchemaError(
            f"it is a {what}, and only ordinary tables can be captured",
            table=shown_name(namespace, relation),
            hint="mirror the tables it is made from, or make it a logged table",
        )
    if hides_rows:
        raise HiddenRowsError(
            "row security hides rows from this user",
            table=shown_name(namespace, relation),
            hint="run 'alter role <user> bypassrls', or connect as a user without such a policy",
        )
    if has_heirs:
        raise HiddenRowsError(
            "tables inherit from it, and no key distinguishes its rows from theirs",
            table=shown_name(namespace, relation),
            hint="mirror those tables by their own names and leave this one out of 'tables', or"
            " make it a partitioned table",
        )
    return oid, identity


def _columns(
    connection: Connection,
    oid: int,
    shown: str,
    options: TableOptions,
    marks: Marks,
    *,
    reread: bool,
) -> list[Column]:
    rows = connection.execute(_COLUMNS, (oid, oid)).fetchall()
    names = [row[0] for row in rows]
    _refuse_unknown(shown, "columns", options.columns or (), names)
    _refuse_unknown(shown, "types", list(options.types), names)
    columns = []
    for name, not_null, generated, type_oid, modifier in rows:
        if options.columns is not None and name not in options.columns:
            continue
        if not reread and not _is_logged(connection, generated):
            _log.warning(
                "table %r: generated column %r is left out: it is not in the server's log",
                shown,
                name,
            )
            continue
        kind, epoch = arrow_type(type_oid, modifier), None
        if name in options.types:
            kind, epoch = parse_type(options.types[name])
        mark = marks.columns.get(name, "")
        columns.append(Column(name, kind, not not_null, epoch, mark=mark))
    return columns


def _is_logged(connection: Connection, generated: str) -> bool:
    if not generated:
        return True
    return generated == "s" and has(connection, Since.GENERATED_PUBLISHED)


def _key(
    connection: Connection, oid: int, shown: str, options: TableOptions, *, is_named: bool
) -> tuple[str, ...]:
    """Return the key; `is_named` where changes name a row by it whatever it is made of."""
    if options.primary_key is not None:
        return tuple(options.primary_key)
    found = connection.execute(_KEY.format(which="i.indisprimary"), (oid,)).fetchone()
    if found is None or found[0] is None:
        hint = "add one, or name a unique key without nulls as 'primary_key'"
        if not is_named:  # then either way has a second step
            hint = (
                "add one and run 'alter table ... replica identity default', or name a unique key"
                " without nulls as 'primary_key' and run 'alter table ... replica identity full'"
            )
        raise SchemaError("it has no primary key", table=shown, hint=hint)
    return tuple(found[0])


def _refuse_vague_identity(
    connection: Connection, oid: int, shown: str, identity: str, key: Sequence[str]
) -> None:
    """Refuse a table whose updates and deletes in the log do not contain our key."""
    # The server does not name rows by a key that is checked at commit only.
    which = {"d": "i.indisprimary and i.indimmediate", "i": "i.indisreplident"}.get(
        identity, "false"
    )
    found = connection.execute(_KEY.format(which=which), (oid,)).fetchone()
    if found is None or set(found[0] or ()) != set(key):
        raise SchemaError(
            f"its replica identity does not name rows by {', '.join(key)}",
            table=shown,
            hint="run 'alter table ... replica identity default' (by primary key), 'using index'"
            " (by another unique key) or 'full'",
        )


def _refuse_nameless_part(connection: Connection, oid: int, shown: str) -> None:
    found = connection.execute(_NAMELESS_PART.encode(), (oid,)).fetchone()
    if found is not None:
        raise SchemaError(
            f"the replica identity of {found[0]} does not name rows",
            table=shown,
            hint=f"run 'alter table {found[0]} replica identity default' (by primary key), or"
            " 'full'",
        )


def _refuse_loose_key(connection: Connection, oid: int, shown: str, key: Sequence[str]) -> None:
    """Refuse a key that is not unique."""
    for (names,) in connection.execute(_UNIQUE, (oid,)):
        if set(names) <= set(key):
            return
    raise SchemaError(
        f"no unique index without nulls is on {', '.join(key)}",
        table=shown,
        hint="name a unique key whose columns are 'not null' as 'primary_key'",
    )


def _refuse_unknown(table: str, setting: str, named: Sequence[str], known: Sequence[str]) -> None:
    for name in named:
        if name not in known:
            raise SchemaError(
                f"{setting!r} names column {name!r}, which it does not have",
                table=table,
                hint=nearest(name, list(known)),
            )
