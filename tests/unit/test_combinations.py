"""The combinations that the suite runs have each value, or each two values, and are few."""

from itertools import combinations, product

from tests.support.altered_tables import Way
from tests.support.combinations import Values, covering, parts


def values(*numbers: int) -> Values:
    return tuple((number, number) for number in numbers)


def test_each_two_values_are_together_in_one_combination() -> None:
    found = list(product(range(3), range(2), range(4), range(2)))
    kept = [found[n] for n in covering([values(*one) for one in found], pairs=True)]
    for a, b in combinations(range(4), 2):
        assert {(one[a], one[b]) for one in kept} == {(one[a], one[b]) for one in found}
    assert len(kept) <= 15  # of 48; 12 is the least there can be


def test_each_value_is_in_one_combination() -> None:
    found = list(product(range(3), range(5)))
    kept = [found[n] for n in covering([values(*one) for one in found], pairs=False)]
    assert {a for a, _ in kept} == set(range(3))
    assert {b for _, b in kept} == set(range(5))
    assert len(kept) == 5


def test_mirrors_in_files_are_all_there_and_count_as_one_in_pairs() -> None:
    mirrors = [(0, "duckdb"), (1, "files"), (2, "files"), (3, "files")]
    found: list[Values] = [(mirror, (n, n)) for mirror in mirrors for n in range(6)]
    kept = [found[n] for n in covering(found, pairs=True)]
    assert {mirror for mirror, _ in kept} == set(mirrors)
    assert {(mirror[1], n) for mirror, n in kept} == {(mirror[1], n) for mirror, n in found}
    assert len(kept) == 12


def test_what_cannot_be_together_is_not_asked_for() -> None:
    found = [values(0, 0, 0), values(0, 1, 1), values(1, 0, 1)]
    assert covering(found, pairs=True) == {0, 1, 2}
    assert covering(found[:1], pairs=True) == {0}


def test_a_way_counts_as_its_capture_and_its_mirror() -> None:
    assert parts(Way("trigger", None)) == ("trigger", None)
    assert parts("trigger") == ("trigger",)
