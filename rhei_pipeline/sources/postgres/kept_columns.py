"""Which columns of a PostgreSQL table a schema change has left alone.

A column's mark is another one after whatever was done to it. Where the server has not written the
table again since, its rows are the same bytes, and read as the same values if the type is one that
reads them alike. So it is after `set not null`, `set default`, or a longer `varchar`.
"""

from collections.abc import Mapping, Sequence

from rhei_pipeline.model.schema import TableSchema
from rhei_pipeline.sources.postgres.marks import FIRST_OWN_OID
from rhei_pipeline.sources.postgres.table_facts import ColumnFacts, TableFacts

#: Types whose stored bytes are the text that they read as: `text` and `varchar`.
_TEXTS = {"25", "1043"}
#: Stands for a column that may read otherwise though no row was written.
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


def former_names(known: TableSchema, schema: TableSchema) -> Mapping[str, str] | None:
    """Return the name that each column had; see `capabilities.KnowsKept`."""
    before = {column.name: column for column in known.columns}
    was, now = _identities(known), _identities(schema)
    is_written = files_of(known).partition(":")[0] != files_of(schema).partition(":")[0]
    is_kept = all(
        (column.mark and before.get(column.name) == column)
        or (not is_written and _reads_alike(was.get(column.name), now.get(column.name)))
        for column in schema.columns
    )
    return {name: name for name in schema.names} if is_kept else None


def _identity(column: ColumnFacts) -> str:
    """Return the column's number and its type's."""
    # What an own type's values read as can change with the type; a generated value is computed.
    is_sure = column.oid < FIRST_OWN_OID and not column.generated
    return f"{column.number}/{column.oid}" if is_sure else _UNSURE


def _identities(schema: TableSchema) -> Mapping[str, str]:
    told = schema.storage.rpartition(" ")[0].split(",")
    return dict(zip(schema.names, told, strict=True)) if len(told) == len(schema.names) else {}


def _reads_alike(was: str | None, now: str | None) -> bool:
    if not was or not now or _UNSURE in {was, now}:
        return False
    (number, kind), (same, other) = was.split("/"), now.split("/")
    return number == same and (kind == other or {kind, other} <= _TEXTS)
