"""Commands that ask source or mirror, and that write into the source."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rhei_pipeline.cli.opening import opened
from rhei_pipeline.cli.options import DEFAULT_CONFIG, Config, Json, Side, example
from rhei_pipeline.cli.output import name_missing, out, show, show_rows
from rhei_pipeline.cli.rows import RowFile, RowFormat, RowLimit, RowWriter
from rhei_pipeline.model.report import values

if TYPE_CHECKING:
    from rhei_pipeline.htap import HTAP

commands = typer.Typer()

#: Who answers, and how many seconds behind the source.
_How = tuple[Side, float | None]
SqlFile = Annotated[Path | None, typer.Option("--file", help="Read the statements from this file.")]


@commands.command(epilog=example('query "select count(*) from orders" --hint olap'))
def query(
    sql: Annotated[
        str | None,
        typer.Argument(help="One SELECT statement; '-' reads standard input; without, a shell."),
    ] = None,
    config: Config = DEFAULT_CONFIG,
    hint: Annotated[
        Side,
        typer.Option(help="Who answers: auto, oltp (source), olap (mirror) or cluster."),
    ] = Side.AUTO,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show which side would answer, and why.")
    ] = False,
    max_staleness: Annotated[
        float | None,
        typer.Option(
            "--max-staleness",
            min=0,
            help="How many seconds the mirror may be behind the source; 0: the present state.",
        ),
    ] = None,
    file: SqlFile = None,
    format_: RowFormat = None,
    output: RowFile = None,
    limit: RowLimit = None,
    json_: Json = False,
) -> None:
    """Query the source or the mirror; without a statement, open a shell."""
    writer = RowWriter.asked(format_, config, as_json=json_, file=output, limit=limit)
    if explain and max_staleness is not None:
        raise typer.BadParameter("give '--explain' or '--max-staleness', not both")
    is_given = sql not in (None, "-") and file is None
    script = sql if is_given else _script(sql, file)
    if script is not None and not script.strip():
        raise typer.BadParameter("give a statement, or run this in a terminal")
    if is_given:
        _answer(str(script), config, (hint, max_staleness), writer, explain=explain)
        return
    with opened(config, hold=script is not None) as htap:
        _run_shell(htap, script, writer, (hint, max_staleness))


def _answer(sql: str, config: Path, how: _How, writer: RowWriter, *, explain: bool) -> None:
    from rhei_pipeline.cli.interrupting import interruptible
    from rhei_pipeline.cli.repl import route_of

    with opened(config, hold=False) as htap:  # so that the source answers without its mirror
        hint, max_staleness = how
        if explain:
            route = values(route_of(htap, sql, hint.value))
            show(route, [route], tuple(route), as_json=writer.is_json, rare=("freshness",))
            return
        found = interruptible(
            lambda begun: htap.query(sql, (), hint.value, max_staleness, begun=begun)
        )
    writer.write(found)
    name_missing(found)


def _script(sql: str | None, file: Path | None) -> str | None:
    """Return the text of a script; None where a person types."""
    if file is not None:
        if sql is not None:
            raise typer.BadParameter("give a statement or '--file', not both")
        try:
            return file.read_text("utf-8")
        except OSError as error:
            why = error.strerror or error
            raise typer.BadParameter(f"{str(file)!r} cannot be read: {why}") from error
        except UnicodeDecodeError as error:
            raise typer.BadParameter(f"{str(file)!r} cannot be read: it is no UTF-8") from error
    return None if sql is None and sys.stdin.isatty() else sys.stdin.read()


def _run_shell(htap: "HTAP", script: str | None, writer: RowWriter, how: _How) -> None:
    from rhei_pipeline.cli.repl import Shell, reading

    hint, max_staleness = how
    if script is not None:
        read = reading(script)
        Shell(htap, read, writer, hint.value, is_script=True, max_staleness=max_staleness).run()
        return
    from rhei_pipeline.cli.prompt import line_reader

    shell = Shell(htap, writer=writer, hint=hint.value, max_staleness=max_staleness)
    is_postgres = htap.settings.source.kind == "postgres"
    shell.read_by(line_reader(shell, Path.home() / ".rhei_history", is_postgres=is_postgres))
    shell.run()


@commands.command(epilog=example("execute \"update orders set status = 'paid' where id = 7\""))
def execute(
    sql: Annotated[str, typer.Argument(help="One statement that writes.")],
    config: Config = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Run one write in the source, and commit it; `returning` shows its rows."""
    from rhei_pipeline.cli.statements import returns_rows, says_something
    from rhei_pipeline.sql.read_only import refuse_only_reading

    with opened(config, hold=False) as htap:
        dialect = htap.settings.source.dialect
        if not says_something(sql, dialect):
            raise typer.BadParameter("there is no statement in it")
        refuse_only_reading(sql, dialect)
        if returns_rows(sql, dialect):
            show_rows(htap.execute_returning(sql), as_json=json_)
            return
        rows = int(htap.execute(sql))
    if json_:
        show({"rows": rows}, [], (), as_json=True)
    else:
        out.print("1 row changed" if rows == 1 else f"{rows:,} rows changed")
