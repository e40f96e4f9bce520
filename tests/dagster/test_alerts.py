"""The example of an alert: what turns red is posted to a webhook, once."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest

from examples.alerts import alert_sensors

KEY = dg.AssetCheckKey(dg.AssetKey(["mirror", "orders"]), "followed")


@pytest.fixture
def posted() -> Iterator[tuple[str, list[str]]]:
    """A webhook on this machine: its address, and the texts it was sent."""
    texts: list[str] = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            texts.append(json.loads(body)["text"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            """Print nothing."""

    server = HTTPServer(("127.0.0.1", 0), Webhook)
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", texts
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_check_that_fails_is_posted_once_and_again_when_it_passes(
    posted: tuple[str, list[str]], tmp_path: Path
) -> None:
    webhook, texts = posted
    _, sensor = alert_sensors(webhook, "sync", [KEY])
    cursor = None
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        for why in ("", "", "no such table", "no such table", "no key", ""):
            instance.report_runless_asset_event(
                dg.AssetCheckEvaluation(
                    asset_key=KEY.asset_key,
                    check_name=KEY.name,
                    passed=not why,
                    description=why or None,
                )
            )
            with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
                cursor = sensor.evaluate_tick(context).cursor or cursor
    name = KEY.to_user_string()
    assert texts == [f"{name}: no such table", f"{name}: no key", f"{name}: passes again"]


def test_a_run_that_fails_is_posted_with_what_it_failed_of(
    posted: tuple[str, list[str]], tmp_path: Path
) -> None:
    webhook, texts = posted

    @dg.op
    def fails() -> None:
        raise dg.Failure("the mirror is away")

    @dg.job
    def sync() -> None:
        fails()

    sensor, _ = alert_sensors(webhook, "sync", [])
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        result = sync.execute_in_process(instance=instance, raise_on_error=False)
        event = result.get_run_failure_event()
        context = dg.build_run_status_sensor_context(
            sensor_name=sensor.name,
            dagster_event=event,
            dagster_instance=instance,
            dagster_run=result.dagster_run,
        ).for_run_failure()
        sensor(context)
    assert texts == [f"run sync ({result.run_id}) failed: the mirror is away"]
