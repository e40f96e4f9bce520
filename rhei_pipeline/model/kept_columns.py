"""What a source knows of a table's columns after a schema change."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeptColumns:
    """Which columns are the ones that a table had, and which hold what they held.

    Attributes:
        former: The name that each column had; new ones are left out.
        unknown: Those whose values are to be read: they are new, or may have other values by now.
        tells_deletions: A row that is there no more has its deletion among the changes.
    """

    former: Mapping[str, str]
    unknown: frozenset[str] = frozenset()
    tells_deletions: bool = True

    @property
    def renamed(self) -> dict[str, str]:
        """The names that columns had which have others by now."""
        return {new: old for new, old in self.former.items() if new != old}
