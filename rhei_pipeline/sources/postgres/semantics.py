"""How a PostgreSQL table's columns behave in queries, beyond what their types say."""

import pyarrow as pa

from rhei_pipeline.model.schema import Column, Table, TableOptions
from rhei_pipeline.model.semantics import EnumLabels, Kind, MirroredTable
from rhei_pipeline.sources.postgres.catalog import (
    NUMERIC,
    Connection,
    arrow_type,
)
from rhei_pipeline.sources.postgres.table_facts import DEFAULT_NAMESPACE
from rhei_pipeline.sources.postgres.versions import Since, has, where

#: Types, by oid, that DuckDB computes with as PostgreSQL does.
_KINDS = {
    16: Kind.TRUTH,
    17: Kind.BLOB,
    20: Kind.INT,
    21: Kind.INT,
    23: Kind.INT,
    25: Kind.TEXT,
    701: Kind.REAL,
    1043: Kind.TEXT,
    1082: Kind.DATE,
    1114: Kind.TIMESTAMP,
    1184: Kind.INSTANT,
    1700: Kind.DECIMAL,
    2950: Kind.UUID,
}
#: The arrays whose elements DuckDB compares as PostgreSQL does, by oid, as they are declared.
_ARRAYS = {
    1000: ("boolean[]", Kind.TRUTH),
    1005: ("int16[]", Kind.INT),
    1007: ("int32[]", Kind.INT),
    1009: ("string[]", Kind.TEXT),
    1016: ("int64[]", Kind.INT),
    2951: ("uuid[]", Kind.UUID),
}
_JSONB = 3802
#: The collation of texts that nothing gives another one, as those in JSON.
_DEFAULT_COLLATION = 100
_COLUMNS = """
select a.attname, a.atttypid::bigint, a.atttypmod,
       coalesce(l.collisdeterministic, true),
       coalesce(l.collnamespace = 'pg_catalog'::regnamespace and (
                l.collname in ('C', 'POSIX', 'ucs_basic')
                or l.collname = 'default' and ({by_bytes} or {in_order})), true),
       (select array_agg(e.enumlabel::text) from pg_enum e where e.enumtypid = a.atttypid)
from pg_attribute a
join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
join pg_database d on d.datname = current_database()
left join pg_collation l
    on l.oid = case a.atttypid when {jsonb} then {texts} else a.attcollation end
where n.nspname = %s and c.relname = %s and a.attnum > 0 and not a.attisdropped
order by a.attnum
"""

#: ICU compares by its own locale, whatever the C library's is; what is built in, by code points.
#: C.UTF-8 is said to compare code points. One character after the other, and beside others, it
#: has to show it: C libraries have had their own ideas.
_IN_ORDER = """
(d.datcollate in ('C.UTF-8', 'C.utf8') and {libc} and (
    select bool_and(x.low < x.high and 'a' || x.low || 'b' < 'a' || x.high || 'A')
    from (select chr(n) as low, chr(n + 211) as high from generate_series(1, 1113000, 211) as n
          where n + 211 not between 55296 and 57343 and n not between 55296 and 57343) as x))
"""
_BY_BYTES = "d.datcollate in ('C', 'POSIX')"
_BY_BYTES_OF_PROVIDER = f"(d.datlocprovider = 'b' or d.datlocprovider = 'c' and {_BY_BYTES})"
#: A query of a parent shows its children's rows; policies hide rows from some users.
_ROWS = """
select c.relrowsecurity,
       exists (select 1 from pg_inherits i where i.inhparent = c.oid) and c.relkind = 'r'
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = %s and c.relname = %s
"""


def meaning(connection: Connection, table: Table, options: TableOptions) -> MirroredTable:
    """Describe a table for translation; domains, and types of users but enums, stay OPAQUE."""
    schema = table.schema
    name_parts = (schema.namespace or DEFAULT_NAMESPACE, schema.relation)
    by_bytes = where(connection, Since.LOCALE_PROVIDERS, _BY_BYTES_OF_PROVIDER, _BY_BYTES)
    libc = where(connection, Since.LOCALE_PROVIDERS, "d.datlocprovider = 'c'", "true")
    described = _COLUMNS.format(
        by_bytes=by_bytes,
        in_order=_IN_ORDER.format(libc=libc),
        jsonb=_JSONB,
        texts=_DEFAULT_COLLATION,
    )
    rows = connection.execute(described.encode(), name_parts).fetchall()
    by_name = {column.name: column for column in schema.columns}
    kinds: dict[str, Kind] = {}
    collated = set()
    enums: dict[str, EnumLabels] = {}
    arrays: dict[str, Kind] = {}
    documents = set()
    for name, oid, modifier, plain, is_by_bytes, labels in rows:
        column = by_name.get(name)
        if column is None or not plain:
            continue
        if not is_by_bytes:
            collated.add(name)
        if oid == _JSONB:
            documents.add(name)
        declared, elements = _ARRAYS.get(oid, (None, Kind.OPAQUE))
        if declared is not None and column.logical == declared:
            arrays[name] = elements
        if name in options.types:
            continue
        kinds[name] = _kind(column, oid, modifier)
        if labels is not None:
            kinds[name], enums[name] = Kind.ENUM, EnumLabels(oid, frozenset(labels))
    names = tuple(row[0] for row in rows)
    doubt = _doubt(connection, name_parts)
    exact_parts = has(connection, Since.EXACT_PARTS)
    return MirroredTable(
        schema,
        table.mode,
        kinds,
        frozenset(collated),
        names,
        doubt,
        exact_parts,
        enums,
        documents=frozenset(documents),
        arrays=arrays,
    )


def _doubt(connection: Connection, name_parts: tuple[str, str]) -> str | None:
    found = connection.execute(_ROWS, name_parts).fetchone()
    if found is None:
        return "is gone"
    if found[0]:
        return "hides rows by policies"
    return "has children that inherit from it" if found[1] else None


def _kind(column: Column, oid: int, modifier: int) -> Kind:
    kept = arrow_type(oid, modifier)
    if not kept.equals(column.type) or (oid == NUMERIC and not pa.types.is_decimal(kept)):
        return Kind.OPAQUE
    return _KINDS.get(oid, Kind.OPAQUE)


def finds_public(connection: Connection) -> bool:
    """Return whether a name without schema can only mean a table in `public`."""
    found = connection.execute("select current_schemas(false)").fetchone()
    return found is not None and found[0] == [DEFAULT_NAMESPACE]
