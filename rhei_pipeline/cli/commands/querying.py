"""Commands that ask source or mirror."""

import sys
from typing import Annotated

import typer

from rhei_pipeline.cli.opening import opened
from rhei_pipeline.cli.options import DEFAULT_CONFIG, Config, Json, Side, example
from rhei_pipeline.cli.output import show, show_rows, values

commands = typer.Typer()


@commands.command(epilog=example('query "select count(*) from orders" --hint olap'))
def query(
    sql: Annotated[
        str | None, typer.Argument(help="One SELECT statement; without it, a shell opens.")
    ] = None,
    config: Config = DEFAULT_CONFIG,
    hint: Annotated[
        Side, typer.Option(help="Which side answers: auto, oltp (source) or olap (mirror).")
    ] = Side.AUTO,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show which side would answer, and why.")
    ] = False,
    json_: Json = False,
) -> None:
    """Query the source or the mirror; without a statement, open a shell."""
    if sql is None and not sys.stdin.isatty():
        raise typer.BadParameter("give a statement, or run this in a terminal")
    with opened(config, hold=sql is not None) as htap:
        if sql is None:
            from rhei_pipeline.cli.repl import Shell, line_editing

            with line_editing(htap):
                Shell(htap).run()
        elif explain:
            route = values(htap.explain_route(sql))
            show(route, [route], tuple(route), as_json=json_)
        else:
            show_rows(htap.query(sql, hint=hint.value), as_json=json_)
