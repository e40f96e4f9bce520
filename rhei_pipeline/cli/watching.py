"""What is shown again and again: in one place of a terminal, elsewhere one below another."""

from collections.abc import Callable
from contextlib import ExitStack
from time import sleep

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rhei_pipeline.cli.output import err, notes, out


def watch(show: Callable[[], object], seconds: float) -> None:
    """Call `show` every so many seconds, until Ctrl-C or an error; the last state stays.

    What it prints is kept together, so that an answer which takes long leaves the one before it
    where it is.
    """
    if not out.is_terminal or out.is_dumb_terminal:
        while True:
            show()
            sleep(seconds)
    # A console of its own: what is printed on a live one is added to what is there.
    with Live(console=Console(highlight=False), auto_refresh=False) as live:
        while True:
            live.update(_printed(show), refresh=True)
            sleep(seconds)


def _printed(show: Callable[[], object]) -> Text:
    with ExitStack() as taken:
        shown = [console for console in (out, err, notes) if console.is_terminal]
        captures = [taken.enter_context(console.capture()) for console in shown]
        show()
    return Text.from_ansi("".join(capture.get() for capture in captures))
