"""The numbers that Prometheus reads, over real HTTP."""

import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from psycopg.conninfo import conninfo_to_dict

from examples.postgres_server import Server
from rhei_pipeline.model.reports import Standing
from rhei_pipeline.monitoring import server as monitoring_server
from rhei_pipeline.monitoring import status_page
from rhei_pipeline.monitoring.server import MonitoringServer
from rhei_pipeline.sync.status import StatusCache
from rhei_pipeline.wiring.engine import bridge
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

DEPLOY = Path(__file__).parents[3] / "deploy" / "monitoring"


@pytest.fixture(name="metrics")
def metrics_of(world: World) -> Iterator[MonitoringServer]:
    with MonitoringServer(world.htap, port=0) as made:
        yield made


def get(server: MonitoringServer, path: str, accept: str = "*/*") -> tuple[int, str]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{path}", headers={"Accept": accept}
    )
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


def test_metrics_are_valid_openmetrics_and_count_what_happened(
    world: World, metrics: MonitoringServer
) -> None:
    world.htap.sync_now()
    world.run("insert into orders values (4, 'new', 1)", "delete from orders where id = 1")
    world.htap.sync_now()
    world.run("update orders set status = 'x' where id = 2")
    world.htap.query("select count(*) from orders")
    world.htap.query("select * from orders where id = 2")
    status, text = get(metrics, "/metrics", "application/openmetrics-text; version=1.0.0")
    found = samples(text)
    assert status == 200
    assert found["rhei_query_routed_total", "olap"] == 1
    assert found["rhei_query_routed_total", "oltp"] == 1
    assert found["rhei_sync_events_processed_total", "orders"] == 2
    assert found["rhei_sync_rows_copied_total", "orders"] == 3
    assert found["rhei_sync_rows_deleted_total", "orders"] == 1
    assert found["rhei_sync_rows_pruned_total", ""] == 2  # one of three stays as the proof
    assert found["rhei_sync_cdc_lag_events", "orders"] == 1
    assert found["rhei_up", ""] == 1


def test_readiness_waits_for_the_first_copy(world: World, metrics: MonitoringServer) -> None:
    assert get(metrics, "/healthz") == (200, "alive\n")
    assert get(metrics, "/readyz") == (503, "not copied yet: orders\n")
    world.htap.sync_now()
    assert get(metrics, "/readyz") == (200, "ready\n")
    assert get(metrics, "/else")[0] == 404


@pytest.mark.parametrize("said", [b"", b"GET /hea", b"GET /healthz HTTP/1.1\r\nHost: h\r\n"])
def test_who_goes_without_a_word_holds_neither_thread_nor_socket(
    world: World,
    said: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A machine that is switched off, or a scraper that hangs, sends no end."""
    monkeypatch.setattr(monitoring_server._Handler, "timeout", 0.2)
    with MonitoringServer(world.htap, port=0) as metrics:
        before = threading.active_count()
        address = ("127.0.0.1", metrics.port)
        clients = [socket.create_connection(address, timeout=20) for _ in range(20)]
        for client in clients:
            client.sendall(said)
        assert [client.recv(1) for client in clients] == [b""] * 20  # the server has hung up
        while threading.active_count() > before:
            time.sleep(0.01)
        assert get(metrics, "/healthz") == (200, "alive\n")
        for client in clients:
            client.close()
    assert capfd.readouterr().err == ""


def test_who_asks_without_an_end_is_hung_up_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that sends a little again and again is never silent for long."""
    monkeypatch.setattr(monitoring_server._Handler, "timeout", 1.0)
    with MonitoringServer(world.htap, port=0) as metrics:
        before = threading.active_count()
        client = socket.create_connection(("127.0.0.1", metrics.port), timeout=0.1)
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
        with suppress(ConnectionError):
            while True:
                client.sendall(b"X-More: of it\r\n")
                with suppress(TimeoutError):
                    assert client.recv(1) == b""
                    break
        while threading.active_count() > before:
            time.sleep(0.01)
        client.close()


def test_an_answer_that_takes_long_is_waited_for(
    world: World, metrics: MonitoringServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitoring_server._Handler, "timeout", 0.1)
    page = status_page.status_page

    def slow(*args: Any) -> str:
        time.sleep(1.5)  # longer than the time to ask, and than between two looks at who asks
        return page(*args)

    monkeypatch.setattr("rhei_pipeline.monitoring.server.status_page", slow)
    assert world.htap.sync_now().events == 0
    assert get(metrics, "/")[0] == 200


def test_one_more_client_than_are_served_takes_the_place_of_who_asks_for_longest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitoring_server, "_MOST_CLIENTS", 5)
    monkeypatch.setattr(monitoring_server._Handler, "timeout", 600.0)  # none is hung up on for it
    with MonitoringServer(world.htap, port=0) as metrics:
        before = threading.active_count()
        address = ("127.0.0.1", metrics.port)
        clients = [socket.create_connection(address, timeout=20) for _ in range(20)]
        assert [client.recv(1) for client in clients[:15]] == [b""] * 15
        assert get(metrics, "/healthz") == (200, "alive\n")
        while threading.active_count() > before + 5:
            time.sleep(0.01)
        for client in clients:
            client.close()


def test_who_was_answered_takes_nobodys_place_and_who_waits_for_an_answer_keeps_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitoring_server, "_MOST_CLIENTS", 1)
    asked, go_on = threading.Event(), threading.Event()

    def slow(*_: Any) -> str:
        asked.set()
        assert go_on.wait(60)
        return "the page"

    with MonitoringServer(world.htap, port=0) as metrics:
        before = threading.active_count()
        for _ in range(3):
            assert get(metrics, "/healthz") == (200, "alive\n")
            while threading.active_count() > before:
                time.sleep(0.001)
        monkeypatch.setattr("rhei_pipeline.monitoring.server.status_page", slow)
        with ThreadPoolExecutor(1) as pool:
            page = pool.submit(get, metrics, "/")
            assert asked.wait(60)
            with pytest.raises(OSError):  # noqa: PT011  (closed, or reset)
                get(metrics, "/healthz")
            go_on.set()
            assert page.result(60) == (200, "the page")


def test_a_table_that_is_left_out_keeps_nobody_from_asking(world: World) -> None:
    """The source answers for it; the page and the metrics name it."""
    world.run("create table keyless(v)")
    world.tables = [{"name": "orders"}, {"name": "keyless"}]
    with MonitoringServer(world.htap, port=0) as metrics:
        world.htap.sync_now()
        assert get(metrics, "/readyz") == (200, "ready\n")
        found = scrape(metrics)
        assert found["rhei_table_left_out", "keyless"] == 1
        # Its changes are not measured: 0 would say that it is up to date.
        assert ("rhei_sync_cdc_lag_events", "keyless") not in found
        assert ("rhei_sync_cdc_lag_seconds", "keyless") not in found
        page = get(metrics, "/")[1]
        assert "how far the mirror of keyless is behind is not known" in page
        assert "Every change is in the mirror" not in page


def test_a_closed_engine_is_neither_up_nor_ready(world: World, metrics: MonitoringServer) -> None:
    world.htap.close()
    assert get(metrics, "/readyz")[0] == 503
    assert "rhei_up 0.0" in get(metrics, "/metrics")[1]
    assert "the mirror is closed" in get(metrics, "/")[1]


def test_a_sync_that_cannot_open_the_mirror_is_failing(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.run("create table t(id integer primary key)")
    world.htap.sync_now()
    world.crash()
    mirror = world.settings.mirror.path
    aside = mirror.rename(mirror.with_name("aside"))
    mirror.mkdir()
    world.htap.start_sync(0.05)
    with MonitoringServer(world.htap, port=0) as metrics:
        found = eventually(lambda: scrape(metrics), lambda s: s["rhei_sync_failing", ""] == 1)
        assert (found["rhei_up", ""], found["rhei_sync_running", ""]) == (0, 1)
        # Nothing is claimed of what is not known.
        assert ("rhei_publishing_failing", "") not in found
        assert ("rhei_status_age_seconds", "") not in found
        page = get(metrics, "/")[1]
        assert "Cannot be read" in page
        assert "Last error" in page
        mirror.rmdir()
        aside.rename(mirror)
        found = eventually(lambda: scrape(metrics), lambda s: s["rhei_sync_failing", ""] == 0)
        assert (found["rhei_up", ""], found["rhei_table_ready", "t"]) == (1, 1)
        assert found["rhei_publishing_failing", ""] == 0


def scrape(server: MonitoringServer) -> dict[tuple[str, str], float]:
    return samples(get(server, "/metrics", "application/openmetrics-text; version=1.0.0")[1])


@contextmanager
def away(server: Server, dsn: str) -> Iterator[None]:
    """Have a database refuse everybody."""
    name = conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"alter database {name} allow_connections false".encode())
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,)
        )
        yield
        admin.execute(f"alter database {name} allow_connections true".encode())


@pytest.mark.long
def test_while_the_source_is_away_every_series_stays_and_nothing_flaps(
    make_postgres: Callable[..., PostgresWorld], server: Server
) -> None:
    world = make_postgres(capture={"method": "trigger"})
    world.run("create table t(id int primary key)", "insert into t values (1)")
    world.htap.sync_now()
    with MonitoringServer(world.htap, port=0) as metrics:
        world.run("insert into t values (2)")
        known = scrape(metrics)
        assert known["rhei_sync_cdc_lag_events", "t"] == 1
        with away(server, world.dsn):
            world.htap.start_sync(0.01)
            failing = ("rhei_sync_failing", "")
            eventually(lambda: scrape(metrics), lambda s: (s["rhei_up", ""], s[failing]) == (0, 1))
            for _ in range(3):  # now a sync waits for the source, now nobody does
                found = scrape(metrics)
                assert (found["rhei_up", ""], found[failing]) == (0, 1)
            assert found.keys() >= known.keys()
            assert found["rhei_sync_cdc_lag_events", "t"] == 1
            assert found["rhei_status_age_seconds", ""] > 0
            assert get(metrics, "/readyz")[0] == 503
        found = eventually(lambda: scrape(metrics), lambda s: s["rhei_up", ""] == 1)
        found = eventually(lambda: scrape(metrics), lambda s: s["rhei_sync_failing", ""] == 0)
        assert found["rhei_sync_cdc_lag_events", "t"] == 0


def eventually(
    read: Callable[[], dict[tuple[str, str], float]],
    holds: Callable[[dict[tuple[str, str], float]], bool],
) -> dict[tuple[str, str], float]:
    """Read until it holds."""
    until = time.monotonic() + 60
    while not holds(found := read()):
        assert time.monotonic() < until, found
    return found


@pytest.mark.long
def test_a_scrape_during_a_long_copy_tells_how_far_it_has_come(
    make_world: Callable[..., World],
) -> None:
    """Prometheus waits for nobody: what holds up a sync must not hold up what is told of it."""
    world = make_world(batch_rows=2)
    world.run(
        "create table t(id integer primary key, v text)",
        "insert into t values (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd')",
    )
    reached, go_on = threading.Event(), threading.Event()

    def pause(_table: str, rows: int, _of: int) -> None:
        if rows == 2:
            reached.set()
            assert go_on.wait(60)

    with MonitoringServer(world.htap, port=0) as server:
        copy = threading.Thread(target=world.htap.sync_now, args=(pause,))
        copy.start()
        assert reached.wait(60)
        accepted = "application/openmetrics-text; version=1.0.0"
        found = samples(get(server, "/metrics", accepted)[1])
        assert (found["rhei_copy_rows", "t"], found["rhei_copy_expected_rows", "t"]) == (2, 4)
        assert found["rhei_status_age_seconds", ""] >= 0
        assert get(server, "/readyz") == (503, "not copied yet: t\n")
        go_on.set()
        copy.join()
        assert get(server, "/readyz") == (200, "ready\n")
        assert ("rhei_copy_rows", "t") not in samples(get(server, "/metrics", accepted)[1])


def test_what_is_kept_until_the_mirror_has_it_is_told(make_world: Callable[..., World]) -> None:
    world = make_world(buffered=True)
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    world.htap.sync_now()
    empty = world.htap.sync_status().held_bytes["buffer"]
    world.crash()
    world.app.executemany("insert into t values (?)", ((key,) for key in range(10, 5000)))
    bridge(world.settings)
    assert world.htap.sync_status().held_bytes["buffer"] > empty


def test_an_error_that_nobody_expected_is_told_and_not_taken_for_news() -> None:
    status = StatusCache()
    status.keep(Standing({}, {"slot": 1}))
    found = status.within(60, lambda: 1 // 0)
    assert found.unreadable == "reading failed with ZeroDivisionError"
    assert found.held_bytes == {"slot": 1}
    assert found.age_seconds > 0


def test_dashboard_and_alerts_ask_for_metrics_that_exist(
    world: World, metrics: MonitoringServer
) -> None:
    world.htap.sync_now()
    world.htap.query("select count(*) from orders")
    text = get(metrics, "/metrics")[1]
    families = re.findall(r"^# TYPE (\w+) (\w+)$", text, flags=re.MULTILINE)
    known = {name for name, _ in families}
    known |= {f"{name}_bucket" for name, kind in families if kind == "histogram"}
    rules = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"][0]["rules"]
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    asked = [rule["expr"] for rule in rules]
    asked += [target["expr"] for panel in panels for target in panel["targets"]]
    labels = {"instance", "table", "keeper", "engine", "le"}
    for expression in asked:
        named = set(re.findall(r"\brhei_\w+", expression))
        assert named
        assert named <= known, expression
        grouped = re.findall(r"(?:by|on) \(([\w, ]+)\)", expression)
        assert {label for group in grouped for label in group.split(", ")} <= labels
    used = set(re.findall(r"\brhei_\w+", " ".join(asked)))
    assert used >= {"rhei_up", "rhei_sync_failing", "rhei_table_left_out"}
