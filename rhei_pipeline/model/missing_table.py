"""A table that is declared and not there."""

from collections.abc import Sequence

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.schema import nearest


class MissingTableError(SchemaError):
    """A declared table is not in the source."""


def no_such_table(name: str, known: Sequence[str]) -> MissingTableError:
    """Return that a declared table is not in the source: it is misspelt, or was dropped."""
    hint = nearest(name, known)
    if not hint.startswith("did you mean"):
        hint = f"create it there, or start again without it in 'tables'; {hint}"
    return MissingTableError("no such table in the source", table=name, hint=hint)
