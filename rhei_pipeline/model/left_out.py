"""The tables that are left out for an error, each until that is mended."""

import logging
from collections.abc import Mapping
from types import MappingProxyType

from rhei_pipeline.errors import MirrorDamagedError, PermanentError, SchemaError

_log = logging.getLogger(__name__)

#: Errors that say themselves which table they are of.
_OWN = (SchemaError, MirrorDamagedError)


class LeftOut:
    """Which tables are left out, why, and which of them the next sync tries again.

    Attributes:
        undrained: Tables whose log is still to be read before their capture may be made anew.
        suspects: Tables that failed when they were read or applied last.
    """

    def __init__(self) -> None:
        self._errors: dict[str, PermanentError] = {}
        self._failed: set[str] = set()
        self._said: dict[str, str] = {}
        self.undrained: set[str] = set()
        self.suspects: set[str] = set()

    @property
    def errors(self) -> Mapping[str, PermanentError]:
        """Return why each is left out, by name."""
        return MappingProxyType(self._errors)

    @property
    def failed(self) -> frozenset[str]:
        """Return those that failed while they were captured, read or applied.

        The source keeps what they still need, and each sync tries them again.
        """
        return frozenset(self._failed | self.undrained)

    @property
    def unknown(self) -> list[PermanentError]:
        """Return the errors that need not be one table's own: only the others can tell."""
        found = (self._errors[name] for name in sorted(self.suspects & self._errors.keys()))
        return [error for error in found if not isinstance(error, _OWN)]

    @property
    def asks_for_a_look(self) -> bool:
        """Return whether everything is to be looked at again, though the source did not change."""
        damaged = any(isinstance(error, MirrorDamagedError) for error in self._errors.values())
        return damaged or bool(self.undrained)

    def add(
        self, name: str, error: PermanentError, *, failed: bool = False, at_work: bool = False
    ) -> None:
        """Leave a table out; what is new about it is logged, once.

        Args:
            name: The table's name.
            error: Why.
            failed: The next sync tries it again.
            at_work: It failed while it was read or applied.
        """
        if self._said.get(name) != str(error):
            _log.error("%s; the table is left out until this is mended", error)
        self._said[name] = str(error)
        self._errors[name] = error
        if failed:
            self._failed.add(name)
        if at_work:
            self.suspects.add(name)

    def take_in(self, name: str) -> None:
        """Take a table in again, whatever it was left out for."""
        self._errors.pop(name, None)
        self._failed.discard(name)
        self.undrained.discard(name)

    def went_well(self, name: str) -> None:
        """Take note that a table was worked on without an error."""
        self.suspects.discard(name)
        self._said.pop(name, None)

    def clear(self) -> None:
        """Take all in again, to be looked at anew; those whose log was not read come to wait."""
        self._errors = {name: self._errors[name] for name in self.undrained}
        self._failed.clear()
