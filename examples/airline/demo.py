"""The demo: a year of flights mirrored, versioned, queried and proved equal, in about a minute."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path

import dagster as dg
from rich.console import Console
from rich.table import Table

import rhei_pipeline as rhei
from definitions import build as build_definitions
from examples.airline.database import build as build_database
from examples.airline.home import (
    DECLARATIONS,
    address,
    choose_declaration,
    claim_data,
    database_server,
    declared,
    prepare_home,
    remove_data,
    writer,
)

FIRST_DAY = date(2013, 12, 1)
DAYS = 7
SECONDS_PER_DAY = 1.5
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
_PLOTTED = {
    "dagster/row_count",
    "rows_applied",
    "change_lag_ms_p50",
    "change_lag_ms_max",
}
_KINDS = {"sqlite": "SQLite", "postgres": "PostgreSQL"}
#: What a shell returns for a program that Ctrl-C ended.
_INTERRUPTED = 130
_SESSION = {"session_seconds": 120.0, "idle_seconds": 3.0}

console = Console(highlight=False)

WORST_CARRIERS = """
select a.name as airline, count(*) as flights, round(avg(f.arrival_delay), 1) as avg_delay,
       round(100.0 * count(*) filter (f.arrival_delay > 30) / count(*), 1) as late_percent
from flights f join airlines a using (carrier)
where f._rhei_valid_to is null and f.arrival_delay is not null
group by a.name order by avg_delay desc limit 5
"""


def main() -> None:
    """Run it; Ctrl-C ends it."""
    try:
        _main()
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        console.print("\nEnded. 'make demo' starts over.")
        sys.exit(_INTERRUPTED)


def _main() -> None:
    logging.disable(logging.WARNING)
    # Notes of the orchestrator to its own developers.
    warnings.simplefilter("ignore")
    declaration = choose_declaration()
    settings = declared()
    kind = _KINDS[settings.source.kind]
    console.print(f"[bold]Rhei Pipeline[/]: an airline's {kind} database, mirrored in DuckDB\n")
    with claim_data("make demo"), database_server(settings):
        remove_data(settings)
        prepare_home()
        _play(settings, kind)
    _say_what_next(declaration)


def _play(settings: rhei.Settings, kind: str) -> None:
    with _step("The airline's past, until November 2013") as tell:
        tell(f"{build_database(address(settings), FIRST_DAY):,} flights in {kind}")
    with _step("Loading the Dagster definitions"):
        definitions = build_definitions(settings)
    instance = dg.DagsterInstance.get()
    tables = [table.name for table in settings.tables or ()]
    with _step("Initial sync, row parity checked") as tell:
        started = time.monotonic()
        result = _materialize(definitions, instance, [["initial_sync", name] for name in tables])
        events = result.get_asset_materialization_events()
        copied = sum(
            int(str(event.materialization.metadata["rows_copied"].value)) for event in events
        )
        tell(f"{copied:,} rows, {copied / (time.monotonic() - started):,.0f} rows/s")
    halfway = _replay(definitions, instance, settings)
    with _step("Daily snapshot") as tell:
        today = datetime.now(UTC).date().isoformat()
        _materialize(definitions, instance, [["snapshot", "flights"]], partition=today)
        tell(f"snapshot.flights, {today} so far")
    _prove(settings, halfway)


def _replay(
    definitions: dg.Definitions, instance: dg.DagsterInstance, settings: rhei.Settings
) -> datetime:
    """Sync while another process writes; return an instant in the middle of it."""
    console.print("\n[bold]A week of December[/], written by another process, synced by a session:")
    halfway = datetime.fromtimestamp(time.time() + DAYS * SECONDS_PER_DAY / 2 + 1, UTC)
    tables = [table.name for table in settings.tables or ()]
    pace = ("--days", str(DAYS), "--seconds-per-day", str(SECONDS_PER_DAY))
    with writer(address(settings), FIRST_DAY, *pace, quiet=False):
        config = {"ops": {"sync_session": {"config": _SESSION}}, **_QUIET}
        keys = [["mirror", name] for name in tables]
        _materialize(definitions, instance, keys, config=config)
    _show_lag(instance, tables)
    return halfway


def _show_lag(instance: dg.DagsterInstance, tables: list[str]) -> None:
    console.print("\nWhat Dagster plots for each mirror")
    shown = Table()
    for column in ("mirror", "rows", "rows applied", "lag p50", "lag max"):
        shown.add_column(column, justify="left" if column == "mirror" else "right")
    for name in tables:
        records = instance.fetch_materializations(dg.AssetKey(["mirror", name]), limit=50).records
        seen = [record.asset_materialization for record in records]
        values = [
            {
                key: float(str(entry.value))
                for key, entry in event.metadata.items()
                if key in _PLOTTED
            }
            for event in seen
            if event is not None
        ]
        busy = [value for value in values if value["rows_applied"]] or values
        shown.add_row(
            name,
            f"{busy[0]['dagster/row_count']:,.0f}",
            f"{sum(value['rows_applied'] for value in busy):,.0f}",
            f"{min(value['change_lag_ms_p50'] for value in busy):,.0f} ms",
            f"{max(value['change_lag_ms_max'] for value in busy):,.0f} ms",
        )
    console.print(shown)


def _prove(settings: rhei.Settings, halfway: datetime) -> None:
    with rhei.open(settings) as htap:
        with _step("Comparing every row, both ways") as tell:
            report = htap.verify()
            rows = sum(found.rows for found in report.tables.values())
            tell(f"{rows:,} rows, {'all equal' if report.equal else 'DIFFERENT'}")
        if not report.equal:
            raise SystemExit("source and mirror differ; .venv/bin/rhei verify says where")
        started = time.monotonic()
        worst = htap.query(WORST_CARRIERS, hint="olap")
        took = (time.monotonic() - started) * 1000
        _show(
            f"Airlines by average delay, answered by the mirror in {took:.0f} ms", worst.to_pylist()
        )
        then = htap.as_of("flights", halfway).group_by("status").aggregate([("status", "count")])
        now = htap.as_of("flights", datetime.now(UTC)).group_by("status")
        earlier = dict(zip(*then.to_pydict().values(), strict=True))
        later = dict(zip(*now.aggregate([("status", "count")]).to_pydict().values(), strict=True))
        title = f"Flights by status as of {halfway:%H:%M:%S} UTC, and now"
        rows_shown = [
            {"status": status, "then": earlier.get(status, 0), "now": later.get(status, 0)}
            for status in sorted(earlier | later)
        ]
        _show(title, rows_shown)


def _materialize(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    keys: list[list[str]],
    *,
    partition: str | None = None,
    config: dict[str, object] | None = None,
) -> dg.ExecuteInProcessResult:
    chosen = [dg.AssetKey(key) for key in keys]
    # In this process, so that the demo shows what it does; the UI runs the same definitions.
    return definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        asset_selection=chosen,
        instance=instance,
        partition_key=partition,
        run_config=config or _QUIET,
        raise_on_error=True,
    )


@contextmanager
def _step(title: str) -> Iterator["_Tell"]:
    tell = _Tell()
    started = time.monotonic()
    with console.status(f"{title} ..."):
        yield tell
    seconds = time.monotonic() - started
    detail = f": [bold]{tell.text}[/]" if tell.text else ""
    console.print(f"[green]done[/] {title}{detail} [dim]({seconds:.1f} s)[/]")


class _Tell:
    """What a step has to tell once it is done."""

    def __init__(self) -> None:
        self.text = ""

    def __call__(self, text: str) -> None:
        self.text = text


def _show(title: str, rows: list[dict[str, object]]) -> None:
    console.print(f"\n{title}")
    shown = Table()
    for name in rows[0]:
        shown.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        shown.add_row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()))
    console.print(shown)


def _say_what_next(declaration: Path) -> None:
    console.print("\n[bold]What next[/]")
    own = declaration.name == DECLARATIONS["sqlite"]
    where, source = ("", "") if own else (f" --config config/{declaration.name}", "postgres")
    dev = f"make dev SOURCE={source}" if source else "make dev"
    ask = f'.venv/bin/rhei query "select status, count(*) from flights group by 1"{where}'
    # Where the database is a server of the demo's own, it runs while the UI does.
    meanwhile = " (while the UI runs)" if source else ""
    for command, purpose in (
        (dev, "Open the Dagster UI on this demo, with the airline still flying:"),
        (f".venv/bin/rhei status{where}", f"See each table's state{meanwhile}:"),
        (ask, f"Query the mirror{meanwhile}:"),
        (f"config/{declaration.name}", "Point it at your own database:"),
    ):
        console.print(f"  {purpose}\n    [bold]{command}[/]")


if __name__ == "__main__":
    main()
