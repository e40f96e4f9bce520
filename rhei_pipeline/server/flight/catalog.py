"""Answers Flight SQL's metadata requests: tables, keys and capabilities."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import pyarrow as pa
from google.protobuf.message import Message

from rhei_pipeline.server.flight.generated import flight_sql_pb2 as wire
from rhei_pipeline.server.flight.messages import optional

CATALOG = "rhei"
#: The schema of tables that have none in their source.
DEFAULT_NAMESPACE = "main"
TABLE, VIEW = "TABLE", "VIEW"


@dataclass(frozen=True, slots=True)
class ListedRelation:
    """A table or view that clients are shown.

    Attributes:
        shape: Returns its columns.
        kind: TABLE or VIEW.
    """

    namespace: str
    name: str
    shape: Callable[[], pa.Schema]
    kind: str = TABLE
    primary_key: tuple[str, ...] = ()


def _required(name: str, kind: pa.DataType | None = None) -> pa.Field:
    return pa.field(name, kind or pa.string(), nullable=False)


_OPTIONAL = [pa.field("catalog_name", pa.string()), pa.field("db_schema_name", pa.string())]
_TABLES = pa.schema([*_OPTIONAL, _required("table_name"), _required("table_type")])
_TABLES_WITH_SCHEMAS = _TABLES.append(_required("table_schema", pa.binary()))
_SCHEMAS = pa.schema([pa.field("catalog_name", pa.string()), _required("db_schema_name")])
_PRIMARY_KEYS = pa.schema(
    [
        *_OPTIONAL,
        _required("table_name"),
        _required("column_name"),
        pa.field("key_name", pa.string()),
        _required("key_sequence", pa.int32()),
    ]
)
_REFERENCES = pa.schema(
    [
        field
        for side in ("pk", "fk")
        for field in (
            pa.field(f"{side}_catalog_name", pa.string()),
            pa.field(f"{side}_db_schema_name", pa.string()),
            _required(f"{side}_table_name"),
            _required(f"{side}_column_name"),
        )
    ]
    + [
        _required("key_sequence", pa.int32()),
        pa.field("fk_key_name", pa.string()),
        pa.field("pk_key_name", pa.string()),
        _required("update_rule", pa.uint8()),
        _required("delete_rule", pa.uint8()),
    ]
)
_VALUE = pa.dense_union(
    [
        pa.field("string_value", pa.string()),
        pa.field("bool_value", pa.bool_()),
        pa.field("bigint_value", pa.int64()),
        pa.field("int32_bitmask", pa.int32()),
        pa.field("string_list", pa.list_(pa.string())),
        pa.field("int32_to_int32_list_map", pa.map_(pa.int32(), pa.list_(pa.int32()))),
    ]
)
_INFO = pa.schema([_required("info_name", pa.uint32()), _required("value", _VALUE)])

#: What answers each question; every answer is small.
ANSWERS: Mapping[type[Message], pa.Schema] = {
    wire.CommandGetCatalogs: pa.schema([_required("catalog_name")]),
    wire.CommandGetDbSchemas: _SCHEMAS,
    wire.CommandGetTables: _TABLES,
    wire.CommandGetTableTypes: pa.schema([_required("table_type")]),
    wire.CommandGetPrimaryKeys: _PRIMARY_KEYS,
    wire.CommandGetExportedKeys: _REFERENCES,
    wire.CommandGetImportedKeys: _REFERENCES,
    wire.CommandGetCrossReference: _REFERENCES,
    wire.CommandGetSqlInfo: _INFO,
}


def schema_of(message: Message) -> pa.Schema:
    """Return the schema of the answer to a metadata request."""
    if isinstance(message, wire.CommandGetTables) and message.include_schema:
        return _TABLES_WITH_SCHEMAS
    return ANSWERS[type(message)]


def answer(
    message: Message, relations: Callable[[], Sequence[ListedRelation]], *, read_only: bool
) -> pa.Table:
    """Answer a metadata request; `relations` is called where it asks for some."""
    rules: Mapping[type[Message], Callable[[], pa.Table]] = {
        wire.CommandGetCatalogs: lambda: pa.table([[CATALOG]], schema=schema_of(message)),
        wire.CommandGetDbSchemas: lambda: _schemas(message, relations()),
        wire.CommandGetTables: lambda: _tables(message, relations()),
        wire.CommandGetTableTypes: lambda: pa.table([[TABLE, VIEW]], schema=schema_of(message)),
        wire.CommandGetPrimaryKeys: lambda: _primary_keys(message, relations()),
        wire.CommandGetSqlInfo: lambda: _info(message, read_only=read_only),
    }
    rule = rules.get(type(message))
    return rule() if rule is not None else schema_of(message).empty_table()


def _matches(pattern: str | None, name: str) -> bool:
    """Match a name with the pattern of a LIKE; no pattern matches everything."""
    if pattern is None:
        return True
    escaped = re.escape(pattern).replace("%", ".*").replace("_", ".")
    return re.fullmatch(escaped, name, re.DOTALL) is not None


def _in_catalog(message: Message) -> bool:
    return optional(message, "catalog") in {None, "", CATALOG}


def _schemas(message: wire.CommandGetDbSchemas, relations: Sequence[ListedRelation]) -> pa.Table:
    names = sorted({relation.namespace for relation in relations})
    pattern = optional(message, "db_schema_filter_pattern")
    found = [name for name in names if _in_catalog(message) and _matches(pattern, name)]
    return pa.table([[CATALOG] * len(found), found], schema=_SCHEMAS)


def _tables(message: wire.CommandGetTables, relations: Sequence[ListedRelation]) -> pa.Table:
    kinds = message.table_types or [TABLE, VIEW]
    namespaces = optional(message, "db_schema_filter_pattern")
    names = optional(message, "table_name_filter_pattern")
    found = [
        relation
        for relation in relations
        if _in_catalog(message)
        and _matches(namespaces, relation.namespace)
        and _matches(names, relation.name)
        and relation.kind in kinds
    ]
    columns: list[list[object]] = [
        [CATALOG] * len(found),
        [relation.namespace for relation in found],
        [relation.name for relation in found],
        [relation.kind for relation in found],
    ]
    schema = schema_of(message)
    if len(schema) > len(_TABLES):
        columns.append([relation.shape().serialize().to_pybytes() for relation in found])
    return pa.table(columns, schema=schema)


def _primary_keys(
    message: wire.CommandGetPrimaryKeys, relations: Sequence[ListedRelation]
) -> pa.Table:
    rows = [
        (CATALOG, relation.namespace, relation.name, column, None, place)
        for relation in relations
        if _in_catalog(message)
        and message.table == relation.name
        and optional(message, "db_schema") in {None, "", relation.namespace}
        for place, column in enumerate(relation.primary_key, 1)
    ]
    columns = list(zip(*rows, strict=True)) or [()] * len(_PRIMARY_KEYS)
    return pa.table([list(column) for column in columns], schema=_PRIMARY_KEYS)


def _info(message: wire.CommandGetSqlInfo, *, read_only: bool) -> pa.Table:
    strings = {0: "Rhei Pipeline", 1: version("rhei-pipeline"), 2: pa.__version__, 504: '"'}
    booleans = {3: read_only, 4: True, 5: False, 9: True}
    integers = {8: 0}  # no transactions over the wire
    wanted = message.info or [*strings, *booleans, *integers]
    names = [code for code in wanted if code in strings | booleans | integers]
    chosen = [0 if code in strings else 1 if code in booleans else 2 for code in names]
    offsets = [chosen[:place].count(kind) for place, kind in enumerate(chosen)]
    children = [
        pa.array([strings[code] for code in names if code in strings], pa.string()),
        pa.array([booleans[code] for code in names if code in booleans], pa.bool_()),
        pa.array([integers[code] for code in names if code in integers], pa.int64()),
        *(pa.array([], _VALUE.field(place).type) for place in range(3, 6)),
    ]
    value = pa.UnionArray.from_dense(
        pa.array(chosen, pa.int8()),
        pa.array(offsets, pa.int32()),
        children,
        [_VALUE.field(place).name for place in range(6)],
    )
    return pa.table([pa.array(names, pa.uint32()), value], schema=_INFO)
