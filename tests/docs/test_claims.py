"""Each promise of the pages names a test, and stands on its page word for word."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.claims import CLAIMS, PROMISING, WITHOUT

PROJECT = Path(__file__).parents[2]


def words(text: str) -> str:
    return " ".join(text.split())


def blocks(page: str) -> Iterator[str]:
    """Yield the paragraphs and list items of the part of a page that promises something."""
    text = (PROJECT / page).read_text()
    begin = text.index("\n", text.index(PROMISING[page]))
    level = PROMISING[page].partition(" ")[0]
    part = re.split(rf"\n{level} ", text[begin:])[0]
    for paragraph in part.split("\n\n"):
        for block in re.split(r"\n(?=- |\d+\. )", paragraph.strip()):
            if block and not block.startswith("#") and block in part:
                yield re.sub(r"^(- |\d+\. )", "", words(block))


def test_every_claim_stands_on_its_page() -> None:
    for page, claims in CLAIMS.items():
        text = words((PROJECT / page).read_text())
        for sentence in claims:
            assert words(sentence) in text, f"{page}: {sentence}"


def test_every_claim_has_a_test_that_exists() -> None:
    files = [*(PROJECT / "tests").rglob("test_*.py")]
    known = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}
    named = {test for claims in CLAIMS.values() for test in claims.values()}
    assert named - known == set()


def test_nothing_is_promised_without_a_claim() -> None:
    for page in PROMISING:
        found = list(blocks(page))
        assert len(found) > 3
        bare = [
            block
            for block in found
            if not any(words(sentence) in block for sentence in CLAIMS[page])
            and not any(block.startswith(begin) for begin in WITHOUT)
        ]
        assert bare == []
