"""Findings of `rhei check` about polling: what prevents it, why, and how to fix it."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from rhei_pipeline.capabilities import doubt_about
from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.reports import Finding, Severity
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import ChangeSource

_LEFT_OUT = "the table is left out until this is fixed"
_UNPROVED = "a change may be missed until the whole table is compared again"
_STAMP = "set it by a default and a trigger with the database's clock; then 'clock: database'"


class Polled(ChangeSource, Protocol):
    """A source that is polled."""

    def missing_index(self, name: str) -> str | None:
        """Return the statement that creates the index a poll needs; None if it exists."""

    def lacking(self, name: str) -> Sequence[Finding]:
        """Return the privileges that the user lacks to read a table."""

    def remedy_for(self, doubt: str) -> str | None:
        """Return what removes a doubt; None where only other timestamps do."""


def findings(source: Polled, tables: Sequence[str]) -> Iterator[Finding]:
    """Check each table: its columns, its index, and whether its timestamps are reliable."""
    found = []
    for name in tables:
        try:
            table = Table(source.describe(name))
            lacking = source.lacking(table.name)
            yield from lacking
            if lacking:
                continue
            found.append(table)
            mending = source.missing_index(table.name)
        except SchemaError as error:
            hint, where = error.hint or "", error.table or name
            yield Finding(Severity.ERROR, error.message, _LEFT_OUT, hint, where)
            continue
        if mending:
            what = "no index begins with the timestamp"
            why = "every poll that follows a commit reads the whole table"
            yield Finding(Severity.WARNING, what, why, mending, table.name)
    with source.snapshot() as snapshot:
        for table in found:
            doubt = doubt_about(snapshot, table)
            if doubt:
                remedy = source.remedy_for(doubt) or _STAMP
                yield Finding(Severity.WARNING, doubt, _UNPROVED, remedy, table.name)
