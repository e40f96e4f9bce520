"""What a sync reports of each table: what its cycle did, what came before it, what was left out."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from rhei_pipeline.model.reports import SyncReport, TableReport
from rhei_pipeline.model.schema import spelled
from rhei_pipeline.sync.initial_sync import Copied


def table_reports(
    cycle: Mapping[str, TableReport],
    errors: Mapping[str, str],
    drained: Iterable[TableReport],
    copied: Mapping[str, Copied],
) -> dict[str, TableReport]:
    """Return one report for each table.

    Args:
        cycle: What the cycle itself did.
        errors: The tables that are left out, each with the reason.
        drained: What was applied before capture was installed again.
        copied: What the tables took that were copied first.
    """
    reports = dict(cycle)
    for name, error in errors.items():
        reports[name] = TableReport(name, error=error)
    for earlier in drained:
        name = spelled(earlier.table, reports)  # renamed by case, it goes on
        # One that is copied since takes no part in the cycle.
        reports[name] = reports[name].after(earlier) if name in reports else earlier
    # One that was migrated since is in no report yet: its copy is begun again, and goes on.
    for name, copy in copied.items():
        if name not in reports:
            continue
        letters = reports[name].dead_letters + copy.dead_letters
        reports[name] = replace(reports[name], copied_rows=copy.rows, dead_letters=letters)
    return reports


def summed(earlier: SyncReport, later: SyncReport) -> SyncReport:
    """Return the sum of two syncs' reports, of which one followed the other."""
    before = earlier.tables
    tables = {
        name: table.after(before[name]) if name in before else table
        for name, table in later.tables.items()
    }
    return replace(
        later,
        tables=MappingProxyType(tables),
        duration_seconds=earlier.duration_seconds + later.duration_seconds,
        rows_pruned=earlier.rows_pruned + later.rows_pruned,
    )
