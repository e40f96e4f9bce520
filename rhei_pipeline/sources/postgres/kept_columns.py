"""Which columns of a PostgreSQL table a schema change has left alone, whatever they are called.

A column's mark is another one after whatever was done to it. Where the server has not written the
table again since, its rows are the same bytes, and read as the same values if the type is one that
reads them alike. So it is after `set not null`, `set default`, or a longer `varchar`. A column is
known by its number, whatever it is called: no other one of its table ever has that.
"""

from collections.abc import Mapping, Sequence

from rhei_pipeline.model.kept_columns import KeptColumns
from rhei_pipeline.model.schema import TableSchema
from rhei_pipeline.sources.postgres.marks import FIRST_OWN_OID
from rhei_pipeline.sources.postgres.table_facts import ColumnFacts, TableFacts

#: Types whose stored bytes are the text that they read as: `text` and `varchar`.
_TEXTS = {"25", "1043"}
#: Stands for a column of which its number does not tell whether it is the same.
_UNSURE = "0"


def storage_of(facts: TableFacts, names: Sequence[str]) -> str:
    """Return what tells later whether the columns of these names still hold what they do now."""
    if not facts.storage:
        return ""
    columns = {column.name: _identity(column) for column in facts.columns}
    return f"{','.join(columns[name] for name in names)} {facts.storage}"


def files_of(schema: TableSchema) -> str:
    """Return where a table's rows were, and how many columns it ever had; see `STORAGE`."""
    return schema.storage.rpartition(" ")[2]


def columns_ever(schema: TableSchema) -> str:
    """Return how many columns a table ever had; empty where that is not known."""
    return schema.storage.rpartition(" ")[2].partition(":")[2]


def kept_columns(known: TableSchema, schema: TableSchema) -> KeptColumns | None:
    """Return which columns are those that were known; see `capabilities.KnowsKept`."""
    before = {column.name: column for column in known.columns}
    was, now = _identities(known), _identities(schema)
    is_written = files_of(known).partition(":")[0] != files_of(schema).partition(":")[0]
    numbered = {_number(identity): name for name, identity in was.items() if identity != _UNSURE}
    former, unknown = {}, set()
    for column in schema.columns:
        if column.mark and before.get(column.name) == column:
            former[column.name] = column.name
            continue
        identity = now.get(column.name, _UNSURE)
        old = numbered.get(_number(identity))
        if old is not None:
            former[column.name] = old
        elif not _is_new(identity, known):
            return None
        if old is None or is_written or not _reads_alike(was[old], identity):
            unknown.add(column.name)
    news = len(schema.columns) - len(former)
    # One that came and went may have been logged by the name of one that stayed.
    if news and columns_ever(schema) != str(int(columns_ever(known)) + news):
        return None
    if _is_name_taken(schema.names, former, known):
        return None
    return KeptColumns(former, frozenset(unknown))


def _is_new(identity: str, known: TableSchema) -> bool:
    """Return whether a column came since a table was known: numbers are not used again."""
    ever = columns_ever(known)
    return identity != _UNSURE and ever.isdecimal() and int(_number(identity)) > int(ever)


def _is_name_taken(names: Sequence[str], former: Mapping[str, str], known: TableSchema) -> bool:
    """Return whether a column has a name, in any case, by which another one was known."""
    return any(
        name.lower() == other.lower() and former.get(name) != other
        for name in names
        if former.get(name) != name
        for other in known.names
    )


def is_named_as(logged: Sequence[str], known: TableSchema, own: Sequence[str]) -> bool:
    """Return whether columns were logged by names that they were known by, in their order.

    `own`: The names of those that are there now, mirrored or not.
    """
    names, there = set(known.names), set(logged)
    in_order = [name for name in logged if name in names]
    return in_order == [name for name in known.names if name in there] and (
        {*own} <= there <= {*names, *own}
    )


def _identity(column: ColumnFacts) -> str:
    """Return the column's number and its type's; nothing for the latter where its type is an own.

    What such a type's values read as can change with the type. A generated value is computed.
    """
    kind = column.oid if column.oid < FIRST_OWN_OID else ""
    return _UNSURE if column.generated else f"{column.number}/{kind}"


def _identities(schema: TableSchema) -> Mapping[str, str]:
    told = schema.storage.rpartition(" ")[0].split(",")
    return dict(zip(schema.names, told, strict=True)) if len(told) == len(schema.names) else {}


def _number(identity: str) -> str:
    return identity.partition("/")[0]


def _reads_alike(was: str, now: str) -> bool:
    kind, other = was.partition("/")[2], now.partition("/")[2]
    return kind == other != "" or {kind, other} <= _TEXTS
