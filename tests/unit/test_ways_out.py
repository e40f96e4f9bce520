"""Each way out that an error names is followed by a test, or is on a list that may not grow."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.ways_out import FOLLOWED, NOT_YET_FOLLOWED

ROOT = Path(__file__).parents[2]

#: How many ways out no test follows; to be lowered with each one that is.
MOST_LEFT = 147
#: Names under which a way out is put together before an error takes it.
_NAMES = {"hint", "way"}


def _texts(node: ast.expr) -> list[str]:
    """Return what a text may be, with `{}` for what is filled in; nothing where it is computed."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        parts = (p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
        return ["".join(map(str, parts))]
    if isinstance(node, ast.IfExp):
        return _texts(node.body) + _texts(node.orelse)
    if isinstance(node, ast.BinOp):
        return [a + b for a in _texts(node.left) for b in _texts(node.right)]
    return []


def _ways_out(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "hint":
            yield from _texts(node.value)
        elif isinstance(node, ast.Assign):
            if any(isinstance(name, ast.Name) and name.id in _NAMES for name in node.targets):
                yield from _texts(node.value)
        elif isinstance(node, ast.FunctionDef) and node.name == "_way_out":
            returns = (found for found in ast.walk(node) if isinstance(found, ast.Return))
            for found in returns:
                yield from _texts(found.value) if found.value else ()


def test_each_way_out_is_followed_or_listed() -> None:
    sources = (ROOT / "rhei_pipeline").rglob("*.py")
    named = {text for file in sources for text in _ways_out(ast.parse(file.read_text()))}
    assert not FOLLOWED.keys() & NOT_YET_FOLLOWED
    assert named - FOLLOWED.keys() - NOT_YET_FOLLOWED == set(), "name the test that follows it"
    assert (FOLLOWED.keys() | NOT_YET_FOLLOWED) - named == set(), "no error names it any more"
    assert len(NOT_YET_FOLLOWED) <= MOST_LEFT, "follow the new one by a test"


def test_the_tests_that_follow_them_exist() -> None:
    for place in set(FOLLOWED.values()):
        file, _, name = place.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        assert name in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}, place
