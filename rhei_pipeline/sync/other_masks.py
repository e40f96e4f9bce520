"""What a mirror has of a table from before its masks were changed."""

import logging
from collections.abc import Mapping

from rhei_pipeline.errors import SchemaDriftError
from rhei_pipeline.model.schema import MaskedColumn, Mode, Table
from rhei_pipeline.protocols import Mirror
from rhei_pipeline.sql.text import mirror_table
from rhei_pipeline.sync.kept_history import Dropping, drop_table
from rhei_pipeline.sync.schema_registry import Registry

_log = logging.getLogger(__name__)


def drop_other_masks(
    table: Table, standing: Mapping[str, Table], mirror: Mirror, registry: Registry
) -> None:
    """Drop what the mirror has of a table if it was masked otherwise; it is copied again.

    Values of before would stay where no row replaces them: under dead letters, for example.

    Raises:
        SchemaDriftError: It has history, of which nothing is dropped and nothing rewritten.
    """
    found = standing.get(mirror_table(table.schema))
    if found is None:
        return
    known = registry.table(table.name)
    changed = _changed_masks(known, table)
    if not changed:
        return
    if found.mode is Mode.TEMPORAL:
        if known is None:
            return
        raise SchemaDriftError(
            f"the mask of column {changed[0]!r} was changed, and its history has values from"
            " before",
            table=table.name,
            hint="put the mask back; or drop the history with 'rhei drop-table"
            f" {table.name} --discard-history', and the next sync begins a new one",
        )
    _log.warning(
        "table %r: the mask of column %r was changed; its rows are dropped from the mirror, and it"
        " is copied again",
        table.name,
        changed[0],
    )
    drop_table(Dropping(Table(table.schema, found.mode)), mirror, registry, ())


def _changed_masks(known: Table | None, table: Table) -> list[str]:
    """Return the columns that were there before with another mask, or without one."""
    if known is None:
        return [column.name for column in table.schema.columns if column.masked]
    before = {column.name: _rule(column.masked) for column in known.schema.columns}
    return [
        column.name
        for column in table.schema.columns
        if column.name in before and before[column.name] != _rule(column.masked)
    ]


def _rule(masked: MaskedColumn | None) -> tuple[str, str] | None:
    return None if masked is None else (masked.rule, masked.key)
