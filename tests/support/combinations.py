"""Which combinations of a test's parameters the suite runs: `make combinations` runs the others.

Most tests with many parameters hold one mechanism under several conditions. Marked `each`, a test
runs with as few combinations as have each value once. Marked `pairs`, each two values are together
in one of them besides, where all mirrors in files are one value. Unmarked, it runs with all.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from itertools import combinations

import pytest

LEFT_OUT = "combination"
MARKERS = ("each", "pairs")
#: These mirrors differ in how a file is written; all else is one and the same.
FILES = {"memory", "ipc", "parquet", "delta"}

#: Of each parameter: its value, and what that counts as in pairs.
Values = tuple[tuple[Hashable, Hashable], ...]


def mark_left_out(items: Iterable[pytest.Item]) -> None:
    """Mark the combinations that the suite does without."""
    alike = defaultdict[tuple[str, str], list[pytest.Function]](list)
    for item in items:
        marker = next((name for name in MARKERS if item.get_closest_marker(name)), None)
        if marker and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            alike[item.nodeid.partition("[")[0], marker].append(item)
    for (_, marker), tests in alike.items():
        kept = covering([_values(test) for test in tests], pairs=marker == "pairs")
        for number, test in enumerate(tests):
            if number not in kept:
                test.add_marker(LEFT_OUT)


def covering(found: list[Values], *, pairs: bool) -> set[int]:
    """Return the places of few of the combinations, which have all that is asked of them."""
    asked = [_asked(values, pairs=pairs) for values in found]
    missing = set().union(*asked)
    kept = set[int]()
    times = Counter[Hashable]()

    def worth(place: int) -> tuple[int, int]:
        """Return how much of what is missing it has, and how rare its values are so far."""
        return len(asked[place] & missing), -sum(times[one] for one in asked[place])

    while missing:
        most = max(range(len(found)), key=worth)
        kept.add(most)
        missing -= asked[most]
        times.update(asked[most])
    return kept


def _values(test: pytest.Function) -> Values:
    return tuple(
        (repr(value), "files" if isinstance(value, str) and value in FILES else repr(value))
        for parameter in test.callspec.params.values()
        for value in parts(parameter)
    )


def parts(parameter: Hashable) -> tuple[Hashable, ...]:
    """Return what counts as a parameter each: a way counts as its capture and its storage."""
    both = (getattr(parameter, "capture", None), getattr(parameter, "storage", None))
    return both if both[0] else (parameter,)


def _asked(values: Values, *, pairs: bool) -> set[Hashable]:
    each: set[Hashable] = {(axis, value) for axis, (value, _) in enumerate(values)}
    if not pairs:
        return each
    counted = [(axis, counts_as) for axis, (_, counts_as) in enumerate(values)]
    return each | set(combinations(counted, 2))
