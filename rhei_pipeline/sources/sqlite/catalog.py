"""Reads tables from SQLite's catalogue: columns as Arrow types, keys, unique indexes."""

import re
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.missing_table import no_such_table
from rhei_pipeline.model.schema import (
    RESERVED_PREFIX,
    Column,
    TableOptions,
    TableSchema,
    nearest,
    refuse_reserved,
)
from rhei_pipeline.model.type_names import INSTANT, decimal_type, named_type
from rhei_pipeline.sources.sqlite.collations import BINARY, BUILTIN, OWN, compare_by
from rhei_pipeline.sources.sqlite.column_identities import read_state
from rhei_pipeline.sql.text import quote

_NO_OPTIONS = TableOptions()
_EXPRESSION = -2  # the column number that index_xinfo gives an expression
_DECIMAL = re.compile(r"(?:DECIMAL|NUMERIC)\s*\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)")

#: Declared types beyond SQLite's five affinities, which applications declare and mean.
_DECLARED = (
    (re.compile(r"BOOL(EAN)?"), pa.bool_()),
    (re.compile(r"DATE"), pa.date32()),
    (re.compile(r"TIMESTAMPTZ(\(\d\))?|(TIMESTAMP|DATETIME)(\(\d\))? WITH TIME ZONE"), INSTANT),
    (re.compile(r"(TIMESTAMP|DATETIME)(\(\d\))?( WITHOUT TIME ZONE)?"), pa.timestamp("us")),
    (re.compile(r"TIME(\(\d\))?"), pa.time64("us")),
)
#: SQLite's own affinity rules (sqlite.org/datatype3.html, 3.1), in their order.
_AFFINITIES = (
    (("INT",), pa.int64()),
    (("CHAR", "CLOB", "TEXT"), pa.string()),
    (("BLOB",), pa.binary()),
    (("REAL", "FLOA", "DOUB"), pa.float64()),
)
_A_VIEW = "it is a view"
_OTHERS = {"table": "it has no primary key", "view": _A_VIEW}
_DECLARATIONS = (
    "INTEGER",
    "REAL",
    "TEXT",
    "BLOB",
    "BOOLEAN",
    "DATE",
    "TIME",
    "TIMESTAMP",
    "TIMESTAMPTZ",
)
#: What a column without a telling declaration gets, by the storage classes it holds.
_OBSERVED: tuple[tuple[set[str], pa.DataType], ...] = (
    ({"text"}, pa.string()),
    ({"integer"}, pa.int64()),
    ({"integer", "real"}, pa.float64()),
    ({"blob"}, pa.binary()),
)
#: The storage classes whose values a column of observed type takes.
_STORED_AS = {
    pa.string(): {"text"},
    pa.int64(): {"integer"},
    pa.float64(): {"integer", "real"},
    pa.binary(): {"blob"},
}


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """A uniqueness the source enforces, through which REPLACE can evict a row.

    Attributes:
        terms: Its columns' names; None stands for an expression.
        collations: The collation of each term.
        sql: Its CREATE INDEX text; None for one that a table constraint made.
    """

    name: str
    terms: tuple[str | None, ...]
    collations: tuple[str, ...]
    partial: bool
    sql: str | None

    @property
    def plain(self) -> bool:
        """Whether it is over columns alone and over all rows."""
        return not self.partial and None not in self.terms


@dataclass(frozen=True, slots=True)
class SqliteTable:
    """A table as SQLite's catalogue describes it, beside its portable schema.

    Attributes:
        uniques: What else is unique, beside the key itself.
        unmirrored: Columns that the settings leave out.
        free_key: Whether a column of the key takes numbers as they come, so that 0.0 and -0.0,
            or 1 and 1.0, can be written in turn for one key.
        rowid_key: Whether the key is the rowid, in whose order rows are stored.
    """

    schema: TableSchema
    uniques: tuple[UniqueIndex, ...]
    key_collations: tuple[str, ...]
    unmirrored: tuple[str, ...] = ()
    free_key: bool = False
    rowid_key: bool = False

    @property
    def all_names(self) -> tuple[str, ...]:
        """The names of all columns, mirrored or not."""
        return (*self.schema.names, *self.unmirrored)

    @property
    def nullable_key(self) -> tuple[str, ...]:
        """The columns of the key that may be null."""
        return tuple(column.name for column in self.schema.key_columns if column.nullable)

    @property
    def binary_key(self) -> bool:
        """Whether keys are equal only when they are the same, byte for byte."""
        return not self.free_key and all(name == BINARY for name in self.key_collations)


_WIDE = {pa.int16(): "int64", pa.int32(): "int64", pa.float32(): "float64"}


@dataclass(frozen=True, slots=True)
class _Info:
    name: str
    declared: str
    not_null: bool
    key_place: int
    rowid_alias: bool = False

    @property
    def nullable(self) -> bool:
        """SQLite lets a primary key be null, unless it says NOT NULL or is the rowid."""
        return not (self.not_null or self.rowid_alias)


# The functions of pragmas are asked for as `temp.pragma_...`, here and wherever we ask. A table or
# view of the user's that has the name of one comes first otherwise, and `main.` would name it.


def table_names(connection: sqlite3.Connection) -> list[str]:
    """Return the names of all ordinary tables that have a declared primary key."""
    rows = connection.execute(
        "select name from temp.pragma_table_list l where schema = 'main' and type = 'table'"
        " and name not like 'sqlite\\_%' escape '\\' and name not like '\\_rhei\\_%' escape '\\'"
        " and exists (select 1 from temp.pragma_table_info(l.name) where pk > 0)"
        " order by name"
    )
    return [name for (name,) in rows]


def other_names(connection: sqlite3.Connection) -> dict[str, str]:
    """Return the names of all other tables and views, each with what it is or lacks."""
    rows = connection.execute(
        "select name, type from temp.pragma_table_list l where schema = 'main' and type <> 'shadow'"
        " and name not like 'sqlite\\_%' escape '\\' and name not like '\\_rhei\\_%' escape '\\'"
        " and not (type = 'table' and exists"
        " (select 1 from temp.pragma_table_info(l.name) where pk > 0)) order by name"
    )
    return {name: _OTHERS.get(kind, f"it is a {kind} table") for name, kind in rows}


def view_names(connection: sqlite3.Connection) -> list[tuple[str | None, str]]:
    """Return the views by name; they have no schema here."""
    return [(None, name) for name, what in other_names(connection).items() if what == _A_VIEW]


def read_table(
    connection: sqlite3.Connection,
    name: str,
    options: TableOptions = _NO_OPTIONS,
    known: TableSchema | None = None,
) -> SqliteTable:
    """Read a table's schema from the catalogue.

    Args:
        connection: Open on the source.
        name: The table, as declared (SQLite compares names without ASCII case).
        options: What the declaration says of it.
        known: The schema the table is mirrored with. A column whose declaration tells nothing
            keeps its type while some of its values are of it.

    Raises:
        SchemaError: No such table, not an ordinary table, no usable key, a reserved name, an
            unknown column; says the way out.
    """
    (version,) = connection.execute("pragma schema_version").fetchone()
    name = _ordinary_table(connection, name)
    infos = _columns(connection, name, options.columns)
    refuse_reserved(name, [info.name for info in infos])
    uniques = _uniques(connection, name)
    key = _key(name, infos, uniques, options.primary_key)
    _refuse_unknown(name, "types", list(options.types), [info.name for info in infos])
    _refuse_narrow(name, options.types)
    given = _Given(options.types, known)
    schema = TableSchema(
        name,
        tuple(_column(connection, name, info, key=info.name in key, given=given) for info in infos),
        key,
        deleted_at=options.deleted_at,
    )
    everything = [info.name for info in _columns(connection, name, None)]
    schema = replace(schema, storage=read_state(connection, version, name, everything).text())
    return _with_uniqueness(connection, schema, infos, uniques, everything)


def _with_uniqueness(
    connection: sqlite3.Connection,
    schema: TableSchema,
    infos: Sequence[_Info],
    uniques: Sequence[UniqueIndex],
    everything: Sequence[str],
) -> SqliteTable:
    key = schema.primary_key
    rowid_key = any(info.rowid_alias and (info.name,) == key for info in infos)
    own = None if rowid_key else _own_index(connection, schema, uniques)
    collations = own.collations if own else (BINARY,) * len(key)
    unknown = [name for name in collations if name.upper() not in BUILTIN]
    if unknown:
        raise SchemaError(
            f"its key uses collation {unknown[0]!r}, which only the application defines",
            table=schema.name,
            hint="set 'capture: {method: polling}', and name another unique key without nulls as"
            " 'primary_key'",
        )
    binary = all(collation == BINARY for collation in collations)
    others = tuple(index for index in uniques if not (binary and index is own))
    if not rowid_key:
        others += _rowid_alias(connection, schema.name)
    mirrored = set(schema.names)
    unmirrored = tuple(name for name in everything if name not in mirrored)
    free_key = any(_takes_any_number(info.declared) for info in infos if info.name in key)
    return SqliteTable(schema, others, collations, unmirrored, free_key, rowid_key)


def _own_index(
    connection: sqlite3.Connection, schema: TableSchema, uniques: Sequence[UniqueIndex]
) -> UniqueIndex | None:
    """Return the index by which the key is unique: for its columns' own comparisons, too.

    Raises:
        SchemaError: Its columns hold keys equal that are several to the index.
    """
    key = schema.primary_key
    found = [index for index in uniques if index.plain and index.terms == key]
    compared = compare_by(connection, schema.name, key) if found else []
    for index in found:
        if all(map(_is_as_fine, compared, index.collations)):
            return index
    if not found:
        return None
    raise SchemaError(
        "its key is unique by another collation than its columns compare by",
        table=schema.name,
        hint="create a unique index over the key's columns, or declare them with its collation",
    )


def _is_as_fine(compared: str, unique: str) -> bool:
    """Return whether values that are equal by one collation are never several by the other."""
    return compared in {BINARY, unique.upper()} or (
        compared == OWN and unique.upper() not in BUILTIN
    )


def _takes_any_number(declared: str) -> bool:
    """Return whether SQLite keeps numbers unchanged (sqlite.org/datatype3.html, 3.1)."""
    text = declared.upper()
    converts = any(part in text for parts, _ in _AFFINITIES[:2] for part in parts)
    return not text or text == "ANY" or ("BLOB" in text and not converts)


def _ordinary_table(connection: sqlite3.Connection, name: str) -> str:
    listed = (
        "temp.pragma_table_list({}) where schema = 'main'"
        " and name not like 'sqlite\\_%' escape '\\'"
    )
    # The one alone is looked up first: of many tables, each would else read the names of all.
    found = connection.execute(f"select name, type from {listed.format('?')}", (name,)).fetchall()
    if not found:
        known = connection.execute(f"select name, type from {listed.format('')}").fetchall()
        found = [row for row in known if row[0].lower() == name.lower()]
    if not found:
        tables = [
            row[0] for row in known if row[1] == "table" and not row[0].startswith(RESERVED_PREFIX)
        ]
        raise no_such_table(name, tables)
    declared, kind = found[0]
    if kind != "table":
        raise SchemaError(
            f"it is a {kind}, and only ordinary tables can be captured",
            table=declared,
            hint="mirror the tables it is made from",
        )
    return str(declared)


def _columns(
    connection: sqlite3.Connection, table: str, wanted: Sequence[str] | None
) -> list[_Info]:
    rows = connection.execute(
        'select name, type, "notnull", pk from temp.pragma_table_xinfo(?) where hidden <> 1',
        (table,),
    )
    infos = [_Info(name, declared, bool(strict), place) for name, declared, strict, place in rows]
    infos = _with_rowid_alias(infos)
    if wanted is None:
        return infos
    _refuse_unknown(table, "columns", wanted, [info.name for info in infos])
    chosen = {name.lower() for name in wanted}
    return [info for info in infos if info.name.lower() in chosen]


def _with_rowid_alias(infos: list[_Info]) -> list[_Info]:
    key = [info for info in infos if info.key_place]
    if len(key) != 1 or key[0].declared.upper() != "INTEGER":
        return infos
    return [replace(info, rowid_alias=True) if info is key[0] else info for info in infos]


def _refuse_unknown(table: str, setting: str, named: Sequence[str], known: Sequence[str]) -> None:
    lower = {name.lower() for name in known}
    for name in named:
        if name.lower() not in lower:
            raise SchemaError(
                f"{setting!r} names column {name!r}, which the source does not have",
                table=table,
                hint=nearest(name, known),
            )


def _refuse_narrow(table: str, types: Mapping[str, str]) -> None:
    for column, text in types.items():
        if (wide := _WIDE.get(named_type(text).type)) is not None:
            raise SchemaError(
                f"column {column!r} cannot be {text!r}: SQLite's numbers have 64 bits",
                table=table,
                hint=f"declare it as {wide}",
            )


def _key(
    table: str,
    infos: Sequence[_Info],
    uniques: Sequence[UniqueIndex],
    wanted: Sequence[str] | None,
) -> tuple[str, ...]:
    declared = tuple(
        info.name for info in sorted(infos, key=lambda info: info.key_place) if info.key_place
    )
    if wanted is None:
        if not declared:
            raise SchemaError(
                "it has no primary key, so a change cannot be matched to a row",
                table=table,
                hint="add one, or name a unique key without nulls as 'primary_key'",
            )
        return declared
    _refuse_unknown(table, "primary_key", wanted, [info.name for info in infos])
    by_lower = {info.name.lower(): info for info in infos}
    key = tuple(by_lower[name.lower()].name for name in wanted)
    if key == declared or _usable_key(key, infos, uniques):
        return key
    raise SchemaError(
        f"'primary_key' {list(key)} is not unique and without nulls in the source",
        table=table,
        hint="create a unique index over these columns and declare them not null",
    )


def _usable_key(
    key: tuple[str, ...], infos: Sequence[_Info], uniques: Sequence[UniqueIndex]
) -> bool:
    required = {info.name for info in infos if not info.nullable}
    return set(key) <= required and any(index.plain and index.terms == key for index in uniques)


def _uniques(connection: sqlite3.Connection, table: str) -> list[UniqueIndex]:
    rows = connection.execute(
        "select l.name, l.partial, m.sql from temp.pragma_index_list(?) l"
        " left join sqlite_master m on m.type = 'index' and m.name = l.name where l.\"unique\"",
        (table,),
    ).fetchall()
    return [_unique(connection, *row) for row in rows]


def _unique(
    connection: sqlite3.Connection, name: str, partial: int, sql: str | None
) -> UniqueIndex:
    terms = connection.execute(
        'select cid, name, coll from temp.pragma_index_xinfo(?) where "key" order by seqno', (name,)
    ).fetchall()
    return UniqueIndex(
        name,
        tuple(None if number == _EXPRESSION else column for number, column, _ in terms),
        tuple(collation for _, _, collation in terms),
        bool(partial),
        sql,
    )


def _rowid_alias(connection: sqlite3.Connection, table: str) -> tuple[UniqueIndex, ...]:
    """Return the rowid's own uniqueness where another key than the INTEGER PRIMARY KEY is used."""
    rows = connection.execute(
        "select name, type from temp.pragma_table_xinfo(?) where pk > 0", (table,)
    ).fetchall()
    if len(rows) == 1 and rows[0][1].upper() == "INTEGER":
        return (UniqueIndex("rowid", (rows[0][0],), (BINARY,), partial=False, sql=None),)
    return ()


def _column(
    connection: sqlite3.Connection,
    table: str,
    info: _Info,
    *,
    key: bool,
    given: "_Given",
) -> Column:
    override = given.override(info.name)
    if override is not None:
        return _overridden(info.name, override, nullable=info.nullable, key=key)
    arrow_type = declared_type(info.declared) or _observed_type(
        connection, table, info, given.known_type(info.name)
    )
    return Column(info.name, _key_type(arrow_type) if key else arrow_type, info.nullable)


def _key_type(found: pa.DataType) -> pa.DataType:
    """Return the type for a column of the key whose declaration asks for this one."""
    # Two texts can name one instant: as text they stay the two keys that the source has.
    is_time = pa.types.is_timestamp(found) or pa.types.is_time(found)
    return pa.string() if is_time else found


def in_given_types(schema: TableSchema, options: TableOptions) -> TableSchema:
    """Return a schema with the types that the declaration gives; as `read_table` applies them."""
    given = _Given(options.types, None)
    columns = [
        _overridden(
            column.name, text, nullable=column.nullable, key=column.name in schema.primary_key
        )
        if (text := given.override(column.name)) is not None
        else column
        for column in schema.columns
    ]
    return replace(schema, columns=tuple(columns))


def with_columns(
    connection: sqlite3.Connection,
    table: SqliteTable,
    wanted: Collection[str],
    types: Mapping[str, str],
) -> SqliteTable:
    """Return a table with other columns: those that several mirrors need together.

    Their types are the declared ones, whatever one mirror's settings say of them.

    Args:
        connection: Open on the source.
        table: As one mirror knows it.
        wanted: The names of the columns.
        types: What the mirrors' settings say of columns; taken where a declaration tells nothing.
    """
    known = {column.name: column for column in table.schema.columns}
    given, key = _Given(types, None), table.schema.primary_key
    infos = _columns(connection, table.schema.name, None)
    chosen = [info for info in infos if info.name in wanted]
    columns = tuple(
        _as_declared(info, given.override(info.name), known.get(info.name), key=info.name in key)
        for info in chosen
    )
    names = {column.name for column in columns}
    return replace(
        table,
        schema=replace(table.schema, columns=columns),
        unmirrored=tuple(info.name for info in infos if info.name not in names),
    )


def _as_declared(info: _Info, text: str | None, known: Column | None, *, key: bool) -> Column:
    if known is not None and text is None:
        return known
    found = declared_type(info.declared)
    if found is not None:
        return Column(info.name, _key_type(found) if key else found, info.nullable)
    if text is not None:
        return _overridden(info.name, text, nullable=info.nullable, key=key)
    return Column(info.name, pa.string(), info.nullable)


def _overridden(name: str, text: str, *, nullable: bool, key: bool) -> Column:
    arrow_type, epoch, logical = named_type(text)
    # Not in a key: two values of the source could become one key.
    mark = logical or ""  # one that is declared as something else by now is copied again
    return Column(name, arrow_type, nullable, epoch, not key, mark=mark, logical=logical)


def declared_type(declared: str) -> pa.DataType | None:
    """Return the Arrow type a declaration asks for; None where it tells nothing."""
    text = " ".join(declared.upper().split())
    decimal = _DECIMAL.fullmatch(text)
    if decimal:
        return decimal_type(int(decimal[1]), int(decimal[2] or 0))
    for pattern, arrow_type in _DECLARED:
        if pattern.fullmatch(text):
            return arrow_type
    for parts, arrow_type in _AFFINITIES:
        if any(part in text for part in parts):
            return arrow_type
    return None


@dataclass(frozen=True, slots=True)
class _Given:
    """What is known of columns beside the catalogue."""

    types: Mapping[str, str]
    known: TableSchema | None

    def override(self, column: str) -> str | None:
        by_lower = {name.lower(): text for name, text in self.types.items()}
        return by_lower.get(column.lower())

    def known_type(self, column: str) -> pa.DataType | None:
        columns = self.known.columns if self.known else ()
        return next((found.type for found in columns if found.name == column), None)


def _observed_type(
    connection: sqlite3.Connection, table: str, info: _Info, known: pa.DataType | None
) -> pa.DataType:
    """Take the type from what the column holds: SQLite lets it hold anything."""
    name = quote(info.name)
    rows = connection.execute(
        f"select distinct typeof({name}) from {quote(table)} where {name} is not null"
    )
    found = {kind for (kind,) in rows}
    if known is not None and found & _STORED_AS.get(known, set()):
        # Else one odd value would make a mirrored column another, or leave its table out.
        return known
    if not found:
        # Any other declaration has NUMERIC affinity, which turns text that looks so into numbers.
        return pa.float64() if info.declared else pa.string()
    if found == {"real"}:
        return pa.float64()
    for kinds, arrow_type in _OBSERVED:
        if found == kinds:
            return arrow_type
    raise SchemaError(
        f"column {info.name!r} has no clear type and holds {' and '.join(sorted(found))}",
        table=table,
        hint=f"declare one: 'types: {{{info.name}: string}}'; rows that do not fit become dead "
        f"letters",
    )


def declaration(arrow_type: pa.DataType) -> str:
    """Return the declared type that is read back as this Arrow type.

    Raises:
        SchemaError: No declaration is.
    """
    if pa.types.is_decimal(arrow_type):
        return f"DECIMAL({arrow_type.precision}, {arrow_type.scale})"
    for name in _DECLARATIONS:
        if arrow_type.equals(declared_type(name)):
            return name
    raise SchemaError(f"SQLite has no declared type for {arrow_type}")
