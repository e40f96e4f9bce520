"""Which combinations of a test's parameters the suite runs: `make combinations` runs them all.

Most tests with many parameters hold one mechanism under several conditions. Marked `each`, a test
runs with as few combinations as have each value once. Marked `pairs`, each two values are together
in one of them besides, where all mirrors in files are one value. Unmarked, it runs with all.

Marked `turns`, the tests of a module share their conditions: modes, captures and mirrors. Each
condition, and each two that a test has together, are in one of the tests. Each test has whatever
else it is given, and both engines.

Tests come in a random order, so that each run of the suite draws other combinations: those of a
module are the same by the same `--randomly-seed`.

Of what is drawn, `make test` runs the short form, and `make test-long` the rest. Marked `long`, all
of a test is in the rest: it takes seconds, and a cheaper one holds the same at one point. Each
other test of the folders in `SHORTENED` has one combination in the short form, or one for each step
at which it fails. Each mode, capture and mirror of a module is in one of its tests.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from itertools import combinations

import pytest

LEFT_OUT = "combination"
LONG = "long"
#: Of tests in other folders, which are small ones, the short form has all combinations.
SHORTENED = (
    *("tests/behaviour/", "tests/dagster/", "tests/ways/"),
    "tests/contract/test_change_source.py",
)
MARKERS = ("each", "pairs", "turns")
#: Neither form has these: they have targets of their own.
_ELSEWHERE = ("soak", "cluster")
#: What the tests of a module take turns with, each name with what it is another name of.
CONDITIONS = {
    **{name: name for name in ("mode", "capture", "storage", "bucket", "batch_rows")},
    **{name: name for name in ("buffered", "reopened", "streaming")},
    "method": "capture",
}
#: What the tests of a module share in the short form.
_IN_SHORT = {**CONDITIONS, **{name: name for name in ("way", "world", "source")}}
#: What each test has all of in the short form: what is lost at one step is not at another.
_EACH_IN_SHORT = {"step"}
#: These mirrors differ in how a file is written; all else is one and the same.
FILES = {"memory", "ipc", "parquet", "delta"}

#: Of each parameter: its value, and what that counts as in pairs.
Values = tuple[tuple[Hashable, Hashable], ...]


def mark_left_out(items: Iterable[pytest.Item]) -> None:
    """Mark the combinations that the suite does without."""
    alike = defaultdict[tuple[str, str], list[pytest.Function]](list)
    for item in items:
        marker = next((mark.name for mark in item.iter_markers() if mark.name in MARKERS), None)
        if marker and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            sharing = "::" if marker == "turns" else "["
            alike[item.nodeid.partition(sharing)[0], marker].append(item)
    for (_, marker), tests in alike.items():
        kept = covering([_asked(test, marker) for test in tests])
        for number, test in enumerate(tests):
            if number not in kept:
                test.add_marker(LEFT_OUT)


def mark_long(items: Iterable[pytest.Item]) -> None:
    """Mark what of the drawn combinations is not in the short form."""
    modules = defaultdict[str, list[pytest.Function]](list)
    for item in items:
        elsewhere = any(item.get_closest_marker(name) for name in (*_ELSEWHERE, LEFT_OUT, LONG))
        if item.nodeid.startswith(SHORTENED) and not elsewhere and hasattr(item, "callspec"):
            assert isinstance(item, pytest.Function)
            modules[item.nodeid.partition("::")[0]].append(item)
    for tests in modules.values():
        kept = covering([_asked_in_short(test) for test in tests])
        for number, test in enumerate(tests):
            if number not in kept:
                test.add_marker(LONG)


def covering(asked: list[set[Hashable]]) -> set[int]:
    """Return the places of few of the combinations, which have all that is asked of them."""
    missing = set().union(*asked)
    kept = set[int]()
    times = Counter[Hashable]()

    def worth(place: int) -> tuple[int, int]:
        """Return how much of what is missing it has, and how rare that is so far."""
        return len(asked[place] & missing), -sum(times[one] for one in asked[place])

    while missing:
        most = max(range(len(asked)), key=worth)
        kept.add(most)
        missing -= asked[most]
        times.update(asked[most])
    return kept


def asked_of(values: Values, *, pairs: bool) -> set[Hashable]:
    """Return what a combination has that a test is to have: its values, and each two of them."""
    each: set[Hashable] = {(axis, value) for axis, (value, _) in enumerate(values)}
    if not pairs:
        return each
    counted = [(axis, counts_as) for axis, (_, counts_as) in enumerate(values)]
    return each | set(combinations(counted, 2))


def asked_in_turns(test: str, names: Iterable[str], values: Values) -> set[Hashable]:
    """Return what a combination has that its test, or all tests of a module, are to have."""
    asked: set[Hashable] = {test}
    shared: list[tuple[Hashable, Hashable]] = []
    for axis, (name, (value, counts_as)) in enumerate(zip(names, values, strict=True)):
        if name not in CONDITIONS:
            asked.add((test, axis, value))
            continue
        asked.add((CONDITIONS[name], value))
        shared.append((CONDITIONS[name], counts_as))
        if CONDITIONS[name] == "storage":
            asked.add((test, axis, counts_as))
    return asked | set(combinations(shared, 2))


def asked_in_short(test: str, names: Iterable[str], values: Values) -> set[Hashable]:
    """Return what a combination has that a test, or a module, is to have in the short form."""
    asked: set[Hashable] = {test}
    for name, (value, _) in zip(names, values, strict=True):
        if name in _IN_SHORT:
            asked.add((_IN_SHORT[name], value))
        elif name in _EACH_IN_SHORT:
            asked.add((test, name, value))
    return asked


def _asked_in_short(test: pytest.Function) -> set[Hashable]:
    names, values = _named_values(test)
    return asked_in_short(test.nodeid.partition("[")[0], names, values)


def _asked(test: pytest.Function, marker: str) -> set[Hashable]:
    names, values = _named_values(test)
    if marker == "turns":
        return asked_in_turns(test.nodeid.partition("[")[0], names, values)
    return asked_of(values, pairs=marker == "pairs")


def _named_values(test: pytest.Function) -> tuple[list[str], Values]:
    """Return the names of a combination's parameters, and their values."""
    found = [
        (name, part)
        for parameter, value in test.callspec.params.items()
        for name, part in named(parameter, value)
    ]
    values = tuple(
        (repr(part), "files" if isinstance(part, str) and part in FILES else repr(part))
        for _, part in found
    )
    return [name for name, _ in found], values


def named(parameter: str, value: Hashable) -> tuple[tuple[str, Hashable], ...]:
    """Return what counts as a parameter each.

    A way counts as its capture and its storage, and a cell of a matrix as its place on each axis.
    """
    axes: tuple[tuple[str, Hashable], ...] | None = getattr(value, "axes", None)
    if axes is not None:
        return axes
    capture, storage = (getattr(value, name, None) for name in ("capture", "storage"))
    return (("capture", capture), ("storage", storage)) if capture else ((parameter, value),)
