"""Pages for users are read by people whose first language is another: their sentences are short."""

import re
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[2]
MOST_WORDS = 25
#: Pages for users. The reference is made from the code, and decisions are for people who change it.
PAGES = [PROJECT / "README.md", *(PROJECT / "docs").glob("*.md"), *PROJECT.glob("docs/how-to/*.md")]


def blocks(page: str) -> Iterator[str]:
    """Yield paragraphs, list items, headings and cells of tables, without code."""
    page = re.sub(r"<!--.*?-->", "", page, flags=re.DOTALL)
    page = re.sub(r"^\s*```.*?^\s*```", "\n", page, flags=re.DOTALL | re.MULTILINE)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)|\n(?=#)|\n(?=\|)", page):
        yield from re.split(r"(?<!\\)\|", block) if block.startswith("|") else [block]


def sentences(page: str) -> Iterator[str]:
    """Yield what ends with a full stop or with its block; colons and semicolons end nothing."""
    for block in blocks(page):
        text = re.sub(r"`[^`]*`", "code", " ".join(block.split()))
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
        yield from re.split(r"(?<=[.!?])[)\"*]*\s+", text)


def test_no_sentence_of_a_page_has_more_words_than_are_read_at_once() -> None:
    long = {
        str(page.relative_to(PROJECT)): found
        for page in PAGES
        if (found := [s for s in sentences(page.read_text()) if words(s) > MOST_WORDS])
    }
    assert len(PAGES) > 30
    assert not long


def words(sentence: str) -> int:
    return len(re.findall(r"[\w'-]+", sentence))


def test_what_is_no_prose_is_not_counted() -> None:
    page = "# A b\n\n- c [d e](f)\n  `g h` i; j: q.\n```\nk l\n```\n| m | n. o |\n<!-- p -->"
    found = [words(s) for s in sentences(page)]
    assert [count for count in found if count] == [2, 8, 1, 1, 1]
