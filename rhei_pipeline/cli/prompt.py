"""The shell's line in a terminal: history, colours, completion, and statements of many lines."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.lexers import PygmentsLexer
from pygments.lexers.sql import PostgresLexer, SqlLexer

from rhei_pipeline.cli.repl import COMMANDS

if TYPE_CHECKING:
    from rhei_pipeline.cli.repl import Shell

_WORD = re.compile(r"[\w$]+")
_COMMAND = re.compile(r"\\\w*")


class Words(Completer):
    """Completes commands, and in statements keywords, tables and columns."""

    def __init__(self, words: Callable[[], list[str]]) -> None:
        self._words = words

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yield what the word before the cursor may become."""
        del complete_event
        if document.text.startswith("\\") and " " not in document.text:
            typed, words = document.text, list(COMMANDS)
        else:
            typed, words = document.get_word_before_cursor(pattern=_WORD), self._words()
        for word in words:
            if typed and word.lower().startswith(typed.lower()):
                yield Completion(word, start_position=-len(typed))


def line_reader(shell: "Shell", history: Path, *, is_postgres: bool) -> Callable[[str], str]:
    """Return a function that asks for a statement or command, given a prompt."""
    session: PromptSession[str] = PromptSession(
        history=_history(history),
        lexer=PygmentsLexer(PostgresLexer if is_postgres else SqlLexer),
        completer=Words(shell.words),
        complete_while_typing=False,
        multiline=Condition(lambda: not shell.is_whole(session.default_buffer.text)),
        prompt_continuation="    > ",
    )
    return session.prompt


def _history(file: Path) -> History:
    """Return the history that a file keeps; where it cannot be written, of this shell alone."""
    try:
        file.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(file)
