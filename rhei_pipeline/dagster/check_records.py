"""What Dagster has last on record of a check: news is what differs from it."""

from collections.abc import Collection, Mapping

import dagster as dg

#: When an evaluation was found, in its metadata: what repeats it comes later.
FOUND_AT = "found_at"


def last_evaluations(
    instance: dg.DagsterInstance, keys: Collection[dg.AssetCheckKey]
) -> Mapping[dg.AssetCheckKey, dg.AssetCheckEvaluation]:
    """Return the last evaluation of each check; one that was never evaluated is left out."""
    return {key: evaluation for key, (evaluation, _) in _on_record(instance, keys).items()}


def last_evaluations_anew(
    instance: dg.DagsterInstance, keys: Collection[dg.AssetCheckKey]
) -> list[dg.AssetCheckEvaluation]:
    """Return the last evaluation of each check as a new event, which tells when it was found.

    Dagster shows a check as not evaluated, be it red or green, as soon as another run reports its
    asset. Whoever does so repeats what is still the last word on it.
    """
    return [
        dg.AssetCheckEvaluation(
            asset_key=key.asset_key,
            check_name=key.name,
            passed=told.passed,
            severity=told.severity,
            description=told.description,
            metadata={FOUND_AT: dg.TimestampMetadataValue(at), **told.metadata},
        )
        for key, (told, at) in _on_record(instance, keys).items()
    ]


def _on_record(
    instance: dg.DagsterInstance, keys: Collection[dg.AssetCheckKey]
) -> Mapping[dg.AssetCheckKey, tuple[dg.AssetCheckEvaluation, float]]:
    """Return the last evaluation of each check, and when it was written."""
    storage = instance.event_log_storage
    found = {}
    for key, record in storage.get_latest_asset_check_execution_by_key(list(keys)).items():
        entry, event = record.event, record.event.dagster_event if record.event else None
        # Asked for two assets, it also finds checks of one by the names of the other's.
        if key not in keys or not (entry and event):
            continue
        if event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            found[key] = event.asset_check_evaluation_data, entry.timestamp
    return found


def is_news(evaluation: dg.AssetCheckEvaluation, last: dg.AssetCheckEvaluation | None) -> bool:
    """Return whether an evaluation says something else than the last one; numbers do not count."""
    return last is None or _said(evaluation) != _said(last)


def _said(evaluation: dg.AssetCheckEvaluation) -> tuple[object, ...]:
    return evaluation.passed, evaluation.severity, evaluation.description or ""
