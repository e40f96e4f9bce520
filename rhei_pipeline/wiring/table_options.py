"""What the declaration says of single tables, found by any spelling of their names."""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from rhei_pipeline.model.polling import PollOptions
from rhei_pipeline.model.schema import TableOptions
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.settings.source import SqliteSettings

_Value = TypeVar("_Value")


class ByTable(Mapping[str, _Value]):
    """Values of tables, found by the names that are declared, and by others for the same tables.

    Args:
        declared: The values, by the names in the declaration.
        plain: Returns the same name for all spellings of one table's.
    """

    def __init__(self, declared: Mapping[str, _Value], plain: Callable[[str], str]) -> None:
        self._declared = declared
        self._plain = plain
        self._by_plain_name = {plain(name): value for name, value in declared.items()}

    def __getitem__(self, name: str) -> _Value:
        """Return a table's value; the very spelling comes first, as it does in the source."""
        if name in self._declared:
            return self._declared[name]
        return self._by_plain_name[self._plain(name)]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names that are declared."""
        return iter(self._declared)

    def __len__(self) -> int:
        """Return how many tables are declared with a value."""
        return len(self._declared)


def table_options(settings: Settings) -> Mapping[str, TableOptions]:
    """Return what the declaration says of single tables."""
    found = {
        table.name: TableOptions(
            columns=None if table.columns is None else tuple(table.columns),
            primary_key=None if table.primary_key is None else tuple(table.primary_key),
            types=dict(table.types or {}),
        )
        for table in settings.tables or ()
    }
    return ByTable(found, _plain(settings))


def poll_options(settings: Settings) -> Mapping[str, PollOptions]:
    """Return how single tables are polled."""
    found = {table.name: table.polling.options for table in settings.tables or ()}
    return ByTable(found, _plain(settings))


def _plain(settings: Settings) -> Callable[[str], str]:
    """SQLite ignores case; a table in PostgreSQL's schema `public` has two names."""
    if isinstance(settings.source, SqliteSettings):
        return str.lower
    return lambda name: name.removeprefix("public.")
