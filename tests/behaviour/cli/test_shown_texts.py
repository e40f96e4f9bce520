"""What a person is shown of a source's texts: every character, and no effect on the terminal."""

import logging
import random
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from rhei_pipeline.cli import output
from rhei_pipeline.cli.logs import log_to_stderr
from rhei_pipeline.cli.main import app

WIDTH = 80
#: A link, Japanese, an escape that names the window, a bell, and a turned direction.
TEXTS = [
    f"https://example.com/{'a1' * 70}/end",
    "日本語の長い名前がここにありますよね" * 3,
    "red\x1b[31m\x1b]0;owned\x07 \x9b2J\rover\u202egnp.exe",
    "one\ttwo\tthree\nfour",
    "[bold]as it is[/]",
]
WRITTEN_OUT = {
    "\x1b": "\\x1b",
    "\x07": "\\x07",
    "\x9b": "\\x9b",
    "\r": "\\r",
    "\u202e": "\\u202e",
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(output.out, "width", WIDTH)
    Path("pipeline.yaml").write_text(
        "source: {path: app.db}\nmirror: {path: m.duckdb}\nmode: temporal\n"
        "registry: {path: registry.json}\n"
    )
    return tmp_path / "app.db"


def shown(*arguments: str, code: int = 0) -> str:
    found = CliRunner().invoke(app, [*arguments, "--config", "pipeline.yaml"])
    assert found.exit_code == code, (found.output, found.exception)
    return found.stdout


def whole(text: str) -> str:
    """Return what is seen of a text, without the places where lines are broken."""
    seen = "".join(WRITTEN_OUT.get(each, each) for each in text)
    return "".join(seen.split())


def cells(printed: str, place: int = -1) -> str:
    """Return what a table shows in a column, by default its last, one line after another."""
    lines = [line.replace("┃", "│") for line in printed.splitlines() if line[:1] in "│┃"]
    return "".join("".join(line.strip("│").split("│")[place].split()) for line in lines)


def ask(file: Path, text: str, name: str = "v") -> str:
    quoted = name.replace('"', '""')
    with sqlite3.connect(file) as source:
        source.execute(f'create table t(id integer primary key, "{quoted}" text)')
        source.execute("insert into t values (1, ?)", (text,))
    source.close()
    return shown("query", "select * from t")


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_value_is_shown_whole_and_has_no_effect_on_the_terminal(file: Path, text: str) -> None:
    printed = ask(file, text)
    assert whole(text) in cells(printed)
    assert max(map(cell_len, printed.splitlines())) <= WIDTH
    assert not any(each in printed for each in WRITTEN_OUT)


def test_a_value_that_takes_two_columns_a_letter_is_measured_by_columns(file: Path) -> None:
    generator = random.Random(20261130)
    texts = [
        "".join(generator.choices("あ日e\u0301x ", k=generator.randint(20, 60))) for _ in range(40)
    ]
    with sqlite3.connect(file) as source:
        source.execute("create table t(id integer primary key, a text)")
        source.executemany("insert into t(a) values (?)", [(text,) for text in texts])
    source.close()
    printed = shown("query", "select a from t order by id")
    assert cells(printed) in ("a" + "".join(map(whole, texts)), "".join(map(whole, texts)))
    assert max(map(cell_len, printed.splitlines())) <= WIDTH


def test_a_columns_name_is_shown_as_a_value_is(file: Path) -> None:
    name = "c\x1b[31m" + "long" * 30
    printed = ask(file, "x", name)
    assert whole(name) in cells(printed, 0)
    assert "\x1b" not in printed


def test_what_changed_and_what_could_not_be_mirrored_is_shown_so_too(file: Path) -> None:
    key = "k\x1b]0;owned\x07" + "y" * 100
    with sqlite3.connect(file) as source:
        source.execute("create table t(k text primary key, v text, n integer)")
        source.execute("insert into t values (?, ?, 1)", (key, TEXTS[0]))
    shown("sync")
    with sqlite3.connect(file) as source:
        source.execute("insert into t values (?, 'v', 'no number')", (key + "z",))
    shown("sync")
    source.close()
    changed = shown("changes", "--table", "t")
    letters = shown("dead-letters", code=1)
    assert whole(TEXTS[0]) in cells(changed)
    assert whole(key + "z") in cells(letters)
    assert "\x1b" not in changed + letters


def test_what_is_found_is_a_line_for_each_sentence_where_nobody_watches(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("create table people(id integer primary key)")
        connection.execute("create table keyless(name)")
    declared = Path("pipeline.yaml")
    declared.write_text(f"{declared.read_text()}tables: [{{name: people}}, {{name: keyless}}]\n")
    lines = shown("check", code=1).splitlines()
    about = next(place for place, line in enumerate(lines) if "keyless" in line)
    labels = [line.strip().partition(":")[0] for line in lines[about + 1 : about + 3]]
    assert labels == ["why", "do"]
    assert max(map(len, lines)) > WIDTH
    assert not any(line != line.rstrip() for line in lines)


def test_a_table_that_was_dropped_is_told_without_what_was_not_asked_for(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("create table people(id integer primary key)")
    shown("sync")
    assert "kept as" in shown("drop-table", "people", "--keep-as", "former", "--yes")
    shown("sync")
    assert "kept as" not in shown("drop-table", "people", "--discard-history", "--yes")


def test_the_log_for_people_has_no_effect_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log_to_stderr(as_json=False)
    logging.getLogger("rhei_pipeline.sync").warning("PostgreSQL refused: %s", TEXTS[2])
    said = capsys.readouterr().err
    assert said.endswith(f"{''.join(WRITTEN_OUT.get(each, each) for each in TEXTS[2])}\n")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_no_end_of_line_in_a_value_ends_the_row_of_a_markdown_table(file: Path, end: str) -> None:
    with sqlite3.connect(file) as source:
        source.execute("create table t(id integer primary key, v text)")
        source.execute("insert into t values (1, ?)", (f"one{end}two",))
    source.close()
    printed = shown("query", "select v from t", "--format", "markdown")
    assert re.split("\r\n?|\n", printed)[2:] == ["| one<br>two |", ""]
