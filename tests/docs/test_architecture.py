"""The page on the architecture names what exists, in the order in which it is called."""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs" / "architecture.md"
TEXT = PAGE.read_text()
Call = tuple[str, str]

PATH = re.compile(r"`((?:rhei_pipeline|tests)/[\w/.]+|definitions\.py|assets|resources|sensors)`")
NAME = re.compile(r"`([A-Za-z_.]+)\(\)`")
STEP = re.compile(r"^\| `([\w/.]+)` \| `([\w.]+)\(\)` \|", flags=re.MULTILINE)
FORMAT = re.compile(r"^\| .* \| (\d+) \| .* \| `([\w/.]+)` \|$", flags=re.MULTILINE)


def defined(path: Path) -> set[str]:
    """Return the functions and methods of a file, or of all files of a room."""
    found = set()
    for file in path.rglob("*.py") if path.is_dir() else [path]:
        for node in ast.parse(file.read_text()).body:
            inner = node.body if isinstance(node, ast.ClassDef) else []
            prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
            found |= {
                prefix + one.name
                for one in (inner or [node])
                if isinstance(one, ast.FunctionDef | ast.ClassDef)
            }
    return found


def test_every_path_exists() -> None:
    paths = PATH.findall(TEXT)
    assert len(paths) > 60
    for path in paths:
        assert (PROJECT / path).exists(), path


def test_every_function_is_defined_in_the_file_named_beside_it() -> None:
    paragraphs = [part for line in TEXT.split("\n\n") for part in _lines_or_rows(line)]
    named = [(name, part) for part in paragraphs for name in NAME.findall(part)]
    assert len(named) > 60
    for name, part in named:
        files = [PROJECT / path for path in PATH.findall(part)]
        assert any(name in defined(file) for file in files), name


def _lines_or_rows(paragraph: str) -> list[str]:
    return paragraph.splitlines() if paragraph.startswith("|") else [paragraph]


def test_every_room_of_the_engine_is_on_the_page() -> None:
    engine = PROJECT / "rhei_pipeline"
    rooms = {path.parent.name for path in engine.glob("*/__init__.py")}
    assert rooms
    assert rooms <= set(re.findall(r"^\| `rhei_pipeline/(\w+)` \|", TEXT, flags=re.MULTILINE))


def test_formats_are_those_of_the_code() -> None:
    rows = FORMAT.findall(TEXT)
    written = {path: int(number) for number, path in rows}
    found = dict(_formats())
    assert written == found
    assert len(found) == 9


def _formats() -> Iterator[tuple[str, int]]:
    for file in sorted((PROJECT / "rhei_pipeline").rglob("*.py")):
        number = re.search(r"^FORMAT = (\d+)$", file.read_text(), flags=re.MULTILINE)
        if number:
            yield str(file.relative_to(PROJECT)), int(number[1])


def calls(work: Callable[[], object]) -> list[Call]:
    """Return the calls of functions of the package while it works, by file and name."""
    found: list[Call] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(PROJECT / "rhei_pipeline"):
            found.append((str(file.relative_to(PROJECT)), frame.f_code.co_qualname))

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def assert_told(section: str, found: list[Call]) -> None:
    """The steps that the page tells of were called in its order."""
    steps = STEP.findall(TEXT.split(f"\n### {section}\n")[1].split("\n#")[0])
    assert len(steps) > 8
    rest = iter(found)
    for step in steps:
        assert any(call == step for call in rest), step


@pytest.fixture
def synced(world: World) -> World:
    world.htap.sync_now()
    world.run("insert into orders(id) values (7)")
    return world


def test_a_change_event_from_sqlite_goes_the_way_that_is_told(synced: World) -> None:
    assert_told("A change event from SQLite", calls(synced.htap.sync_now))


def test_a_reader_of_the_first_way_opens_no_more_than_nine_files() -> None:
    steps = STEP.findall(TEXT.split("\n### A change event from SQLite\n")[1].split("\n#")[0])
    assert len({file for file, _ in steps}) <= 9


def test_a_query_goes_the_way_that_is_told(synced: World) -> None:
    synced.htap.sync_now()
    asked = calls(lambda: synced.htap.query("select count(*) from orders"))
    assert_told("A query", asked)


def test_a_first_copy_goes_the_way_that_is_told(world: World) -> None:
    with world.htap as htap:
        assert_told("A first copy", calls(htap.sync_now))


def test_a_change_goes_into_files_the_way_that_is_told(
    make_world: Callable[..., World],
) -> None:
    world = make_world(storage="parquet", mode="temporal")
    world.run("create table t(id integer primary key, v integer)", "insert into t values (1, 1)")
    world.htap.sync_now()
    world.run("update t set v = 2")
    assert_told("Into a DataFusion mirror's files", calls(world.htap.sync_now))


def test_a_change_event_from_postgres_goes_the_way_that_is_told(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres(capture={"method": "logical"})
    world.run("create table t(id int primary key, v int)", "insert into t values (1, 1)")
    world.htap.sync_now()
    world.run("update t set v = 2")
    assert_told("A change event from PostgreSQL", calls(world.htap.sync_now))
