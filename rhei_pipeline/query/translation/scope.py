"""Resolves the names in a query as the source would: which table and column each one means."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlglot import exp
from sqlglot.tokenizer_core import Token

from rhei_pipeline.model.schema import VALID_TO, Column, Mode
from rhei_pipeline.model.semantics import Kind, MirroredTable
from rhei_pipeline.query.translation.dialects import WORDS, Dialect
from rhei_pipeline.query.translation.meaning import Catalog, StaysWithSourceError, Typed
from rhei_pipeline.sql.text import listed, mirror_table, quote


@dataclass(frozen=True, slots=True)
class Relation:
    """A table, subquery or CTE in a FROM clause.

    Attributes:
        name: How the query refers to it.
        sql: Its text in the mirror's FROM clause, alias included.
        columns: Its columns in order; a name is None if the source would choose one.
        key: The names of columns that are unique in it; None if none are known.
        whole: Whether the columns are all that the source would return for `*`.
        merged: Columns that USING has merged into another relation's.
        kept_back: Names that mean something of it in the source, and nothing in the mirror.
    """

    name: str
    sql: str
    columns: tuple[tuple[str | None, Typed], ...]
    key: tuple[str, ...] | None = None
    whole: bool = True
    merged: frozenset[str] = frozenset()
    kept_back: frozenset[str] = frozenset()

    def named(self, wanted: str, context: "TranslationContext") -> list[Typed]:
        """Return the columns that the source calls so."""
        return [
            found
            for name, found in self.columns
            if name is not None and compared(name, context) == wanted
        ]

    @property
    def whole_names(self) -> bool:
        """Whether the names of all its columns are known."""
        return all(name is not None for name, _ in self.columns)

    def may_have(self, wanted: str, context: "TranslationContext") -> bool:
        """Return whether the source may call a column of it so."""
        known = wanted in self.kept_back or bool(self.named(wanted, context))
        return known or not self.whole_names


@dataclass
class Scope:
    """The names that are visible inside one SELECT.

    Attributes:
        groups: The mirror's text of each GROUP BY key; None where rows are not grouped.
        aliases: Output columns by their alias.
        promised: Aliases that are not among `aliases` yet, and that stand before names around.
    """

    relations: list[Relation] = field(default_factory=list)
    parent: "Scope | None" = None
    groups: frozenset[str] | None = None
    aliases: dict[str, Typed] = field(default_factory=dict)
    promised: frozenset[str] = frozenset()

    @property
    def own(self) -> frozenset[str]:
        """All columns of its relations, as the mirror's text."""
        return frozenset(found.sql for each in self.relations for _, found in each.columns)


#: The columns of a query: what each is called, where that is known, and what it is.
Columns = tuple[tuple[str | None, Typed], ...]
Subquery = Callable[[exp.Expr, Scope | None], tuple[str, Columns]]


@dataclass
class TranslationContext:
    """The state of one translation.

    Attributes:
        parameters: The values that will be bound; of each, the type alone counts.
        lists: The values of long IN lists; see `parsing.Parsed`.
        conjuncts: The identities of nodes that a WHERE demands to be true, be it negated.
        depth: How many expressions stand around the one that is translated.
        queries: How many queries stand around it.
        whole_sums: Whether reals are added only where all of them are whole numbers: in any order,
            their sum is the same.
    """

    catalog: Catalog
    parameters: Sequence[Any]
    lists: Sequence[Sequence[Token]] = ()
    ctes: Mapping[str, Relation] = field(default_factory=dict)
    subquery: Subquery | None = None
    used: set[str] = field(default_factory=set)
    bound: set[int] = field(default_factory=set)
    relations: int = 0
    depth: int = 0
    queries: int = 0
    conjuncts: set[int] = field(default_factory=set)
    whole_sums: bool = False

    @property
    def sqlite(self) -> bool:
        """Whether the source is SQLite."""
        return self.catalog.source == "sqlite"

    @property
    def words(self) -> Dialect:
        """The mirror's dialect."""
        return WORDS[self.catalog.mirror]

    def alias(self) -> str:
        """Return a relation name that is not used elsewhere in the statement."""
        self.relations += 1
        return f"_r{self.relations}"


_TABLE_PARTS = {"this", "db", "alias"}
#: What each table of a source has beside its columns.
_SYSTEM_COLUMNS = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})
_ROW_IDS = frozenset({"rowid", "oid", "_rowid_"})


def folded(identifier: exp.Identifier, context: TranslationContext) -> str:
    """Return a name in the case in which its source compares it."""
    name: str = identifier.this
    if context.sqlite:
        return name.lower()
    return name if identifier.args.get("quoted") else name.lower()


def compared(name: str, context: TranslationContext) -> str:
    """Return a column's own name in the case in which its source compares it."""
    return name.lower() if context.sqlite else name


def base_relation(node: exp.Table, context: TranslationContext) -> Relation:
    """Find a table of a FROM clause among the CTEs and the mirrored tables."""
    if not isinstance(node.this, exp.Identifier):
        raise StaysWithSourceError("it reads from a function")
    if any(value for part, value in node.args.items() if part not in _TABLE_PARTS):
        raise StaysWithSourceError("its FROM clause is beyond what is translated")
    name = folded(node.this, context)
    alias = node.args.get("alias")
    if alias is not None and alias.args.get("columns"):
        raise StaysWithSourceError("it renames a table's columns")
    shown = folded(alias.this, context) if alias is not None else name
    cte = context.ctes.get(name) if not node.db else None
    if cte is not None:
        return _renamed(cte, shown, context)
    table = context.catalog.find(node.name if node.this.args.get("quoted") else name, node.db)
    context.used.add(table.schema.name)
    return _mirrored(table, shown, context)


def _renamed(cte: Relation, shown: str, context: TranslationContext) -> Relation:
    alias = context.alias()
    columns = tuple(
        (name, replace(found, sql=f'{alias}."_{place}"', loose=frozenset({f'{alias}."_{place}"'})))
        for place, (name, found) in enumerate(cte.columns)
    )
    return Relation(shown, f"{cte.sql} as {alias}", columns)


def _mirrored(table: MirroredTable, shown: str, context: TranslationContext) -> Relation:
    alias = context.alias()
    target = mirror_table(table.schema)
    if table.mode is Mode.TEMPORAL:
        names = listed(table.schema.names)
        target = f"(select {names} from {target} where {quote(VALID_TO)} is null)"
    by_name = {column.name: column for column in table.schema.mirrored_columns}
    order = [name for name in table.all_columns if name in by_name]
    columns = tuple((name, _column(table, by_name[name], alias)) for name in order)
    whole = len(order) == len(table.all_columns)
    sql, key = f"{target} as {alias}", table.schema.primary_key
    return Relation(shown, sql, columns, key, whole, kept_back=_kept_back(table, order, context))


def _kept_back(
    table: MirroredTable, mirrored: Sequence[str], context: TranslationContext
) -> frozenset[str]:
    """Return the names that only the source has in a table, those of its own among them."""
    own = _ROW_IDS if context.sqlite else _SYSTEM_COLUMNS
    names = own.union(compared(name, context) for name in table.all_columns)
    return names.difference(compared(name, context) for name in mirrored)


def _column(table: MirroredTable, column: Column, alias: str) -> Typed:
    sql = f"{alias}.{quote(column.name)}"
    kind = table.kinds.get(column.name, Kind.OPAQUE)
    enum = table.enums.get(column.name) if kind is Kind.ENUM else None
    collated = column.name in table.collated or kind is Kind.ENUM
    loose = frozenset({sql})
    return Typed(
        sql,
        kind,
        column.type,
        column,
        loose=loose,
        collated=collated,
        enum=enum,
        document=column.name in table.documents,
        elements=table.arrays.get(column.name),
        nested=table.nested.get(column.name),
    )


def resolve(node: exp.Column, scope: Scope, context: TranslationContext) -> Typed:
    """Find the column a name means, in this SELECT or one around it.

    Raises:
        StaysWithSourceError: The mirror has no such column, or more than one.
    """
    if node.args.get("db"):
        raise StaysWithSourceError("it qualifies a column with its schema")
    wanted = folded(node.this, context)
    table = node.args.get("table")
    qualifier = folded(table, context) if table is not None else None
    around: Scope | None = scope
    while around is not None:
        near = [each for each in around.relations if qualifier in {None, each.name}]
        found = _named_in(near, wanted, qualifier is not None, context)
        if len(found) == 1:
            return found[0]
        if found:
            raise StaysWithSourceError(f"column {node.name!r} is ambiguous")
        if qualifier is None and wanted in around.aliases and context.sqlite:
            return around.aliases[wanted]
        if _may_be_of(wanted, qualifier, near, around):
            break
        around = around.parent
    if node.this.args.get("quoted") and context.sqlite:
        raise StaysWithSourceError(
            f'"{node.name}" is not a mirrored column; SQLite may read it as text'
        )
    raise StaysWithSourceError(f"column {node.name!r} is not mirrored")


def _named_in(
    near: Sequence[Relation],
    wanted: str,
    qualified: bool,  # noqa: FBT001
    context: TranslationContext,
) -> list[Typed]:
    """Return the columns of these relations that a name may mean.

    Raises:
        StaysWithSourceError: It means one that the mirror does not have.
    """
    if any(wanted in each.kept_back for each in near):
        raise StaysWithSourceError(f"column {wanted!r} is not mirrored")
    return [
        typed
        for relation in near
        if qualified or wanted not in relation.merged
        for typed in relation.named(wanted, context)
    ]


def _may_be_of(wanted: str, qualifier: str | None, near: Sequence[Relation], around: Scope) -> bool:
    """Return whether a name that was not found here may still mean something here."""
    if qualifier is not None:
        return bool(near)
    return wanted in around.promised or not all(each.whole_names for each in near)
