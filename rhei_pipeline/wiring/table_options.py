"""What is said of single tables, found by any spelling of their names, also while it changes."""

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from rhei_pipeline.model.polling import PollOptions
from rhei_pipeline.model.retention import HistoryBounds, LetterBounds
from rhei_pipeline.model.schema import SchemaPolicy, TableOptions
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.settings.sections import TableSettings
from rhei_pipeline.sync.schema_registry import Registrations
from rhei_pipeline.wiring.declarations import all_tables, plain_name

_Value = TypeVar("_Value")


class ByTable(Mapping[str, _Value], Generic[_Value]):
    """Values of tables, found by the names that are declared, and by others for the same tables.

    Args:
        settings, registry: What is declared, and what was registered at run time.
        value: Returns what is wanted of one table.
    """

    def __init__(
        self, settings: Settings, registry: Registrations, value: Callable[[TableSettings], _Value]
    ) -> None:
        self._settings, self._registry, self._value = settings, registry, value
        self._plain = plain_name(settings)
        self._read_at: object = None
        self._declared: dict[str, _Value] = {}
        self._by_plain_name: dict[str, _Value] = {}

    def __getitem__(self, name: str) -> _Value:
        """Return a table's value; the very spelling comes first, as it does in the source."""
        values = self._values()
        return values[name] if name in values else self._by_plain_name[self._plain(name)]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names that are declared."""
        return iter(self._values())

    def __len__(self) -> int:
        """Return how many tables are declared with a value."""
        return len(self._values())

    def _values(self) -> dict[str, _Value]:
        registered = self._registry.registered
        if self._read_at is not registered:
            tables = all_tables(self._settings, self._registry)
            self._declared = {table.name: self._value(table) for table in tables}
            self._by_plain_name = {self._plain(n): found for n, found in self._declared.items()}
            self._read_at = registered
        return self._declared


def table_options(settings: Settings, registry: Registrations) -> Mapping[str, TableOptions]:
    """Return what is said of single tables."""
    return ByTable(settings, registry, lambda table: options_of(table, settings))


def poll_options(settings: Settings, registry: Registrations) -> Mapping[str, PollOptions]:
    """Return how single tables are polled."""
    return ByTable(settings, registry, lambda table: table.polling.options)


def history_bounds(settings: Settings, registry: Registrations) -> Callable[[str], HistoryBounds]:
    """Return what tells of a table how much of its past is kept."""
    said = ByTable(settings, registry, lambda table: table.history)
    return lambda name: (said.get(name) or settings.history).bounds


def letter_bounds(settings: Settings, registry: Registrations) -> Callable[[str], LetterBounds]:
    """Return what tells of a table how many dead letters it may have."""
    said = ByTable(settings, registry, lambda table: table.dead_letters)
    return lambda name: (said.get(name) or settings.dead_letters).bounds


def schema_policies(settings: Settings, registry: Registrations) -> Callable[[str], SchemaPolicy]:
    """Return what tells of a table what becomes of it where its schema changes."""
    said = ByTable(settings, registry, lambda table: table.schema_changes)
    return lambda name: said.get(name) or settings.schema_changes


def copy_ranges(settings: Settings, registry: Registrations) -> Callable[[str], int]:
    """Return what tells of a table into how many ranges its copies are cut."""
    said = ByTable(settings, registry, lambda table: table.copy_ranges)
    return lambda name: said.get(name, 1)


def options_of(table: TableSettings, settings: Settings) -> TableOptions:
    """Return what is said of a table in the form that sources use."""
    is_polled = settings.capture_method == "polling"
    return TableOptions(
        columns=None if table.columns is None else tuple(table.columns),
        primary_key=None if table.primary_key is None else tuple(table.primary_key),
        types=dict(table.types or {}),
        as_text=table.as_text,
        masks=dict(table.mask or {}),
        where=table.where or "",
        deleted_at=(table.polling.options.deleted_at or "") if is_polled else "",
    )
