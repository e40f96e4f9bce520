"""The command line: one command for each operation of the library.

A command imports what it works with when it runs: nobody waits for engines to read the help.
"""

import errno
import os
import sys
from contextlib import suppress
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated

import typer

from rhei_pipeline.cli.commands import (
    comparing,
    declaring,
    keeping,
    looking_back,
    querying,
    syncing,
)
from rhei_pipeline.cli.failures import Command
from rhei_pipeline.cli.logs import log_as_text
from rhei_pipeline.cli.options import FAILED, Quiet, Verbose, be_quiet, be_verbose
from rhei_pipeline.cli.output import notes, print_error
from rhei_pipeline.cli.talking import talking
from rhei_pipeline.errors import RheiError

app = typer.Typer(
    help="Keep an analytical mirror of an operational database by change data capture.",
    epilog="Exit codes: 0 done; 1 failed, or something is wrong; 2 wrong usage; 3 done, but tables"
    " are left out; 130 interrupted.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
#: The commands by what they are for, in the order of the help.
_PANELS = {
    "Declare": declaring,
    "Sync": syncing,
    "Query": querying,
    "Look back": looking_back,
    "Compare and repair": comparing,
    "Serve and keep": keeping,
}
for _panel, _group in _PANELS.items():
    for _command in _group.commands.registered_commands:
        _command.rich_help_panel = _panel
        _command.cls = Command
        if _command.callback is not None:
            _command.callback = talking(_command.callback)
        app.registered_commands.append(_command)


#: How the system refuses to write an answer; a reader that has gone is dealt with already.
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def _show_version(wanted: bool) -> None:  # noqa: FBT001  (a callback of typer's)
    if wanted:
        typer.echo(f"rhei {version('rhei-pipeline')}")
        raise typer.Exit


@app.callback()
def before_the_command(
    show_version: Annotated[  # noqa: ARG001  (its callback has done it)
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Do what is asked for before the command's name."""
    notes.quiet = False
    if verbose:
        be_verbose()
    if quiet:
        be_quiet()


def main() -> None:
    """Run the command line."""
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal of another encoding than UTF-8 shows what it lacks by its number.
        with suppress(OSError):  # one that was replaced by a pipe cannot be changed
            sys.stdout.reconfigure(errors="backslashreplace")
    log_as_text()
    try:
        app(prog_name="rhei")
    except RheiError as error:
        print_error(str(error))
        sys.exit(FAILED)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        # What is held of the answer would fail once more as the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print_error(f"the answer cannot be written: {error.strerror} (write it elsewhere)")
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
