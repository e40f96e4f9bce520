"""Columns, tables, and the difference of two schemas, in Arrow types."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from dataclasses import field as dataclass_field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.type_names import INSTANT, is_text_in_keys, named_type, type_name

#: Tables and columns that begin so are ours; a source that uses the prefix is refused by name.
RESERVED_PREFIX = "_rhei_"

VALID_FROM = "_rhei_valid_from"
VALID_TO = "_rhei_valid_to"
OPERATION = "_rhei_operation"

#: The name that each renamed column had before.
FormerNames = Mapping[str, str]
NOTHING_RENAMED: FormerNames = MappingProxyType({})

#: The three columns a temporal mirror adds behind the source's own.
HISTORY_FIELDS = (
    pa.field(VALID_FROM, INSTANT, nullable=False),
    pa.field(VALID_TO, INSTANT),
    pa.field(OPERATION, pa.string(), nullable=False),
)
HISTORY_NAMES = frozenset(field.name for field in HISTORY_FIELDS)
#: What is stored of a schema where it is not empty.
_SAID = ("mark", "mirror_name", "where", "deleted_at")


class Mode(StrEnum):
    """How a mirror treats changed rows: overwrite them (SCD 1) or keep versions (SCD 2)."""

    DESTRUCTIVE = "destructive"
    TEMPORAL = "temporal"


class SchemaPolicy(StrEnum):
    """What becomes of a mirrored table whose source changes its schema.

    EVOLVE: the mirror follows. FREEZE: the table goes on with the columns that it had, if its
    source still has them. QUARANTINE: the table is left out until somebody decides.
    """

    EVOLVE = "evolve"
    FREEZE = "freeze"
    QUARANTINE = "quarantine"


class DroppedColumns(StrEnum):
    """What becomes of a mirror's column that its source has no more, or is not to be mirrored."""

    KEEP = "keep"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    `epoch` is the unit (`s`, `ms`, `us`) if the source stores timestamps as integers counted from
    1970; otherwise None. `overridden`: the declaration gives the type, so a value of another type
    is accepted if it converts exactly.
    `mark` changes whenever DDL may have changed the column's values; empty where the source's
    catalogue does not show that.
    `logical` says what its text is, such as `uuid` or `json`, for engines that have such a type.
    It is no part of the column's identity: each mirror decides how it stores such a text.
    `masked`: How the mirror's values differ from the source's; None where they are the same.
    """

    name: str
    type: pa.DataType
    nullable: bool = True
    epoch: str | None = None
    overridden: bool = False
    mark: str = ""
    logical: str | None = dataclass_field(default=None, compare=False)
    masked: "MaskedColumn | None" = None

    @property
    def field(self) -> pa.Field:
        """The Arrow field of this column."""
        return pa.field(self.name, self.type)

    def to_json(self) -> dict[str, Any]:
        """Return the form that the registry stores."""
        form = {
            "name": self.name,
            "type": type_name(self.type, self.epoch),
            "nullable": self.nullable,
            **({"mark": self.mark} if self.mark else {}),
            **({"logical": self.logical} if self.logical else {}),
            **({"masked": self.masked.to_json()} if self.masked else {}),
        }
        return {**form, "overridden": True} if self.overridden else form

    @classmethod
    def from_json(cls, form: dict[str, Any]) -> "Column":
        """Read the form that the registry stores."""
        arrow_type, epoch, _ = named_type(form["type"])
        return cls(
            form["name"],
            arrow_type,
            form["nullable"],
            epoch,
            overridden=form.get("overridden", False),
            mark=form.get("mark", ""),
            logical=form.get("logical"),
            masked=MaskedColumn.from_json(form["masked"]) if "masked" in form else None,
        )


@dataclass(frozen=True, slots=True)
class MaskedColumn:
    """How a column is masked.

    Attributes:
        rule: As it is declared, such as `hash` or `truncate:3`.
        source: The column as the source has it.
        key: Changes with the key of the hash, and does not show it; empty for other rules.
    """

    rule: str
    source: Column
    key: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the form that the registry stores."""
        return {"rule": self.rule, "source": self.source.to_json(), "key": self.key}

    @classmethod
    def from_json(cls, form: dict[str, Any]) -> "MaskedColumn":
        """Read the form that the registry stores."""
        return cls(form["rule"], Column.from_json(form["source"]), form["key"])


@dataclass(frozen=True, slots=True)
class TableSchema:
    """A table's columns in order and its primary key.

    Attributes:
        name: Its name in settings, reports and records; `namespace.relation` if the namespace is
            not the default one.
        namespace: Its schema in the source and in the mirror; None if the source has no schemas.
        mark: Changes whenever the name may mean other rows: the table was created again, or its
            partitions changed. Empty if the source's catalogue does not show that.
        mirror_name: Its name in the mirror, if that differs from the one in the source.
        where: The condition on the rows that the mirror has; empty for all.
        deleted_at: The column that marks rows as deleted, by polling; empty if none does.
        storage: Tells the source later which columns the table lacked, and whether its rows were
            written again since. Empty where that is not known.
    """

    name: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    namespace: str | None = None
    mark: str = ""
    mirror_name: str = field(default="", compare=False)
    where: str = ""
    storage: str = field(default="", compare=False)
    deleted_at: str = ""

    @property
    def full_name(self) -> str:
        """Its name with its namespace, even where that is the default one."""
        return f"{self.namespace}.{self.relation}" if self.namespace else self.name

    @property
    def mirror_relation(self) -> str:
        """The table's own name in the mirror."""
        return self.mirror_name or self.relation

    @property
    def snapshot_name(self) -> str:
        """The name of its table of snapshots."""
        return renamed(self, self.mirror_name).name if self.mirror_name else self.name

    @property
    def relation(self) -> str:
        """The table's own name, without its namespace."""
        return self.name.removeprefix(f"{self.namespace}.") if self.namespace else self.name

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, in order."""
        return tuple(column.name for column in self.columns)

    @property
    def key_columns(self) -> tuple[Column, ...]:
        """The primary key's columns, in the key's order."""
        by_name = {column.name: column for column in self.columns}
        return tuple(by_name[name] for name in self.primary_key)

    @property
    def value_columns(self) -> tuple[Column, ...]:
        """The columns outside the primary key, in order."""
        return tuple(column for column in self.columns if column.name not in self.primary_key)

    @property
    def logical(self) -> Mapping[str, str]:
        """What the text of columns is, by name, where it is more than text.

        An interval, and what has parts, is text in the key: rows are found by it everywhere.
        """
        return {
            column.name: column.logical
            for column in self.columns
            if column.logical
            and not (is_text_in_keys(column.logical) and column.name in self.primary_key)
        }

    @property
    def mirrored_columns(self) -> tuple[Column, ...]:
        """The columns in order, each with what its text is to the mirror."""
        logical = self.logical
        return tuple(
            column if column.logical is None else replace(column, logical=logical.get(column.name))
            for column in self.columns
        )

    @property
    def arrow(self) -> pa.Schema:
        """The Arrow schema of the columns, in order."""
        return pa.schema([column.field for column in self.columns])

    @property
    def arrow_key(self) -> pa.Schema:
        """The Arrow schema of the primary key."""
        return pa.schema([column.field for column in self.key_columns])

    def to_json(self) -> dict[str, Any]:
        """Return the form that the registry stores."""
        return {
            "name": self.name,
            "namespace": self.namespace,
            "primary_key": list(self.primary_key),
            "columns": [column.to_json() for column in self.columns],
            **{name: said for name in _SAID if (said := getattr(self, name))},
        }

    @classmethod
    def from_json(cls, form: dict[str, Any]) -> "TableSchema":
        """Read the form that the registry stores."""
        columns = tuple(Column.from_json(column) for column in form["columns"])
        said = {name: form[name] for name in _SAID if name in form}
        return cls(form["name"], columns, tuple(form["primary_key"]), form.get("namespace"), **said)


def renamed(schema: TableSchema, relation: str) -> TableSchema:
    """Return the same schema under another table name."""
    qualified = schema.namespace is not None and schema.name != schema.relation
    name = f"{schema.namespace}.{relation}" if qualified else relation
    return replace(schema, name=name, mirror_name="")


@dataclass(frozen=True, slots=True)
class Table:
    """A declared table: its schema, and how its mirror treats changes.

    `dropped`: What becomes of columns that the schema has no more. None: a history keeps them, and
    another mirror drops them. It is declared, and no part of the table's identity.
    """

    schema: TableSchema
    mode: Mode = Mode.DESTRUCTIVE
    dropped: DroppedColumns | None = dataclass_field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The table's name in the source and in the mirror."""
        return self.schema.name

    @property
    def keeps_dropped(self) -> bool:
        """Whether its mirror keeps columns that the schema has no more."""
        if self.dropped is None:
            return self.mode is Mode.TEMPORAL
        return self.dropped is DroppedColumns.KEEP

    @property
    def mirror_schema(self) -> pa.Schema:
        """The Arrow schema of the mirror's table, history columns included."""
        own = self.schema.arrow
        if self.mode is Mode.DESTRUCTIVE:
            return own
        return pa.schema([*own, *HISTORY_FIELDS])


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What the declaration says about a table besides its name and mode.

    Attributes:
        columns: Mirror these only; None for all.
        primary_key: Use this unique key; None for the declared one.
        types: Types that override the declared ones, by column.
        as_text: Text that is more than text, such as JSON, is mirrored as text alone.
        masks: How columns are masked, by column.
        where: Mirror the rows of which this is true; empty for all.
        deleted_at: Mirror no row that this column marks as deleted, by polling; empty for none.
    """

    columns: tuple[str, ...] | None = None
    primary_key: tuple[str, ...] | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    as_text: bool = False
    masks: Mapping[str, str] = field(default_factory=dict)
    where: str = ""
    deleted_at: str = ""


@dataclass(frozen=True, slots=True)
class SchemaDifference:
    """The changes from one schema of a table to the next; empty when nothing changed.

    Attributes:
        renamed: Columns that have other names by now, and may have changed otherwise as well.
        former: The name that each of these had.
    """

    added: tuple[Column, ...] = ()
    dropped: tuple[Column, ...] = ()
    retyped: tuple[Column, ...] = ()
    rewritten: tuple[Column, ...] = ()
    replaced: bool = False
    key_changed: bool = False
    refiltered: bool = False
    renamed: tuple[Column, ...] = ()
    former: FormerNames = field(default_factory=lambda: NOTHING_RENAMED)

    def __bool__(self) -> bool:
        columns = self.added or self.dropped or self.retyped or self.rewritten or self.renamed
        return bool(columns or self.replaced or self.key_changed or self.refiltered)

    def describe(self, *, keeps_dropped: bool = False) -> str:
        """Return a clause that says what changed, with names only, and what the mirror keeps."""
        clauses = [
            f"{verb} {', '.join(repr(column.name) for column in columns)}{more}"
            for verb, columns, more in (
                ("added", self.added, ""),
                ("dropped", self.dropped, " (kept in the mirror)" if keeps_dropped else ""),
                ("changed the type of", self.retyped, ""),
                ("redefined", self.rewritten, ""),
            )
            if columns
        ]
        if self.renamed:
            names = ", ".join(f"{self.former[c.name]!r} to {c.name!r}" for c in self.renamed)
            clauses.append(f"renamed {names}")
        if self.replaced:
            clauses.append("is another table, or has other partitions")
        if self.key_changed:
            clauses.append("changed the primary key")
        if self.refiltered:
            clauses.append("is read by another condition on its rows")
        return " and ".join(clauses) or "changed nothing"


def difference(
    old: TableSchema, new: TableSchema, former: FormerNames = NOTHING_RENAMED
) -> SchemaDifference:
    """Compare two schemas of one table by column name.

    A rename shows as one column dropped and one added, but for those whose former names are given.
    """
    before = {column.name: column for column in old.columns}
    after = {column.name: column for column in new.columns}
    known, gone = before.keys() | former.keys(), before.keys() - {*former.values()}
    return SchemaDifference(
        added=tuple(column for column in new.columns if column.name not in known),
        dropped=tuple(c for c in old.columns if c.name in gone and c.name not in after),
        retyped=tuple(
            column
            for column in new.columns
            if column.name in before and not _same_type(before[column.name], column)
        ),
        rewritten=tuple(
            column
            for column in new.columns
            if column.name in before
            and _same_type(before[column.name], column)
            and _origin(before[column.name]) != _origin(column)
        ),
        replaced=old.mark != new.mark,
        key_changed=old.primary_key != tuple(former.get(key, key) for key in new.primary_key),
        refiltered=(old.where, old.deleted_at) != (new.where, new.deleted_at),
        renamed=tuple(column for column in new.columns if column.name in former),
        former=former,
    )


def _origin(column: Column) -> tuple[str, MaskedColumn | None]:
    """Return what changes with the column's values while its type stays."""
    return column.mark, column.masked


def _same_type(old: Column, new: Column) -> bool:
    return bool(old.type.equals(new.type)) and old.epoch == new.epoch


def refuse_reserved(table: str, columns: Iterable[str]) -> None:
    """Refuse a table or column whose name starts with our prefix.

    Raises:
        SchemaError: Names the table or column.
    """
    if table.lower().startswith(RESERVED_PREFIX):
        raise SchemaError(
            f"names that start with {RESERVED_PREFIX!r} are reserved",
            table=table,
            hint="rename the table in the source, or leave it out of 'tables'",
        )
    taken = [name for name in columns if name.lower().startswith(RESERVED_PREFIX)]
    if taken:
        raise SchemaError(
            f"column {taken[0]!r} starts with the reserved prefix {RESERVED_PREFIX!r}",
            table=table,
            hint="rename the column, or leave it out with 'columns'",
        )


def spelled(name: str, among: Iterable[str]) -> str:
    """Return the spelling of a name among others, ignoring case unless it is there as given."""
    by_lower: dict[str, str] = {}
    for other in among:
        if other == name:
            return name
        by_lower[other.lower()] = other
    return by_lower.get(name.lower(), name)


def nearest(name: str, known: Sequence[str]) -> str:
    """Return `did you mean ...?` for the known name nearest to `name`, or what is known."""
    from difflib import get_close_matches  # noqa: PLC0415  (only on the way to an error)

    close = get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    names = ", ".join(known[:20]) + (", ..." if known[20:] else "")
    return f"known are: {names}" if known else "there is none"
