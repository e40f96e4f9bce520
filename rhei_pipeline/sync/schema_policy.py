"""What is done about a schema change that is not simply to be followed."""

from collections.abc import Iterable, Mapping

from rhei_pipeline.errors import SchemaDriftError
from rhei_pipeline.model.schema import SchemaPolicy, Table, TableSchema, difference
from rhei_pipeline.sync.kept_history import Declared


def refuse_change(declared: Declared, known: TableSchema | None, found: TableSchema) -> None:
    """Refuse a table whose schema is another than its mirror was last built with.

    Raises:
        SchemaDriftError: Somebody has to decide; says what changed.
    """
    if declared.policy is SchemaPolicy.EVOLVE or known is None:
        return
    changed = difference(known, found)
    if changed:
        raise SchemaDriftError(
            f"its source {changed.describe()}, and its schema changes are put in quarantine; its"
            " mirror stays as it is",
            table=declared.name,
            hint="declare 'schema_changes: evolve' for it and sync, and its mirror follows; then"
            " declare 'quarantine' again for the changes to come",
        )


def evolving(tables: Iterable[Table], declared: Mapping[str, Declared]) -> list[Table]:
    """Return the tables that follow their schema changes without being asked."""
    asked = {name for name, of in declared.items() if of.policy is not SchemaPolicy.EVOLVE}
    return [table for table in tables if table.name not in asked]
