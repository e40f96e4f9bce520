"""How each mirror stands, as checks: what a session knows of a table becomes green, yellow, red.

A session reports them itself while it runs, and only where something has changed. Run by hand, they
ask the mirror.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import dagster as dg

from rhei_pipeline.dagster.check_records import FOUND_AT
from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.plain_failures import said_plainly
from rhei_pipeline.dagster.resources import OlapResource
from rhei_pipeline.dagster.stages import Stage
from rhei_pipeline.model.report import counted
from rhei_pipeline.model.reports import SyncStatus, TableStatus
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.settings.model import Settings

#: So many times the lag that is a warning is an error.
ERROR_FACTOR = 10


class StateCheck(StrEnum):
    """The checks of a mirror's state."""

    FOLLOWED = "followed"
    DEAD_LETTERS = "dead_letters"
    DRIFT = "drift"
    LAG = "lag"
    PROOF = "proof"
    HISTORY = "history"
    PUBLISHED = "published"


_DESCRIPTIONS = {
    StateCheck.FOLLOWED: "The table takes part in the sync. One that is left out is named, with the"
    " reason and the way out.",
    StateCheck.DEAD_LETTERS: "Every row of the source fits the mirror.",
    StateCheck.DRIFT: "The mirror has the columns that these definitions show.",
    StateCheck.LAG: "No change waits longer than `schedule.max_lag_seconds`; ten times that is an"
    " error.",
    StateCheck.PROOF: "No change can have been missed.",
    StateCheck.HISTORY: "The versions of each key follow each other: none overlaps or is missing.",
    StateCheck.PUBLISHED: "Other engines read the mirror as it is, or as it was one interval ago.",
}


@dataclass(frozen=True, slots=True)
class StateFinding:
    """What a check found.

    Attributes:
        text: What is wrong and what to do; empty where nothing is.
        facts: Numbers, shown with the check.
    """

    check: StateCheck
    passed: bool
    text: str = ""
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
    facts: Mapping[str, Any] = field(default_factory=dict)

    def evaluation(self, key: dg.AssetKey) -> dg.AssetCheckEvaluation:
        """Return it as an event of its own.

        It tells its time itself: Dagster shows every evaluation of a run with the time at which
        the run was planned, which for a session may be hours ago.
        """
        now = dg.MetadataValue.timestamp(datetime.now(UTC))
        return dg.AssetCheckEvaluation(
            asset_key=key,
            check_name=self.check.value,
            passed=self.passed,
            severity=self.severity,
            description=self.text or None,
            metadata={**self.facts, FOUND_AT: now},
        )

    def result(self, key: dg.AssetKey) -> dg.AssetCheckResult:
        """Return it as the result of a check that was run."""
        return dg.AssetCheckResult(
            asset_key=key,
            check_name=self.check.value,
            passed=self.passed,
            severity=self.severity,
            description=self.text or None,
            metadata=dict(self.facts),
        )


def state_findings(
    table: Table, status: SyncStatus, now: Table | None, max_lag_seconds: float, waited: float = 0.0
) -> Iterator[StateFinding]:
    """Yield what each check says of a table.

    Args:
        table: As the definitions have it.
        status: How the tables stand.
        now: The table as it is mirrored now; None where it is left out.
        max_lag_seconds: From here on lag is a warning.
        waited: The longest that a change waited since the last report.
    """
    found = status.tables.get(table.name)
    if found is None:  # neither source nor mirror could be read yet
        return
    yield followed(found.error)
    yield from _lag(found, max_lag_seconds, waited, status.unreadable)
    yield _dead_letters(found)
    if now is not None:
        yield _drift(table, now)
    if found.error is None:
        yield _proof(found)
    yield StateFinding(
        StateCheck.PUBLISHED, status.not_published is None, status.not_published or ""
    )


def followed(error: str | None, facts: Mapping[str, Any] | None = None) -> StateFinding:
    """Return whether a table takes part in the sync; its error says why not."""
    return StateFinding(StateCheck.FOLLOWED, error is None, error or "", facts=facts or {})


def _lag(
    found: TableStatus, max_lag_seconds: float, waited: float, unreadable: str | None
) -> Iterator[StateFinding]:
    """Yield whether changes wait; nothing of a table that waits for its first copy."""
    # Of one that was copied, a lag that nobody can tell is doubted.
    is_untold = found.lag_seconds is None and found.watermark is not None
    why = unreadable or found.error or (found.doubt if is_untold else None)
    if why is not None:
        yield unknown_lag(why, max_lag_seconds, found.lag_seconds)
    elif found.lag_seconds is not None:
        yield lag(max(found.lag_seconds, waited), max_lag_seconds)


def unknown_lag(why: str, max_lag_seconds: float, last: float | None = None) -> StateFinding:
    """Return that nobody knows how long changes wait; `last` is what was known before."""
    facts = {} if last is None else {"lag_seconds": round(last, 1)}
    return StateFinding(
        StateCheck.LAG,
        passed=False,
        text=f"the lag is not known now: {why}",
        severity=_WARN,
        facts={**facts, "max_lag_seconds": max_lag_seconds},
    )


def lag(seconds: float, max_lag_seconds: float) -> StateFinding:
    """Return whether changes wait longer than they may."""
    facts = {"lag_seconds": round(seconds, 1), "max_lag_seconds": max_lag_seconds}
    if seconds <= max_lag_seconds:
        return StateFinding(StateCheck.LAG, passed=True, facts=facts)
    is_error = seconds > max_lag_seconds * ERROR_FACTOR
    bound = max_lag_seconds * (ERROR_FACTOR if is_error else 1)
    text = (
        f"changes waited longer than {bound:g} s; see whether a sync session is open, and its log"
    )
    return StateFinding(
        StateCheck.LAG, passed=False, text=text, severity=_ERROR if is_error else _WARN, facts=facts
    )


def history(broken: int) -> StateFinding:
    """Return whether a history contradicts itself."""
    text = (
        f"the versions of {counted(broken, 'key')} contradict each other; rhei repair corrects what"
        " it can"
    )
    return StateFinding(
        StateCheck.HISTORY, broken == 0, text if broken else "", facts={"broken_keys": broken}
    )


_WARN, _ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR


def _dead_letters(found: TableStatus) -> StateFinding:
    letters = found.dead_letters
    rows = "1 row of the source does" if letters == 1 else f"{letters:,} rows of the source do"
    text = (
        f"{rows} not fit the mirror:"
        f" 'rhei dead-letters --table {found.table}' shows each with its key and the reason"
    )
    facts = {"rows": letters, **({"reasons": dict(found.dead_letter_reasons)} if letters else {})}
    return StateFinding(StateCheck.DEAD_LETTERS, letters == 0, text if letters else "", facts=facts)


def _drift(table: Table, now: Table) -> StateFinding:
    """Compare the columns that the UI shows with those that are mirrored."""
    shown = {column.name: column.type for column in table.schema.columns}
    mirrored = {column.name: column.type for column in now.schema.columns}
    changes = [
        *(f"{name!r} was added" for name in mirrored if name not in shown),
        *(f"{name!r} was dropped" for name in shown if name not in mirrored),
        *(
            f"{name!r} was {shown[name]}, and is {mirrored[name]}"
            for name in shown
            if name in mirrored and mirrored[name] != shown[name]
        ),
    ]
    text = f"the mirror follows the source: {', '.join(changes)}; reload the definitions to see it"
    return StateFinding(StateCheck.DRIFT, not changes, text if changes else "", severity=_WARN)


def _proof(found: TableStatus) -> StateFinding:
    return StateFinding(StateCheck.PROOF, found.doubt is None, found.doubt or "", severity=_WARN)


def state_check_specs(declaration: Declaration, table: Table) -> Sequence[dg.AssetCheckSpec]:
    """Return the specs of a table's checks."""
    key = declaration.key(Stage.MIRROR, table)
    return [
        dg.AssetCheckSpec(check, asset=key, description=_DESCRIPTIONS[StateCheck(check)])
        for check in checks_of(declaration.settings, table)
    ]


def checks_of(settings: Settings, table: Table) -> Sequence[str]:
    """Return the names of a table's checks of its state."""
    none = set() if table.mode is Mode.TEMPORAL else {StateCheck.HISTORY}
    none |= set() if settings.mirror.publishes else {StateCheck.PUBLISHED}
    return [check.value for check in StateCheck if check not in none]


def mirror_state_checks(declaration: Declaration) -> list[dg.AssetChecksDefinition]:
    """Make the checks of all mirrors' state; nothing where there is no table."""
    if not declaration.tables:
        return []
    names = declaration.names
    specs = [spec for table in declaration.tables for spec in state_check_specs(declaration, table)]
    by_key = {declaration.key(Stage.MIRROR, table): table for table in declaration.tables}

    @dg.multi_asset_check(
        name=names.named("mirror_state"),
        specs=specs,
        can_subset=True,
        pool=names.pool,
        required_resource_keys={names.olap},
    )
    def mirror_state(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        olap: OlapResource = getattr(context.resources, names.olap)
        chosen = context.selected_asset_check_keys
        with said_plainly(), olap.open() as htap:
            status, now = htap.sync_status(), htap.table_schemas()
            bound = olap.settings().schedule.max_lag_seconds
            for key in {check.asset_key for check in chosen}:
                table = by_key[key]
                found = list(state_findings(table, status, now.get(table.name), bound))
                if table.name in now and table.mode is Mode.TEMPORAL:
                    found.append(history(htap.broken_histories(table.name).num_rows))
                for finding in found:
                    if dg.AssetCheckKey(key, finding.check.value) in chosen:
                        yield finding.result(key)

    return [mirror_state]
