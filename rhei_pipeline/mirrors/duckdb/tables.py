"""The tables of a DuckDB mirror: their names, columns, and the key each was built for.

DuckDB's names are case-insensitive.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.mirrors.duckdb.housekeeping import COPY_PREFIX
from rhei_pipeline.model.large_rows import are_large
from rhei_pipeline.model.schema import (
    HISTORY_NAMES,
    RESERVED_PREFIX,
    VALID_TO,
    Column,
    Mode,
    Table,
    TableSchema,
)
from rhei_pipeline.model.type_names import (
    ARRAYS,
    INSTANT,
    INTERVAL,
    JSON,
    MAP,
    RANGE,
    STRUCT,
    UUID,
    is_range,
    split_parts,
    structure,
    type_name,
)
from rhei_pipeline.sql.text import duckdb_type, mirror_table, quote

MAIN = "main"
SNAPSHOTS = "snapshot"
#: From here on, a place (`rowid`) is of a row that its own transaction wrote.
OWN_PLACES = 36_028_797_018_960_000
_TEXTS = (UUID, JSON, INTERVAL, MAP, *ARRAYS)
#: What a text is where DuckDB keeps it as more than text, by its type there.
_LOGICAL = {duckdb_type(pa.string(), logical).upper(): logical for logical in _TEXTS}
_STRUCT = re.compile(r"STRUCT\((.*)\)", re.DOTALL)
_DECIMAL = re.compile(r"DECIMAL\((\d+),(\d+)\)")
_TYPES: dict[str, pa.DataType] = {
    "SMALLINT": pa.int16(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "VARCHAR": pa.string(),
    **{kind: pa.string() for kind in _LOGICAL},
    "BLOB": pa.binary(),
    "BOOLEAN": pa.bool_(),
    "DATE": pa.date32(),
    "TIME": pa.time64("us"),
    "TIMESTAMP": pa.timestamp("us"),
    "TIMESTAMP WITH TIME ZONE": INSTANT,
}


@dataclass(frozen=True, slots=True)
class Built:
    """What is recorded of a mirrored table beside its rows.

    Attributes:
        primary_key: The key it was built for.
        set_aside: It is a history kept under this name, and follows no source table.
    """

    name: str
    primary_key: tuple[str, ...]
    set_aside: bool = False


def table_exists(connection: duckdb.DuckDBPyConnection, table: Table) -> bool:
    """Return whether the mirror has the table."""
    return standing_name(connection, table.schema) is not None


def standing_name(connection: duckdb.DuckDBPyConnection, schema: TableSchema) -> str | None:
    """Return the name of the mirror's table in its own case; None if there is none."""
    found = connection.execute(
        "select table_name from duckdb_tables() where lower(schema_name) = lower(?)"
        " and lower(table_name) = lower(?) and database_name = current_database()",
        [schema.namespace or MAIN, schema.mirror_relation],
    ).fetchall()
    return str(found[0][0]) if found else None


class TableNames:
    """The names of the mirror's tables as one transaction sees them.

    DuckDB looks through all tables to find one, so they are read once, and what changes is noted.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._found: dict[tuple[str, str], str] | None = None

    def find(self, schema: TableSchema) -> str | None:
        """Return the name of the mirror's table in its own case; None if there is none."""
        return self._names().get(folded(schema))

    def note(self, schema: TableSchema) -> None:
        """Note that the table is there now, under this name."""
        self._names()[folded(schema)] = schema.mirror_relation

    def forget(self) -> None:
        """Read the names again at the next question."""
        self._found = None

    def _names(self) -> dict[tuple[str, str], str]:
        if self._found is None:
            found = self._connection.execute(
                "select lower(schema_name), lower(table_name), table_name from duckdb_tables()"
                " where database_name = current_database()"
            ).fetchall()
            self._found = {(namespace, folded): name for namespace, folded, name in found}
        return self._found


def folded(schema: TableSchema) -> tuple[str, str]:
    """Return a table's schema and name in the mirror as DuckDB compares them."""
    return (schema.namespace or MAIN).lower(), schema.mirror_relation.lower()


#: Tables of older mirrors may not be recorded: then all of `public` is the mirror's, unless it has
#: tables without a schema, as those of SQLite are.
_IN_PUBLIC = """
select 1 from duckdb_schemas()
where schema_name = 'public' and database_name = current_database()
and (exists (select 1 from _rhei_table where namespace = 'public')
    or not exists (select 1 from _rhei_table where namespace is null))
"""


def read_tables(connection: duckdb.DuckDBPyConnection) -> dict[str, Table]:
    """Return the mirrored tables by their quoted names; see `Mirror.tables`."""
    # Grouped here: in SQL that takes longer than the rest, once DuckDB has its catalogue.
    columns = connection.execute(
        "select schema_name, table_name, column_index, column_name, data_type"
        " from duckdb_columns() where database_name = current_database() and not internal"
        f" and not starts_with(lower(table_name), '{RESERVED_PREFIX}')"
        f" and schema_name <> '{SNAPSHOTS}'"
    ).fetchall()
    types: dict[tuple[str, str], dict[str, str]] = {}
    for namespace, relation, _, name, kind in sorted(columns):
        types.setdefault((namespace, relation), {})[name] = kind
    built = {
        (namespace, relation): Built(name, tuple(json.loads(key)), set_aside)
        for name, namespace, relation, key, set_aside in connection.execute(
            "select table_name, namespace, relation, primary_key, set_aside from _rhei_table"
        ).fetchall()
    }
    tables = {}
    for (namespace, relation), kinds in types.items():
        own = None if namespace == MAIN else str(namespace)
        unrecorded = Built(relation if own is None else f"{own}.{relation}", ())
        found = built.get((own, relation), unrecorded)
        if None not in map(arrow_type, kinds.values()):
            table = _table(found, own, relation, kinds)
            tables[mirror_table(table.schema)] = table
    return tables


def mirrors_public(connection: duckdb.DuckDBPyConnection) -> bool:
    """Return whether the file in use mirrors tables of PostgreSQL's `public`."""
    return connection.execute(_IN_PUBLIC).fetchone() is not None


def _table(built: Built, namespace: str | None, relation: str, types: Mapping[str, str]) -> Table:
    own = tuple(
        Column(name, arrow_type(kind), logical=logical_of(kind))
        for name, kind in types.items()
        if name not in HISTORY_NAMES
    )
    mode = Mode.TEMPORAL if VALID_TO in types else Mode.DESTRUCTIVE
    schema = TableSchema(built.name, own, built.primary_key, namespace)
    if schema.relation.lower() != relation.lower():
        schema = replace(schema, mirror_name=relation)
    return Table(schema, mode)


def read_built(connection: duckdb.DuckDBPyConnection, schema: TableSchema) -> Built | None:
    """Return what is recorded of a table; None if it is older than this record."""
    found = connection.execute(
        "select table_name, primary_key, set_aside from _rhei_table"
        " where namespace is not distinct from ? and lower(relation) = lower(?)",
        [schema.namespace, schema.mirror_relation],
    ).fetchall()
    return Built(found[0][0], tuple(json.loads(found[0][1])), found[0][2]) if found else None


def write_built(
    connection: duckdb.DuckDBPyConnection, schema: TableSchema, *, set_aside: bool = False
) -> None:
    """Record the key that a table is now built for."""
    forget_built(connection, schema)
    connection.execute(
        "insert into _rhei_table values (?, ?, ?, ?, ?)",
        [
            schema.name,
            schema.namespace,
            schema.mirror_relation,
            json.dumps(schema.primary_key),
            set_aside,
        ],
    )


def forget_built(connection: duckdb.DuckDBPyConnection, schema: TableSchema) -> None:
    """Delete the record of a table."""
    connection.execute(
        "delete from _rhei_table"
        " where namespace is not distinct from ? and lower(relation) = lower(?)",
        [schema.namespace, schema.mirror_relation],
    )


def arrow_type(name: str) -> pa.DataType | None:
    """Return the Arrow type of one of DuckDB's; None if no mirrored column has it."""
    decimal = _DECIMAL.fullmatch(name)
    if decimal:
        return pa.decimal128(int(decimal[1]), int(decimal[2]))
    return pa.string() if logical_of(name) else _TYPES.get(name)


def logical_of(name: str) -> str | None:
    """Return what a text is that is kept as such a type of DuckDB's; None of any other type."""
    found = _STRUCT.fullmatch(name)
    return _LOGICAL.get(name) if found is None else _structure_of(split_parts(found[1]))


def _structure_of(parts: list[tuple[str, str]]) -> str | None:
    """Return the name of a composite or range of these parts; None if it is none of ours."""
    kinds = [(arrow_type(kind.strip()), logical_of(kind.strip())) for _, kind in parts]
    if any(kind is None for kind, _ in kinds):
        return None
    names = [type_name(kind, logical=logical) for kind, logical in kinds]
    shown = ", ".join(f"{quote(part)} {name}" for (part, _), name in zip(parts, names, strict=True))
    of_range = is_range([part for part, _ in parts])
    try:
        found = structure(f"{RANGE}({names[0]})" if of_range else f"{STRUCT}({shown})")
    except SchemaError:
        return None
    return None if found is None else found.name


def create(
    connection: duckdb.DuckDBPyConnection,
    target: str,
    schema: pa.Schema,
    kind: str = "table",
    logical: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Create an empty table; `logical` says what the text of columns is."""
    columns = ", ".join(
        f"{quote(field.name)} {duckdb_type(field.type, logical.get(field.name))}"
        for field in schema
    )
    connection.execute(f"create {kind} {target}({columns})")


def copy_name(schema: TableSchema) -> str:
    """Return the name of a table's copy."""
    return mirror_table(schema, COPY_PREFIX)


def copy_place(schema: TableSchema) -> tuple[str, str]:
    """Return the schema and the name of a table's copy, in lower case."""
    namespace, relation = folded(schema)
    return namespace, COPY_PREFIX + relation


def in_utc(table: pa.Table) -> pa.Table:
    """Label timestamps as UTC: DuckDB labels them with the machine's zone."""
    for place, field in enumerate(table.schema):
        wanted = _utc(field.type)
        if not wanted.equals(field.type):
            table = table.set_column(place, field.name, table.column(place).cast(wanted))
    return table


def _utc(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return pa.timestamp(kind.unit, INSTANT.tz)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_utc(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_utc(kind.key_type), _utc(kind.item_type))
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_utc(kind.value_type)))
    return kind


class _Lent:
    """Rows that DuckDB reads while they are registered, and does not hold on to afterwards."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows: pa.Table | None = rows

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        if self.rows is None:
            raise RuntimeError("these rows were registered, and are so no longer")
        return self.rows.__arrow_c_stream__(requested_schema)


@contextmanager
def registered(connection: duckdb.DuckDBPyConnection, name: str, rows: object) -> Iterator[None]:
    """Show rows to the connection under a name, within the block.

    Within a transaction DuckDB keeps what was registered until that commits, which takes memory
    of its own for each value. Large rows are lent, therefore; reading those takes some longer.
    """
    lent = _Lent(rows) if isinstance(rows, pa.Table) and are_large(rows) else None
    connection.register(name, rows if lent is None else lent)
    try:
        yield
    finally:
        connection.unregister(name)
        if lent is not None:
            lent.rows = None


def apart(rows: pa.Table, places: str) -> Iterator[pa.Table]:
    """Yield rows whose places are of committed rows, and those of this transaction's own, if any.

    Once a transaction has deleted rows, DuckDB 2.0 may pass by some that a statement finds by
    places of both kinds.
    """
    is_own = pc.greater_equal(rows[places], OWN_PLACES)
    for some in (rows.filter(pc.invert(is_own)), rows.filter(is_own)):
        if some.num_rows:
            yield some
