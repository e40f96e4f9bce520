"""What the commands have in common: options, exit codes, and how a time is read."""

from datetime import UTC, date, datetime, time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

FAILED = 1
#: Done, but tables are left out.
LEFT_OUT = 3
#: What a command ends with, and what that means.
EXIT_CODES = {
    0: "done",
    FAILED: "failed; also: `verify` found a difference, `check` an error, `dead-letters` a letter,"
    " or the source has no table at all to mirror",
    2: "wrong usage",
    LEFT_OUT: "done, but tables are left out, be it all of them, or something was not published",
    130: "interrupted by Ctrl-C",
}

Config = Annotated[Path, typer.Option("--config", help="The declaration.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
OneTable = Annotated[str | None, typer.Option("--table", help="This table only.")]
DEFAULT_CONFIG = Path("config/pipeline.yaml")


class Side(StrEnum):
    """Which side answers a query."""

    AUTO = "auto"
    OLTP = "oltp"
    OLAP = "olap"


def example(text: str) -> str:
    """Return an example to show below a command's help."""
    return f"Example:  rhei {text}"


def time_of(text: str) -> datetime:
    """Return the time that a text such as `2026-11-01` or `2026-11-01T12:00Z` means.

    Raises:
        BadParameter: It means none.
    """
    try:
        if len(text) == len("2026-11-01"):
            return datetime.combine(date.fromisoformat(text), time(), UTC)
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is not a timestamp such as 2026-11-01T12:00Z"
        ) from error


def exit_if(failed: bool, code: int = FAILED) -> None:  # noqa: FBT001
    """End the command with an exit code, if it failed."""
    if failed:
        raise typer.Exit(code)
