"""The combinations that the suite runs have each value, or each two values, and are few."""

import tomllib
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.behaviour.schema.test_drift import sample
from tests.support.altered_tables import Way
from tests.support.combinations import (
    Values,
    asked_in_short,
    asked_in_turns,
    asked_of,
    covering,
    mark_long,
    named,
)


def values(*numbers: int) -> Values:
    return tuple((number, number) for number in numbers)


def test_each_two_values_are_together_in_one_combination() -> None:
    found = list(product(range(3), range(2), range(4), range(2)))
    kept = [found[n] for n in covering([asked_of(values(*one), pairs=True) for one in found])]
    for a, b in combinations(range(4), 2):
        assert {(one[a], one[b]) for one in kept} == {(one[a], one[b]) for one in found}
    assert len(kept) <= 15  # of 48; 12 is the least there can be


def test_each_value_is_in_one_combination() -> None:
    found = list(product(range(3), range(5)))
    kept = [found[n] for n in covering([asked_of(values(*one), pairs=False) for one in found])]
    assert {a for a, _ in kept} == set(range(3))
    assert {b for _, b in kept} == set(range(5))
    assert len(kept) == 5


def test_mirrors_in_files_are_all_there_and_count_as_one_in_pairs() -> None:
    mirrors = [(0, "duckdb"), (1, "files"), (2, "files"), (3, "files")]
    found: list[Values] = [(mirror, (n, n)) for mirror in mirrors for n in range(6)]
    kept = [found[n] for n in covering([asked_of(one, pairs=True) for one in found])]
    assert {mirror for mirror, _ in kept} == set(mirrors)
    assert {(mirror[1], n) for mirror, n in kept} == {(mirror[1], n) for mirror, n in found}
    assert len(kept) == 12


def test_what_cannot_be_together_is_not_asked_for() -> None:
    found = [values(0, 0, 0), values(0, 1, 1), values(1, 0, 1)]
    assert covering([asked_of(one, pairs=True) for one in found]) == {0, 1, 2}
    assert covering([asked_of(found[0], pairs=True)]) == {0}


def test_a_way_counts_as_its_capture_and_its_mirror() -> None:
    assert named("way", Way("trigger", None)) == (("capture", "trigger"), ("storage", None))
    assert named("way", "trigger") == (("way", "trigger"),)


def test_a_cell_of_a_matrix_counts_as_its_place_on_each_axis() -> None:
    found = [named("cell", cell) for cell in sample()]
    axes = {name for name, _ in found[0]}
    assert axes == {"drift", "moment", "capture", "mode", "mirror"}
    numbered = [tuple((value, value) for _, value in one) for one in found]
    kept = covering([asked_of(one, pairs=False) for one in numbered])
    assert {pair for n in kept for pair in found[n]} == {pair for one in found for pair in one}
    assert len(kept) < len(found) * 2 / 3


MIRRORS = {"duckdb": "duckdb", "ipc": "files", "delta": "files"}
MODES = ("destructive", "temporal")


def in_turns(tests: int) -> list[tuple[int, str, str, str]]:
    """Return what runs of tests which all have each mode, each mirror, and two cases."""
    found = list(product(range(tests), MODES, MIRRORS, ("a", "b")))
    asked = [
        asked_in_turns(
            f"test {test}",
            ("mode", "storage", "case"),
            ((mode, mode), (mirror, MIRRORS[mirror]), (case, case)),
        )
        for test, mode, mirror, case in found
    ]
    return [found[n] for n in sorted(covering(asked))]


@pytest.mark.parametrize("tests", [1, 2, 5, 20])
def test_tests_that_take_turns_meet_all_conditions_between_them(tests: int) -> None:
    ran = in_turns(tests)
    assert {mirror for _, _, mirror, _ in ran} == set(MIRRORS)
    met = {(mode, MIRRORS[mirror]) for _, mode, mirror, _ in ran}
    assert met == set(product(MODES, MIRRORS.values()))
    for test in range(tests):
        own = [(MIRRORS[mirror], case) for number, _, mirror, case in ran if number == test]
        assert {engine for engine, _ in own} == set(MIRRORS.values())
        assert {case for _, case in own} == {"a", "b"}
    assert len(ran) <= 2 * tests + 3  # of 12 each


def items(request: pytest.FixtureRequest, test: str) -> list[pytest.Function]:
    """Return a test of this module in each mode, each mirror, and two cases."""
    found = []
    for mode, storage, case in product(MODES, MIRRORS, ("a", "b")):
        name = f"{test}[{mode}-{storage}-{case}]"
        item = pytest.Function.from_parent(request.node.parent, name=name, callobj=items)
        params = {"mode": mode, "storage": storage, "case": case}
        item.callspec = SimpleNamespace(params=params)  # type: ignore[assignment]
        found.append(item)
    return found


def test_the_short_form_has_each_test_and_each_condition_of_a_module(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.combinations.SHORTENED", ("tests/unit/",))
    tests = {test: items(request, test) for test in ("one", "two", "three", "long", "soak")}
    for marked in ("long", "soak"):
        for item in tests[marked]:
            item.add_marker(marked)
    mark_long(item for found in tests.values() for item in found)
    short = {
        test: [item for item in found if not item.get_closest_marker("long")]
        for test, found in tests.items()
    }
    assert [len(short[test]) for test in tests] == [1, 1, 1, 0, len(tests["soak"])]
    ran = [short[test][0].callspec.params for test in ("one", "two", "three")]
    assert {params["mode"] for params in ran} == set(MODES)
    assert {params["storage"] for params in ran} == set(MIRRORS)


def test_each_step_of_a_test_is_in_the_short_form() -> None:
    steps, modes = ("begun", "applied", "committed"), ("destructive", "temporal")
    found = [("one", step, mode) for step, mode in product(steps, modes)]
    asked = [
        asked_in_short(test, ("step", "mode"), ((step, step), (mode, mode)))
        for test, step, mode in found
    ]
    kept = [found[number] for number in covering(asked)]
    assert sorted(step for _, step, _ in kept) == sorted(steps)
    assert {mode for _, _, mode in kept} == set(modes)


def test_small_tests_have_all_their_combinations_in_the_short_form(
    request: pytest.FixtureRequest,
) -> None:
    found = items(request, "one")
    mark_long(found)
    assert not any(item.get_closest_marker("long") for item in found)


def test_the_short_form_and_the_rest_are_what_the_suite_draws() -> None:
    project = Path(__file__).parents[2]
    options = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["pytest"]
    suite = options["ini_options"]["addopts"][-1]
    makefile = (project / "Makefile").read_text()
    assert f"\nSUITE := {suite}\n" in makefile
    _, _, drawn = makefile.partition("\nDRAWN := ")
    assert drawn.startswith('echo "SEED=$(SEED)" && ')  # pytest itself, told to be quiet, says none
    assert drawn.split("\n")[0].endswith("--randomly-seed=$(SEED)")
    for target, form in (("test", "not long"), ("test-long", "long")):
        _, _, recipe = makefile.partition(f"\n{target}: ")
        assert recipe.split("\n")[1] == f'\t@$(DRAWN) -m "$(SUITE) and {form}"'
    assert {"make test", "make test-long"} <= set((project / ".ci/run").read_text().split("\n"))
