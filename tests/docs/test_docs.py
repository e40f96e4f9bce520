"""What the pages say is what the project does."""

import importlib.util
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from rhei_pipeline import Settings
from rhei_pipeline.cli.main import app

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"
PAGES = [*sorted(PROJECT.glob("*.md")), *sorted((PROJECT / "docs").rglob("*.md"))]
DECLARATIONS = (PROJECT / "config").glob("*.yaml")
COMMANDS = {
    command.name or (command.callback.__name__ if command.callback else "")
    for command in app.registered_commands
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def test_declarations_of_the_readme_are_valid() -> None:
    (text,) = blocks(PROJECT / "README.md", "yaml")
    found = Settings(**yaml.safe_load(text))
    assert [table.name for table in found.tables or ()] == ["orders", "customers"]


def test_declarations_that_ship_are_valid() -> None:
    kinds = {path.stem: Settings.load(path).source.kind for path in DECLARATIONS}
    assert kinds == {"pipeline": "sqlite", "production": "sqlite", "postgres": "postgres"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_python_of_the_pages_compiles(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        found = page.parent / name if name else page
        assert found.exists(), target
        # The site has nothing outside its folder.
        assert DOCS not in page.parents or found.resolve().is_relative_to(DOCS), target
        assert not anchor or anchor in anchors(found), target


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the site and the repository's host make them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_every_page_of_the_site_is_in_its_navigation() -> None:
    named = set(re.findall(r"[\w/.-]+\.md", (PROJECT / "mkdocs.yml").read_text()))
    assert named == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_the_reference_is_what_the_code_says() -> None:
    path = PROJECT / "docs" / "reference_pages.py"
    spec = importlib.util.spec_from_file_location("reference_pages", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    for name, text in made.pages().items():
        assert (path.parent / "reference" / name).read_text() == text, "run 'make docs-update'"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_commands_named_by_the_pages_exist(page: Path) -> None:
    named = re.findall(r"(?:\.venv/bin/)?\brhei ([a-z-]+)", "".join(blocks(page, "console")))
    assert set(named) <= COMMANDS


def test_make_targets_named_by_the_readme_exist() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    for name in set(re.findall(r"\$ make ([a-z]+)", (PROJECT / "README.md").read_text())):
        assert f"\n{name}:" in makefile


def test_every_command_is_documented() -> None:
    pages = "".join(page.read_text() for page in PAGES)
    for name in COMMANDS:
        assert re.search(rf"rhei {name}\b|\| {name}\b", pages), name


#: Whoever passes these on owes nobody the source of what uses them.
PERMISSIVE = re.compile(r"\b(MIT|BSD|Apache|0BSD|Zlib|CC0)\b", re.IGNORECASE)
RESERVED = re.compile(r"\b([AL]?GPL|MPL|EUPL|SSPL|BUSL)\b", re.IGNORECASE)


def test_the_readme_names_every_library_whose_license_asks_something() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = {"always": project["dependencies"], **project["optional-dependencies"]}
    # What `cluster` adds is large, and not installed here: BSD and Apache, by their packages.
    for apart in ("dev", "docs", "cluster"):
        del wanted[apart]
    found = {
        (extra, name)
        for extra, requirements in wanted.items()
        for name in (re.split(r"[^\w.-]", each)[0] for each in requirements)
        if not _is_permissive(metadata.metadata(name))
    }
    assert found == {("postgres", "pglast"), ("postgres", "psycopg")}
    _, _, told = (PROJECT / "README.md").read_text().partition("## License")
    assert all(f"`{word}`" in told for pair in found for word in pair)


def _is_permissive(told: metadata.PackageMetadata) -> bool:
    words = [
        each
        for field in ("License-Expression", "License", "Classifier")
        for each in told.get_all(field) or ()
        if field != "Classifier" or each.startswith("License")
    ]
    text = " ".join(words)
    return bool(PERMISSIVE.search(text)) and not RESERVED.search(text)
