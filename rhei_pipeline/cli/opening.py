"""How a command opens the pipeline, and shows that work goes on."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhei_pipeline.cli.options import DEFAULT_CONFIG
from rhei_pipeline.cli.output import err, notes
from rhei_pipeline.cli.printable import printable
from rhei_pipeline.cli.shard_choice import chosen_of

if TYPE_CHECKING:
    from rhei_pipeline.htap import HTAP
    from rhei_pipeline.settings.model import Settings


def found(config: Path) -> Path:
    """Return the declaration: the default one is looked for in the parent folders, too."""
    if config != DEFAULT_CONFIG or config.exists():
        return config
    here = Path.cwd()
    candidates = (folder / config for folder in here.parents)
    return next((file for file in candidates if file.exists()), config)


def take_environment(config: Path) -> None:
    """Set the variables of the project's file `.env`, except those that are set already."""
    from dotenv import load_dotenv

    from rhei_pipeline.settings.reading import project_directory

    load_dotenv(project_directory(found(config)) / ".env")


def settings_of(config: Path) -> "Settings":
    """Return what a file declares; of a declaration with shards, what it declares of one."""
    from rhei_pipeline.settings.model import Settings

    take_environment(config)
    return chosen_of(Settings.load(found(config)))


@contextmanager
def opened(config: Path, *, hold: bool = True) -> Iterator["HTAP"]:
    """Open the pipeline that a file declares, for the length of the block."""
    from rhei_pipeline.htap import open as open_htap

    with open_htap(settings_of(config), hold=hold) as htap:
        yield htap


@contextmanager
def errors_at_the_end() -> Iterator[None]:
    """Do not log errors that leave a table out: the command prints them itself."""
    from rhei_pipeline.model import left_out

    logger = logging.getLogger(left_out.__name__)

    def is_no_error(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    logger.addFilter(is_no_error)
    try:
        yield
    finally:
        logger.removeFilter(is_no_error)


@contextmanager
def progress_shown(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:  # noqa: FBT001
    """Show how far each table's copy is; the function given takes table, rows and total."""
    from rich.markup import escape
    from rich.progress import Progress

    # By the console that errors are printed on: what is told meanwhile is told above it.
    is_off = quiet or notes.quiet or not notes.is_terminal  # elsewhere it is an empty line
    with Progress(console=err, transient=True, disable=is_off) as progress:
        tasks: dict[str, Any] = {}

        def advance(table: str, rows: int, total: int) -> None:
            if table not in tasks:
                tasks[table] = progress.add_task(escape(printable(f"copying {table}")), total=total)
            progress.update(tasks[table], completed=rows, total=max(total, rows))

        yield advance


@contextmanager
def work_shown(what: str) -> Iterator[None]:
    """Show in a terminal that work goes on whose length nobody knows."""
    if not notes.is_terminal or notes.quiet:
        yield
        return
    with err.status(what):
        yield
