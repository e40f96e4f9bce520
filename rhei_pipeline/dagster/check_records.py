"""What Dagster has last on record of a check: news is what differs from it."""

from collections.abc import Collection, Mapping

import dagster as dg


def last_evaluations(
    instance: dg.DagsterInstance, keys: Collection[dg.AssetCheckKey]
) -> Mapping[dg.AssetCheckKey, dg.AssetCheckEvaluation]:
    """Return the last evaluation of each check; one that was never evaluated is left out."""
    storage = instance.event_log_storage
    found = {}
    for key, record in storage.get_latest_asset_check_execution_by_key(list(keys)).items():
        event = record.event.dagster_event if record.event else None
        if event is not None and event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            found[key] = event.asset_check_evaluation_data
    return found


def is_news(evaluation: dg.AssetCheckEvaluation, last: dg.AssetCheckEvaluation | None) -> bool:
    """Return whether an evaluation says something else than the last one; numbers do not count."""
    return last is None or _said(evaluation) != _said(last)


def _said(evaluation: dg.AssetCheckEvaluation) -> tuple[object, ...]:
    return evaluation.passed, evaluation.severity, evaluation.description or ""
