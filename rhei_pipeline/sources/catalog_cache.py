"""What was read of each table, for as long as the source's schema has one version."""

from typing import Generic, TypeVar

_Entry = TypeVar("_Entry")


class CatalogCache(Generic[_Entry]):
    """Entries by the table's name; those of another version of the schema are forgotten."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._version: int | None = None

    def follow(self, version: int) -> None:
        """Forget all entries if the schema has another version than when they were read."""
        if version != self._version:
            self._entries.clear()
            self._version = version

    def go_on(self, version: int, *, are_unchanged: bool) -> None:
        """Follow to a version that another table's name has changed; keep what is unchanged."""
        if not are_unchanged:
            self._entries.clear()
        self._version = version

    def forget(self) -> None:
        """Forget all entries: the source may be another one."""
        self._entries.clear()
        self._version = None

    def get(self, name: str) -> _Entry | None:
        """Return a table's entry; None if it is not known at this version."""
        return self._entries.get(name)

    def put(self, entry: _Entry, *names: str) -> _Entry:
        """Keep an entry under each of a table's names, and return it."""
        self._entries |= dict.fromkeys(names, entry)
        return entry
