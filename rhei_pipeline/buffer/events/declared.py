"""The schema of a table whose events come from a log: all of it is declared."""

from collections.abc import Mapping

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.schema import Column, TableOptions, TableSchema, nearest
from rhei_pipeline.model.type_names import named_type


def declared_schema(name: str, options: Mapping[str, TableOptions]) -> TableSchema:
    """Return a table's schema as it is declared.

    Raises:
        SchemaError: The table is not declared; or its key or the type of a column is not.
    """
    found = options.get(name)
    if found is None:
        raise SchemaError(
            "no such table in the source", table=name, hint=nearest(name, sorted(options))
        )
    if not found.types or not found.primary_key:
        raise SchemaError(
            "a log does not show its columns and its key",
            table=name,
            hint="declare each column under 'types', such as 'types: {id: int64, v: string}', and"
            " 'primary_key: [id]'",
        )
    names = found.columns or tuple(found.types)
    for wanted in (*names, *found.primary_key):
        if wanted not in names or wanted not in found.types:
            raise SchemaError(
                f"column {wanted!r} has no declared type, or is not among its columns",
                table=name,
                hint="declare each column under 'types', such as 'types: {id: int64, v: string}',"
                " and 'primary_key: [id]'",
            )
    return TableSchema(name, tuple(_column(n, found) for n in names), found.primary_key)


def _column(name: str, options: TableOptions) -> Column:
    kind, epoch, logical = named_type(options.types[name])
    is_nullable = name not in (options.primary_key or ())
    return Column(name, kind, is_nullable, epoch, mark=logical or "", logical=logical)
