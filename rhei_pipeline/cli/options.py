"""What the commands have in common: options, exit codes, and how a time is read."""

from collections.abc import Collection
from datetime import UTC, date, datetime, time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rhei_pipeline.cli.output import notes

FAILED = 1
#: Done, but tables are left out.
LEFT_OUT = 3
#: What a command ends with, and what that means.
EXIT_CODES = {
    0: "done",
    FAILED: "failed; also: `verify` found a difference, `check` an error, `dead-letters` a letter,"
    " or the source has no table at all to mirror",
    2: "wrong usage",
    LEFT_OUT: "done, but tables are left out or frozen, be it all of them, or something was not"
    " published",
    130: "interrupted by Ctrl-C",
}

Config = Annotated[
    Path,
    typer.Option(
        "--config",
        envvar="RHEI_CONFIG",
        help="The declaration; the default is looked for in the parent folders, too.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
OneTable = Annotated[str | None, typer.Option("--table", help="This table only.")]
DEFAULT_CONFIG = Path("config/pipeline.yaml")
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Log what is done, on standard error.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show neither progress nor notes.")]


class Side(StrEnum):
    """Which side answers a query."""

    AUTO = "auto"
    OLTP = "oltp"
    OLAP = "olap"
    CLUSTER = "cluster"


def be_verbose() -> None:
    """Log what is done."""
    from rhei_pipeline.cli.logs import log_to_stderr

    log_to_stderr(as_json=False)


def be_quiet() -> None:
    """Show neither progress nor notes."""
    notes.quiet = True


def example(text: str) -> str:
    """Return an example to show below a command's help."""
    return f"Example:  rhei {text}"


class NoTimeZoneError(typer.BadParameter):
    """A timestamp says no time zone, and none is guessed."""


def time_of(text: str) -> datetime:
    """Return the time that a text such as `2026-11-01` or `2026-11-01T12:00Z` means.

    Raises:
        BadParameter: It means none.
        NoTimeZoneError: It says no time zone.
    """
    try:
        if len(text) == len("2026-11-01"):
            return datetime.combine(date.fromisoformat(text), time(), UTC)
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is not a timestamp such as 2026-11-01T12:00Z"
        ) from error
    if found.tzinfo is None:
        raise NoTimeZoneError(
            f"{text!r} has no time zone: end it with Z for UTC, or with an offset such as +02:00"
        )
    return found


def refuse_unknown(table: str, known: Collection[str]) -> None:
    """Refuse a table's name that is not known.

    Raises:
        SchemaError: It is not; names the nearest.
    """
    from rhei_pipeline.errors import SchemaError
    from rhei_pipeline.model.schema import nearest

    if table not in known:
        raise SchemaError(f"there is no table {table!r}", hint=nearest(table, sorted(known)))


def exit_if(failed: bool, code: int = FAILED) -> None:  # noqa: FBT001
    """End the command with an exit code, if it failed."""
    if failed:
        raise typer.Exit(code)
