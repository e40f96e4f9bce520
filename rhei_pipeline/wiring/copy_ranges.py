"""Copies ranges of a table for a mirror that another process holds."""

import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING

from rhei_pipeline.errors import SchemaError, SettingsError, needs_extra
from rhei_pipeline.model.copy_plan import CopyPlan, RangeReport
from rhei_pipeline.model.progress import TableState
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import OnStep
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sources.masked_source import MaskedSource
from rhei_pipeline.sync.copy_ranges import RangeWork, WorkEnd
from rhei_pipeline.sync.initial_sync import fingerprint
from rhei_pipeline.sync.pipeline import no_step
from rhei_pipeline.sync.schema_registry import Registry
from rhei_pipeline.wiring.adoption import refuse_owner
from rhei_pipeline.wiring.masking import declared_masks
from rhei_pipeline.wiring.mirror import store_access
from rhei_pipeline.wiring.source import open_database, open_range_source
from rhei_pipeline.wiring.table_options import copy_ranges

if TYPE_CHECKING:
    from rhei_pipeline.mirrors.datafusion.range_site import RangeSite

_LOOK_SECONDS = 1.0


def no_rows(_rows: int, _of: int) -> None:
    """Do nothing (the default callback)."""


def copy_range(
    settings: Settings,
    table: str,
    number: int | None = None,
    *,
    wait_seconds: float = 0.0,
    on_rows: Callable[[int, int], None] = no_rows,
    on_step: OnStep = no_step,
) -> RangeReport:
    """Copy one range of a table, or all that nobody else copies, for the process with the mirror.

    That process has planned the ranges, and puts the copy in place once all of them are complete.
    The mirror is not opened. Safe to repeat, and to run anywhere with the same declaration: what
    was recorded is not read again.

    Args:
        settings: The declaration.
        table: The table's name.
        number: The range, from 1 on; None: whichever nobody works on, until none is left.
        wait_seconds: How long to wait for the plan.
        on_rows: Called after each part with the rows that were read so far, and those of the table.
        on_step: Called at each named step.

    Raises:
        SettingsError: The mirror is none that can be copied in ranges, or no shard is chosen.
        MirrorOwnerError: It is of another source than the declared one, or of another pipeline.
        SourceError: It is a standby, which may lag behind.
        SchemaError: There is no plan, no such range, or what is declared here of the table is not
            what is being copied.
    """
    settings.refuse_whole()
    if not settings.mirror.is_of_files:
        raise SettingsError(
            "only a mirror of files is copied in ranges",
            hint="run 'rhei copy' with the table: it copies all of it",
        )
    started = time.monotonic()
    with closing(_open_site(settings)) as site:
        while True:  # a copy that is begun again has another plan
            plan = _find_plan(site, table, wait_seconds)
            if plan is None:
                return RangeReport(table, 0)
            if number is not None and _is_empty(number, settings, plan):
                return RangeReport(plan.table, plan.ranges)
            chosen = None if number is None else {number}
            found = _worked(settings, site, plan, chosen, on_rows, on_step)
            if found is not None:
                return replace(found, duration_seconds=time.monotonic() - started)


def _worked(
    settings: Settings,
    site: "RangeSite",
    plan: CopyPlan,
    chosen: Collection[int] | None,
    on_rows: Callable[[int, int], None],
    on_step: OnStep,
) -> RangeReport | None:
    """Copy what a plan has of the chosen ranges; None where another plan took its place."""
    if site.owner is not None:
        refuse_owner(settings, site.owner)
    with ExitStack() as stack:
        source = _open_source(settings, plan, stack)
        declared = _declared(source, plan)
        _refuse_other(declared, plan)
        batch_rows = settings.sync.batch_rows
        work = RangeWork(declared, source, site, batch_rows, on_step, on_rows)
        ended = work.share(plan.plan_id, chosen)
        if ended is WorkEnd.MIGRATED:
            _refuse_other(_declared(source, plan), plan)
    standing = site.standing(plan.table)
    is_same = standing is not None and standing.plan.plan_id == plan.plan_id
    if ended is WorkEnd.CLOSED and not _is_complete(site, plan.table):
        return None
    return RangeReport(
        plan.table,
        plan.ranges,
        tuple(sorted(work.numbers)),
        work.rows,
        work.parts,
        work.letters,
        standing.missing if standing is not None and is_same else (),
    )


def _open_site(settings: Settings) -> "RangeSite":
    mirror = settings.mirror
    with needs_extra("datafusion", "this mirror"):
        from rhei_pipeline.mirrors.datafusion.range_site import RangeSite
    access = store_access(mirror) if mirror.url else None
    return RangeSite(mirror.storage or "parquet", mirror.url or mirror.path, access)


def _find_plan(site: "RangeSite", table: str, wait_seconds: float) -> CopyPlan | None:
    """Return the table's plan; None if its copy is complete, so that nothing is left to do.

    Raises:
        SchemaError: There was none all that time.
    """
    until = time.monotonic() + wait_seconds
    while True:
        name = site.spelled(table)
        standing = None if name is None else site.standing(name)
        if standing is not None:
            return standing.plan
        if name is not None and _is_complete(site, name):
            return None
        if time.monotonic() >= until:
            raise SchemaError(
                "no copy of it in ranges is under way",
                table=table,
                hint="declare its 'copy_ranges', and run 'rhei sync' or 'rhei copy' beside: it"
                " plans them",
            )
        time.sleep(min(_LOOK_SECONDS, wait_seconds))


def _is_complete(site: "RangeSite", name: str) -> bool:
    return site.state(name) in {TableState.COPIED, TableState.READY}


def _is_empty(number: int, settings: Settings, plan: CopyPlan) -> bool:
    """Return whether a range is declared for which there are no keys.

    Raises:
        SchemaError: It is not even declared.
    """
    declared = copy_ranges(settings, Registry(None, plan.plan_id))(plan.table)
    most = max(plan.ranges, declared)
    if not 1 <= number <= most:
        raise SchemaError(
            f"its copy has no range {number}",
            table=plan.table,
            hint=f"give a range from 1 to {most}",
        )
    return number > plan.ranges


def _open_source(settings: Settings, plan: CopyPlan, stack: ExitStack) -> MaskedSource:
    """Open the source to read rows; nothing of it is changed."""
    database = open_database(settings, looking=True)
    stack.callback(database.close)
    registry = Registry(None, plan.plan_id)
    registry.save(Table(plan.schema))  # as the source was described for the plan
    inner = open_range_source(settings, database, plan.plan_id, registry)
    stack.callback(inner.close)
    return MaskedSource(inner, declared_masks(settings, registry, database))


def _declared(source: MaskedSource, plan: CopyPlan) -> Table:
    schema = source.describe(plan.table)
    return Table(replace(schema, mirror_name=plan.schema.mirror_name))


def _refuse_other(declared: Table, plan: CopyPlan) -> None:
    if fingerprint(declared) != plan.shape:
        raise SchemaError(
            "its copy under way is of another declaration, or of another shape of the source",
            table=plan.table,
            hint="give this process the declaration of the one that has planned the copy; after a"
            " migration that one plans it again by itself",
        )
