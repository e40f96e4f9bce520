"""Each way out that an error, a finding or a refusal names is followed by a test."""

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.ways_out import FOLLOWED, FOLLOWED_IN_DOCS

ROOT = Path(__file__).parents[2]

#: Names under which a way out is put together before an error or a finding takes it.
_NAMES = {"hint", "way", "remedy"}
#: Functions that return ways out.
_FUNCTIONS = {"_way_out", "way_out", "nearest", "missing_index", "remedy_for", "addition"}
#: Pairs of what is wrong and the way out.
_PAIRS = {"_REASONS"}
#: The place of the remedy in `Finding(severity, what, why, remedy, table)`.
_REMEDY = 3
#: Refusals whose whole text is the way out, with the room that they are raised in.
_REFUSALS = {"ValueError": "settings", "BadParameter": "cli", "NoTimeZoneError": "cli"}


@cache
def _trees() -> dict[Path, ast.Module]:
    return {
        file.relative_to(ROOT): ast.parse(file.read_text())
        for file in sorted((ROOT / "rhei_pipeline").rglob("*.py"))
    }


@cache
def _parts(file: str) -> tuple[ast.AST, ...]:
    """Return whatever is in a file of the tests."""
    return tuple(ast.walk(ast.parse((ROOT / file).read_text())))


@cache
def _constants() -> dict[str, list[ast.expr]]:
    """Return what each constant of a module is, by its name."""
    found: dict[str, list[ast.expr]] = {}
    for tree in _trees().values():
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if name.isupper():
                    found.setdefault(name, []).append(node.value)
    return found


def _texts(node: ast.expr) -> list[str]:
    """Return what a text may be, with `{}` for what is filled in; nothing where it is computed."""
    for kind, texts in _FORMS.items():
        if isinstance(node, kind):
            return [text for text in texts(node) if re.search(r"\w.* .*\w", text)]
    return []


def _formatted(node: ast.JoinedStr) -> list[str]:
    parts = (p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
    return ["".join(map(str, parts))]


def _added(node: ast.BinOp) -> list[str]:
    """Return both sides as one text; a side that is computed is filled in."""
    sides = [_sides(node.left), _sides(node.right)]
    return [a + b for a in sides[0] for b in sides[1] if (a, b) != ("{}", "{}")]


def _sides(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    return _texts(node) or ["{}"]


def _asked(node: ast.Call) -> list[str]:
    """Return what a table of ways out holds that is asked for one."""
    if not isinstance(node.func, ast.Attribute) or node.func.attr != "get":
        return []
    return _texts(node.func.value) + _texts(node.args[-1])


def _all_of(nodes: Iterable[ast.expr]) -> list[str]:
    return [text for node in nodes for text in _texts(node)]


#: How each form of expression is read.
_FORMS: dict[type[ast.expr], Callable[[Any], list[str]]] = {
    ast.Constant: lambda node: [node.value] if isinstance(node.value, str) else [],
    ast.JoinedStr: _formatted,
    ast.IfExp: lambda node: _all_of([node.body, node.orelse]),
    ast.BinOp: _added,
    ast.BoolOp: lambda node: _all_of(node.values),
    ast.Name: lambda node: _all_of(_constants().get(node.id, ())),
    ast.Dict: lambda node: _all_of(node.values),
    ast.Call: _asked,
}


def _called(node: ast.Call) -> str:
    return str(getattr(node.func, "id", None) or getattr(node.func, "attr", ""))


def _ways_out(file: Path, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in _NAMES:
            yield from _texts(node.value)
        elif isinstance(node, ast.Assign):
            yield from _assigned(node)
        elif isinstance(node, ast.FunctionDef) and node.name in _FUNCTIONS:
            returns = [found for found in ast.walk(node) if isinstance(found, ast.Return)]
            yield from _all_of(found.value for found in returns if found.value)
        elif isinstance(node, ast.Call):
            called = _called(node)
            if called == "Finding" and len(node.args) > _REMEDY:
                yield from _texts(node.args[_REMEDY])
            elif called in _REFUSALS and _REFUSALS[called] in file.parts:
                yield from _texts(node.args[0])


def _assigned(node: ast.Assign) -> list[str]:
    names = {name.id for name in node.targets if isinstance(name, ast.Name)}
    if names & _NAMES:
        return _texts(node.value)
    if not names & _PAIRS:
        return []
    pairs = [pair for pair in ast.walk(node.value) if isinstance(pair, ast.Tuple)]
    return _all_of(pair.elts[-1] for pair in pairs if isinstance(pair.elts[0], ast.Constant))


def _named() -> set[str]:
    return {text for file, tree in _trees().items() for text in _ways_out(file, tree)}


def test_each_way_out_is_followed() -> None:
    named = _named()
    assert named - FOLLOWED.keys() == set(), "name the test that follows it"
    assert FOLLOWED.keys() - named == set(), "no error names it any more"


def test_each_way_out_of_the_page_on_operations_is_followed() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    tables = re.findall(r"^\| (?:you see|fault) \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    seen = [
        row.split(" | ")[0].removeprefix("| ") for table in tables for row in table.splitlines()
    ]
    assert len(tables) == 2
    assert seen == list(FOLLOWED_IN_DOCS)


def test_the_tests_that_follow_them_exist() -> None:
    for place in {*FOLLOWED.values(), *FOLLOWED_IN_DOCS.values()}:
        file, _, name = place.partition("::")
        assert name in {n.name for n in _parts(file) if isinstance(n, ast.FunctionDef)}, place


def test_what_is_followed_under_tests_ways_is_quoted_there() -> None:
    """A test cannot meet other words than those it is named for."""
    for text, place in FOLLOWED.items():
        file = place.partition("::")[0]
        if file.startswith("tests/ways/"):
            assert text in {n.value for n in _parts(file) if isinstance(n, ast.Constant)}, text
