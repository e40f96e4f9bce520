"""Many tables of which few change: what a cycle costs follows the change."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import rhei_pipeline as rhei
from benchmarks.capture import WAYS, PostgresApplication, SqliteApplication, new_application
from benchmarks.timing import prove, server_seconds
from examples.postgres_server import Server

#: A ratio is of the second to the first; so many more are measured on one mirror.
TABLES, MOST_TABLES = (1, 200), 500
CYCLES = 20

MIRRORS: dict[str, dict[str, str]] = {
    "DuckDB": {"path": "mirror.duckdb"},
    "IPC": {"kind": "datafusion", "storage": "ipc", "path": "mirror"},
    "Parquet": {"kind": "datafusion", "storage": "parquet", "path": "mirror"},
    "Delta": {"kind": "datafusion", "storage": "delta", "path": "mirror"},
    "memory": {"kind": "datafusion", "storage": "memory"},
}
PHASES = ("opening", "first sync", "a change in one", "no change")

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
        return 0.0 if self._data is None else server_seconds(self._data)


def measure() -> Iterator[tuple[str, str]]:
    """Measure the opening, the first sync, a cycle of one change and one of none."""
    with ExitStack() as stack:
        data = Path(stack.enter_context(TemporaryDirectory(prefix="rhei-postgres-")))
        server = Server(data)
        stack.callback(server.stop)
        for place, (way, kind, capture) in enumerate(WAYS):
            clock = Clock(data if kind == "postgres" else None)
            for mirror, declared in MIRRORS.items():
                counts = (*TABLES, MOST_TABLES) if mirror == "DuckDB" else TABLES
                pair = _Pair(kind, capture, declared, server, f"many{place}_{mirror.lower()}")
                costs = [_costs(pair, count, clock) for count in counts]
                for at, phase in enumerate(PHASES):
                    yield f"{way}, {mirror}: {phase}, of {counts} tables", _shown(costs, at)


def _shown(costs: Sequence[Sequence[float]], phase: int) -> str:
    one, many = costs[0][phase], costs[1][phase]
    shown = ", ".join(f"{each[phase]:,.1f}" for each in costs)
    return f"{shown} ms CPU with the server's: {many / max(one, 0.01):.1f} x"


@dataclass(frozen=True)
class _Pair:
    """A source, how its changes are captured, and a mirror."""

    kind: str
    capture: dict[str, Any]
    mirror: dict[str, str]
    server: Server
    name: str

    def application(self, directory: Path, count: int) -> SqliteApplication | PostgresApplication:
        """Make an application with so many tables of one row."""
        made = new_application(self.kind, directory, self.server, f"{self.name}_{count}")
        for number in range(count):
            made.run(f"create table t{number}({_COLUMNS.format(**made.TYPES)})")
            made.run(f"create index t{number}_updated on t{number}(updated_at, id)")
            made.run(f"insert into t{number} values (1, 0, {{now}})")
        return made

    def settings(
        self, application: SqliteApplication | PostgresApplication, directory: Path, count: int
    ) -> rhei.Settings:
        """Return the declaration of a mirror of all of them."""
        return rhei.Settings(
            source=application.source(),
            capture=self.capture,
            mirror=self.mirror,
            registry={"path": "registry.json"},
            tables=[{"name": f"t{n}", "polling": {"clock": "database"}} for n in range(count)],
        ).anchored(directory)


def _costs(pair: _Pair, count: int, clock: Clock) -> tuple[float, float, float, float]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        application = pair.application(directory, count)
        stack.callback(application.close)
        opened: list[rhei.HTAP] = []
        settings = pair.settings(application, directory, count)
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
        prove(htap)
        return opening, first, one, none
