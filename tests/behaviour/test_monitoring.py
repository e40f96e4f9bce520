"""The numbers that Prometheus reads, over real HTTP."""

import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from rhei_pipeline.monitoring import Monitoring, MonitoringServer
from tests.fix_world import World


@pytest.fixture
def server(world: World) -> Iterator[MonitoringServer]:
    with MonitoringServer(Monitoring(world.htap), port=0) as made:
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
    world: World, server: MonitoringServer
) -> None:
    world.htap.sync_now()
    world.run("insert into orders values (4, 'new', 1)", "delete from orders where id = 1")
    world.htap.sync_now()
    world.run("update orders set status = 'x' where id = 2")
    world.htap.query("select count(*) from orders")
    world.htap.query("select * from orders where id = 2")
    status, text = get(server, "/metrics", "application/openmetrics-text; version=1.0.0")
    found = samples(text)
    assert status == 200
    assert found["rhei_query_routed_total", "olap"] == 1
    assert found["rhei_query_routed_total", "oltp"] == 1
    assert found["rhei_sync_events_processed_total", "orders"] == 2
    assert found["rhei_sync_rows_copied_total", "orders"] == 3
    assert found["rhei_sync_rows_deleted_total", "orders"] == 1
    assert found["rhei_sync_cdc_lag_events", "orders"] == 1
    assert found["rhei_up", ""] == 1


def test_readiness_waits_for_the_first_copy(world: World, server: MonitoringServer) -> None:
    assert get(server, "/healthz") == (200, "alive\n")
    assert get(server, "/readyz") == (503, "not copied yet: orders\n")
    world.htap.sync_now()
    assert get(server, "/readyz") == (200, "ready\n")
    assert get(server, "/else")[0] == 404


def test_a_closed_engine_is_neither_up_nor_ready(world: World, server: MonitoringServer) -> None:
    world.htap.close()
    assert get(server, "/readyz")[0] == 503
    assert "rhei_up 0.0" in get(server, "/metrics")[1]
