"""What a mirror in an object store takes, by how long the store takes to answer."""

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import rhei_pipeline as rhei
from benchmarks.capture import SqliteApplication
from benchmarks.slow_store import SlowStore
from benchmarks.timing import prove

TABLES, CHANGED, MODES = 40, (1, 10, 40), ("destructive", "temporal")
DELAYS = (0, 20, 50, 100)
ROUNDS = 5

_COLUMNS = "id {integer} primary key, v {integer} not null"


def measure() -> Iterator[tuple[str, str]]:
    """Measure syncs and queries of many small tables; and the requests they make."""
    for mode in MODES:
        with ExitStack() as stack:
            store = SlowStore()
            stack.callback(store.stop)
            directory = Path(stack.enter_context(TemporaryDirectory()))
            application = SqliteApplication(directory / "app.db")
            stack.callback(application.close)
            for number in range(TABLES):
                application.run(f"create table t{number}({_COLUMNS.format(**application.TYPES)})")
                application.run(f"insert into t{number} values (1, 0)")
            settings = rhei.Settings(
                source=application.source(),
                mirror=store.settings(mode),
                mode=mode,
                registry={"path": "registry.json"},
            ).anchored(directory)
            htap = stack.enter_context(rhei.open(settings))
            htap.sync_now()
            for delay in DELAYS:
                for changed in CHANGED:
                    yield _syncs(htap, application, store, mode, delay, changed)
                yield _queries(htap, application, store, mode, delay)
            store.delay(0)
            prove(htap)


def _syncs(
    htap: rhei.HTAP,
    application: SqliteApplication,
    store: SlowStore,
    mode: str,
    delay: int,
    changed: int,
) -> tuple[str, str]:
    seconds, requests = [], []
    for _ in range(ROUNDS):
        for number in range(changed):
            application.run(f"update t{number} set v = v + 1")
        store.delay(delay)
        started = time.perf_counter()
        htap.sync_now()
        seconds.append(time.perf_counter() - started)
        found = store.delay(0)
        requests.append(sum(n for method, n in found.items() if method != "bytes"))
    return (
        f"{mode}, {delay} ms a request: a sync of {changed} changed tables",
        f"{statistics.median(seconds):.2f} s, {statistics.mean(requests):.0f} requests",
    )


def _queries(
    htap: rhei.HTAP, application: SqliteApplication, store: SlowStore, mode: str, delay: int
) -> tuple[str, str]:
    seconds, requests = [], []
    for _ in range(ROUNDS):
        application.run("update t0 set v = v + 1")
        htap.sync_now()
        store.delay(delay)
        started = time.perf_counter()
        htap.query("select count(*) from t0", hint="olap")
        seconds.append(time.perf_counter() - started)
        requests.append(sum(n for method, n in store.delay(0).items() if method != "bytes"))
    return (
        f"{mode}, {delay} ms a request: a query of a table that has just changed",
        f"{statistics.median(seconds):.2f} s, {statistics.mean(requests):.0f} requests",
    )
