"""Text of SQL: quoting, lists, conditions, and the names of types in a dialect."""

from collections.abc import Iterable

import pyarrow as pa

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.schema import TableSchema
from rhei_pipeline.model.type_names import ARRAYS, MAP, UUID, structure

#: Conditions in a row before they are grouped.
_CHAIN = 50


def quote(identifier: str) -> str:
    """Quote any identifier for SQLite and DuckDB alike."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Write a text literal; for names of ours and catalogue text, never for a row's values."""
    return "'" + text.replace("'", "''") + "'"


def listed(identifiers: Iterable[str], prefix: str = "") -> str:
    """Write quoted identifiers with commas between, each behind `prefix.` where one is given."""
    lead = f"{prefix}." if prefix else ""
    return ", ".join(lead + quote(name) for name in identifiers)


def matching(left: str, right: str, names: Iterable[str]) -> str:
    """Write `left.a = right.a and left.b = right.b ...`."""
    return " and ".join(f"{left}.{quote(name)} = {right}.{quote(name)}" for name in names)


def conjunction(conditions: Iterable[str]) -> str:
    """Write conditions that must all hold; many of them as a tree, which no engine finds too deep.

    SQLite may refuse an expression of more than 1000 levels, and a chain has one a condition.
    """
    return _tree("and", list(conditions))


def disjunction(conditions: Iterable[str]) -> str:
    """Write conditions of which one must hold; see `conjunction`."""
    return _tree("or", list(conditions))


def _tree(operator: str, conditions: list[str]) -> str:
    if len(conditions) > _CHAIN:
        groups = (conditions[i : i + _CHAIN] for i in range(0, len(conditions), _CHAIN))
        return _tree(operator, [f"({_tree(operator, group)})" for group in groups])
    return f" {operator} ".join(conditions)


def mirror_table(schema: TableSchema, prefix: str = "") -> str:
    """Write the name of a table's mirror, or of what stands beside it under a prefix of ours."""
    relation = quote(prefix + schema.mirror_relation)
    return f"{quote(schema.namespace)}.{relation}" if schema.namespace else relation


def duckdb_type(arrow_type: pa.DataType, logical: str | None = None) -> str:
    """Return DuckDB's name of an Arrow type, or of what its text is.

    Raises:
        SchemaError: No column of ours has such a type.
    """
    if logical is not None and pa.types.is_string(arrow_type):
        if logical in ARRAYS:
            of = logical.removesuffix("[]")
            inner = of if of in ARRAYS or of == UUID else None
            return f"{duckdb_type(ARRAYS[logical] if inner is None else arrow_type, inner)}[]"
        if logical == MAP:
            return "map(varchar, varchar)"
        kept = structure(logical)
        if kept is not None:
            parts = ((quote(name), duckdb_type(*part[::2])) for name, part in kept.parts)
            return f"struct({', '.join(f'{name} {kind}' for name, kind in parts)})"
        return logical  # DuckDB has the others under these names
    if pa.types.is_decimal(arrow_type):
        return f"decimal({arrow_type.precision}, {arrow_type.scale})"
    for known, name in _DUCKDB_TYPES:
        if known.equals(arrow_type):
            return name
    raise SchemaError(f"type {arrow_type} has no counterpart in DuckDB")


def datafusion_type(arrow_type: pa.DataType) -> str:
    """Return DataFusion's name of an Arrow type, as `arrow_cast` takes it.

    Raises:
        SchemaError: No column of ours has such a type.
    """
    if pa.types.is_decimal(arrow_type):
        return f"Decimal128({arrow_type.precision}, {arrow_type.scale})"
    for known, name in _DATAFUSION_TYPES:
        if known.equals(arrow_type):
            return name
    raise SchemaError(f"type {arrow_type} has no counterpart in DataFusion")


_DUCKDB_TYPES = (
    (pa.int16(), "smallint"),
    (pa.int32(), "integer"),
    (pa.int64(), "bigint"),
    (pa.float32(), "float"),
    (pa.float64(), "double"),
    (pa.string(), "varchar"),
    (pa.binary(), "blob"),
    (pa.bool_(), "boolean"),
    (pa.date32(), "date"),
    (pa.time64("us"), "time"),
    (pa.timestamp("us"), "timestamp"),
    (pa.timestamp("us", tz="UTC"), "timestamptz"),
)
_DATAFUSION_TYPES = (
    (pa.int16(), "Int16"),
    (pa.int32(), "Int32"),
    (pa.int64(), "Int64"),
    (pa.float32(), "Float32"),
    (pa.float64(), "Float64"),
    (pa.string(), "Utf8"),
    (pa.binary(), "Binary"),
    (pa.bool_(), "Boolean"),
    (pa.date32(), "Date32"),
    (pa.time64("us"), "Time64(Microsecond)"),
    (pa.timestamp("us"), "Timestamp(Microsecond, None)"),
    (pa.timestamp("us", tz="UTC"), 'Timestamp(Microsecond, Some("UTC"))'),
)


def as_sqlite_reads(name: str) -> str:
    """Return a name in lower case as far as SQLite ignores case: in the letters a to z alone."""
    return name.encode(errors="surrogatepass").lower().decode(errors="surrogatepass")


def is_other_spelling(name: str, other: str) -> bool:
    """Return whether two names differ, and only in what SQLite ignores."""
    return name != other and as_sqlite_reads(name) == as_sqlite_reads(other)
