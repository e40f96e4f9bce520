"""Runs the transcripts of a page: commands with what they print, in a directory of their own.

A block of console text below a comment `<!-- transcript: NAME -->` is a transcript. Blocks of one
name go on from each other. SQL in the comment is run on `app.db` first.
`python -m tests.docs.transcripts PAGE...` writes the answers into pages.
"""

import contextlib
import io
import os
import re
import shlex
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from rhei_pipeline.cli.main import main

_BLOCK = re.compile(
    r"<!-- transcript: (?P<name>[\w-]+)(?P<sql>.*?)-->\n+```console\n(?P<text>.*?)```", re.DOTALL
)
#: What a page shows in place of the directory in which its commands were run.
_HOME = "/home/ada/shop"
#: What differs from run to run: lengths of time, instants, the present day.
_CHANGING = (
    (re.compile(r"\d+\.\d+ s\b"), "0.0 s"),
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?"), "2026-01-01 00:00:00"),
    (re.compile(r"(?<=snapshots_from: )\d{4}-\d\d-\d\d"), "2026-01-01"),
)


@dataclass(frozen=True, slots=True)
class Transcript:
    """A block of a page.

    Attributes:
        name: Blocks of one name share a directory.
        sql: What is run on `app.db` before it.
        text: Commands, each after a dollar sign, and what they print.
    """

    name: str
    sql: str
    text: str

    def commands(self) -> list[str]:
        """Return the commands, those of several lines joined."""
        joined = self.text.replace("\\\n", " ")
        return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


def transcripts(page: Path) -> list[Transcript]:
    """Return the transcripts of a page, in their order."""
    return [Transcript(**found.groupdict()) for found in _BLOCK.finditer(page.read_text())]


def replayed(found: list[Transcript]) -> Iterator[str]:
    """Run transcripts, and yield the text that each should have."""
    with tempfile.TemporaryDirectory() as scratch:
        for one in found:
            directory = Path(scratch) / one.name
            directory.mkdir(exist_ok=True)
            with contextlib.chdir(directory):
                if one.sql.strip():
                    _sql("app.db", one.sql)
                answers = [_shown(one, command) + _run(command) for command in one.commands()]
            yield "".join(answers)


def _shown(one: Transcript, command: str) -> str:
    """Return a command as the page has it: in one line, or in several."""
    for wanted in re.findall(r"^\$ (?:.*\\\n)*.*\n", one.text, flags=re.MULTILINE):
        if wanted[2:].replace("\\\n", " ").strip() == command.strip():
            return str(wanted)
    raise AssertionError(command)


def steady(text: str) -> str:
    """Return a text without what differs from run to run."""
    for pattern, put in _CHANGING:
        text = pattern.sub(put, text)
    return "\n".join(line.rstrip() for line in text.splitlines())


def _run(command: str) -> str:
    program, *arguments = shlex.split(command)
    if program == "rhei":
        return _rhei(arguments)
    if program == "sqlite3":
        return _sql(*arguments)
    if program == "cat":
        return Path(arguments[0]).read_text().replace(str(Path.cwd()), _HOME)
    if program == "pip" and arguments[0] == "install":
        return ""
    raise AssertionError(f"a transcript cannot run {program!r}")


def _rhei(arguments: list[str]) -> str:
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        contextlib.suppress(SystemExit),
        patch.object(sys, "argv", ["rhei", *arguments]),
        patch.dict(os.environ, {"COLUMNS": "80"}),
        # 'rhei check' warns of the SQLite of some Pythons; a page shows none of them.
        patch.object(sqlite3, "sqlite_version_info", (3, 51, 3)),
    ):
        main()
    return "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines() if line.strip())


def _sql(file: str, sql: str) -> str:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.executescript(sql)
    return ""


def rewrite(page: Path) -> None:
    """Put into a page what its commands print, where that is more than another length of time."""
    answers = replayed(transcripts(page))

    def put(found: re.Match[str]) -> str:
        shown, printed = found["text"], next(answers)
        return found[0] if steady(shown) == steady(printed) else found[0].replace(shown, printed)

    page.write_text(_BLOCK.sub(put, page.read_text()))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        rewrite(Path(name))
    sys.stdout.flush()
    os._exit(0)
