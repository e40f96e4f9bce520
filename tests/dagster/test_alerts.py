"""The example of an alert: what turns red is posted to a webhook, once."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import JobFailureData
from dagster_shared.error import SerializableErrorInfo

from examples.alerts import alert_sensors, reason

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
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        result = failing.execute_in_process(instance=instance, raise_on_error=False)
        alert(webhook, instance, result.get_run_failure_event(), result.dagster_run)
    assert texts == [f"run failing ({result.run_id}) failed: the mirror is away"]


def test_a_run_that_dagster_gave_up_is_posted_with_what_dagster_says(
    posted: tuple[str, list[str]], tmp_path: Path
) -> None:
    """A dead worker, or one that never began, leaves no error behind."""
    webhook, texts = posted
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        run = instance.create_run_for_job(failing, status=dg.DagsterRunStatus.STARTED)
        event = instance.report_run_failed(run, "Detected run worker status UNKNOWN.")
        alert(webhook, instance, event, run)
    assert texts == [f"run failing ({run.run_id}) failed: Detected run worker status UNKNOWN."]


def test_an_error_without_words_of_its_own_is_posted_by_its_name() -> None:
    error = SerializableErrorInfo("builtins.MemoryError\n", [], "MemoryError")
    data = JobFailureData(error, None)
    event = dg.DagsterEvent(
        dg.DagsterEventType.RUN_FAILURE.value, "failing", event_specific_data=data
    )
    assert reason(event) == "builtins.MemoryError"


@dg.op
def fails() -> None:
    raise dg.Failure("the mirror is away")


@dg.job
def failing() -> None:
    fails()


def alert(
    webhook: str, instance: dg.DagsterInstance, event: dg.DagsterEvent, run: dg.DagsterRun
) -> None:
    """Give an event to the sensor that posts failed runs."""
    sensor, _ = alert_sensors(webhook, "sync", [])
    context = dg.build_run_status_sensor_context(
        sensor_name=sensor.name, dagster_event=event, dagster_instance=instance, dagster_run=run
    ).for_run_failure()
    sensor(context)
