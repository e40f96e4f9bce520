"""How a PostgreSQL table's columns behave in queries, beyond what their types say."""

from typing import Any, NamedTuple

import pyarrow as pa

from rhei_pipeline.model.schema import Column, Table, TableOptions
from rhei_pipeline.model.semantics import EnumLabels, Kind, MirroredTable, Nested, NestedPart, Shape
from rhei_pipeline.model.type_names import MAP, NamedType, structure
from rhei_pipeline.sources.postgres.catalog import (
    NUMERIC,
    Connection,
    arrow_type,
    logical_of,
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
with here as (
    select {by_bytes} or {in_order} as in_order from pg_database d
    where d.datname = current_database()
)
select a.attname, a.atttypid::bigint, a.atttypmod, {is_plain}, {is_in_order},
       (select array_agg(e.enumlabel::text) from pg_enum e where e.enumtypid = a.atttypid),
       t.typcategory = 'C', m.is_map,
       (select r.rngsubtype::bigint from pg_range r where r.rngtypid = t.oid),
       (select json_agg(json_build_array(a.attname, a.atttypid::bigint, a.atttypmod, {is_plain},
                                         {is_in_order}) order by a.attnum)
        from pg_attribute a left join pg_collation l on l.oid = a.attcollation
        where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped)
from pg_attribute a
join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
join pg_type t on t.oid = a.atttypid
cross join here
cross join lateral (select t.typname = 'hstore' and exists (
    select 1 from pg_depend p join pg_extension x on x.oid = p.refobjid and x.extname = 'hstore'
    where p.classid = 'pg_type'::regclass and p.objid = t.oid
      and p.refclassid = 'pg_extension'::regclass) as is_map) m
left join pg_collation l
    on l.oid = case when a.atttypid = {jsonb} or m.is_map then {texts} else a.attcollation end
where n.nspname = %s and c.relname = %s and a.attnum > 0 and not a.attisdropped
order by a.attnum
"""
_IS_PLAIN = "coalesce(l.collisdeterministic, true)"
_IS_IN_ORDER = """coalesce(l.collnamespace = 'pg_catalog'::regnamespace and (
    l.collname in ('C', 'POSIX', 'ucs_basic')
    or l.collname = 'default' and here.in_order), true)"""

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


class _Field(NamedTuple):
    """A field of a composite, or a bound of a range, as the catalogue has it."""

    name: str
    oid: int
    modifier: int = -1
    is_plain: bool = True
    is_in_order: bool = True


class _Described(NamedTuple):
    """A column as the catalogue has it, in the order of `_COLUMNS`."""

    name: str
    oid: int
    modifier: int
    is_plain: bool
    is_in_order: bool
    labels: list[str] | None
    is_composite: bool
    is_map: bool
    bound: int | None
    fields: list[tuple[Any, ...]] | None


def meaning(connection: Connection, table: Table, options: TableOptions) -> MirroredTable:
    """Describe a table for translation; domains, and types of users but enums, stay OPAQUE."""
    schema = table.schema
    name_parts = (schema.namespace or DEFAULT_NAMESPACE, schema.relation)
    by_bytes = where(connection, Since.LOCALE_PROVIDERS, _BY_BYTES_OF_PROVIDER, _BY_BYTES)
    libc = where(connection, Since.LOCALE_PROVIDERS, "d.datlocprovider = 'c'", "true")
    described = _COLUMNS.format(
        by_bytes=by_bytes,
        in_order=_IN_ORDER.format(libc=libc),
        is_plain=_IS_PLAIN,
        is_in_order=_IS_IN_ORDER,
        jsonb=_JSONB,
        texts=_DEFAULT_COLLATION,
    )
    rows = [
        _Described(*row) for row in connection.execute(described.encode(), name_parts).fetchall()
    ]
    by_name = {column.name: column for column in schema.mirrored_columns}
    known = [(by_name[row.name], row) for row in rows if row.is_plain and row.name in by_name]
    own = [(column, row) for column, row in known if column.name not in options.types]
    kinds = {row.name: _kind(column.type, row.oid, row.modifier) for column, row in own}
    enums = {row.name: EnumLabels(row.oid, frozenset(row.labels)) for _, row in own if row.labels}
    names = tuple(row.name for row in rows)
    doubt = _doubt(connection, name_parts)
    exact_parts = has(connection, Since.EXACT_PARTS)
    return MirroredTable(
        schema,
        table.mode,
        {**kinds, **dict.fromkeys(enums, Kind.ENUM)},
        frozenset(row.name for _, row in known if not row.is_in_order),
        names,
        doubt,
        exact_parts,
        enums,
        documents=frozenset(row.name for _, row in known if row.oid == _JSONB),
        arrays={row.name: found for column, row in known if (found := _elements(column, row))},
        nested={row.name: parts for column, row in known if (parts := _nested(column, row))},
    )


def _elements(column: Column, row: _Described) -> Kind | None:
    """Return how the elements of an array behave that the mirror has as a list."""
    declared, elements = _ARRAYS.get(row.oid, (None, Kind.OPAQUE))
    return elements if declared is not None and column.logical == declared else None


def _nested(column: Column, row: _Described) -> Nested | None:
    """Return what parts a column has; none of them where the mirror has no struct for it."""
    kept = structure(column.logical or "")
    if row.is_map:
        value = NestedPart("", "", Kind.TEXT, pa.string(), not row.is_in_order)
        return Nested(Shape.MAP, (value,) if column.logical == MAP else ())
    if row.bound is not None:
        bounds = kept.parts[:2] if kept is not None and kept.is_range else ()
        found = (_part(each, _Field(each[0], row.bound)) for each in bounds)
        return Nested(Shape.RANGE, tuple(found))
    if not row.is_composite:
        return None
    fields = [_Field(*each) for each in row.fields or ()]
    is_kept = kept is not None and not kept.is_range and len(kept.parts) == len(fields)
    parts = zip(kept.parts, fields, strict=True) if kept is not None and is_kept else ()
    return Nested(Shape.COMPOSITE, tuple(_part(*pair) for pair in parts))


def _part(kept: tuple[str, NamedType], field: _Field) -> NestedPart:
    name, declared = kept
    is_same = field.is_plain and declared.logical == logical_of(field.oid)
    kind = _kind(declared.type, field.oid, field.modifier) if is_same else Kind.OPAQUE
    return NestedPart(field.name, name, kind, declared.type, not field.is_in_order)


def _doubt(connection: Connection, name_parts: tuple[str, str]) -> str | None:
    found = connection.execute(_ROWS, name_parts).fetchone()
    if found is None:
        return "is gone"
    if found[0]:
        return "hides rows by policies"
    return "has children that inherit from it" if found[1] else None


def _kind(mirrored: pa.DataType, oid: int, modifier: int) -> Kind:
    kept = arrow_type(oid, modifier)
    if not kept.equals(mirrored) or (oid == NUMERIC and not pa.types.is_decimal(kept)):
        return Kind.OPAQUE
    return _KINDS.get(oid, Kind.OPAQUE)


def finds_public(connection: Connection) -> bool:
    """Return whether a name without schema can only mean a table in `public`."""
    found = connection.execute("select current_schemas(false)").fetchone()
    return found is not None and found[0] == [DEFAULT_NAMESPACE]
