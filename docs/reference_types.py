"""Writes the table of types from the code: what each column becomes, and what it does not take."""

import re
from collections.abc import Iterator

import psycopg
import pyarrow as pa

from rhei_pipeline.mirrors.datafusion.delta_shown import delta_type
from rhei_pipeline.model.logical_texts import EXPECTED as TAKEN
from rhei_pipeline.model.type_names import INSTANT, INTERVAL, JSON, RANGE, STRUCT
from rhei_pipeline.sources.postgres.catalog import arrow_type, logical_of
from rhei_pipeline.sources.sqlite.catalog import declared_type
from rhei_pipeline.sources.sqlite.types import expected
from rhei_pipeline.sql.text import datafusion_type, duckdb_type

_AS_WRITTEN = "as PostgreSQL writes it"
_ALL = "none"
#: Types that come with the server, as the driver names them.
_BUILT_IN = (
    *("int2", "int4", "int8", "oid", "float4", "float8", "bool", "bytea", "date", "time"),
    *("timestamp", "timestamptz", "uuid", "json", "jsonb", "text", "varchar", "bpchar", "name"),
    *("interval", "timetz", "money", "bit", "varbit", "inet", "cidr", "macaddr", "macaddr8"),
    *("xml", "point", "line", "lseg", "box", "path", "polygon", "circle", "tsvector", "tsquery"),
    *("pg_lsn", "int4range", "int8range", "numrange", "daterange", "tsrange", "tstzrange"),
)
#: Shown by the name that a declaration has.
_SHOWN = {
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "float4": "real",
    "float8": "double precision",
    "bool": "boolean",
    "bpchar": "char",
    "varbit": "bit varying",
}
_NUMERICS = {
    "numeric(12, 2)": (12 << 16 | 2) + 4,
    "numeric(50, 5)": (50 << 16 | 5) + 4,
    "numeric": -1,
}
#: Not of the server's own types, and so without an oid that is known beforehand.
_OTHERS = ("arrays", "enums", "composites", "multiranges", "`hstore`, `citext`, other extensions")
_YEARS = "before year 1, after 9999 (infinity is kept)"
_REFUSED: dict[pa.DataType, str] = {
    pa.date32(): _YEARS,
    pa.timestamp("us"): _YEARS,
    INSTANT: _YEARS,
    pa.time64("us"): "`24:00`",
}
_OUTSIDE_QUOTES = re.compile(r'[^"]+(?=(?:"[^"]*"[^"]*)*$)')
#: Of types that are declared with their parts.
_EXAMPLES = {STRUCT: "struct(amount decimal(10,2), currency string)", RANGE: "range(timestamptz)"}
_DECLARED_IN_SQLITE = (
    *("INTEGER", "BOOLEAN", "DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "TIME"),
    *("DECIMAL(12, 2)", "VARCHAR(20)", "BLOB", "REAL"),
)


def types_page() -> Iterator[str]:
    """Yield the lines of the page."""
    yield "# Types\n"
    yield "What a column of the source becomes. What is to be known beside it stands in"
    yield "[types](../types.md) and [PostgreSQL](../postgres.md#types).\n"
    yield "## PostgreSQL\n"
    yield from _head("PostgreSQL", "value", "dead letters")
    for name in _BUILT_IN:
        oid = psycopg.postgres.types[name].oid
        yield _of_postgres(f"`{_SHOWN.get(name, name)}`", arrow_type(oid, -1), logical_of(oid))
    for name, modifier in _NUMERICS.items():
        oid = psycopg.postgres.types["numeric"].oid
        yield _of_postgres(f"`{name}`", arrow_type(oid, modifier), logical_of(oid))
    for name in _OTHERS:
        yield _of_postgres(name, arrow_type(0, -1), logical_of(0))
    yield "\nDomains are what they are made of.\n"
    yield "## SQLite\n"
    yield from _head("SQLite, declared as", "value taken", "dead letters")
    for declared in _DECLARED_IN_SQLITE:
        kind = declared_type(declared)
        if kind is not None:
            yield _row(f"`{declared}`", kind, None, expected(kind), "all else")
    yield "\n## Declared under `types`\n"
    yield from _head("type", "value taken", "dead letters")
    for name in TAKEN:
        shown = _EXAMPLES.get(name, name)
        yield _row(f"`{shown}`", pa.string(), shown, expected(pa.string(), shown), "all else")


def _of_postgres(shown: str, kind: pa.DataType, logical: str | None) -> str:
    is_text = pa.types.is_string(kind)
    refused = _REFUSED.get(kind, "`NaN`" if pa.types.is_decimal(kind) else _ALL)
    if logical == JSON:
        refused = 'half a surrogate pair, `"\\ud800"`'
    if logical == INTERVAL:
        refused = "infinity, and more than 292 years of hours"
    return _row(shown, kind, logical, _AS_WRITTEN if is_text else "exact", refused)


def _row(shown: str, kind: pa.DataType, logical: str | None, value: str, refused: str) -> str:
    cells = (
        shown,
        f"`{kind}`",
        f"`{_OUTSIDE_QUOTES.sub(lambda found: found[0].upper(), duckdb_type(kind, logical))}`",
        f"`{datafusion_type(kind)}`",
        f"`{delta_type(kind)}`",
        value,
        refused,
    )
    return f"| {' | '.join(cells)} |"


def _head(source: str, value: str, refused: str) -> Iterator[str]:
    heads = (source, "Arrow", "DuckDB", "DataFusion: IPC, Parquet", "Delta", value, refused)
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
