"""The text of SQLite capture: a typed log a table, and triggers that no migration trips over.

A trigger that names a column with `new.c` makes a later DROP COLUMN fail. So every column that
may be dropped is named without a table, over `t natural left join shape`: `shape` is a table of
ours with the same column names and never a row. While `t` has the column the name is `t`'s; once
it is dropped the name falls through to `shape`, and reads NULL. The join costs nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import sqlglot
from sqlglot.errors import SqlglotError
from sqlglot.tokenizer_core import Token, TokenType

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.oltp.sqlite_schema import SqliteTable, UniqueIndex
from rhei_pipeline.schema import Mode, TableSchema
from rhei_pipeline.sql import listed, quote

#: Microseconds since 1970 by SQLite's clock, which has milliseconds; fixed within a statement.
CLOCK = "cast((julianday('now') - 2440587.5) * 86400000.0 + 0.5 as integer) * 1000"

_EVENTS = ("before_insert", "before_update", "insert", "update", "delete")


@dataclass(frozen=True, slots=True)
class CaptureSql:
    """The objects that capture of one table needs, by name; each value creates its object."""

    tables: dict[str, str]
    triggers: dict[str, str]

    @property
    def objects(self) -> dict[str, str]:
        """Tables and triggers together."""
        return {**self.tables, **self.triggers}


def log_table(table: str) -> str:
    """Return the name of a table's log."""
    return f"_rhei_log_{table}"


def object_names(table: str) -> tuple[list[str], list[str]]:
    """Return the names of all tables and triggers that capture of a table may have made."""
    tables = [log_table(table), _shape_table(table), _victim_table(table)]
    return tables, [_trigger(event, table) for event in _EVENTS]


def key_places(schema: TableSchema) -> list[str]:
    """Return the log's names for the parts of the key."""
    return [f"k{place}" for place in range(len(schema.primary_key))]


def value_places(schema: TableSchema) -> list[str]:
    """Return the log's names for the columns outside the key."""
    return [f"c{place}" for place in range(len(schema.value_columns))]


def capture_sql(table: SqliteTable, mode: Mode) -> CaptureSql:
    """Compose the log and triggers of one table.

    Destructive: the log holds the keys touched; rows are read when they are needed. Temporal: it
    holds the row as it is once the change is made, read again from the table, because `new` may
    be stale where the application's own triggers touch the row again.

    Raises:
        SchemaError: A unique index cannot be understood.
    """
    writer = _KeyLog(table) if mode is Mode.DESTRUCTIVE else _ImageLog(table)
    name = table.schema.name
    tables = {log_table(name): writer.log()}
    shape = _shape_columns(table, mode)
    if shape:
        tables[_shape_table(name)] = f"CREATE TABLE {quote(_shape_table(name))}({listed(shape)})"
    if table.uniques:
        tables.update(writer.victims())
    return CaptureSql(tables, dict(_triggers(table, writer)))


def _triggers(table: SqliteTable, writer: "_KeyLog") -> Iterator[tuple[str, str]]:
    bodies = {
        "insert": writer.after_insert(),
        "update": writer.after_update(),
        "delete": writer.after_delete(),
    }
    if table.uniques:
        bodies["before_insert"] = _evictions(table, writer, updating=False)
        bodies["before_update"] = _evictions(table, writer, updating=True)
    name = table.schema.name
    for event, body in bodies.items():
        when = event.replace("_", " ") if "before" in event else f"after {event}"
        yield (
            _trigger(event, name),
            f"CREATE TRIGGER {quote(_trigger(event, name))} {when} on {quote(name)} "
            f"begin {' '.join(statement + ';' for statement in body)} end",
        )


class _KeyLog:
    """Statements that log which keys were touched."""

    def __init__(self, table: SqliteTable) -> None:
        self.table = table
        self.name = quote(table.schema.name)
        self.key = table.schema.primary_key
        self.places = ", ".join(key_places(table.schema))
        self.log_name = quote(log_table(table.schema.name))

    def log(self) -> str:
        return f"CREATE TABLE {self.log_name}(seq integer primary key, at integer, {self.places})"

    def victims(self) -> dict[str, str]:
        return {}

    def note_victims(self, select: str) -> str:
        """Log keys that the statement may be about to evict; a key too many does no harm."""
        return f"insert into {self.log_name}(at, {self.places}) select {CLOCK}, {select}"

    def after_insert(self) -> list[str]:
        return [self._touch("new")]

    def after_update(self) -> list[str]:
        moved = f"where not {_same_key(self.key, 'old', 'new')}"
        return [
            self._touch("new"),
            f"insert into {self.log_name}(at, {self.places})"
            f" select {CLOCK}, {listed(self.key, 'old')} {moved}",
        ]

    def after_delete(self) -> list[str]:
        return [self._touch("old")]

    def _touch(self, row: str) -> str:
        return (
            f"insert into {self.log_name}(at, {self.places})"
            f" values({CLOCK}, {listed(self.key, row)})"
        )


class _ImageLog(_KeyLog):
    """Statements that log each row as it is once the change is made, or that it is gone."""

    def log(self) -> str:
        places = ", ".join([*key_places(self.table.schema), *value_places(self.table.schema)])
        return f"CREATE TABLE {self.log_name}(seq integer primary key, at integer, live, {places})"

    def victims(self) -> dict[str, str]:
        name = _victim_table(self.table.schema.name)
        return {name: f"CREATE TABLE {quote(name)}({self.places})"}

    def note_victims(self, select: str) -> str:
        # Whether they are evicted shows only afterwards: the statement may ignore or fail.
        return f"insert into {self._victims}({self.places}) select {select}"

    def after_insert(self) -> list[str]:
        return [*self._log_victims(), *self._images()]

    def after_update(self) -> list[str]:
        moved = f"not {_same_key(self.key, 'old', 'new')} and {self._is_gone('old', self.key)}"
        return [
            *self._log_victims(),
            *self._images(),
            f"insert into {self.log_name}(at, live, {self.places})"
            f" select {CLOCK}, 0, {listed(self.key, 'old')} where {moved}",
        ]

    def after_delete(self) -> list[str]:
        return [
            f"insert into {self.log_name}(at, live, {self.places})"
            f" select {CLOCK}, 0, {listed(self.key, 'old')} where {self._is_gone('old', self.key)}"
        ]

    @property
    def _victims(self) -> str:
        return quote(_victim_table(self.table.schema.name))

    def _images(self) -> list[str]:
        image = f"{image_insert(self.table)} where {_equal_key(self.name, self.key, 'new')}"
        if not self.table.nullable_key:
            return [image]
        return [image, keyless_insert(self.table, [f"new.{quote(name)}" for name in self.key])]

    def _log_victims(self) -> list[str]:
        if not self.table.uniques:
            return []
        places = key_places(self.table.schema)
        return [
            f"insert into {self.log_name}(at, live, {self.places})"
            f" select {CLOCK}, 0, {self.places} from {self._victims} v"
            f" where {self._is_gone('v', places)}",
            f"delete from {self._victims}",
        ]

    def _is_gone(self, row: str, names: Sequence[str]) -> str:
        values = [f"{row}.{quote(name)}" for name in names]
        return f"not {_has_row(self.table, values)}"


def image_insert(table: SqliteTable) -> str:
    """Write the statement that logs rows as they are now; a condition may follow it."""
    schema = table.schema
    values = [column.name for column in schema.value_columns]
    places = ", ".join([*key_places(schema), *value_places(schema)])
    name = quote(schema.name)
    chosen = ", ".join(filter(None, [listed(schema.primary_key, name), listed(values)]))
    join = f" natural left join {quote(_shape_table(schema.name))}" if values else ""
    return (
        f"insert into {quote(log_table(schema.name))}(at, live, {places})"
        f" select {CLOCK}, 1, {chosen} from {name}{join}"
    )


def keyless_insert(table: SqliteTable, key: Sequence[str]) -> str:
    """Write the statement that logs a row without its values, because its key is null in part.

    `key` is the SQL of each part. Nothing is logged where no row has that key.
    """
    schema = table.schema
    unknown = " or ".join(
        f"{part} is null"
        for name, part in zip(schema.primary_key, key, strict=True)
        if name in table.nullable_key
    )
    return (
        f"insert into {quote(log_table(schema.name))}(at, live, {', '.join(key_places(schema))})"
        f" select {CLOCK}, 1, {', '.join(key)} where ({unknown}) and {_has_row(table, key)}"
    )


def _has_row(table: SqliteTable, key: Sequence[str]) -> str:
    name = quote(table.schema.name)
    return f"exists (select 1 from {name} where {has_key(table, name, key)})"


def has_key(table: SqliteTable, rows: str, key: Sequence[str]) -> str:
    """Compare the key of rows, byte for byte, with the SQL of each part of a key."""
    # Both comparisons: the first one can use the key's index, the second one is exact.
    return " and ".join(
        f"{rows}.{quote(name)} {operator} {part}"
        f" and {rows}.{quote(name)} {operator} {part} collate binary"
        for name, part in zip(table.schema.primary_key, key, strict=True)
        for operator in ["is" if name in table.nullable_key else "="]
    )


def _evictions(table: SqliteTable, writer: _KeyLog, *, updating: bool) -> list[str]:
    return [
        writer.note_victims(_rivals(table, index, updating=updating)) for index in table.uniques
    ]


def _rivals(table: SqliteTable, index: UniqueIndex, *, updating: bool) -> str:
    """Select the keys of rows that the row to be written would conflict with in this index."""
    name, key = quote(table.schema.name), table.schema.primary_key
    conditions = list(_conflict(table, index))
    if updating:
        conditions.append(f"not {_same_key(key, name, 'old')}")
    # In `(select new."c")` the name is looked up outwards: the row's column if there is one,
    # else the joined shape's, here called `new` as well.
    join = f" natural left join {quote(_shape_table(table.schema.name))} as new"
    source = f"{name}{join}" if _shape_columns(table, Mode.DESTRUCTIVE) else name
    return f"{listed(key, name)} from {source} where {' and '.join(conditions)}"


def _conflict(table: SqliteTable, index: UniqueIndex) -> Iterator[str]:
    if index.plain:
        for term, collation in zip(index.terms, index.collations, strict=True):
            yield f"{quote(term or '')} = (select new.{quote(term or '')}) collate {collation}"
        return
    expressions, condition = _parse_index(table, index)
    for expression, collation in zip(expressions, index.collations, strict=True):
        yield f"{expression.text} = ({expression.of_new()}) collate {collation}"
    if condition is not None:
        yield f"({condition.text})"


@dataclass(frozen=True, slots=True)
class _Expression:
    """A piece of CREATE INDEX text, kept to the letter so that SQLite still sees its index."""

    text: str
    columns: tuple[tuple[int, int, str], ...]

    def of_new(self) -> str:
        """Return the same expression over the row to be written."""
        text = self.text
        for start, end, column in reversed(self.columns):
            text = f"{text[:start]}(select new.{quote(column)}){text[end:]}"
        return text


def _parse_index(
    table: SqliteTable, index: UniqueIndex
) -> tuple[list[_Expression], _Expression | None]:
    sql = index.sql or ""
    try:
        tokens = sqlglot.tokenize(sql, read="sqlite")
        opening = next(i for i, t in enumerate(tokens) if t.token_type is TokenType.L_PAREN)
    except (SqlglotError, StopIteration) as error:
        raise SchemaError(
            f"unique index {index.name!r} cannot be read",
            table=table.schema.name,
            hint="drop the index, or leave the table out of 'tables'",
        ) from error
    names = {column.lower(): column for column in _all_columns(table)}
    closing = _closing(tokens, opening)
    terms = [_expression(sql, part, names) for part in _split(tokens[opening + 1 : closing])]
    where = tokens[closing + 2 :]  # behind `) where`
    return terms, _expression(sql, where, names) if where else None


def _all_columns(table: SqliteTable) -> Iterable[str]:
    return [*table.schema.names, *table.unmirrored]


def _closing(tokens: Sequence[Token], opening: int) -> int:
    depth = 0
    for place in range(opening, len(tokens)):
        depth += _DEPTH.get(tokens[place].token_type, 0)
        if depth == 0:
            return place
    return len(tokens)


_DEPTH = {TokenType.L_PAREN: 1, TokenType.R_PAREN: -1}
_DIRECTIONS = {TokenType.ASC, TokenType.DESC}


def _split(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """Split an index's list at its outermost commas, and leave directions out."""
    depth = 0
    part: list[Token] = []
    for token in tokens:
        depth += _DEPTH.get(token.token_type, 0)
        if token.token_type is TokenType.COMMA and depth == 0:
            yield part
            part = []
        elif token.token_type not in _DIRECTIONS:
            part.append(token)
    yield part


def _expression(sql: str, tokens: Sequence[Token], names: dict[str, str]) -> _Expression:
    start, end = tokens[0].start, tokens[-1].end + 1
    columns = []
    for place, token in enumerate(tokens):
        called = place + 1 < len(tokens) and tokens[place + 1].token_type is TokenType.L_PAREN
        is_name = token.token_type is not TokenType.STRING and token.text.lower() in names
        if is_name and not called:
            columns.append((token.start - start, token.end + 1 - start, names[token.text.lower()]))
    return _Expression(sql[start:end], tuple(columns))


def _shape_columns(table: SqliteTable, mode: Mode) -> list[str]:
    """Return the columns that triggers name without a table."""
    indexed = {term for index in table.uniques for term in index.terms if term is not None}
    if any(not index.plain for index in table.uniques):
        indexed |= set(_all_columns(table))
    if mode is Mode.TEMPORAL:
        indexed |= {column.name for column in table.schema.value_columns}
    return sorted(indexed - set(table.schema.primary_key))


def _shape_table(table: str) -> str:
    return f"_rhei_shape_{table}"


def _victim_table(table: str) -> str:
    return f"_rhei_victim_{table}"


def _trigger(event: str, table: str) -> str:
    return f"_rhei_{event}_{table}"


def _same_key(key: Sequence[str], left: str, right: str) -> str:
    """Compare keys byte for byte, whatever the collation of the columns."""
    same = " and ".join(
        f"{left}.{quote(name)} is {right}.{quote(name)} collate binary" for name in key
    )
    return f"({same})"


def _equal_key(name: str, key: Sequence[str], row: str) -> str:
    return " and ".join(f"{name}.{quote(column)} = {row}.{quote(column)}" for column in key)
