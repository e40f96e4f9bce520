"""Daemon, webserver and code server as processes, and what may happen to each of them.

The short form runs in the suite; `make dagster-live` runs all of it, and prints the latencies.
"""

import json
import os
import re
import signal
import sqlite3
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from urllib.error import URLError

import dagster as dg
import psycopg
import pyarrow.compute as pc
import pytest

import rhei_pipeline as rhei
from rhei_pipeline import HTAP
from rhei_pipeline.dagster.check_records import last_evaluations
from rhei_pipeline.errors import RheiError
from tests.support.dagster_deployment import Deployment, Location, awaited, deployment
from tests.support.live_worlds import ServerWorld, World

CANCELED, FAILURE = dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.FAILURE
STARTED, SUCCESS = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS


def ask(made: Deployment, query: str, **variables: object) -> Mapping[str, object]:
    """Ask the webserver what its page asks when somebody clicks."""
    asked = urllib.request.Request(
        f"http://127.0.0.1:{made.web_port}/graphql",
        json.dumps({"query": query, "variables": variables}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310  (our own server)
        found: Mapping[str, object] = json.load(answer)
    return found


TERMINATE = "mutation($id: String!) { terminateRun(runId: $id) { __typename } }"


def terminate(made: Deployment, run_id: str, *, clicked: bool) -> None:
    """End a run as its page does, or as the webserver does when it is asked to."""
    if clicked:
        found = ask(made, TERMINATE, id=run_id)
        assert "TerminateRunSuccess" in json.dumps(found), found
        return
    with made.instance as instance:
        assert instance.run_coordinator.cancel_run(run_id)


def check(
    made: Deployment, table: str, name: str, stage: str = "mirror"
) -> dg.AssetCheckEvaluation | None:
    key = dg.AssetCheckKey(dg.AssetKey([stage, table]), name)
    with made.instance as instance:
        return last_evaluations(instance, [key]).get(key)


def passes(made: Deployment, table: str, name: str, stage: str = "mirror") -> bool | None:
    found = check(made, table, name, stage)
    return None if found is None else found.passed


def live_run(made: Deployment, job: str = "sync") -> str:
    """Return the run that is at work, once one is."""
    found = awaited("a session is open", lambda: made.runs(job, STARTED))
    return found[0].dagster_run.run_id


@pytest.mark.long
@pytest.mark.parametrize("clicked", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_killed_session_is_followed_by_the_next_and_a_terminated_one_is_not_red(
    tmp_path: Path, *, clicked: bool
) -> None:
    world = World.made(tmp_path / "shop")
    world.order()
    with deployment(tmp_path / "home", world.location, webserver=clicked) as made:
        awaited("the first copy", world.applied)
        killed = live_run(made)
        awaited("checks are reported", lambda: passes(made, "orders", "followed"))
        os.kill(made.session_process(), signal.SIGKILL)
        world.order()
        awaited("the next session applies it", world.applied)
        second = live_run(made)
        assert second != killed
        terminate(made, second, clicked=clicked)
        awaited("it is canceled", lambda: made.runs("sync", CANCELED))
        (failed,) = made.runs("sync", FAILURE)
        assert failed.dagster_run.run_id == killed
    world.assert_equal()


@pytest.mark.soak
def test_the_daemon_is_killed(tmp_path: Path) -> None:
    world = World.made(tmp_path / "shop", schedule="session_seconds: 10, report_seconds: 2")
    world.order()
    with deployment(tmp_path / "home", world.location) as made:
        awaited("the first copy", world.applied)
        made.kill("daemon")
        world.order()
        awaited("the open session goes on without it", world.applied)
        made.start_daemon()
        first = {record.dagster_run.run_id for record in made.runs("sync")}
        awaited("a session follows", lambda: len(made.runs("sync", STARTED, SUCCESS)) > len(first))
        world.order()
        awaited("it is applied", world.applied)
        assert not made.runs("sync", FAILURE)
    world.assert_equal()


@pytest.mark.soak
def test_the_code_server_is_killed(tmp_path: Path) -> None:
    world = World.made(tmp_path / "shop")
    world.order()
    with deployment(tmp_path / "home", world.location) as made:
        awaited("the first copy", world.applied)
        made.kill(world.name)  # and with it, its session
        world.order()
        made.start_code_server(made.locations[0])
        # Nobody tells Dagster that the session's process is gone: it gives no sign of life.
        awaited("the next session applies it", world.applied, 400)
    world.assert_equal()


@pytest.mark.soak
def test_a_copy_by_hand_is_killed_with_its_code_server(tmp_path: Path) -> None:
    world = World.made(tmp_path / "shop", schedule="idle_seconds: 2")
    rows = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000000)"
    world.write(f"{rows} insert into orders select i, 'new' from n")
    with deployment(tmp_path / "home", world.location, webserver=True) as made:
        awaited("the first copy", world.applied)
        awaited("the session ends", lambda: not made.runs("sync", STARTED))
        killed = launch(made, "initial_sync", "orders")
        with made.instance as instance:
            awaited("it has begun", lambda: begun(instance, killed))
        made.kill(world.name)  # and with it, the copy
        world.order()
        made.start_code_server(made.locations[0])
        awaited("a session applies it", world.applied, 400)
        assert made.runs("__ASSET_JOB", FAILURE)
    world.assert_equal()


LAUNCH = """mutation($execution: ExecutionParams!) { launchRun(executionParams: $execution) {
    __typename ... on LaunchRunSuccess { run { runId } } } }"""


def launch(made: Deployment, *key: str) -> str:
    """Materialize an asset as its page does; return the run."""
    selector = {
        "repositoryLocationName": made.locations[0].name,
        "repositoryName": "__repository__",
        "jobName": "__ASSET_JOB",
        "assetSelection": [{"path": list(key)}],
    }
    execution = {"selector": selector, "mode": "default", "runConfigData": {}}

    def launched() -> list[str]:  # nothing is, as long as the webserver has no definitions
        try:
            found = json.dumps(ask(made, LAUNCH, execution=execution))
        except URLError:
            return []
        return re.findall(r'"runId": "([^"]+)"', found)

    (run_id,) = awaited("it is launched", launched)
    return run_id


def begun(instance: dg.DagsterInstance, run_id: str) -> bool:
    return bool(instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_START))


@pytest.mark.soak
def test_a_table_is_dropped_and_made_again_while_nothing_runs(tmp_path: Path) -> None:
    world = World.made(tmp_path / "shop", schedule="idle_seconds: 2")
    world.write("insert into items values (1, 1)")
    world.order()
    with deployment(tmp_path / "home", world.location) as made:
        awaited("the first copy", world.applied)
        awaited("it is followed", lambda: passes(made, "items", "followed"))
        awaited("the session ends", lambda: not made.runs("sync", STARTED))
        world.write("drop table items")
        awaited("it turns red", lambda: passes(made, "items", "followed") is False)
        found = check(made, "items", "followed")
        assert found is not None
        assert "items" in (found.description or "")
        assert passes(made, "orders", "followed")
        world.order()
        awaited("the other table goes on", world.applied)
        time.sleep(30)
        opened = len(made.runs("sync"))
        time.sleep(30)
        assert len(made.runs("sync")) == opened, "sessions are opened for a table left out"
        world.write("create table items(id integer primary key, amount integer)")
        awaited("it turns green", lambda: passes(made, "items", "followed"), 600)
        assert not made.runs("sync", FAILURE)
    world.assert_equal()


@pytest.mark.soak
def test_the_source_is_moved_away_and_back(tmp_path: Path) -> None:
    world = World.made(tmp_path / "shop", schedule="idle_seconds: 5, report_seconds: 1")
    world.order()
    with deployment(tmp_path / "home", world.location) as made:
        awaited("the first copy", world.applied)
        awaited("the session ends", lambda: not made.runs("sync", STARTED))
        for file in world.root.glob("app.db*"):
            file.rename(world.root / file.name.replace("app", "away"))
        awaited("it turns red", lambda: passes(made, "orders", "followed") is False)
        for file in world.root.glob("away.db*"):
            file.rename(world.root / file.name.replace("away", "app"))
        awaited("it turns green", lambda: passes(made, "orders", "followed"), 300)
        world.order()
        awaited("it is applied", world.applied)
        assert not made.runs("sync", FAILURE)
    world.assert_equal()


@pytest.mark.soak
def test_the_mirror_is_held_by_another_process(tmp_path: Path) -> None:
    world = World.made(tmp_path / "shop", schedule="idle_seconds: 3, max_lag_seconds: 5")
    world.order()
    with deployment(tmp_path / "home", world.location) as made:
        awaited("the first copy", world.applied)
        awaited("the session ends", lambda: not made.runs("sync", STARTED))
        with rhei.open(world.settings):
            world.order()
            live_run(made)
            awaited("the lag shows", lambda: passes(made, "orders", "lag") is False)
        awaited("it is applied", world.applied)
        awaited("the lag is over", lambda: passes(made, "orders", "lag"))
        assert not made.runs("sync", FAILURE)
    world.assert_equal()


@pytest.mark.soak
def test_two_locations_do_not_wait_for_each_other(tmp_path: Path) -> None:
    worlds = [World.made(tmp_path / name) for name in ("one", "two")]
    worlds.append(World.made(tmp_path / "three", pipeline="name: third\n"))
    for world in worlds:
        world.name = world.root.name
        world.order()
    with deployment(tmp_path / "home", *(world.location for world in worlds)) as made:
        for world in worlds:
            awaited(f"the first copy of {world.name}", world.applied)
        open_at_once = made.runs("sync", STARTED) + made.runs("third_sync", STARTED)
        assert len(open_at_once) == len(worlds)
    for world in worlds:
        world.assert_equal()


@pytest.mark.soak
def test_a_code_server_for_each_shard_follows_its_own_tables_and_stops_no_other(
    tmp_path: Path,
) -> None:
    world = World.made(tmp_path / "shop", pipeline="name: shop\nshards: [[orders], []]\n")
    servers = [Location(f"shard_{n}", world.location.declaration, shard=n) for n in (1, 2)]

    def synced(shard: int, table: str) -> int:
        with rhei.open(world.settings.of_shard(shard), hold=False) as htap:
            try:
                return htap.row_count(table)
            except RheiError:  # not copied yet
                return 0

    with deployment(tmp_path / "home", *servers) as made:
        world.write("insert into orders values (1, 'new')", "insert into items values (1, 5)")
        for shard in (1, 2):
            live_run(made, f"shop_shard_{shard}_sync")
        awaited("the first copies", lambda: synced(1, "orders") and synced(2, "items"))
        made.kill("shard_1")
        world.write("insert into orders values (2, 'new')", "insert into items values (2, 5)")
        awaited("the other shard goes on", lambda: synced(2, "items") == 2)
        assert synced(1, "orders") == 1
        made.start_code_server(servers[0])
        awaited("the shard goes on", lambda: synced(1, "orders") == 2)
    for shard in (1, 2):
        with rhei.open(world.settings.of_shard(shard)) as htap:
            assert htap.verify().equal


@pytest.mark.soak
def test_a_server_is_mirrored_in_files_though_a_session_is_killed_and_a_table_dropped(
    dsn: str, tmp_path: Path
) -> None:
    world = ServerWorld.on(dsn, tmp_path / "shop", "idle_seconds: 20, report_seconds: 2")
    world.write("insert into items values (1, 1), (2, 2)")
    world.order()
    with deployment(tmp_path / "home", world.location) as made:
        awaited("the first copy", lambda: passes(made, "orders", "row_parity", "initial_sync"))
        world.write("update orders set status = 'sent'", "delete from items where id = 1")
        awaited("changes are applied", world.applied)
        killed = live_run(made)
        os.kill(made.session_process(), signal.SIGKILL)
        world.order()
        awaited("the next session applies it", world.applied)
        assert live_run(made) != killed
        world.write("update items set amount = 3", "drop table items")
        awaited("it turns red", lambda: passes(made, "items", "followed") is False)
        world.order()
        awaited("the other table goes on", lambda: rows_of(world, "orders")[0])
        assert passes(made, "orders", "followed")
        world.write("create table items(id int primary key, amount int)")
        world.write("insert into items values (5, 5)")
        awaited("it turns green", lambda: passes(made, "items", "followed"), 600)
        awaited("all is applied", lambda: rows_of(world, "items")[0])
        (failed,) = made.runs("sync", FAILURE)
        assert failed.dagster_run.run_id == killed
    for table in ("orders", "items"):
        is_equal, found = rows_of(world, table)
        assert is_equal, found
    world.assert_equal()


def rows_of(world: ServerWorld, table: str) -> tuple[bool, str]:
    """Return whether source and mirror have the same rows now, and what each of them has."""
    with psycopg.connect(world.dsn) as app, HTAP(world.settings, hold=False) as htap:
        source = app.execute(f"select * from {table} order by id".encode()).fetchall()
        shown = htap.query(f"select * from {table} order by id", hint="oltp").column_names
        found = htap.query(f"select * from {table} order by id", hint="olap")
    if "_rhei_valid_to" in found.column_names:
        found = found.filter(pc.is_null(found["_rhei_valid_to"]))
    mirror = [tuple(row.values()) for row in found.select(shown).to_pylist()]
    return source == mirror, f"{source} in the source, {mirror} in the mirror"


@pytest.mark.soak
def test_handovers_leave_no_hole(tmp_path: Path) -> None:
    """Rows at a constant rate; the source itself tells when the mirror has confirmed each."""
    world = World.made(tmp_path / "shop", schedule="session_seconds: 30")
    world.order()
    with deployment(tmp_path / "home", world.location) as made:
        awaited("the first copy", world.applied)
        lags = lags_while(world, lambda: len(made.runs("sync", SUCCESS)) < 6)
        handovers = len(made.runs("sync", SUCCESS)) - 1
    at = {share: lags[int(share * len(lags))] * 1000 for share in (0.5, 0.9, 0.99)}
    told = ", ".join(f"p{share * 100:g} {value:.0f} ms" for share, value in at.items())
    sys.stderr.write(f"\n{len(lags)} rows, {handovers} handovers: {told}, max {lags[-1]:.2f} s\n")
    assert handovers >= 5
    assert lags[-1] < 10, "a hole as long as a start"
    world.assert_equal()


def lags_while(world: World, goes_on: Callable[[], bool], per_second: float = 20) -> list[float]:
    """Write at a constant rate, whatever the mirror does; return each row's lag, sorted."""
    written, confirmed = list[float](), list[float]()
    file = f"file:{world.root / 'app.db'}?mode=ro"
    with closing(sqlite3.connect(file, uri=True, check_same_thread=False)) as reader:
        (begin,) = reader.execute("select seq from _rhei_consumer where tbl = 'orders'").fetchone()
        ended = threading.Event()

        def watch() -> None:
            while not ended.is_set() or len(confirmed) < len(written):
                (place,) = reader.execute(
                    "select seq from _rhei_consumer where tbl = 'orders'"
                ).fetchone()
                now = time.monotonic()
                confirmed.extend([now] * (place - begin - len(confirmed)))
                time.sleep(0.005)

        watching = threading.Thread(target=watch)
        watching.start()
        going, look_at = True, 0.0
        started = time.monotonic()
        with closing(sqlite3.connect(world.root / "app.db", timeout=30)) as writer:
            while going:
                time.sleep(max(0.0, started + len(written) / per_second - time.monotonic()))
                # The row is due now, whether its writing is late or not.
                due = started + len(written) / per_second
                with writer:
                    writer.execute("insert into orders(status) values ('new')")
                written.append(due)
                if time.monotonic() > look_at:
                    going, look_at = goes_on(), time.monotonic() + 5
        ended.set()
        watching.join()
    return sorted(at - due for due, at in zip(written, confirmed, strict=True))
