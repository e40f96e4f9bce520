"""Which columns may be added to a table, or dropped, by call: such as its declaration suits.

What is done in the source stays done. So a change after which the table would be left out, or its
mirror would not follow, is refused before it is made there.
"""

from rhei_pipeline.changes.filters import row_filter
from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.schema import RESERVED_PREFIX, SchemaPolicy, TableOptions, TableSchema


def refuse_new_column(schema: TableSchema, column: str, options: TableOptions) -> None:
    """Refuse a column that no mirror takes, or that would be in the source alone.

    Raises:
        SchemaError: Its name is reserved, or is not among the columns that are declared.
    """
    if column.lower().startswith(RESERVED_PREFIX):
        raise SchemaError(
            f"the names of columns that start with {RESERVED_PREFIX!r} are reserved",
            table=schema.name,
            hint="give the column another name",
        )
    if options.columns is not None:
        raise SchemaError(
            f"column {column!r} is not among the columns that are declared",
            table=schema.name,
            hint="add it to 'columns' in the declaration, and to the table in the source",
        )


def refuse_named_column(
    schema: TableSchema, column: str, options: TableOptions, dialect: str
) -> None:
    """Refuse to drop a column that the declaration names: the table would be left out afterwards.

    Args:
        schema: As the source has it.
        column: A column of it, in any case.
        options: What is declared of the table.
        dialect: The source's SQL.

    Raises:
        SchemaError: Says where it is named.
    """
    read = row_filter(options.where, schema, dialect).columns if options.where else ()
    named = {
        "columns": options.columns or (),
        "types": options.types,
        "mask": options.masks,
        "where": read,
    }
    places = [
        f"'{place}'" for place, names in named.items() if column.lower() in map(str.lower, names)
    ]
    if places:
        raise SchemaError(
            f"column {column!r} is named in its declaration, in {' and '.join(places)}",
            table=schema.name,
            hint="take it out of the declaration, open the mirror again, then drop it in the"
            " source",
        )


def refuse_held_changes(table: str, policy: SchemaPolicy) -> None:
    """Refuse to change a table whose mirror does not follow changes of its schema.

    Raises:
        SchemaError: Names the policy.
    """
    if policy is not SchemaPolicy.EVOLVE:
        raise SchemaError(
            f"its schema changes are held back by '{policy}'",
            table=table,
            hint="declare 'schema_changes: evolve' for it, and open the mirror again",
        )
