"""Runs as tasks of Celery's workers, with a code server for each shard and the mirror in a bucket.

`make test-workers` runs it. Broker and results are folders, or a Redis server, or RabbitMQ with
results in a folder, where they are installed.
"""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import dagster as dg
import pytest

import rhei_pipeline as rhei
from rhei_pipeline import HTAP
from rhei_pipeline.errors import RheiError
from tests.support.dagster_deployment import PROJECT, Deployment, Location, awaited, free_port
from tests.support.fix_object_store import Store
from tests.support.live_worlds import ServerWorld

_Found = TypeVar("_Found")

QUEUE = "rhei"
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
ROWS = 60_000
#: A run without a sign of life is given up after 150 s.
GIVEN_UP_SECONDS = 400.0

CELERY = """
broker_url = {url!r}
broker_transport_options = {options!r}
result_backend = {results!r}
task_default_queue = "rhei"
"""
LAUNCHER = """
run_launcher:
  module: dagster_celery.launcher
  class: CeleryRunLauncher
  config:
    default_queue: rhei
    broker: {url}
    backend: {results}
    config_source: {{broker_transport_options: {options}}}
"""


@dataclass(frozen=True)
class Broker:
    """Where tasks wait, and where their results are left."""

    url: str
    results: str
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_folders(cls, home: Path) -> "Broker":
        folders = {name: home / "celery" / name for name in ("tasks", "control", "results")}
        for folder in folders.values():
            folder.mkdir(parents=True)
        tasks, control = str(folders["tasks"]), str(folders["control"])
        options = {"data_folder_in": tasks, "data_folder_out": tasks, "control_folder": control}
        return cls("filesystem://", f"file://{folders['results']}", options)


def with_workers(home: Path, servers: list[Location], broker: Broker) -> Deployment:
    """Make a deployment whose runs are tasks of Celery."""
    said = {"url": broker.url, "options": broker.options, "results": broker.results}
    (home / "celery").mkdir(parents=True, exist_ok=True)
    (home / "celery" / "dagster_celery_config.py").write_text(CELERY.format(**said))
    paths = [str(PROJECT), str(home / "celery"), *filter(None, [os.environ.get("PYTHONPATH")])]
    # A worker runs what any code server asks for, so it has all shards.
    declaration = {"RHEI_CONFIG": str(servers[0].declaration)}
    environment = {"PYTHONPATH": os.pathsep.join(paths), **declaration}
    made = Deployment(home, servers, environment)
    instance = home / "dagster.yaml"
    instance.write_text(instance.read_text() + LAUNCHER.format(**said))
    return made


def start_redis(made: Deployment, port: int) -> None:
    """Start a Redis server, which keeps what it was told over its end."""
    folder = made.home / "redis"
    folder.mkdir(exist_ok=True)
    made.processes["redis"] = subprocess.Popen(
        ["redis-server", "--port", str(port), "--dir", str(folder), "--appendonly", "yes"],  # noqa: S607
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def start_rabbitmq(made: Deployment, port: int) -> None:
    """Start RabbitMQ as this user: its name service, and files of its own, which it keeps."""
    folder, names = made.home / "rabbitmq", "rabbitmq_names"
    folder.mkdir(exist_ok=True)
    service = folder / "port_of_names"
    if names not in made.processes:
        service.write_text(str(free_port()))
    (folder / "plugins").write_text("[].\n")
    environment = {
        **os.environ,
        "HOME": str(folder),  # where Erlang keeps its cookie
        "ERL_EPMD_PORT": service.read_text(),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": "rhei@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONFIG_FILE": str(folder / "none"),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
    }

    def start(name: str, *command: str) -> None:
        made.processes[name] = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
        )

    if names not in made.processes:
        start(names, "epmd", "-port", environment["ERL_EPMD_PORT"])
    # That of the path wants to be root, and becomes another user.
    start("rabbitmq", str(RABBITMQ))

    def answers() -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0

    awaited("RabbitMQ", answers)


def start_worker(made: Deployment, name: str) -> None:
    """Start a worker that takes two runs at once."""
    app = ("-A", "dagster_celery.app", "worker", "-Q", QUEUE, "-c", "2", "-n", f"{name}@%h")
    alone = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    made.start_process(name, "celery", *app, *alone)


def worker_of(made: Deployment, job: str) -> str:
    """Return which worker has the run of a job."""
    group = os.getpgid(made.session_process(job))
    return next(name for name, process in made.processes.items() if process.pid == group)


def asked(world: ServerWorld, shard: int, ask: Callable[[HTAP], _Found]) -> _Found | None:
    """Ask a shard of the mirror; None where it does not answer."""
    with suppress(RheiError), rhei.open(world.settings.of_shard(shard), hold=False) as htap:
        return ask(htap)
    return None


def count(world: ServerWorld, shard: int, table: str) -> int:
    """Return how many rows a table has in the mirror."""
    return asked(world, shard, lambda htap: htap.row_count(table)) or 0


def written(bucket: Store) -> int:
    """Return how often the store was written to by the shard that has `orders`."""
    return sum(
        method == "PUT" and "shard_1" in path for method, path in map(str.split, bucket.seen)
    )


@contextmanager
def shop(dsn: str, tmp_path: Path, bucket: Store) -> Iterator[tuple[ServerWorld, list[Location]]]:
    """Make a source and its two shards; each mirror equals the source in the end."""
    pytest.importorskip("dagster_celery")
    world = ServerWorld.on(dsn, tmp_path / "shop")
    stored = {"path": bucket.url, "object_store": bucket.settings | bucket.keys}
    mirror = json.dumps({"kind": "datafusion", "storage": "parquet", **stored})
    world.declare(
        f"name: shop\nshards: [[orders], []]\nsource: {{kind: postgres, dsn: {dsn!r}}}\n"
        f"capture: {{method: trigger}}\nmirror: {mirror}\n",
        "idle_seconds: 20, report_seconds: 2",
    )
    declared = world.location.declaration.read_text()
    small = declared.replace("sync: {", f"sync: {{batch_rows: {ROWS // 100}, ")
    world.location.declaration.write_text(small)
    world.write(
        f"insert into orders select n, 'new' from generate_series(1, {ROWS}) n",
        "insert into items values (1, 1)",
    )
    yield world, [Location(f"shard_{n}", world.location.declaration, shard=n) for n in (1, 2)]
    for shard in (1, 2):
        with rhei.open(world.settings.of_shard(shard)) as htap:
            htap.sync_now()
            assert htap.verify().equal


@contextmanager
def running(made: Deployment) -> Iterator[Deployment]:
    try:
        made.start()
        yield made
    finally:
        made.stop()


def assert_changes_arrive(world: ServerWorld) -> None:
    world.write("update orders set status = 'sent' where id = 1", "insert into items values (2, 2)")
    awaited("changes are applied", lambda: count(world, 2, "items") == 2, GIVEN_UP_SECONDS)


@pytest.mark.soak
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_worker_killed_within_a_copy_costs_no_row_and_another_goes_on(
    dsn: str, tmp_path: Path, bucket: Store
) -> None:
    with shop(dsn, tmp_path, bucket) as (world, servers):
        home = tmp_path / "home"
        with running(with_workers(home, servers, Broker.of_folders(home))) as made:
            for name in ("worker_1", "worker_2"):
                start_worker(made, name)
            awaited("a part is copied", lambda: written(bucket) > 90)
            killed = worker_of(made, "shop_shard_1_sync")
            made.kill(killed)
            assert count(world, 1, "orders") == 0
            whole = awaited("the copy", lambda: count(world, 1, "orders"), GIVEN_UP_SECONDS)
            assert whole == ROWS
            assert worker_of(made, "shop_shard_1_sync") != killed
            assert_changes_arrive(world)


def _redis(home: Path, port: int) -> Broker:
    pytest.importorskip("redis")
    if shutil.which("redis-server") is None:
        pytest.skip("no Redis server is installed")
    url = f"redis://127.0.0.1:{port}/0"
    return Broker(url, url)


def _rabbitmq(home: Path, port: int) -> Broker:
    if not RABBITMQ.exists():
        pytest.skip("no RabbitMQ is installed")
    folders = Broker.of_folders(home)
    return Broker(f"amqp://guest:guest@127.0.0.1:{port}//", folders.results)


BROKERS: dict[str, tuple[Callable[[Path, int], Broker], Callable[[Deployment, int], None]]] = {
    "redis": (_redis, start_redis),
    "rabbitmq": (_rabbitmq, start_rabbitmq),
}


@pytest.mark.soak
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
@pytest.mark.parametrize("kind", BROKERS)
def test_a_broker_killed_within_a_copy_costs_no_row_and_runs_begin_once_it_is_back(
    dsn: str, tmp_path: Path, bucket: Store, kind: str
) -> None:
    broker_at, start = BROKERS[kind]
    with shop(dsn, tmp_path, bucket) as (world, servers):
        home, port = tmp_path / "home", free_port()
        made = with_workers(home, servers, broker_at(home, port))
        start(made, port)
        with running(made):
            start_worker(made, "worker_1")
            awaited("a part is copied", lambda: written(bucket) > 90)
            session = made.session_process("shop_shard_1_sync")
            made.kill(kind)
            assert count(world, 1, "orders") == 0
            whole = awaited("the copy", lambda: count(world, 1, "orders"), GIVEN_UP_SECONDS)
            assert whole == ROWS
            assert made.session_process("shop_shard_1_sync") == session
            start(made, port)
            assert_changes_arrive(world)


@pytest.mark.soak
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_backfill_of_ranges_is_spread_over_workers(
    dsn: str, tmp_path: Path, bucket: Store
) -> None:
    with shop(dsn, tmp_path, bucket) as (world, servers):
        declared = world.location.declaration
        text = declared.read_text().replace("{name: orders,", "{name: orders, copy_ranges: 4,")
        declared.write_text(
            text.replace(f"batch_rows: {ROWS // 100}", f"batch_rows: {ROWS // 600}")
        )
        home, job = tmp_path / "home", "shop_shard_1_copy_ranges_of_orders"
        with running(with_workers(home, servers, Broker.of_folders(home))) as made:
            for name in ("worker_1", "worker_2", "worker_3"):
                start_worker(made, name)
            workspace = str(home / "workspace.yaml")
            asked_for = ("-w", workspace, "-l", "shard_1", "-j", job, "--all", "all", "--noprompt")
            made.start_process("backfill", "dagster", "job", "backfill", *asked_for)
            done = awaited(
                "four runs",
                lambda: (found := made.runs(job, dg.DagsterRunStatus.SUCCESS))[3:] and found,
                GIVEN_UP_SECONDS,
            )
            logs = [made.instance.all_logs(run.dagster_run.run_id) for run in done]
            rows = [
                int(str(event.dagster_event.step_output_data.metadata["rows_copied"].value))
                for log in logs
                for event in log
                if event.dagster_event and event.dagster_event.event_type_value == "STEP_OUTPUT"
            ]
            assert len(rows) == 4
            assert sum(rows) > 0
            awaited("the copy", lambda: count(world, 1, "orders") == ROWS, GIVEN_UP_SECONDS)
