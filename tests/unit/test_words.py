"""Docstrings and messages use plain words: what is done or returned, in the field's terms."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
VAGUE = re.compile(r"(Tell|Tells|Say|Says|Have|Know|Pass|See|Sees) ")
RETIRED = re.compile(
    r"\banew\b|\bmend(ed|s|ing)?\b|\bunseen\b|\brests\b|\bstands\b|\bto be had\b|\btelling type\b"
    r"|\bwhoever\b|\bmeanwhile\b|\bits past\b|\bcame free\b"
)
SQL = re.compile(r"^\s*(select|insert|update|delete|create|drop|alter|with|begin|declare|if)\b")


def _trees() -> Iterator[tuple[Path, ast.Module]]:
    for file in sorted((ROOT / "rhei_pipeline").rglob("*.py")):
        yield file.relative_to(ROOT), ast.parse(file.read_text())


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            first = node.body[0]
            assert isinstance(first, ast.Expr)
            assert isinstance(first.value, ast.Constant)
            yield first.value


def test_docstrings_state_what_is_done_or_returned() -> None:
    vague = [
        f"{file}:{found.lineno}: {found.value!r}"
        for file, tree in _trees()
        for found in _docstrings(tree)
        if VAGUE.match(str(found.value))
    ]
    assert vague == []


def test_messages_use_plain_words() -> None:
    """Every text of several words is looked at: most become part of a message."""
    unclear = []
    for file, tree in _trees():
        documented = {id(found) for found in _docstrings(tree)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or id(node) in documented:
                continue
            text = node.value
            if isinstance(text, str) and " " in text.strip() and not SQL.match(text):
                unclear += [f"{file}:{node.lineno}: {text}" for _ in RETIRED.findall(text)]
    assert unclear == []


def test_code_comments_and_pages_use_no_retired_words() -> None:
    """Messages, which more is asked of, have a test of their own."""
    retired = re.compile(r"\b(anew|needles?|rests as)\b")
    files = [*(ROOT / "rhei_pipeline").rglob("*.py"), *(ROOT / "docs").rglob("*.md")]
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in files
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if retired.search(line)
    ]
    assert found == []
