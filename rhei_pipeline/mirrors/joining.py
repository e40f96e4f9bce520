"""How one of several mirrors is shown where a query reads them together."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One of several mirrors, as a query over all of them names it.

    Attributes:
        schema: Stands before the names of its tables; None where they stand alone.
        takes: Whether a table, by its name in the source, is read from this mirror.
    """

    schema: str | None
    takes: Callable[[str], bool]

    def shown(self, table: str) -> str:
        """Return a table's name, as it stands in the source, behind the schema."""
        return table if self.schema is None else f"{self.schema}.{table}"


def every_table(_name: str) -> bool:
    """Return True: a mirror of its own is read whole."""
    return True
