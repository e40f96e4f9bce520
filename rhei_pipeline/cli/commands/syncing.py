"""Commands that bring the mirror up to date, and show how far it is."""

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rhei_pipeline.cli.opening import errors_at_the_end, opened, progress_shown, settings_of
from rhei_pipeline.cli.options import (
    DEFAULT_CONFIG,
    LEFT_OUT,
    Config,
    Json,
    OneTable,
    example,
    exit_if,
    refuse_unknown,
)
from rhei_pipeline.cli.output import (
    name_dead_letters,
    name_errors,
    name_findings,
    name_kept,
    name_not_followed,
    name_not_published,
    print_note,
    say,
    show,
)
from rhei_pipeline.model.bounds import LONGEST_SECONDS
from rhei_pipeline.model.report import values

if TYPE_CHECKING:
    from rhei_pipeline.htap import HTAP
    from rhei_pipeline.model.reports import CopyStatus, SyncStatus, TableStatus

#: So long a status waits for another process's sync; then it shows what was known before.
_PATIENCE_SECONDS = 1.0

commands = typer.Typer()


@commands.command(epilog=example("sync --dry-run"))
def sync(
    config: Config = DEFAULT_CONFIG,
    table: Annotated[
        str | None,
        typer.Option(help="Show this table only; a sync is always of all, at one state."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what is pending, and roughly how long.")
    ] = False,
    json_: Json = False,
) -> None:
    """Apply all pending changes; a table that was never copied is copied first."""
    if dry_run:
        _show_pending(config, table, as_json=json_)
        return
    with errors_at_the_end(), opened(config) as htap, progress_shown(json_) as progress:
        if table is not None:
            refuse_unknown(table, [*htap.tables(), *htap.left_out])
        report = htap.sync_now(progress)
        letters = htap.dead_letters()["table_name"].to_pylist() if report.dead_letters else []
    report = report if table is None else report.of_table(table)
    show(
        report.to_dict(),
        [values(each) for each in report.tables.values() if not each.error],
        report.shown,
        as_json=json_,
        nothing="" if report.errors else "no tables",
    )
    met = {each.table: each.dead_letters for each in report.tables.values()}
    name_dead_letters(met, {*letters})
    name_errors(report.errors)
    name_not_followed(report.not_followed, report.errors)
    name_not_published(report.not_published)
    for name, what in report.frozen.items():
        print_note(f"table {name!r}: {what}")
    exit_if(bool(report.errors or report.not_published or report.frozen), LEFT_OUT)


def _show_pending(config: Path, table: str | None, *, as_json: bool) -> None:
    from rhei_pipeline.cli.dry_run import first_copies, is_new, pending, without_foreign

    settings = settings_of(config)
    if is_new(settings):
        found = list(first_copies(settings))
    else:
        with errors_at_the_end(), opened(config, hold=False) as htap:
            found = list(pending(htap))
    found = list(without_foreign(found, settings))
    if table is not None:
        refuse_unknown(table, [each.table for each in found])
        found = [each for each in found if each.table == table]
    rows = [values(each) for each in found]
    columns = ("table", "work", "events", "rows", "about_seconds")
    rare = ("events", "rows", "about_seconds")
    show({"pending": rows}, rows, columns, as_json=as_json, rare=rare)
    for each in found:
        if each.reason is not None:
            print_note(f"table {each.table!r}: {each.reason}")
    errors = {each.table: each.error for each in found if each.error is not None}
    name_errors(errors)
    exit_if(bool(errors), LEFT_OUT)


@commands.command(epilog=example("copy --table orders"))
def copy(
    config: Config = DEFAULT_CONFIG,
    table: OneTable = None,
    range_: Annotated[
        str | None,
        typer.Option(
            "--range",
            help="Help with a copy that another process has begun, and open no mirror: copy this"
            " range of the table, such as 3; any: what nobody else works on.",
        ),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            min=0, max=LONGEST_SECONDS, help="With --range: wait so many seconds for that process."
        ),
    ] = 0.0,
    json_: Json = False,
) -> None:
    """Copy one table again, or all. An interrupted copy continues, and history is kept."""
    from rhei_pipeline.model.reports import CopyReport

    if range_ is not None:
        _copy_range(config, table, range_, wait, as_json=json_)
        return
    with errors_at_the_end(), opened(config) as htap, progress_shown(json_) as progress:
        copied = [htap.initial_sync(table, progress)] if table else htap.initial_sync_all(progress)
        reports = [report.to_dict() for report in copied]
        left_out = {} if table else htap.left_out
    show(
        {"tables": reports},
        reports,
        CopyReport.shown,
        as_json=json_,
    )
    name_errors(left_out)
    exit_if(bool(left_out), LEFT_OUT)


def _copy_range(
    config: Path, table: str | None, range_: str, wait: float, *, as_json: bool
) -> None:
    from rhei_pipeline.model.copy_plan import RangeReport
    from rhei_pipeline.wiring.copy_ranges import copy_range

    if table is None or not (range_ == "any" or range_.isdecimal()):
        raise typer.BadParameter("give '--table', and a range such as '--range 3' or '--range any'")
    with progress_shown(as_json) as progress:
        report = copy_range(
            settings_of(config),
            table,
            None if range_ == "any" else int(range_),
            wait_seconds=wait,
            on_rows=lambda rows, of: progress(table, rows, of),
        )
    found = report.to_dict()
    show(found, [found], RangeReport.shown, as_json=as_json)
    if not report.of:
        print_note(f"table {table!r}: its copy is in place, and nothing is left to copy")


@commands.command(epilog=example("status --watch 2"))
def status(
    config: Config = DEFAULT_CONFIG,
    watch: Annotated[
        float | None, typer.Option(min=0.1, max=LONGEST_SECONDS, help="Refresh every N seconds.")
    ] = None,
    json_: Json = False,
) -> None:
    """Show the state of each table: mode, watermark, lag, dead letters."""
    from rhei_pipeline.cli.watching import watch as watch_it
    from rhei_pipeline.wiring.source import unread_logs

    with errors_at_the_end(), ExitStack() as stack:
        # Between two looks nothing is held, and nobody kept waiting.
        htap = _opened_to_look(stack, config, hold=watch is None)

        def look() -> "SyncStatus":
            found = htap.sync_status(_patience(htap))
            _show_status(found, as_json=json_)
            return found

        if watch is not None:
            with suppress(KeyboardInterrupt):
                watch_it(look, watch)
            return
        found = look()
    exit_if(bool(found.unreadable))
    name_findings(unread_logs(settings_of(config)))
    left_out = any(table.error for table in found.tables.values())
    exit_if(left_out or bool(found.not_published), LEFT_OUT)
    is_empty = not (found.tables or found.copying)
    exit_if(is_empty and found.last_error is not None)


def _opened_to_look(stack: ExitStack, config: Path, *, hold: bool) -> "HTAP":
    """Open the pipeline until the stack ends, also where only its mirror can be opened."""
    from rhei_pipeline.errors import MirrorBusyError, MirrorError, RheiError, SettingsError

    try:
        return stack.enter_context(opened(config, hold=hold))
    except (MirrorError, MirrorBusyError, SettingsError):
        raise
    except RheiError:
        return stack.enter_context(opened(config, hold=False))


def _patience(htap: "HTAP") -> float | None:
    """Return how long to wait for a sync under way: it is another process's, or there is none."""
    return None if htap.holds else _PATIENCE_SECONDS


def _status_row(table: "TableStatus") -> dict[str, Any]:
    # Only a table that is not proved says so: the screen is narrow.
    proof = None if table.error or table.proof == "proved" else table.proof
    state = {"state": "left out"} if table.error else {}
    day = table.kept_since and table.kept_since.date().isoformat()
    lag = {"lag_events": "not known", "lag_seconds": "not known"}
    unknown = lag if table.lag_events is None else {}
    if table.watermark is None:
        unknown |= {"watermark": "none yet"}
    return {**values(table), "proof": proof, "kept_since": day, **state, **unknown}


def _show_status(found: "SyncStatus", *, as_json: bool) -> None:
    show(
        found.to_dict(),
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
            "kept_since",
        ),
        as_json=as_json,
        rare=("proof", "dead_letters", "doubt", "kept_since"),
        nothing="" if found.copying or found.unreadable or found.last_error else "no tables",
    )
    errors = {name: table.error for name, table in found.tables.items() if table.error}
    name_errors(errors)
    name_kept(found.held_bytes if errors else {})
    if not found.tables and found.last_error:
        name_errors({"": found.last_error})
    if found.unreadable:
        name_errors({"": found.unreadable})
    if not as_json:
        say(_copying(name, copy) for name, copy in found.copying.items())
    name_not_followed(found.not_followed, errors)
    name_not_published(found.not_published)


def _copying(name: str, copy: "CopyStatus") -> str:
    text = f"copying {name}: {copy.rows:,} of {copy.of:,} rows"
    if not copy.missing:
        is_shared = copy.ranges > 1
        return f"{text}; 'rhei copy --table {name}' puts its ranges in place" if is_shared else text
    missing = ", ".join(map(str, copy.missing))
    return (
        f"{text}; of {copy.ranges} ranges these are missing: {missing}. 'rhei copy --table {name}'"
        f" copies them, and 'rhei copy --table {name} --range any' helps on any machine"
    )


@commands.command(name="bridge", epilog=example("bridge"))
def bridge_command(config: Config = DEFAULT_CONFIG, json_: Json = False) -> None:
    """Drain pending changes into the buffer while the mirror is unavailable."""
    from rhei_pipeline.wiring.engine import bridge

    events = bridge(settings_of(config))
    show({"events": events}, [{"events": events}], ("events",), as_json=json_)
