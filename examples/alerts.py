"""Tells a webhook what turned red: runs that failed, and checks that fail.

    from examples.alerts import alert_sensors

    defs = dg.Definitions.merge(build_definitions(settings), dg.Definitions(
        sensors=alert_sensors(dg.EnvVar("ALERT_WEBHOOK").get_value() or "", "sync", checks)))

A check's news is told once: when it begins to fail, when that changes, and when it passes again.
"""

import json
import urllib.request
from collections.abc import Mapping, Sequence

import dagster as dg

from rhei_pipeline.dagster import last_evaluations

#: What is said is for people who read it in a chat: `text` is what most of them show.
Message = Mapping[str, str]


def alert_sensors(
    webhook: str, name: str, checks: Sequence[dg.AssetCheckKey]
) -> list[dg.SensorDefinition]:
    """Make the two sensors that post to a webhook.

    Args:
        webhook: Where to post, as JSON with the field `text`.
        name: What the sensors' names begin with.
        checks: The checks to watch.
    """

    @dg.run_failure_sensor(
        name=f"{name}_run_alerts",
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Posts each run that failed to a webhook.",
    )
    def run_alerts(context: dg.RunFailureSensorContext) -> None:
        run, why = context.dagster_run, reason(context.failure_event)
        post(webhook, {"text": f"run {run.job_name} ({run.run_id}) failed: {why}"})

    @dg.sensor(
        name=f"{name}_check_alerts",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Posts each check that begins to fail, or passes again, to a webhook.",
    )
    def check_alerts(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        told = json.loads(context.cursor or "{}")
        for key, found in last_evaluations(context.instance, checks).items():
            said = "" if found.passed else found.description or "it fails"
            label = key.to_user_string()
            if said != told.get(label, ""):
                post(webhook, {"text": f"{label}: {said or 'passes again'}"})
                # Only what was posted is noted: a webhook that is away is tried again.
                told[label] = said
                context.update_cursor(json.dumps(told))
        return dg.SkipReason("every change of a check was posted")

    return [run_alerts, check_alerts]


def reason(event: dg.DagsterEvent) -> str:
    """Return what is wrong and what to do; of a run that Dagster gave up, what Dagster says."""
    # Such a run has no data: its process is gone, or was never there.
    error = event.job_failure_data.error if event.event_specific_data else None
    if error is None:
        return event.message or "no reason is on record"
    # The name of the error's class is before it.
    return error.message.partition(": ")[2].strip() or error.message.strip()


def post(webhook: str, message: Message) -> None:
    """Post a message; an address that does not take it fails the sensor's tick."""
    asked = urllib.request.Request(  # noqa: S310  (the address is declared, not given by a user)
        webhook, json.dumps(message).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=10):  # noqa: S310
        pass
