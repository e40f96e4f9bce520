"""What befalls the n-th request of some work to an object store."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

#: What a store can do to a request: refuse it, hang up, or serve it and not say so.
WAYS = ("503", "500", "cut", "lost", "unsaid")
#: What becomes of all later ones: they are served, or the store is away.
LATER = ("", "", "503", "cut")


@dataclass
class FaultAt:
    """Has a request fail, and maybe all that follow, until the store is back.

    Attributes:
        number: Which one, from 1 on; 0: none.
        way: How it fails, one of `WAYS`.
        later: How those after it fail, one of `LATER`.
        work: What is done as it arrives.
        seen: The requests that there were, each with its method and path.
    """

    number: int
    way: str = "cut"
    later: str = ""
    work: Callable[[], object] = bool
    seen: list[tuple[str, str]] = field(default_factory=list, init=False)

    @property
    def count(self) -> int:
        """How many requests there were."""
        return len(self.seen)

    def __call__(self, method: str, path: str) -> str:
        """Return what happens to the next request."""
        self.seen.append((method, path))
        if self.count == self.number:
            self.work()
            return self.way
        return self.later if self.count > self.number > 0 else ""


def drawn_fault(drawn: random.Random, number: int) -> FaultAt:
    """Return a fault of the n-th request; half of them last until the store is back."""
    return FaultAt(number, drawn.choice(WAYS), drawn.choice(LATER))
