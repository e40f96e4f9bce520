"""The command line: every call of the library that an operator needs."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table as Shown

from rhei_pipeline.errors import RheiError
from rhei_pipeline.htap import HTAP
from rhei_pipeline.htap import open as open_htap

FAILED = 1
#: So many rows of an answer are shown to a person; machines get them all.
SHOWN_ROWS = 40

app = typer.Typer(
    help="Keep an analytical mirror of an operational database by change data capture.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

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
    """Put an example under a command's help."""
    return f"Example:  rhei {text}"


@app.command(epilog=example("check"))
def check(config: Config = DEFAULT_CONFIG, json_: Json = False) -> None:
    """Read the declaration, open both sides, install capture, and say how each table stands."""
    status(config, json_)


@app.command(epilog=example("sync --json"))
def sync(config: Config = DEFAULT_CONFIG, json_: Json = False) -> None:
    """Apply everything that is pending; copies first what was never copied."""
    with _opened(config) as htap, _progress(json_) as progress:
        report = htap.sync_now(progress)
    sums = ("events", "inserted", "updated", "deleted", "dead_letters", "watermark", "lag_seconds")
    _show(
        {**_values(report), **{name: getattr(report, name) for name in sums}},
        [_values(table) for table in report.tables.values()],
        ("table", "events", "inserted", "updated", "deleted", "dead_letters", "watermark", "error"),
        as_json=json_,
    )
    _exit_if(bool(report.errors))


@app.command(epilog=example("copy --table orders"))
def copy(config: Config = DEFAULT_CONFIG, table: OneTable = None, json_: Json = False) -> None:
    """Copy a table anew, or all; what was cut off goes on, and history is kept."""
    with _opened(config) as htap, _progress(json_) as progress:
        names = [table] if table else htap.tables()
        reports = [_values(htap.initial_sync(name, progress)) for name in names]
    _show(
        {"tables": reports},
        reports,
        ("table", "rows", "resumed", "inserted", "updated", "deleted", "duration_seconds"),
        as_json=json_,
    )


@app.command(epilog=example("status"))
def status(config: Config = DEFAULT_CONFIG, json_: Json = False) -> None:
    """Say how each table stands: mode, state, watermark, lag, dead letters."""
    with _opened(config) as htap:
        found = htap.sync_status()
    _show(
        _values(found),
        [_values(table) for table in found.tables.values()],
        (
            "table",
            "mode",
            "state",
            "watermark",
            "lag_events",
            "lag_seconds",
            "dead_letters",
            "error",
        ),
        as_json=json_,
    )
    _exit_if(any(table.error for table in found.tables.values()))


@app.command(epilog=example('query "select count(*) from orders" --hint olap'))
def query(
    sql: Annotated[str, typer.Argument(help="One reading statement.")],
    config: Config = DEFAULT_CONFIG,
    hint: Annotated[Side, typer.Option(help="Which side answers.")] = Side.AUTO,
    json_: Json = False,
) -> None:
    """Ask the source or the mirror."""
    with _opened(config) as htap:
        _show_rows(htap.query(sql, hint=hint.value), as_json=json_)


@app.command(epilog=example("verify --table orders"))
def verify(config: Config = DEFAULT_CONFIG, table: OneTable = None, json_: Json = False) -> None:
    """Sync, then compare every row of source and mirror, both ways."""
    with _opened(config) as htap:
        report = htap.verify(table)
    _show(
        {**_values(report), "equal": report.equal},
        [{**_values(found), "equal": found.equal} for found in report.tables.values()],
        ("table", "equal", "rows", "missing", "extra", "different", "dead_letters"),
        as_json=json_,
    )
    _exit_if(not report.equal)


@app.command(epilog=example("repair orders"))
def repair(
    table: Annotated[str, typer.Argument(help="The table.")],
    config: Config = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Make a table equal to its source again; history gets the difference."""
    with _opened(config) as htap:
        report = _values(htap.repair(table))
    _show(report, [report], tuple(report), as_json=json_)


@app.command("as-of", epilog=example("as-of orders 2026-11-01T12:00:00+00:00"))
def as_of(
    table: Annotated[str, typer.Argument(help="A temporal table.")],
    instant: Annotated[str, typer.Argument(help="A date, or a time with its zone.")],
    config: Config = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Show a temporal table's rows as they were at an instant."""
    when = _instant(instant)
    with _opened(config) as htap:
        _show_rows(htap.as_of(table, when), as_json=json_)


@app.command("dead-letters", epilog=example("dead-letters --replay"))
def dead_letters(
    config: Config = DEFAULT_CONFIG,
    table: OneTable = None,
    replay: Annotated[bool, typer.Option("--replay", help="Read their rows again.")] = False,
    json_: Json = False,
) -> None:
    """List the rows that cannot be mirrored, and why."""
    with _opened(config) as htap:
        if replay:
            htap.replay_dead_letters(table)
        found = htap.dead_letters(table)
    _show_rows(found, as_json=json_)
    _exit_if(found.num_rows > 0)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except RheiError as error:
        err.print(f"[red]error[/] {error}", markup=True, soft_wrap=True)
        sys.exit(FAILED)


@contextmanager
def _opened(config: Path) -> Iterator[HTAP]:
    with open_htap(config) as htap:
        yield htap


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:  # noqa: FBT001
    with Progress(console=err, transient=True, disable=quiet) as progress:
        tasks: dict[str, Any] = {}

        def show(table: str, rows: int, total: int) -> None:
            if table not in tasks:
                tasks[table] = progress.add_task(f"copying {table}", total=total)
            progress.update(tasks[table], completed=rows, total=max(total, rows))

        yield show


def _instant(text: str) -> datetime:
    try:
        if len(text) == len("2026-11-01"):
            return datetime.combine(date.fromisoformat(text), time(), UTC)
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no instant such as 2026-11-01T12:00Z") from error


def _values(report: Any) -> dict[str, Any]:  # noqa: ANN401  (any of the reports)
    return {name: _plain(getattr(report, name)) for name in _fields(report)}


def _fields(report: Any) -> list[str]:  # noqa: ANN401
    return [field.name for field in dataclasses.fields(report)]


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        return _values(value)
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return value


def _show(
    whole: Mapping[str, Any],
    rows: list[dict[str, Any]],
    columns: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    if as_json:
        sys.stdout.write(json.dumps(whole, default=_json) + "\n")
        return
    wanted = [name for name in columns if name != "error" or any(row.get(name) for row in rows)]
    _print_table(wanted, rows)


def _show_rows(table: pa.Table, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(table.to_pylist(), default=_json) + "\n")
        return
    _print_table(table.column_names, table.slice(0, SHOWN_ROWS).to_pylist())
    if table.num_rows > SHOWN_ROWS:
        out.print(f"{SHOWN_ROWS} of {table.num_rows:,} rows; --json prints all")


def _print_table(columns: list[str], rows: list[dict[str, Any]]) -> None:
    shown = Shown()
    for name in columns:
        numeric = any(isinstance(row.get(name), int | float) for row in rows)
        shown.add_column(name.replace("_", " "), justify="right" if numeric else "left")
    for row in rows:
        shown.add_row(*(_cell(row.get(name)) for name in columns))
    out.print(shown)


def _cell(value: object) -> str:
    if value is None:
        return "[dim]null[/]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}"
    return str(value).replace("[", "\\[")


def _json(value: object) -> object:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal | Path) else repr(value)


def _exit_if(failed: bool) -> None:  # noqa: FBT001
    if failed:
        raise typer.Exit(FAILED)


if __name__ == "__main__":
    main()
