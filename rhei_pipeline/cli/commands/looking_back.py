"""Commands that show the past of a temporal table."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from rhei_pipeline.cli.opening import opened
from rhei_pipeline.cli.options import (
    DEFAULT_CONFIG,
    Config,
    Json,
    NoTimeZoneError,
    OneTable,
    example,
    time_of,
)
from rhei_pipeline.cli.output import name_missing, say, show
from rhei_pipeline.cli.rows import RowFile, RowFormat, RowLimit, RowWriter

if TYPE_CHECKING:
    from rhei_pipeline.model.change_feed import ChangePosition

commands = typer.Typer()


@commands.command("as-of", epilog=example("as-of orders 2026-11-01T12:00:00+00:00"))
def as_of(
    table: Annotated[str, typer.Argument(help="A temporal table.")],
    instant: Annotated[str, typer.Argument(help="A date, or a time with its zone.")],
    config: Config = DEFAULT_CONFIG,
    format_: RowFormat = None,
    output: RowFile = None,
    limit: RowLimit = None,
    json_: Json = False,
) -> None:
    """Show a temporal table's rows as they were at an instant."""
    writer = RowWriter.asked(format_, config, as_json=json_, file=output, limit=limit)
    when = time_of(instant)
    with opened(config, hold=False) as htap:
        found = htap.as_of(table, when)
    writer.write(found)
    name_missing(found)


@commands.command(epilog=example("changes --table orders --after 1-00000000-8006...-66e9c87e706b"))
def changes(
    table: Annotated[str, typer.Option("--table", help="A temporal table.")],
    config: Config = DEFAULT_CONFIG,
    after: Annotated[
        str | None,
        typer.Option(help="The position that an earlier answer ended with, or a timestamp."),
    ] = None,
    snapshot_if_lost: Annotated[
        bool,
        typer.Option("--snapshot-if-lost", help="Show the whole table if the position is lost."),
    ] = False,
    json_: Json = False,
) -> None:
    """Show what was inserted, updated and deleted in the mirror of a table since a position.

    Without a position, the whole table. Nothing is synced.
    """
    from rhei_pipeline.cli.differences import show_differences
    from rhei_pipeline.model.plain_values import plain_rows

    since = None if after is None else _position_or_instant(after)
    with opened(config, hold=False) as htap:
        found = htap.changes(table, since, "snapshot" if snapshot_if_lost else "raise")
    told = {name: getattr(found, name) for name in ("inserted", "updated", "deleted")}
    head = {"table": found.table, "snapshot": found.snapshot, **told}
    if json_:
        rows = plain_rows(found.rows)
        show({**head, "position": str(found.position), "changes": rows}, [], (), as_json=True)
    else:
        show_differences(found.rows)
        say([f"position {found.position}{' (the whole table)' if found.snapshot else ''}"])
    name_missing(found.rows)


@commands.command(epilog=example("diff --table orders --from 2026-11-01 --to 2026-11-02"))
def diff(
    table: Annotated[str, typer.Option("--table", help="A temporal table.")],
    since: Annotated[str, typer.Option("--from", help="A date, or a time with its zone.")],
    until: Annotated[
        str | None, typer.Option("--to", help="The same, later or earlier; left out: now.")
    ] = None,
    config: Config = DEFAULT_CONFIG,
    format_: RowFormat = None,
    output: RowFile = None,
    limit: RowLimit = None,
    json_: Json = False,
) -> None:
    """Show what differs in a temporal table between two instants, old values and new."""
    from rhei_pipeline.cli.differences import show_differences

    a, b = time_of(since), datetime.now(UTC) if until is None else time_of(until)
    writer = RowWriter.asked(format_, config, as_json=json_, file=output, limit=limit)
    with opened(config, hold=False) as htap:
        found = htap.diff(table, a, b)
    if writer.is_for_people:
        show_differences(found if limit is None else found.slice(0, limit))
    else:
        writer.write(found)
    name_missing(found)


def _position_or_instant(text: str) -> "ChangePosition | datetime":
    from rhei_pipeline.errors import QueryError
    from rhei_pipeline.model.change_feed import ChangePosition

    try:
        return ChangePosition.parse(text)
    except QueryError:
        try:
            return time_of(text)
        except NoTimeZoneError:
            raise
        except typer.BadParameter as error:
            raise typer.BadParameter(
                f"{text!r} is neither the position of an earlier answer nor a timestamp"
            ) from error


class _SchemaView(StrEnum):
    """What of the schemas is shown."""

    LOG = "log"


@commands.command(epilog=example("schema log --table orders"))
def schema(
    view: Annotated[  # noqa: ARG001  (there is one)
        _SchemaView, typer.Argument(help="log: the changes that were followed.")
    ],
    config: Config = DEFAULT_CONFIG,
    table: OneTable = None,
    json_: Json = False,
) -> None:
    """Show the schema changes of the source that the mirror has followed, and what each cost."""
    from rhei_pipeline.model.report import values

    with opened(config, hold=False) as htap:
        found = [values(change) for change in htap.schema_log(table)]
    # To the minute, in UTC: the rest is in the JSON.
    rows = [{**change, "at": change["at"][:16].replace("T", " ")} for change in found]
    shown = ("at", "table", "what", "old", "new", "rows_read", "seconds")
    whole, rare = {"changes": found}, ("old", "new")
    show(whole, rows, shown, as_json=json_, rare=rare, nothing="no schema changes")
