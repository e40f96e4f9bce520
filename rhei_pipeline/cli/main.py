"""The command line: one command for each operation of the library."""

import logging
import sys
import time as time_
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, date, datetime, time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from rhei_pipeline.cli.demo import BY_COUNTRY, declaration, tour
from rhei_pipeline.cli.differences import show_differences
from rhei_pipeline.cli.init import starter
from rhei_pipeline.cli.output import (
    err,
    name_errors,
    name_findings,
    name_not_followed,
    name_not_published,
    out,
    say,
    show,
    show_rows,
    values,
)
from rhei_pipeline.cli.repl import Shell, line_editing
from rhei_pipeline.errors import QueryError, RheiError
from rhei_pipeline.holder.access import Access
from rhei_pipeline.htap import HTAP
from rhei_pipeline.htap import open as open_htap
from rhei_pipeline.model import left_out
from rhei_pipeline.model.change_feed import ChangePosition
from rhei_pipeline.model.log_context import log_to_stderr
from rhei_pipeline.model.plain_values import plain_rows
from rhei_pipeline.model.reports import Severity, SyncStatus, TableStatus, TableVerification
from rhei_pipeline.server.flight.access import refuse_open_server
from rhei_pipeline.server.flight.running import FlightLimits
from rhei_pipeline.server.flight.server import ServerOptions
from rhei_pipeline.server.serve import Addresses, access_from, serving, tls_from, wait_for_signal
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sync.pipeline import no_step
from rhei_pipeline.wiring.adoption import adopt, validate_owner
from rhei_pipeline.wiring.engine import bridge
from rhei_pipeline.wiring.source import unread_logs, validate

FAILED = 1
#: Done, but tables are left out.
LEFT_OUT = 3

#: So long a status waits for another process's sync; then it shows what was known before.
_PATIENCE_SECONDS = 1.0

app = typer.Typer(
    help="Keep an analytical mirror of an operational database by change data capture.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

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


@app.command(epilog=example("check"))
def check(config: Config = DEFAULT_CONFIG, json_: Json = False) -> None:
    """Check the declaration and the source: what is wrong, why it matters, how to fix it."""
    settings = Settings.load(config)
    findings = [*validate(settings), *validate_owner(settings)]
    broken = any(found.severity is Severity.ERROR for found in findings)
    rows = [values(found) for found in findings]
    if findings or json_:
        show(
            {"ready": not broken, "findings": rows},
            rows,
            ("severity", "table", "what", "why", "remedy"),
            as_json=json_,
        )
    if not broken and not json_:
        out.print("ready to sync")
    _exit_if(broken)


@app.command(epilog=example("sync --json"))
def sync(config: Config = DEFAULT_CONFIG, json_: Json = False) -> None:
    """Apply all pending changes; a table that was never copied is copied first."""
    with _errors_at_the_end(), _opened(config) as htap, _progress(json_) as progress:
        report = htap.sync_now(progress)
    sums = ("events", "inserted", "updated", "deleted", "dead_letters", "watermark", "lag_seconds")
    show(
        {**values(report), **{name: getattr(report, name) for name in sums}},
        [values(table) for table in report.tables.values() if not table.error],
        ("table", "events", "inserted", "updated", "deleted", "dead_letters", "watermark"),
        as_json=json_,
    )
    name_errors(report.errors)
    name_not_followed(report.not_followed, report.errors)
    name_not_published(report.not_published)
    _exit_if(bool(report.errors or report.not_published), LEFT_OUT)


@app.command(name="bridge", epilog=example("bridge"))
def bridge_command(config: Config = DEFAULT_CONFIG, json_: Json = False) -> None:
    """Drain pending changes into the buffer while the mirror is unavailable."""
    events = bridge(Settings.load(config))
    show({"events": events}, [{"events": events}], ("events",), as_json=json_)


@app.command(epilog=example("copy --table orders"))
def copy(config: Config = DEFAULT_CONFIG, table: OneTable = None, json_: Json = False) -> None:
    """Copy one table again, or all. An interrupted copy continues, and history is kept."""
    with _errors_at_the_end(), _opened(config) as htap, _progress(json_) as progress:
        copied = [htap.initial_sync(table, progress)] if table else htap.initial_sync_all(progress)
        reports = [values(report) for report in copied]
        left_out = {} if table else htap.left_out
    show(
        {"tables": reports},
        reports,
        ("table", "rows", "resumed", "inserted", "updated", "deleted", "duration_seconds"),
        as_json=json_,
    )
    name_errors(left_out)
    _exit_if(bool(left_out), LEFT_OUT)


@app.command(epilog=example("status --watch 2"))
def status(
    config: Config = DEFAULT_CONFIG,
    watch: Annotated[float | None, typer.Option(min=0.1, help="Refresh every N seconds.")] = None,
    json_: Json = False,
) -> None:
    """Show the state of each table: mode, watermark, lag, dead letters."""
    # Between two looks nothing is held, and nobody kept waiting.
    opened = _opened(config, hold=watch is None)
    with _errors_at_the_end(), opened as htap, suppress(KeyboardInterrupt):
        found = htap.sync_status(_patience(htap))
        while watch is not None:
            out.clear()
            _show_status(found, as_json=json_)
            time_.sleep(watch)
            found = htap.sync_status(_patience(htap))
    _show_status(found, as_json=json_)
    name_findings(unread_logs(Settings.load(config)))
    left_out = any(table.error for table in found.tables.values())
    _exit_if(left_out or bool(found.not_published), LEFT_OUT)
    _exit_if(bool(found.unreadable) or not (found.tables or found.copying))


def _patience(htap: HTAP) -> float | None:
    """Return how long to wait for a sync under way: it is another process's, or there is none."""
    return None if htap.holds else _PATIENCE_SECONDS


def _status_row(table: TableStatus) -> dict[str, Any]:
    # Only a table that is not proved says so: the screen is narrow.
    proof = None if table.error or table.proof == "proved" else table.proof
    state = {"state": "left out"} if table.error else {}
    return {**values(table), "proof": proof, **state}


def _show_status(found: SyncStatus, *, as_json: bool) -> None:
    show(
        values(found),
        [_status_row(table) for table in found.tables.values()],
        (
            "table",
            "mode",
            "state",
            "proof",
            "watermark",
            "lag_events",
            "lag_seconds",
            "dead_letters",
            "doubt",
        ),
        as_json=as_json,
        rare=("proof", "dead_letters", "doubt"),
    )
    errors = {name: table.error for name, table in found.tables.items() if table.error}
    name_errors(errors)
    if not found.tables and found.last_error:
        name_errors({"": found.last_error})
    if found.unreadable:
        name_errors({"": found.unreadable})
    if not as_json:
        say(f"copying {name}: {it.rows:,} of {it.of:,} rows" for name, it in found.copying.items())
    name_not_followed(found.not_followed, errors)
    name_not_published(found.not_published)


@app.command(epilog=example('query "select count(*) from orders" --hint olap'))
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
    with _opened(config, hold=sql is not None) as htap:
        if sql is None:
            with line_editing(htap):
                Shell(htap).run()
        elif explain:
            route = values(htap.explain_route(sql))
            show(route, [route], tuple(route), as_json=json_)
        else:
            show_rows(htap.query(sql, hint=hint.value), as_json=json_)


@app.command(epilog=example("init app.db --output config/pipeline.yaml"))
def init(
    source: Annotated[str, typer.Argument(help="A SQLite file, or a postgresql:// URL.")],
    output: Annotated[Path, typer.Option("--output", help="Where to write.")] = DEFAULT_CONFIG,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a first declaration from a live source, each choice explained."""
    if output.exists() and not force:
        raise typer.BadParameter(f"{str(output)!r} exists: --force overwrites it")
    written = starter(source)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(written.text)
    for name, why in written.left_out.items():
        out.print(f"left out {name}: {why}", markup=False, soft_wrap=True)
    out.print(f"wrote {output}: read it, then run 'rhei check --config {output}'", markup=False)


@app.command(epilog=example("demo --directory shop"))
def demo(
    directory: Annotated[Path, typer.Option(help="Where to make it.")] = Path("rhei-demo"),
    json_: Json = False,
) -> None:
    """Create a small shop database, mirror it, change it and compare. The files stay."""
    chapters = []
    for chapter in tour(directory):
        chapters.append({"title": chapter.title, "seconds": chapter.seconds})
        if json_:
            continue
        out.print(f"[green]done[/] {chapter.title} ({chapter.seconds:.1f} s)", soft_wrap=True)
        if chapter.answer is not None:
            show_rows(chapter.answer, as_json=False)
    if json_:
        show({"chapters": chapters}, [], (), as_json=True)
        return
    config = declaration(directory)
    out.print(f"\nNow write to {directory / 'shop.db'} as you like, and then:", markup=False)
    for command in ("sync", f'query "{BY_COUNTRY}"', "status", "check", "query", "serve"):
        out.print(f"  rhei {command} --config {config}", markup=False, soft_wrap=True)


@app.command(epilog=example("serve --port 31337 --metrics-port 9464"))
def serve(
    config: Config = DEFAULT_CONFIG,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Flight SQL's port; 0 for any.")] = 31337,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve /metrics, /healthz and /readyz there.")
    ] = None,
    writes: Annotated[bool, typer.Option("--writes", help="Accept writes too.")] = False,
    tls_certificate: Annotated[Path | None, typer.Option(help="A PEM file.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="A PEM file.")] = None,
    queries: Annotated[
        int, typer.Option(min=1, help="How many queries run at the same time.")
    ] = 64,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a query is cancelled.")
    ] = 300.0,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON lines.")] = False,
) -> None:
    """Sync in the background and answer Flight SQL clients, until stopped.

    Clients authenticate with RHEI_SERVE_TOKEN, or RHEI_SERVE_USER and RHEI_SERVE_PASSWORD. One of
    these must be set to serve on an address that other machines can reach.
    """
    log_to_stderr(as_json=log_json)
    limits = FlightLimits(queries=queries, seconds=seconds)
    options = ServerOptions(access_from(), limits, writes, tls_from(tls_certificate, tls_key))
    refuse_open_server(host, options.access)
    with _opened(config) as htap:
        addresses = Addresses(host, port, metrics_port)
        with serving(htap, addresses, options) as (flight_port, _):
            scheme = "grpc+tls" if options.tls else "grpc"
            out.print(f"serving {scheme}://{host}:{flight_port}", markup=False)
            wait_for_signal()


@app.command(epilog=example("maintain"))
def maintain(config: Config = DEFAULT_CONFIG, json_: Json = False) -> None:
    """Merge the mirror's small files into large ones; a schedule does this each night."""
    with _opened(config) as htap:
        report = values(htap.maintain())
    show(report, [report], tuple(n for n in report if n != "damaged"), as_json=json_)
    if not json_:
        say(report["damaged"])
    _exit_if(bool(report["damaged"]))


@app.command(epilog=example("verify --table orders"))
def verify(config: Config = DEFAULT_CONFIG, table: OneTable = None, json_: Json = False) -> None:
    """Sync, then compare every row of source and mirror, both ways."""
    with _errors_at_the_end(), _opened(config) as htap:
        report = htap.verify(table)
    show(
        {**values(report), "equal": report.equal},
        [{**values(found), "equal": found.equal} for found in report.tables.values()],
        ("table", "equal", "rows", "missing", "extra", "different", "dead_letters"),
        as_json=json_,
    )
    for found in report.tables.values():
        _name_contradictions(found)
    if not json_:
        say(found.damage for found in report.tables.values() if found.damage)
    name_errors(report.errors)
    name_not_followed(report.not_followed, report.errors)
    _exit_if(not all(found.equal for found in report.tables.values()))
    _exit_if(bool(report.errors), LEFT_OUT)


def _name_contradictions(found: TableVerification) -> None:
    if found.duplicate:
        typer.echo(
            f"table {found.table!r}: {found.duplicate} keys have more than one row in the mirror,"
            f" such as {found.samples['duplicate'][0]}; 'rhei repair {found.table}' leaves one",
            err=True,
        )
    if found.broken_history:
        typer.echo(
            f"table {found.table!r}: the history of {found.broken_history} keys contradicts"
            f" itself, such as {found.samples['broken_history'][0]}; 'rhei repair {found.table}'"
            " ends versions that overlap, and 'rhei drop-table' with --keep-as sets aside a"
            " history that it cannot repair",
            err=True,
        )


@app.command(epilog=example("repair orders"))
def repair(
    table: Annotated[str, typer.Argument(help="The table.")],
    config: Config = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Make a table equal to its source again; the differences are added to its history."""
    with _opened(config) as htap:
        report = values(htap.repair(table))
    show(report, [report], tuple(n for n in report if n != "damaged"), as_json=json_)
    if not json_:
        say(f"{found['file']}: {found['outcome']}" for found in report["damaged"])


@app.command("adopt", epilog=example("adopt"))
def adopt_command(config: Config = DEFAULT_CONFIG, json_: Json = False) -> None:
    """Let the mirror follow a source that was moved, or a pipeline that was renamed.

    The next sync compares every table with the source; a temporal table keeps its history.
    """
    settings = Settings.load(config)
    with closing(Access(settings, no_step, keep=False)) as access, access.stepping_in():
        before, now = adopt(settings)
    rows = [{"was": str(before.source) if before else None, "is": str(now.source)}]
    show(rows[0], rows, ("was", "is"), as_json=json_)


@app.command("drop-table", epilog=example("drop-table orders --keep-as orders_2025"))
def drop_table(
    table: Annotated[
        str, typer.Argument(help="A table of the mirror, whether it is still declared or not.")
    ],
    config: Config = DEFAULT_CONFIG,
    keep_as: Annotated[
        str | None, typer.Option("--keep-as", help="Keep rows and history under this name.")
    ] = None,
    discard_history: Annotated[
        bool, typer.Option("--discard-history", help="Delete a temporal table's history for ever.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    json_: Json = False,
) -> None:
    """Drop a table from the mirror, or keep it under another name; the source is not changed.

    Its snapshots, watermark and dead letters are deleted too. The next sync copies the table
    again if it is still declared.
    """
    if keep_as is not None and discard_history:
        raise typer.BadParameter("give '--keep-as' or '--discard-history', not both")
    with _opened(config) as htap:
        if sys.stdin.isatty() and not yes:
            what = "delete the rows" if keep_as is None else f"keep the rows as {keep_as!r}"
            typer.confirm(f"drop {table!r} from the mirror and {what}?", abort=True, err=True)
        report = values(htap.drop_table(table, keep_as, discard_history=discard_history))
    show(report, [report], tuple(report), as_json=json_)


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
        show_rows(htap.as_of(table, when), as_json=json_)


@app.command(epilog=example("changes --table orders --after 1-00000000-8006...-66e9c87e706b"))
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
    since = None if after is None else _position_or_instant(after)
    with _opened(config) as htap:
        found = htap.changes(table, since, "snapshot" if snapshot_if_lost else "raise")
    told = {name: getattr(found, name) for name in ("inserted", "updated", "deleted")}
    head = {"table": found.table, "snapshot": found.snapshot, **told}
    if json_:
        rows = plain_rows(found.rows)
        show({**head, "position": str(found.position), "changes": rows}, [], (), as_json=True)
        return
    show_differences(found.rows)
    say([f"position {found.position}{' (the whole table)' if found.snapshot else ''}"])


@app.command(epilog=example("diff --table orders --from 2026-11-01 --to 2026-11-02"))
def diff(
    table: Annotated[str, typer.Option("--table", help="A temporal table.")],
    since: Annotated[str, typer.Option("--from", help="A date, or a time with its zone.")],
    until: Annotated[
        str | None, typer.Option("--to", help="The same, later or earlier; left out: now.")
    ] = None,
    config: Config = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Show what differs in a temporal table between two instants, old values and new."""
    a, b = _instant(since), datetime.now(UTC) if until is None else _instant(until)
    with _opened(config) as htap:
        found = htap.diff(table, a, b)
    if json_:
        show_rows(found, as_json=True)
    else:
        show_differences(found)


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
    show_rows(found, as_json=json_)
    _exit_if(found.num_rows > 0)


def main() -> None:
    """Run the command line."""
    try:
        app(prog_name="rhei")
    except RheiError as error:
        err.print(f"[red]error[/] {error}", markup=True, soft_wrap=True)
        sys.exit(FAILED)


@contextmanager
def _errors_at_the_end() -> Iterator[None]:
    """Do not log errors that leave a table out: the command prints them itself."""
    logger = logging.getLogger(left_out.__name__)

    def is_no_error(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    logger.addFilter(is_no_error)
    try:
        yield
    finally:
        logger.removeFilter(is_no_error)


@contextmanager
def _opened(config: Path, *, hold: bool = True) -> Iterator[HTAP]:
    with open_htap(config, hold=hold) as htap:
        yield htap


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:  # noqa: FBT001
    with Progress(console=err, transient=True, disable=quiet) as progress:
        tasks: dict[str, Any] = {}

        def advance(table: str, rows: int, total: int) -> None:
            if table not in tasks:
                tasks[table] = progress.add_task(f"copying {table}", total=total)
            progress.update(tasks[table], completed=rows, total=max(total, rows))

        yield advance


def _instant(text: str) -> datetime:
    try:
        if len(text) == len("2026-11-01"):
            return datetime.combine(date.fromisoformat(text), time(), UTC)
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is not a timestamp such as 2026-11-01T12:00Z"
        ) from error


def _position_or_instant(text: str) -> ChangePosition | datetime:
    try:
        return ChangePosition.parse(text)
    except QueryError:
        try:
            return _instant(text)
        except typer.BadParameter as error:
            raise typer.BadParameter(
                f"{text!r} is neither the position of an earlier answer nor a timestamp"
            ) from error


def _exit_if(failed: bool, code: int = FAILED) -> None:  # noqa: FBT001
    if failed:
        raise typer.Exit(code)


if __name__ == "__main__":
    main()
