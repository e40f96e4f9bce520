"""What a mirror holds from before: modes that stay, tables no longer followed, tables to drop."""

import re
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType

from rhei_pipeline.changes.scd2 import refuse_lost_history
from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.schema import (
    RESERVED_PREFIX,
    DroppedColumns,
    Mode,
    SchemaPolicy,
    Table,
    TableSchema,
    nearest,
)
from rhei_pipeline.model.upkeep import DropReport
from rhei_pipeline.protocols import (
    Mirror,
    MirrorRecords,
)
from rhei_pipeline.sql.text import mirror_table
from rhei_pipeline.sync.schema_registry import Registry

_PLAIN_NAME = re.compile(r"\w[\w -]*")


@dataclass(frozen=True, slots=True)
class Declared:
    """A table as declared: its name in the source, and how its mirror treats the past.

    Attributes:
        explicit: The mode was asked for; otherwise it is the default, and a mirror that has
            history keeps it.
        mirror_name: Its own name in the mirror; left out: as in the source.
        policy: What becomes of it where its schema changes.
        dropped: What becomes of its columns that the source has no more; None: see `Table`.
    """

    name: str
    mode: Mode
    explicit: bool = True
    mirror_name: str = ""
    policy: SchemaPolicy = SchemaPolicy.EVOLVE
    dropped: DroppedColumns | None = None


@dataclass(frozen=True, slots=True)
class Dropping:
    """A table of the mirror that is to go, and what becomes of its rows.

    Attributes:
        keep_as: The name under which they stay.
        discard_history: History may be lost.
    """

    table: Table
    keep_as: str | None = None
    discard_history: bool = False


def in_kept_mode(schema: TableSchema, declared: Declared, standing: Mapping[str, Table]) -> Table:
    """Return a declared table in the mode it is mirrored in.

    Args:
        schema: The table as the source has it.
        declared: Whose mode counts where it is explicit; else a mirror that has history keeps it.
        standing: The tables that are in the mirror.

    Raises:
        SchemaDriftError: The mirror has history, which the declared mode would lose.
    """
    found = standing.get(mirror_table(schema))
    if found is None or found.mode is Mode.DESTRUCTIVE:
        return Table(schema, declared.mode, declared.dropped)
    if declared.explicit:
        refuse_lost_history(Table(schema, declared.mode))
    return Table(schema, Mode.TEMPORAL, declared.dropped)


def not_followed(ledger: Ledger, followed: AbstractSet[str]) -> Mapping[str, datetime]:
    """Return the tables in the mirror that no sync brings up to date, and since when."""
    left = sorted(ledger.watermarks.keys() - followed)
    return MappingProxyType({name: ledger.watermarks[name].recorded_at for name in left})


def find_mirrored(name: str, mirror: MirrorRecords) -> Table | None:
    """Return a table of the mirror by its name, in any case unless one is as given, as it is."""
    tables = mirror.tables().values()
    exact = next((found for found in tables if found.name == name), None)
    wanted = name.removeprefix("main.").lower()
    return exact or next((found for found in tables if wanted in _names(found.schema)), None)


def as_held(table: Table, mirror: MirrorRecords) -> Table:
    """Return a table with those of its columns that the mirror has.

    A change of its shape is known before the mirror has followed it, and until it has, which may be
    long, what the mirror is asked of the table is asked of the shape it has.
    """
    stored = mirror.tables().get(mirror_table(table.schema))
    held = set(table.schema.names if stored is None else stored.schema.names)
    if stored is None or held.issuperset(table.schema.names):
        return table
    if not held.issuperset(table.schema.primary_key):
        return stored
    columns = tuple(column for column in table.schema.columns if column.name in held)
    return replace(table, schema=replace(table.schema, columns=columns))


def _names(schema: TableSchema) -> set[str]:
    names = {schema.name.lower()}
    if schema.namespace:
        names.add(f"{schema.namespace}.{schema.relation}".lower())
        names.add(f"{schema.namespace}.{schema.mirror_relation}".lower())
    if schema.namespace in (None, "public"):
        names.update((schema.relation.lower(), schema.mirror_relation.lower()))
    return names


def find_droppable(name: str, mirror: MirrorRecords, registry: Registry) -> Table:
    """Return a table that the mirror has, or has something recorded of.

    Raises:
        SchemaError: It has neither.
    """
    found = find_mirrored(name, mirror)
    ledger = mirror.ledger()
    recorded = {*ledger.watermarks, *ledger.copies}
    if found is not None:
        # Of one without a record of its name, the ledger has it as the source calls it.
        known = next((own for own in recorded if own.lower() in _names(found.schema)), None)
        return found if known is None else _named(found, known)
    for known in recorded:
        if known.lower() == name.lower():
            return registry.table(known) or Table(TableSchema(known, (), ()))
    names = sorted({*recorded, *(table.name for table in mirror.tables().values())})
    raise SchemaError("it is not in the mirror", table=name, hint=nearest(name, names))


def _named(table: Table, name: str) -> Table:
    schema = table.schema
    own = replace(schema, name=name)
    if own.mirror_relation != schema.mirror_relation:
        own = replace(own, mirror_name=schema.mirror_relation)
    return Table(own, table.mode)


def drop_table(
    going: Dropping, mirror: Mirror, registry: Registry, declared: Collection[str]
) -> DropReport:
    """Drop a table of the mirror, or set it aside under a name that is no declared table's.

    Raises:
        SchemaError: It has history and neither was said, or the name cannot be had.
    """
    _refuse_unsaid(going)
    if going.keep_as is not None:
        _refuse_name(going.keep_as, declared)
    with mirror.transaction() as transaction:
        rows = transaction.drop_table(going.table, going.keep_as)
    registry.forget(going.table.name)
    return DropReport(going.table.name, rows, going.keep_as)


def _refuse_unsaid(going: Dropping) -> None:
    """Refuse to lose history that nobody said may be lost."""
    if going.keep_as is not None and going.discard_history:
        raise SchemaError(
            "its history can be kept or discarded, but not both",
            table=going.table.name,
            hint="give '--keep-as NAME' or '--discard-history'",
        )
    kept = going.keep_as is not None or going.discard_history
    if going.table.mode is Mode.TEMPORAL and not kept:
        raise SchemaError(
            "its mirror holds history, which would be lost",
            table=going.table.name,
            hint="add '--keep-as NAME' to keep the history under another name, or "
            "'--discard-history'",
        )


def _refuse_name(name: str, declared: Collection[str]) -> None:
    if name.lower().startswith(RESERVED_PREFIX) or name.lower() in map(str.lower, declared):
        raise SchemaError(
            f"the name {name!r} is taken by a declared table, or reserved",
            hint="give another name after '--keep-as'",
        )
    # A dot or a slash would name a schema or a file in every later query.
    if not _PLAIN_NAME.fullmatch(name):
        raise SchemaError(
            f"{name!r} is not a name that a query can use for a table",
            hint="use letters, digits, '_' and '-' after '--keep-as'",
        )


def record_keys(mirror: Mirror, registry: Registry) -> None:
    """Record the keys of tables that were mirrored before a mirror recorded them itself."""
    unrecorded = [table for table in mirror.tables().values() if not table.schema.primary_key]
    known = [registry.table(_recorded_name(table, mirror.ledger())) for table in unrecorded]
    tables = [table for table in known if table is not None]
    if tables:
        with mirror.transaction() as transaction:
            for table in tables:
                transaction.record_key(table)


def _recorded_name(table: Table, ledger: Ledger) -> str:
    names = _names(table.schema)
    return next((name for name in ledger.watermarks if name.lower() in names), table.name)
