"""Commands that compare mirror and source, and make them equal."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rhei_pipeline.cli.opening import errors_at_the_end, opened, work_shown
from rhei_pipeline.cli.options import (
    DEFAULT_CONFIG,
    LEFT_OUT,
    Config,
    Json,
    OneTable,
    example,
    exit_if,
)
from rhei_pipeline.cli.output import name_errors, name_not_followed, print_text, say, show
from rhei_pipeline.cli.rows import RowFile, RowFormat, RowLimit, RowWriter
from rhei_pipeline.model.report import counted, values

if TYPE_CHECKING:
    from rhei_pipeline.htap import HTAP
    from rhei_pipeline.model.coverage import KeyRange
    from rhei_pipeline.model.forgetting import ForgetReport
    from rhei_pipeline.model.reports import TableVerification, TypeProposal

commands = typer.Typer()


@commands.command(epilog=example("verify --table orders --rows-per-second 20000"))
def verify(
    config: Config = DEFAULT_CONFIG,
    table: OneTable = None,
    rows_per_second: Annotated[
        float | None,
        typer.Option(
            "--rows-per-second",
            help="The pace; tables are compared in parts, and others sync in between.",
        ),
    ] = None,
    max_rows: Annotated[
        int | None,
        typer.Option(
            "--max-rows",
            min=1,
            help="Compare about so many rows of each table; the next call goes on.",
        ),
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option("--sample", help="Compare rows drawn by lot, such as 1% of them."),
    ] = None,
    json_: Json = False,
) -> None:
    """Sync, then compare every row of source and mirror, both ways."""
    if rows_per_second is not None and not rows_per_second > 0:
        raise typer.BadParameter("'--rows-per-second' has to be above 0, or no row is compared")
    share = None if sample is None else _share(sample)
    if share is not None and (rows_per_second, max_rows) != (None, None):
        raise typer.BadParameter("give '--sample', or '--rows-per-second' and '--max-rows'")
    with errors_at_the_end(), opened(config) as htap, work_shown("comparing rows"):
        report = htap.verify(
            table, rows_per_second=rows_per_second, max_rows=max_rows, sample=share
        )
    show(
        report.to_dict(),
        [values(found) for found in report.tables.values()],
        report.shown,
        as_json=json_,
    )
    for found in report.tables.values():
        _name_contradictions(found)
        if not json_:
            say(_where(found))
    if not json_:
        say(found.damage for found in report.tables.values() if found.damage)
    name_errors(report.errors)
    name_not_followed(report.not_followed, report.errors)
    exit_if(not all(found.equal for found in report.tables.values()))
    exit_if(bool(report.errors), LEFT_OUT)


def _where(found: "TableVerification") -> Iterator[str]:
    """Yield which keys differ, and how far a comparison in parts has come."""
    yield from (_named_range(found.table, part) for part in found.ranges)
    if found.sample is not None:
        chances = ", ".join(f"{k:,}: {c:.1%}" for k, c in found.sample.chances.items())
        yield (
            f"{found.table}: {found.sample.rows:,} of {found.sample.source_rows:,} rows were drawn;"
            f" of so many wrong rows one would have been met by this chance: {chances}"
        )
    if found.coverage is not None:
        through, oldest = found.coverage.through, found.coverage.oldest_checked_at
        done = "compared to its end" if through is None else f"compared through {through}"
        since = "some rows never were" if oldest is None else f"the oldest part at {oldest:%F %T}"
        yield f"{found.table}: {done}, {since}"


def _share(text: str) -> float:
    """Return the share that a text such as `1%` or `0.01` means."""
    with suppress(ValueError):
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        if 0 < share <= 1:
            return share
    raise typer.BadParameter(f"{text!r} is no share, such as 1% or 0.01")


def _named_range(table: str, part: "KeyRange") -> str:
    if part.keys == 1:
        return f"{table}: a key differs: {part.first}"
    return f"{table}: {part.keys:,} keys differ, from {part.first} to {part.last}"


def _name_contradictions(found: "TableVerification") -> None:
    if found.duplicate:
        print_text(
            f"table {found.table!r}: {found.duplicate} keys have more than one row in the mirror,"
            f" such as {found.samples['duplicate'][0]}; 'rhei repair {found.table}' leaves one",
        )
    if found.broken_history:
        print_text(
            f"table {found.table!r}: the history of {found.broken_history} keys contradicts"
            f" itself, such as {found.samples['broken_history'][0]}; 'rhei repair {found.table}'"
            " ends versions that overlap, and 'rhei drop-table' with --keep-as sets aside a"
            " history that it cannot repair",
        )


_KEY_HELP = "as 'rhei verify' names it, or its value alone"


@commands.command(epilog=example("repair orders --from 1000 --to 2000 --dry-run"))
def repair(
    table: Annotated[str, typer.Argument(help="The table.")],
    config: Config = DEFAULT_CONFIG,
    key: Annotated[str | None, typer.Option("--key", help=f"This key alone: {_KEY_HELP}.")] = None,
    first: Annotated[
        str | None, typer.Option("--from", help=f"From this key on: {_KEY_HELP}.")
    ] = None,
    last: Annotated[str | None, typer.Option("--to", help=f"Up to this key: {_KEY_HELP}.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what there is to change.")
    ] = False,
    json_: Json = False,
) -> None:
    """Make a table equal to its source again; the differences are added to its history."""
    if key is not None and (first, last) != (None, None):
        raise typer.BadParameter("give '--key', or '--from' and '--to'")
    with opened(config) as htap, work_shown(f"comparing and repairing {table}"):
        report = htap.repair(
            table, key=_key(key), first=_key(first), last=_key(last), dry_run=dry_run
        )
    show(report.to_dict(), [report.to_dict()], report.shown, as_json=json_)
    if not json_:
        say(f"{found.file}: {found.outcome}" for found in report.damaged)
        say(_named_range(table, part) for part in report.ranges)


@commands.command(epilog=example("forget --table customers --key 4711 --dry-run"))
def forget(
    config: Config = DEFAULT_CONFIG,
    table: Annotated[
        str | None, typer.Option("--table", help="A table of the mirror; with --key.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", help=f"{_KEY_HELP[0].upper()}{_KEY_HELP[1:]}; repeatable."),
    ] = None,
    person: Annotated[
        str | None,
        typer.Option("--person", help="Or a person in all tables, such as customer=4711."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what there is to forget.")
    ] = False,
    json_: Json = False,
) -> None:
    """Remove keys from the mirror with all their past, and search the files for what is left.

    The source must not have them any more. Values are never shown: the report counts by file.
    In which columns a person is looked for is declared, under 'people'.
    """
    if (table is None) == (person is None) or (table is None) != (not key):
        raise typer.BadParameter("give '--table' and '--key', or '--person' alone")
    name, _, value = (person or "").partition("=")
    with opened(config) as htap, work_shown(f"forgetting in {table or 'all tables'}"):
        if table is None:
            whole = htap.forget_person(name, _key(value), dry_run=dry_run)
            told, reports = whole.to_dict(), list(whole.tables.values())
        else:
            reports = [htap.forget(table, [_key(text) for text in key or ()], dry_run=dry_run)]
            told = reports[0].to_dict()
    rows = [report.to_dict() for report in reports]
    if rows or json_:
        show(told, rows, tuple(reports[0].shown) if reports else (), as_json=json_)
    if not json_:
        _say_what_is_left(reports, dry_run=dry_run)
    exit_if(not dry_run and not all(report.is_clear for report in reports))


def _say_what_is_left(reports: Sequence["ForgetReport"], *, dry_run: bool) -> None:
    where = "holds" if dry_run else "still holds"
    for report in reports:
        found = report.before if dry_run else report.after
        of_table = f" of {report.table}" if len(reports) > 1 else ""
        say(f"{file} {where} {counted(n, 'such text')}{of_table}" for file, n in found.items())
    say(dict.fromkeys(f"still there: {kept}" for report in reports for kept in report.kept))
    say(dict.fromkeys(f"not searched: {place}" for report in reports for place in report.beyond))


def _key(text: str | None) -> Any:  # noqa: ANN401  (any key)
    """Return what an option gives as a key: JSON with its columns, or its only value."""
    if text is None or not text.startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f'{text!r} is no JSON, such as {{"id": 5}}') from error


@commands.command("dead-letters", epilog=example("dead-letters --replay"))
def dead_letters(
    config: Config = DEFAULT_CONFIG,
    table: OneTable = None,
    replay: Annotated[bool, typer.Option("--replay", help="Read their rows again.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Forget them until they are met.")] = False,
    format_: RowFormat = None,
    output: RowFile = None,
    limit: RowLimit = None,
    json_: Json = False,
) -> None:
    """Show the rows that cannot be mirrored, why, and what could be declared to take them."""
    if replay and drop:
        raise typer.BadParameter("give '--replay' or '--drop', not both")
    writer = RowWriter.asked(format_, config, as_json=json_, file=output, limit=limit)
    with opened(config, hold=replay or drop) as htap:
        dropped = htap.drop_dead_letters(table) if drop else None
        if replay:
            name_errors(htap.replay_dead_letters(table).errors)
        found = htap.dead_letters(table)
        if writer.is_for_people:
            from rhei_pipeline.cli.letters import show_letters

            if dropped is not None:
                verb = "was" if dropped == 1 else "were"
                say([f"{counted(dropped, 'dead letter')} {verb} forgotten"])
            else:
                show_letters(found, _proposed(htap, table) if found.num_rows else [])
        else:
            writer.write(found)
    exit_if(found.num_rows > 0)


def _proposed(htap: "HTAP", table: str | None) -> "list[TypeProposal]":
    """Return the types that would take dead letters; none where the source cannot be asked."""
    from rhei_pipeline.errors import SourceBusyError, SourceError

    with suppress(SourceBusyError, SourceError):
        return htap.propose_types(table)
    return []
