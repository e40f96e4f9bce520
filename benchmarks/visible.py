"""How long after its commit a mirror shows a row, where syncs follow each other without a pause."""

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import rhei_pipeline as rhei
from benchmarks.capture import Application, new_application
from benchmarks.many_tables import MIRRORS
from benchmarks.timing import prove
from examples.postgres_server import Server

#: Rows to begin with, and those that a process of its own commits, one each time.
ROWS, COMMITS, PAUSE_SECONDS = 100_000, 200, 0.04
SHOWN = ("DuckDB", "Parquet", "memory")
WAYS = {"SQLite, triggers": ("sqlite", "trigger"), "PostgreSQL, log": ("postgres", "logical")}
_APART = get_context("spawn")


def measure() -> Iterator[tuple[str, str]]:
    """Measure each source, mirror and mode."""
    with ExitStack() as stack:
        data = Path(stack.enter_context(TemporaryDirectory(prefix="rhei-postgres-")))
        server = Server(data)
        stack.callback(server.stop)
        for way, (kind, method) in WAYS.items():
            for mirror in SHOWN:
                for mode in ("destructive", "temporal"):
                    with TemporaryDirectory() as place:
                        name = f"visible_{mirror}_{mode}".lower()
                        made = new_application(kind, Path(place), server, name)
                        made.run("create table t(id integer primary key, made double precision)")
                        series = made.series(1, ROWS)
                        made.run(f"insert into t select value, value from {series}")
                        declared = rhei.Settings(
                            source=made.source(),
                            capture={"method": method},
                            mirror=MIRRORS[mirror],
                            mode=mode,
                            registry={"path": "registry.json"},
                            tables=[{"name": "t"}],
                        )
                        lags = _lags(declared.anchored(Path(place)), made)
                        made.close()
                    yield f"{way}, {mirror}, {mode}: a committed row is shown after", lags


def _lags(settings: rhei.Settings, application: Application) -> str:
    found: list[float] = []
    with rhei.open(settings) as htap:
        htap.sync_now()
        writer = _APART.Process(target=_write, args=(type(application), _where(application)))
        writer.start()
        while len(found) < COMMITS:
            if htap.sync_now().events:
                shown = time.time()
                sql = f"select made from t where id > {ROWS + len(found)} order by id"
                rows = htap.query(sql, hint="olap")["made"].to_pylist()
                found += [shown - committed for committed in rows]
            elif not writer.is_alive() and writer.exitcode:
                raise SystemExit("the writer has failed")
        writer.join()
        prove(htap)
    shares = [share * 1000 for share in statistics.quantiles(found, n=100)]
    return f"p50 {shares[49]:.1f} ms, p90 {shares[89]:.1f}, p99 {shares[98]:.1f}"


def _where(application: Application) -> str:
    """Return what makes another one of its kind."""
    source = application.source()
    return str(source.get("dsn") or source["path"])


def _write(kind: type[Application], where: str) -> None:
    """Commit rows that tell when their statement began."""
    application = kind(where)  # type: ignore[call-arg]
    for number in range(ROWS + 1, ROWS + COMMITS + 1):
        time.sleep(PAUSE_SECONDS)
        application.run("insert into t values (?, ?)", number, time.time())
    application.close()
