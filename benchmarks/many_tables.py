"""Many tables of which few change: what a cycle costs follows the change."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import rhei_pipeline as rhei
from benchmarks.capture import WAYS, PostgresApplication, SqliteApplication, new_application
from examples.postgres_server import Server

TABLES = (1, 10, 200)
CYCLES = 20

_COLUMNS = "id {integer} primary key, v {integer} not null, updated_at {stamp} not null"


class Clock:
    """CPU time of ours and, where there is one, of the server's processes."""

    def __init__(self, data: Path | None) -> None:
        self._data = data

    def measure(self, act: Callable[[], object]) -> float:
        """Return the milliseconds that a call takes of both."""
        server, ours = self._server(), time.process_time()
        act()
        ours = time.process_time() - ours  # before the server's is looked up, which takes time
        return (ours + self._server() - server) * 1000

    def _server(self) -> float:
        """Return the seconds that the server's processes have taken, those at rest included."""
        if self._data is None:
            return 0.0
        head = (self._data / "postmaster.pid").read_text().split()[0]
        ticks = 0
        for process in Path("/proc").iterdir():
            try:
                fields = (process / "stat").read_text().rpartition(")")[2].split()
            except (OSError, ValueError):
                continue
            if head in (process.name, fields[1]):
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def measure() -> Iterator[tuple[str, str]]:
    """Measure the opening, the first sync, a cycle of one change and one of none."""
    with ExitStack() as stack:
        data = Path(stack.enter_context(TemporaryDirectory(prefix="rhei-postgres-")))
        server = Server(data)
        stack.callback(server.stop)
        for place, (name, kind, capture) in enumerate(WAYS):
            clock = Clock(data if kind == "postgres" else None)
            found = [
                _costs(kind, capture, count, clock, server, f"many{place}_{count}")
                for count in TABLES
            ]
            for at, what in enumerate(("opening", "first sync", "a change in one", "no change")):
                shown = ", ".join(f"{costs[at]:,.1f}" for costs in found)
                yield f"{name}: {what}, of {TABLES} tables", f"{shown} ms CPU with the server's"


def _costs(
    kind: str, capture: dict[str, Any], count: int, clock: Clock, server: Server, name: str
) -> tuple[float, float, float, float]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        application = new_application(kind, directory, server, name)
        stack.callback(application.close)
        for number in range(count):
            application.run(f"create table t{number}({_COLUMNS.format(**application.TYPES)})")
            application.run(f"create index t{number}_updated on t{number}(updated_at, id)")
            application.run(f"insert into t{number} values (1, 0, {{now}})")
        opened: list[rhei.HTAP] = []
        settings = _settings(application, capture, directory, count)
        opening = clock.measure(lambda: opened.append(stack.enter_context(rhei.open(settings))))
        htap = opened[0]
        first = clock.measure(htap.sync_now)

        def cycle(*, changes: bool) -> float:
            if changes:
                application.run("update t0 set v = v + 1, updated_at = {now}")
            return clock.measure(htap.sync_now)

        for _ in range(3):
            cycle(changes=True)
        cycle(changes=False)
        # The mean, for the server's time is counted in hundredths of a second.
        one = statistics.mean(cycle(changes=True) for _ in range(CYCLES))
        none = statistics.mean(cycle(changes=False) for _ in range(CYCLES))
        if not htap.verify().equal:
            raise SystemExit("source and mirror differ: these figures are worth nothing")
        return opening, first, one, none


def _settings(
    application: SqliteApplication | PostgresApplication,
    capture: dict[str, Any],
    directory: Path,
    count: int,
) -> rhei.Settings:
    return rhei.Settings(
        source=application.source(),
        capture=capture,
        mirror={"path": directory / "mirror.duckdb"},
        registry={"path": directory / "registry.json"},
        tables=[{"name": f"t{n}", "polling": {"clock": "database"}} for n in range(count)],
    ).anchored(directory)
