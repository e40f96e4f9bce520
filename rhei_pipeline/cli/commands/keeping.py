"""Commands that serve a mirror, and keep it in order."""

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rhei_pipeline.cli.opening import opened, settings_of, take_environment, work_shown
from rhei_pipeline.cli.options import DEFAULT_CONFIG, Config, Json, example, exit_if
from rhei_pipeline.cli.output import out, say, show
from rhei_pipeline.model.bounds import LONGEST_SECONDS
from rhei_pipeline.model.report import values

if TYPE_CHECKING:
    from rhei_pipeline.model.retention import ExpiredHistory

commands = typer.Typer()


_LAST_PORT = 65_535
_MOST_HOURS = LONGEST_SECONDS // 3600


@commands.command(epilog=example("serve --port 31337 --metrics-port 9464"))
def serve(
    config: Config = DEFAULT_CONFIG,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=_LAST_PORT, help="Flight SQL's port; 0 for any.")
    ] = 31337,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=_LAST_PORT, help="Serve a status page, /metrics, /healthz and /readyz there."
        ),
    ] = None,
    writes: Annotated[bool, typer.Option("--writes", help="Accept writes too.")] = False,
    tls_certificate: Annotated[Path | None, typer.Option(help="A PEM file.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="A PEM file.")] = None,
    queries: Annotated[
        int, typer.Option(min=1, help="How many queries run at the same time.")
    ] = 64,
    seconds: Annotated[
        float,
        typer.Option(
            min=0.1, max=LONGEST_SECONDS, help="Seconds after which a query is cancelled."
        ),
    ] = 300.0,
    idle_hours: Annotated[
        float,
        typer.Option(
            min=0.1, max=_MOST_HOURS, help="Hours without a call that end a password's token."
        ),
    ] = 12.0,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON lines.")] = False,
) -> None:
    """Sync in the background and answer Flight SQL clients, until stopped.

    Clients authenticate with RHEI_SERVE_TOKEN, or RHEI_SERVE_USER and RHEI_SERVE_PASSWORD. One of
    these must be set to serve on an address that other machines can reach.
    """
    from rhei_pipeline.cli.logs import log_to_stderr
    from rhei_pipeline.server.flight.access import in_addresses, refuse_open_server
    from rhei_pipeline.server.flight.running import FlightLimits
    from rhei_pipeline.server.flight.server import ServerOptions
    from rhei_pipeline.server.serve import (
        Addresses,
        StopSignal,
        access_from,
        serving,
        tls_from,
    )

    take_environment(config)
    log_to_stderr(as_json=log_json)
    limits = FlightLimits(queries=queries, seconds=seconds)
    tls = tls_from(tls_certificate, tls_key)
    options = ServerOptions(access_from(), limits, writes, tls, idle_hours * 3600)
    refuse_open_server(host, options.access)
    with opened(config) as htap:
        addresses = Addresses(host, port, metrics_port)
        with serving(htap, addresses, options) as (flight_port, page_port):
            scheme = "grpc+tls" if options.tls else "grpc"
            shown = in_addresses(host)
            asked = StopSignal()  # whoever reads the address may send one at once
            out.print(f"serving {scheme}://{shown}:{flight_port}", markup=False)
            if page_port is not None:
                out.print(f"status page http://{shown}:{page_port}/", markup=False)
            asked.wait()


@commands.command(epilog=example("maintain"))
def maintain(config: Config = DEFAULT_CONFIG, json_: Json = False) -> None:
    """Remove versions that are not to be kept, and merge small files; a schedule does so nightly.

    Which versions of temporal tables are kept is declared, as 'history'.
    """
    with opened(config) as htap, work_shown("merging files"):
        report = htap.maintain()
    rare = ("versions_removed",)
    show(report.to_dict(), [report.to_dict()], report.shown, as_json=json_, rare=rare)
    if not json_:
        say(_kept_since(found) for found in report.expired)
        say(report.damaged)
    exit_if(bool(report.damaged))


def _kept_since(found: "ExpiredHistory") -> str:
    return (
        f"{found.table}: {found.versions:,} old versions were removed; its history is kept since"
        f" {found.kept_since.isoformat()}"
    )


@commands.command("adopt", epilog=example("adopt"))
def adopt_command(
    config: Config = DEFAULT_CONFIG,
    as_copy: Annotated[
        bool,
        typer.Option("--as-copy", help="This mirror is a copy of one that another process syncs."),
    ] = False,
    json_: Json = False,
) -> None:
    """Let the mirror follow a source that was moved, or a pipeline that was renamed.

    From another source, the next sync compares every table; a temporal table keeps its history.
    """
    from rhei_pipeline.holder.access import Access
    from rhei_pipeline.sync.pipeline import no_step
    from rhei_pipeline.wiring.adoption import adopt

    settings = settings_of(config)
    with closing(Access(settings, no_step, keep=False)) as access, access.stepping_in():
        before, now, left = adopt(settings, as_copy=as_copy)
    rows = [{"was": str(before) if before else None, "is": str(now)}]
    show({**rows[0], "left": left}, rows, ("was", "is"), as_json=json_)
    if json_:
        return
    if before == now:
        say(["nothing has moved: the mirror was this source's and this pipeline's already"])
    elif now.former != (before.former if before else ()):
        say(["to the source it is another reader from now on: the next sync compares every table"])
    say(left)


@commands.command("drop-table", epilog=example("drop-table orders --keep-as orders_2025"))
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
    with opened(config) as htap:
        if sys.stdin.isatty() and not yes:
            what = "delete the rows" if keep_as is None else f"keep the rows as {keep_as!r}"
            typer.confirm(f"drop {table!r} from the mirror and {what}?", abort=True, err=True)
        report = values(htap.drop_table(table, keep_as, discard_history=discard_history))
    told = {name: value for name, value in report.items() if value is not None}
    show(report, [told], tuple(told), as_json=json_)


@commands.command("unregister", epilog=example("unregister orders"))
def unregister(
    table: Annotated[
        str, typer.Argument(help="A table that the declaration does not name, or names no more.")
    ],
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Capture a table no more: its triggers, log and entry in a publication go.

    What other mirrors of it need stays. Its mirror stays too, with its history; 'rhei drop-table'
    drops it.
    """
    with opened(config) as htap:
        htap.unregister_table(table)
