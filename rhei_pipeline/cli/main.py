"""The command line: one command for each operation of the library.

A command imports what it works with when it runs: nobody waits for engines to read the help.
"""

import sys

import typer

from rhei_pipeline.cli.commands import (
    comparing,
    declaring,
    keeping,
    looking_back,
    querying,
    syncing,
)
from rhei_pipeline.cli.options import FAILED
from rhei_pipeline.cli.output import err
from rhei_pipeline.errors import RheiError

app = typer.Typer(
    help="Keep an analytical mirror of an operational database by change data capture.",
    no_args_is_help=True,
    add_completion=False,
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
        app.registered_commands.append(_command)


def main() -> None:
    """Run the command line."""
    try:
        app(prog_name="rhei")
    except RheiError as error:
        err.print(f"[red]error[/] {error}", markup=True, soft_wrap=True)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
