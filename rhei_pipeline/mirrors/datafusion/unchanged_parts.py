"""What was made of the parts of a state, and is made again only for parts that changed.

A commit replaces the parts that it changes by other objects, and shares all others with the state
before: so what is written of many tables costs what is written of those that changed.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Generic, TypeVar

_Part = TypeVar("_Part")
_Made = TypeVar("_Made")


class UnchangedParts(Generic[_Part, _Made]):
    """Results by name, each as long as its part is the same object.

    Args:
        make: Makes the result of one part, given its name.
    """

    def __init__(self, make: Callable[[str, _Part], _Made]) -> None:
        self._make = make
        self._known: dict[str, tuple[_Part, _Made]] = {}

    def of(self, parts: Mapping[str, _Part]) -> Collection[_Made]:
        """Return the results of all these parts, in their order; forget all others."""
        known = self._known
        now = {
            name: found
            if (found := known.get(name)) is not None and found[0] is part
            else (part, self._make(name, part))
            for name, part in parts.items()
        }
        self._known = now
        return [made for _, made in now.values()]
