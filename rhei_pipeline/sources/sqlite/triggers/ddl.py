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
from rhei_pipeline.model.schema import Mode, TableSchema
from rhei_pipeline.sources.sqlite.catalog import SqliteTable, UniqueIndex
from rhei_pipeline.sql.text import conjunction, disjunction, listed, quote

#: Microseconds since 1970 by SQLite's clock, which has milliseconds; fixed within a statement.
CLOCK = "cast((julianday('now') - 2440587.5) * 86400000.0 + 0.5 as integer) * 1000"

#: What `live` says of an entry that holds the rest of the row whose entry is the one before it.
CONTINUED = 2

_EVENTS = ("before_insert", "before_update", "insert", "update", "delete")

#: Columns that one join names: each deepens an expression, and the application's SQLite may allow
#: 1000 levels (SQLITE_MAX_EXPR_DEPTH), or fewer where it was built so.
_JOINED = 250
#: Columns of a table (SQLITE_MAX_COLUMN), and those of a log that are not the table's.
_MOST_COLUMNS = 2_000
_OWN_COLUMNS = 3


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
    tables = [log_table(table), shape_table(table), _victim_table(table)]
    return tables, [_trigger(event, table) for event in _EVENTS]


def key_places(schema: TableSchema) -> list[str]:
    """Return the log's names for the parts of the key."""
    return [f"k{place}" for place in range(len(schema.primary_key))]


def value_places(schema: TableSchema) -> list[list[str]]:
    """Return the log's names for the columns outside the key, by the entries that hold a row.

    There is one entry a row, and two where a log would have more columns than a table can have.
    """
    count = len(schema.value_columns)
    fits = _OWN_COLUMNS + len(schema.primary_key) + count <= _MOST_COLUMNS
    first = count if fits else (count + 1) // 2
    return [[f"c{place}" for place in range(part)] for part in (first, count - first) if part]


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
        tables[shape_table(name)] = shape_sql(name, shape)
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
        values = next(iter(value_places(self.table.schema)), [])
        places = ", ".join([*key_places(self.table.schema), *values])
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
        key = [f"new.{quote(name)}" for name in self.key]
        images = image_inserts(self.table, key)
        if not self.table.nullable_key:
            return images
        return [*images, keyless_insert(self.table, key)]

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


def image_inserts(table: SqliteTable, key: Sequence[str]) -> list[str]:
    """Write the statements that log a row as it is now, one for each entry that it takes.

    `key` is the SQL of each part. They run one behind the other; nothing is logged where no row
    has that key.
    """
    schema = table.schema
    names = [column.name for column in schema.value_columns]
    statements = []
    for number, places in enumerate(value_places(schema) or [[]]):
        chosen, names = names[: len(places)], names[len(places) :]
        live = CONTINUED if number else 1
        statements.append(
            f"insert into {quote(log_table(schema.name))}"
            f"(at, live, {', '.join([*key_places(schema), *places])})"
            f" select {CLOCK}, {live}, {_image(schema, key, chosen, places)}"
        )
    return statements


def _image(
    schema: TableSchema, key: Sequence[str], names: Sequence[str], places: Sequence[str]
) -> str:
    """Select a row's key and columns."""
    name = quote(schema.name)
    own = listed(schema.primary_key, name)
    parts = zip(schema.primary_key, key, strict=True)
    where = f"where {conjunction(f'{name}.{quote(column)} = {part}' for column, part in parts)}"
    if len(names) <= _JOINED:
        join = _joined_shape(schema.name, names) if names else ""
        return f"{', '.join(filter(None, [own, listed(names)]))} from {name}{join} {where}"
    # The row is joined to itself, with some of its columns each time. `limit` keeps SQLite from
    # merging these joins into one deep expression.
    keys = key_places(schema)
    named = ", ".join(
        f"{name}.{quote(c)} as {k}" for c, k in zip(schema.primary_key, keys, strict=True)
    )
    joins = [f"(select {named} from {name} {where} limit 1)"]
    for start in range(0, len(names), _JOINED):
        some = names[start : start + _JOINED]
        named = ", ".join(
            f"{quote(column)} as {place}"
            for column, place in zip(some, places[start:], strict=False)
        )
        shape = _joined_shape(schema.name, some, only=True)
        joins.append(f"(select {named} from {name}{shape} {where} limit 1)")
    return f"{', '.join([*keys, *places])} from {', '.join(joins)}"


def _joined_shape(table: str, names: Sequence[str], *, only: bool = False) -> str:
    """Join the columns of these names that the table has lost, always null.

    With `only`, no others, of which there may be too many for one expression.
    """
    shape = quote(shape_table(table))
    shape = f"(select {listed(names)} from {shape})" if only else shape
    return f" natural left join {shape}"


def keyless_insert(table: SqliteTable, key: Sequence[str]) -> str:
    """Write the statement that logs a row without its values, because its key is null in part.

    `key` is the SQL of each part. Nothing is logged where no row has that key.
    """
    schema = table.schema
    unknown = disjunction(
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
    return conjunction(
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
    # Where the shape has too many columns for one join, those that the index names are enough.
    named, many = _named_in(table, index), len(table.schema.columns) > _JOINED
    join = f"{_joined_shape(table.schema.name, named, only=many)} as new"
    source = f"{name}{join}" if _shape_columns(table, Mode.DESTRUCTIVE) else name
    return f"{listed(key, name)} from {source} where {conjunction(conditions)}"


def _named_in(table: SqliteTable, index: UniqueIndex) -> list[str]:
    """Return the columns outside the key that an index names."""
    if index.plain:
        named = {term for term in index.terms if term is not None}
    else:
        expressions, condition = _parse_index(table, index)
        parts = [*expressions, *([] if condition is None else [condition])]
        named = {column for part in parts for _, _, column in part.columns}
    return sorted(named - set(table.schema.primary_key))


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
    return table.all_names


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


def shape_table(table: str) -> str:
    """Return the name of the table of ours that has a table's columns, and never a row."""
    return f"_rhei_shape_{table}"


def shape_sql(table: str, columns: Sequence[str]) -> str:
    """Compose that table."""
    return f"CREATE TABLE {quote(shape_table(table))}({listed(columns)})"


def _victim_table(table: str) -> str:
    return f"_rhei_victim_{table}"


def _trigger(event: str, table: str) -> str:
    return f"_rhei_{event}_{table}"


def _same_key(key: Sequence[str], left: str, right: str) -> str:
    """Compare keys byte for byte, whatever the collation of the columns."""
    same = conjunction(
        f"{left}.{quote(name)} is {right}.{quote(name)} collate binary" for name in key
    )
    return f"({same})"
