"""With a buffer, changes are taken out of the source while the mirror is away, too.

While a session is open, it bridges itself. A run of the bridge takes its place where none can run:
where another process holds the mirror, or the mirror's store does not answer.
"""

from collections.abc import Iterator

import dagster as dg

from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.heartbeat import Heartbeat, SignsOfLife
from rhei_pipeline.dagster.jobs import AssetJob
from rhei_pipeline.dagster.own_runs import ACTIVE, own_runs
from rhei_pipeline.dagster.plain_failures import said_plainly
from rhei_pipeline.dagster.relay import WAITING
from rhei_pipeline.dagster.resources import CdcResource
from rhei_pipeline.dagster.stages import Stage
from rhei_pipeline.errors import BufferBusyError, TransientError


def bridge_assets(declaration: Declaration) -> list[dg.AssetsDefinition]:
    """Make the stream of changes an asset that a run can bring up to date; needs a buffer."""
    if not has_buffer(declaration):
        return []
    names, spec = declaration.names, declaration.spec(Stage.CHANGES)

    # No pool: it has to run while another run waits for the mirror. The buffer has a lock itself.
    @dg.multi_asset(
        name=names.named("bridge_changes"),
        specs=[spec.replace_attributes(skippable=True)],
        required_resource_keys={names.cdc},
    )
    def bridge_changes(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.MaterializeResult[None]]:
        cdc: CdcResource = getattr(context.resources, names.cdc)
        with said_plainly():
            try:
                with Heartbeat(context.instance, context.run.run_id):
                    events = cdc.bridge()
            except BufferBusyError:
                context.log.info("a sync session has the buffer open, and fills it itself")
                return
            held = cdc.standing().held_bytes
        yield dg.MaterializeResult(
            asset_key=spec.key,
            metadata={"events_bridged": events, "held_bytes": held.get("buffer", 0)},
        )

    return [bridge_changes]


def bridge_jobs(declaration: Declaration) -> list[AssetJob]:
    """Make the job that takes pending changes into the buffer; needs a buffer."""
    if not has_buffer(declaration):
        return []
    return [
        dg.define_asset_job(
            declaration.names.named("bridge"),
            selection=dg.AssetSelection.assets(declaration.key(Stage.CHANGES)),
            description="Takes pending changes into the buffer; the mirror is not opened.",
            executor_def=dg.in_process_executor,
        )
    ]


def bridge_sensors(declaration: Declaration) -> list[dg.SensorDefinition]:
    """Make the sensor that bridges while sessions cannot run; needs a buffer."""
    if not has_buffer(declaration):
        return []
    names = declaration.names
    sync, bridge, signs = names.named("sync"), names.named("bridge"), SignsOfLife()

    @dg.sensor(
        name=names.named("mirror_away"),
        job_name=bridge,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Takes changes into the buffer while no sync session can open the mirror.",
        required_resource_keys={names.cdc},
    )
    def mirror_away(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        runs = own_runs(context, bridge, ACTIVE)
        if runs and not signs.end_the_dead(context.instance, runs):
            return dg.SkipReason("changes are being taken into the buffer")
        last = own_runs(context, sync, limit=1)
        if not last or not (_waits(last[0]) or last[0].status is dg.DagsterRunStatus.FAILURE):
            return dg.SkipReason("sync sessions fill the buffer")
        cdc: CdcResource = getattr(context.resources, names.cdc)
        try:
            unbridged = cdc.unbridged()
        except TransientError as error:
            return dg.SkipReason(f"the source cannot be read now: {error}")
        if not unbridged:
            return dg.SkipReason("the buffer has every change")
        return dg.RunRequest(tags={"rhei/reason": "the mirror is away"})

    return [mirror_away]


def has_buffer(declaration: Declaration) -> bool:
    """Return whether changes go through a buffer."""
    return bool(declaration.tables) and declaration.settings.capture.buffer is not None


def _waits(run: dg.DagsterRun) -> bool:
    """Return whether a session says that it cannot open the mirror."""
    return not run.is_finished and WAITING in run.tags
