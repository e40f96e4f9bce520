"""Lists of names, written as text; and the error of a name that is taken."""

from rhei_pipeline.errors import SchemaError


def names(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


def name_taken(taken: str, table: str) -> SchemaError:
    """Return the error of a table that is to be kept under a name that another one has."""
    return SchemaError(
        f"the mirror already has a table {taken!r}",
        table=table,
        hint="give another name after '--keep-as'",
    )
