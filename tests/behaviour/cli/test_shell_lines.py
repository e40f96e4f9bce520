"""The shell's statements of many lines: as they were written, from a script, typed or pasted."""

import json
import random
from collections.abc import Callable

import pytest
from sqlglot import tokenize

from rhei_pipeline.cli import statements
from rhei_pipeline.cli.repl import Shell, reading
from rhei_pipeline.cli.rows import OutputFormat, RowWriter
from tests.support.fix_world import World

#: What a text may have at the ends of its lines, and what Python calls an end of a line besides.
PIECES = [
    "a",
    " ",
    "\t",
    "\n",
    "\n\n",
    "''",
    "--",
    "/*",
    "\u2028",
    "\x85",
    "\x0b",
    "exit",
    "\n\\d\n",
]


def pasted(text: str) -> Callable[[str], str]:
    """Return a reader that gets a text at once, as a terminal gives what is pasted."""
    given = iter([text])

    def read(_: str) -> str:
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    return read


@pytest.mark.parametrize("read", [reading, pasted])
def test_a_text_of_many_lines_is_asked_for_as_it_is_written(
    world: World,
    read: Callable[[str], Callable[[str], str]],
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    generator = random.Random(20261130)
    texts = ["".join(generator.choices(PIECES, k=generator.randint(1, 12))) for _ in range(60)]
    script = "".join(f"select '{text}' as v, length('{text}') as n  \n;\n" for text in texts)
    Shell(world.htap, read(script), RowWriter(OutputFormat.NDJSON), is_script=True).run()
    found = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    wanted = [text.replace("''", "'") for text in texts]
    assert found == [{"v": text, "n": len(text)} for text in wanted]


@pytest.mark.parametrize(
    "script",
    [
        "/*\n\\q\n*/ select 1 as n;\n\\q\nselect 2;",
        "select 1 as n -- '\n\\timing\n;\n\\q\nselect 2;",
    ],
)
def test_a_command_of_a_script_is_none_in_a_comment_and_is_one_behind_it(
    world: World, capsysbinary: pytest.CaptureFixture[bytes], script: str
) -> None:
    Shell(world.htap, reading(script), RowWriter(OutputFormat.NDJSON), is_script=True).run()
    shown = capsysbinary.readouterr().out.splitlines()
    assert [json.loads(line) for line in shown if line.startswith(b"{")] == [{"n": 1}]


def test_who_types_gets_out_of_an_open_text_by_a_command(world: World) -> None:
    lines = iter(["select 'open", "\\q"])
    Shell(world.htap, lambda _: next(lines)).run()
    assert not [*lines]


def test_what_is_pasted_may_have_commands_between_statements(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.htap.sync_now()
    Shell(
        world.htap, pasted("select 1\nas one;\n\\d orders\nselect 2 as two;\n\\q\nselect 3;")
    ).run()
    shown = capsys.readouterr()
    assert "one" in shown.out
    assert "status  string" in shown.out
    assert "two" in shown.out
    assert "│ 3 │" not in shown.out
    assert not shown.err


def test_a_statement_is_not_read_again_with_each_of_its_lines(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    """One of 4,000 lines took half a minute of the processor."""
    world.htap.sync_now()
    read: list[int] = []

    def counted(text: str, **more: str) -> object:
        read.append(len(text))
        return tokenize(text, **more)

    monkeypatch.setattr(statements, "tokenize", counted)
    script = "select count(*) as n from orders where id in (\n" + "9,\n" * 2000 + "1);"
    Shell(world.htap, reading(script), RowWriter(OutputFormat.NDJSON), is_script=True).run()
    assert json.loads(capsysbinary.readouterr().out) == {"n": 1}
    assert sum(read) < 10 * len(script)
