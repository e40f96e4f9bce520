"""Every command with its output that a page shows was run, and prints that."""

from pathlib import Path

import pytest

from tests.docs.transcripts import replayed, steady, transcripts

PROJECT = Path(__file__).parents[2]
PAGES = [*sorted(PROJECT.glob("*.md")), *sorted((PROJECT / "docs").rglob("*.md"))]
SHOWN = [page for page in PAGES if transcripts(page)]


@pytest.mark.long
@pytest.mark.parametrize("page", SHOWN, ids=lambda page: str(page.relative_to(PROJECT)))
def test_commands_print_what_the_page_shows(page: Path) -> None:
    found = transcripts(page)
    for one, text in zip(found, replayed(found), strict=True):
        assert steady(text) == steady(one.text)


def test_the_first_pages_have_transcripts() -> None:
    assert {page.name for page in SHOWN} >= {"README.md", "tutorial.md"}
