"""What the sensor reports beside opening sessions: the source, and what is wrong while none runs.

At most once a minute, and only what has changed: an event that says nothing new is never written.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg

from rhei_pipeline.dagster.check_records import is_news, last_evaluations, last_evaluations_anew
from rhei_pipeline.dagster.checks import EQUALS_SOURCE
from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.failed_sessions import tell_dead_sessions
from rhei_pipeline.dagster.relay import RETRY_SECONDS
from rhei_pipeline.dagster.resources import CdcResource
from rhei_pipeline.dagster.stages import Stage
from rhei_pipeline.dagster.state_checks import StateCheck, checks_of, followed, lag, unknown_lag
from rhei_pipeline.errors import RheiError, TransientError
from rhei_pipeline.model.standing import SourceStanding
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.wiring.declared_schemas import declared_schemas
from rhei_pipeline.wiring.unfollowed import unfollowed_tables

_LOOK_SECONDS = 60.0
#: How often a table of the source is observed at most, and the stream of changes while a session
#: is open. What the sensor reports belongs to no run, and is never deleted.
_BESIDE_SECONDS = 1200.0
#: The least time between two reports that a quiet mirror is up to date.
_LEAST_QUIET_SECONDS = 1200.0
_FOUND_BY = "found_by"
_SENSOR = "sensor"
#: The tag of an event with the version of its asset: of a mirror, the watermark.
DATA_VERSION = "dagster/data_version"


def quiet_seconds(settings: Settings) -> float:
    """Return how often a mirror is reported at least: by each session, or while none is open."""
    return max(settings.schedule.session_seconds, _LEAST_QUIET_SECONDS)


def freshness(settings: Settings) -> dg.FreshnessPolicy:
    """Return the policy that nobody has told for long that a mirror is up to date."""
    return dg.FreshnessPolicy.time_window(
        fail_window=timedelta(seconds=3 * quiet_seconds(settings))
    )


class Observer:
    """Looks at the source once a minute, and reports what is news.

    It remembers what it reported in this process; forgetting it costs one more event.
    """

    def __init__(self, declaration: Declaration) -> None:
        self._declaration = declaration
        self._look_at = self._table_at = 0.0
        self._observed: dict[dg.AssetKey, tuple[float, object]] = {}
        self._can_follow_again = self._tells_of_waiting = False
        self._unfollowed: frozenset[str] = frozenset()
        self._is_asking, self._ask_again_at = False, 0.0
        self._away_looks = 0
        self._never_told = {
            declaration.key(Stage.MIRROR, table): table.name for table in declaration.tables
        }

    @property
    def _mirrors(self) -> list[dg.AssetKey]:
        return [self._declaration.key(Stage.MIRROR, table) for table in self._declaration.tables]

    @property
    def can_follow_again(self) -> bool:
        """Whether a table that was found at fault is at fault no more: a session has to see it."""
        return self._can_follow_again

    @property
    def unfollowed(self) -> Sequence[str]:
        """Return the tables that differ from what is followed, once: a session has to see them."""
        return sorted(self._unfollowed) if self._is_asking else ()

    def never_told(self, instance: dg.DagsterInstance) -> list[str]:
        """Return the tables whose mirrors no session has reported, though none leaves them out.

        A table that has just been declared has no change pending, and is not copied.
        """
        if not self._never_told:
            return []
        for record in instance.get_asset_records(list(self._never_told)):
            if record.asset_entry.last_materialization_record is not None:
                del self._never_told[record.asset_entry.asset_key]
        left_out = self._not_followed(instance) if self._never_told else set()
        return sorted(name for key, name in self._never_told.items() if key not in left_out)

    def look(self, context: dg.SensorEvaluationContext, cdc: CdcResource, *, is_open: bool) -> None:
        """Report, where it is time for it; never fails because of the source."""
        if is_open:
            self._can_follow_again = self._is_asking = False
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_SECONDS
        if not is_open:
            tell_dead_sessions(context, self._declaration.names.named("sync"), self._mirrors)
        try:
            self._look_at_source(context.instance, cdc, is_open=is_open)
            self._away_looks = 0
        except TransientError as error:
            self._away_looks += 1
            if not is_open and self._away_looks > 1:  # a source that starts again is soon back
                self._tell_away(context.instance, str(error))
        except RheiError as error:  # fails the tick as well, while no session is open
            faults = {table.name: str(error) for table in self._declaration.tables}
            self._tell_faults(context.instance, {} if is_open else faults)

    def _look_at_source(
        self, instance: dg.DagsterInstance, cdc: CdcResource, *, is_open: bool
    ) -> None:
        standing = cdc.standing()
        for event in self._observations(standing, is_open=is_open):
            instance.report_runless_asset_event(event)
        self._tell_lag(instance, standing)
        if not is_open:
            self._look_at_tables(instance, cdc.settings(), standing)

    def _look_at_tables(
        self, instance: dg.DagsterInstance, settings: Settings, standing: SourceStanding
    ) -> None:
        """Report the tables that a sync would leave out, as far as the source's catalogue shows."""
        found = declared_schemas(settings, settings.schedule.catalog_seconds)
        if found.source_fault is not None:
            return
        self._tell_faults(instance, found.faults)
        unfollowed = self._look_for_unfollowed(settings) - found.faults.keys()
        if standing.pending == 0 and not unfollowed:
            self._tell_lag_is_over(instance)
            if not found.faults:
                self._tell_quiet(instance)

    def _look_for_unfollowed(self, settings: Settings) -> frozenset[str]:
        """Return the tables that differ from what is followed, and ask for a session, once.

        What that could not follow, either, is asked for again when other tables left out are.
        """
        found, now = unfollowed_tables(settings), time.monotonic()
        if not found <= self._unfollowed or (found and now > self._ask_again_at):
            self._is_asking, self._ask_again_at = True, now + RETRY_SECONDS
        self._unfollowed = found
        return found

    def _observations(
        self, standing: SourceStanding, *, is_open: bool
    ) -> Iterator[dg.AssetObservation]:
        heads = {name.lower(): head for name, head in standing.heads.items()}
        changes = self._declaration.key(Stage.CHANGES)
        state = (standing.pending, heads, dict(standing.held_bytes))
        # Events that belong to no run are for ever, and while a session is open, it reports. But
        # who was told that changes wait for long is told when they do no more.
        is_waiting = _waited(standing) > _LOOK_SECONDS
        is_beside = is_open and not (self._tells_of_waiting and not is_waiting)
        if self._is_due(changes, state, _BESIDE_SECONDS if is_beside else _LOOK_SECONDS):
            self._tells_of_waiting = is_waiting
            yield dg.AssetObservation(changes, metadata=_numbers(standing))
        known = dict[dg.AssetKey, int]()
        for table in self._declaration.tables:
            head = heads.get(table.name.lower(), heads.get("log"))
            if head is not None:
                known[self._declaration.key(Stage.SOURCE, table)] = head
        for key in self._tables_to_tell(known):
            yield dg.AssetObservation(key, metadata={"head": str(known[key])})

    def _tables_to_tell(self, heads: Mapping[dg.AssetKey, int]) -> list[dg.AssetKey]:
        """Return the tables that were never observed, and one that has changed since it was.

        That is the one not observed for longest: however many tables there are, what is never
        deleted must not grow faster.
        """
        now, observed = time.monotonic(), self._observed
        told = [key for key in heads if key not in observed]
        changed = [key for key in heads if key in observed and observed[key][1] != heads[key]]
        if changed and now > self._table_at:
            told.append(min(changed, key=lambda key: observed[key][0]))
        if told:
            self._table_at = now + _BESIDE_SECONDS
        observed |= {key: (now, heads[key]) for key in told}
        return told

    def _is_due(self, key: dg.AssetKey, state: object, seconds: float) -> bool:
        """Return whether a state is another than the one observed last, and that is long ago."""
        now = time.monotonic()
        at, last = self._observed.get(key, (-seconds, None))
        if last == state or now - at < seconds:
            return False
        self._observed[key] = now, state
        return True

    def _tell_lag(self, instance: dg.DagsterInstance, standing: SourceStanding) -> None:
        """Report tables whose changes wait too long, whatever a session does; it says when not."""
        bound, now = self._declaration.settings.schedule.max_lag_seconds, datetime.now(UTC)
        waiting = {name.lower(): at for name, at in standing.waiting.items()}
        late = []
        for table in self._declaration.tables:
            since = waiting.get(table.name.lower(), waiting.get("log"))
            found = None if since is None else lag((now - since).total_seconds(), bound)
            if found is not None and not found.passed:
                late.append(found.evaluation(self._declaration.key(Stage.MIRROR, table)))
        unknown = self._not_followed(instance) if late else ()
        self._tell(instance, [found for found in late if found.asset_key not in unknown])

    def _tell_lag_is_over(self, instance: dg.DagsterInstance) -> None:
        """Report that nothing waits where a session's last word was that something had."""
        checks = [dg.AssetCheckKey(key, StateCheck.LAG.value) for key in self._mirrors]
        last = last_evaluations(instance, checks)
        bound = self._declaration.settings.schedule.max_lag_seconds
        unknown = self._not_followed(instance)
        for key, evaluation in last.items():
            if not evaluation.passed and key.asset_key not in unknown:
                instance.report_runless_asset_event(lag(0.0, bound).evaluation(key.asset_key))

    def _tell_away(self, instance: dg.DagsterInstance, why: str) -> None:
        """Report that nobody knows the lag while the source cannot be read; once, as why varies."""
        checks = [dg.AssetCheckKey(key, StateCheck.LAG.value) for key in self._mirrors]
        bound = self._declaration.settings.schedule.max_lag_seconds
        for check, last in last_evaluations(instance, checks).items():
            if last.passed:
                found = unknown_lag(f"the source cannot be read: {why}", bound)
                instance.report_runless_asset_event(found.evaluation(check.asset_key))

    def _not_followed(self, instance: dg.DagsterInstance) -> set[dg.AssetKey]:
        """Return the mirrors that were last told to be left out: how far they are, nobody knows."""
        checks = [dg.AssetCheckKey(key, StateCheck.FOLLOWED.value) for key in self._mirrors]
        last = last_evaluations(instance, checks)
        return {check.asset_key for check, told in last.items() if not told.passed}

    def _tell_faults(self, instance: dg.DagsterInstance, faults: Mapping[str, str]) -> None:
        """Report tables that a sync would leave out; that they are followed, only a sync knows."""
        name_by_key = {
            dg.AssetCheckKey(
                self._declaration.key(Stage.MIRROR, table), StateCheck.FOLLOWED.value
            ): table.name
            for table in self._declaration.tables
        }
        last = last_evaluations(instance, name_by_key)
        self._can_follow_again = any(
            _FOUND_BY in evaluation.metadata and name_by_key[key] not in faults
            for key, evaluation in last.items()
        )
        bound, unknown = self._declaration.settings.schedule.max_lag_seconds, []
        for key, name in name_by_key.items():
            if name not in faults:
                continue
            unknown.append(unknown_lag(faults[name], bound).evaluation(key.asset_key))
            found = followed(faults[name], {_FOUND_BY: _SENSOR}).evaluation(key.asset_key)
            known = last.get(key)
            # Marked, though a session has told it: the mark has the table looked at once mended.
            if is_news(found, known) or _FOUND_BY not in (known.metadata if known else {}):
                instance.report_runless_asset_event(found)
        self._tell(instance, unknown)

    @staticmethod
    def _tell(instance: dg.DagsterInstance, evaluations: Sequence[dg.AssetCheckEvaluation]) -> None:
        """Report what differs from what is on record."""
        last = last_evaluations(instance, [found.asset_check_key for found in evaluations])
        for found in evaluations:
            if is_news(found, last.get(found.asset_check_key)):
                instance.report_runless_asset_event(found)

    def _tell_quiet(self, instance: dg.DagsterInstance) -> None:
        """Report mirrors that are up to date though nothing was synced for long.

        They keep their data version: nothing was changed, and nothing downstream is to be. What is
        red stays so: its checks are repeated. Green ones are not, as these events are for ever.
        """
        due = time.time() - quiet_seconds(self._declaration.settings)
        unknown, checks = self._not_followed(instance), list[dg.AssetCheckKey]()
        for table in self._declaration.tables:
            key = self._declaration.key(Stage.MIRROR, table)
            if key in unknown:
                continue
            last = instance.get_latest_materialization_event(key)
            made = last.asset_materialization if last else None
            if last is None or made is None or last.timestamp > due:
                continue
            version = (made.tags or {}).get(DATA_VERSION)
            instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    key,
                    description="Nothing is pending: the mirror is up to date.",
                    metadata=_quiet(made.metadata),
                    tags={DATA_VERSION: version} if version else None,
                )
            )
            names = (EQUALS_SOURCE, *checks_of(self._declaration.settings, table))
            checks += [dg.AssetCheckKey(key, name) for name in names]
        for evaluation in last_evaluations_anew(instance, checks):
            if not evaluation.passed:
                instance.report_runless_asset_event(evaluation)


def _waited(standing: SourceStanding) -> float:
    oldest = standing.oldest_at
    return 0.0 if oldest is None else max((datetime.now(UTC) - oldest).total_seconds(), 0.0)


def _numbers(standing: SourceStanding) -> dict[str, float | int | str]:
    """Return the same plotted numbers each time, and where the logs end as a text."""
    return {
        "held_bytes": sum(standing.held_bytes.values()),
        "oldest_pending_seconds": round(_waited(standing), 1),
        "pending_events": standing.pending or 0,
        "head": str(sum(standing.heads.values())),
    }


def _quiet(last: Mapping[str, dg.MetadataValue]) -> dict[str, dg.MetadataValue]:
    """Return the last report's entries with every number 0, but for the rows that are there."""
    return {
        name: dg.MetadataValue.int(0)
        if isinstance(value, (dg.IntMetadataValue, dg.FloatMetadataValue))
        and name != "dagster/row_count"
        else value
        for name, value in last.items()
    }
