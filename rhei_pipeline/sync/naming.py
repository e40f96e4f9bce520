"""Names: of tables that are declared, and which ones a mirror cannot hold beside each other."""

from collections.abc import Collection, Iterable, Mapping

from rhei_pipeline.errors import SchemaDriftError, SchemaError
from rhei_pipeline.model.schema import Table, TableSchema
from rhei_pipeline.sql.text import mirror_table


def declared_twice(name: str) -> SchemaError:
    """Return the fault of a table that has several entries in the declaration."""
    return SchemaError(
        "it is declared more than once", table=name, hint="keep one of its entries under 'tables'"
    )


def nothing_declared() -> SchemaError:
    """Return what there is to say where no table is declared or found."""
    return SchemaError(
        "the source has no table with a primary key",
        hint="create one, or name tables and their 'primary_key' under 'tables'",
    )


def refuse_like_columns(schema: TableSchema) -> None:
    """Refuse columns whose names differ by case only, for a mirror that ignores it.

    Raises:
        SchemaError: Names them.
    """
    met: dict[str, str] = {}
    for name in schema.names:
        if (other := met.setdefault(name.lower(), name)) != name:
            raise SchemaError(
                f"its columns {other!r} and {name!r} differ by case only, and its mirror ignores "
                "case",
                table=schema.name,
                hint="leave one of them out with 'columns', or rename it in the source",
            )


def refuse_taken_name(
    schema: TableSchema,
    others: Iterable[Table],
    standing: Mapping[str, Table],
    declared: Collection[str],
    *,
    folds: bool,
) -> None:
    """Refuse a name that another table has in the mirror.

    Args:
        schema: The table that is to be mirrored.
        others: The tables that were found before it. They give way to one that stands already.
        standing: The tables that are in the mirror, by name.
        declared: The names of all tables that are to be mirrored.
        folds: Whether the mirror ignores case.

    Raises:
        SchemaError: Another table has the name, or it is another one than the table had before.
    """
    wanted = _folded(schema, folds=folds)
    is_installed = [table for table in standing.values() if table.name in declared]
    is_new = schema.name not in {table.name for table in is_installed}
    for other in [*is_installed, *(others if is_new else ())]:
        is_itself = other.name == schema.name or _is_renamed(other.schema, schema)
        if not is_itself and _folded(other.schema, folds=folds) == wanted:
            raise SchemaError(
                f"table {other.name!r} has the name {other.schema.mirror_relation!r} in the mirror"
                f"{', where case does not count' if folds else ''}",
                table=schema.name,
                hint="give one of them another 'mirror_name' under 'tables'",
            )
    for table in standing.values():
        own = table.schema.mirror_name or schema.mirror_name
        if own and table.name == schema.name and _folded(table.schema, folds=folds) != wanted:
            raise SchemaDriftError(
                f"it is mirrored as {table.schema.mirror_relation!r}, but is now "
                f"declared as {schema.mirror_relation!r}",
                table=schema.name,
                hint=f"declare the former 'mirror_name', or run 'rhei drop-table {schema.name}',"
                " with '--keep-as NAME' for its history",
            )


def _is_renamed(other: TableSchema, schema: TableSchema) -> bool:
    """Return whether two names are one table's: a source without schemas ignores case."""
    return schema.namespace is None and other.name.lower() == schema.name.lower()


def _folded(schema: TableSchema, *, folds: bool) -> str:
    name = mirror_table(schema)
    return name.lower() if folds else name
