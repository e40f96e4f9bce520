"""The tables that are left out because of an error, each until that is fixed."""

import logging
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from types import MappingProxyType

from rhei_pipeline.errors import (
    DeadLettersFullError,
    MirrorDamagedError,
    PermanentError,
    SchemaError,
)
from rhei_pipeline.model.missing_table import MissingTableError

_log = logging.getLogger(__name__)

#: Errors that say themselves which table they are of.
_OWN = (SchemaError, MirrorDamagedError, DeadLettersFullError)


class LeftOut:
    """Which tables are left out, why, and which of them the next sync tries again.

    Attributes:
        undrained: Tables whose log must be read before their capture may be installed again.
        suspects: Tables that failed when they were last read or applied.
    """

    def __init__(self) -> None:
        self._errors: dict[str, PermanentError] = {}
        self._failed: set[str] = set()
        self._said: dict[str, str] = {}
        self.undrained: set[str] = set()
        self.suspects: set[str] = set()

    @property
    def errors(self) -> Mapping[str, PermanentError]:
        """The reason why each table is left out, by name."""
        return MappingProxyType(self._errors)

    @property
    def told(self) -> dict[str, str]:
        """The same reasons, as they are told to people."""
        return {name: str(error) for name, error in self._errors.items()}

    @property
    def failed(self) -> frozenset[str]:
        """The tables that failed while they were captured, read or applied.

        The source keeps the changes they still need, and each sync tries them again.
        """
        return frozenset(self._failed | self.undrained)

    @property
    def held(self) -> set[str]:
        """The tables for which the source keeps what they need until they can be mirrored again.

        Those that are not there are none of them: nobody can tell whether they come back, and what
        waits for them in a log that all share would fill the source's disk.
        """
        there = {n for n, e in self._errors.items() if not isinstance(e, MissingTableError)}
        return there | self.failed

    @property
    def unknown(self) -> list[PermanentError]:
        """Return the errors that may not be one table's own: only other tables can show that."""
        found = (self._errors[name] for name in sorted(self.suspects & self._errors.keys()))
        return [error for error in found if not isinstance(error, _OWN)]

    @property
    def asks_for_refresh(self) -> bool:
        """Return whether all tables must be checked again, though the source did not change."""
        damaged = any(isinstance(error, MirrorDamagedError) for error in self._errors.values())
        return damaged or bool(self.undrained)

    def add(
        self, name: str, error: PermanentError, *, failed: bool = False, at_work: bool = False
    ) -> None:
        """Leave a table out; a new reason is logged once.

        Args:
            name: The table's name.
            error: Why.
            failed: The next sync tries it again.
            at_work: It failed while it was read or applied.
        """
        if self._said.get(name) != str(error):
            _log.error("%s; the table is left out until this is fixed", error)
        self._said[name] = str(error)
        self._errors[name] = error
        if failed:
            self._failed.add(name)
        if at_work:
            self.suspects.add(name)

    def take_in(self, name: str) -> None:
        """Stop leaving a table out, whatever the reason was."""
        self._errors.pop(name, None)
        self._failed.discard(name)
        self.undrained.discard(name)

    def went_well(self, names: AbstractSet[str]) -> None:
        """Record that tables were worked on without an error."""
        self.suspects.difference_update(names)
        for name in self._said.keys() & names:
            del self._said[name]

    def clear(self) -> None:
        """Check all tables again; those whose log was not read yet wait for that."""
        self._errors = {name: self._errors[name] for name in self.undrained}
        self._failed.clear()
