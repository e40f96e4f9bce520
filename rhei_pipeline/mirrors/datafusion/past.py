"""What a mirror of files records of a temporal table's history beside its versions."""

from collections.abc import Mapping
from datetime import datetime

from rhei_pipeline.mirrors.datafusion.manifest import Manifest, StoredTable
from rhei_pipeline.mirrors.datafusion.write_buffer import WriteBuffer
from rhei_pipeline.model.progress import Past
from rhei_pipeline.model.schema import HISTORY_NAMES, Mode, Table
from rhei_pipeline.sql.text import mirror_table


def past_of(manifest: Manifest, table: Table) -> Past | None:
    """Return what is recorded of a table's history; None if the state lacks the table."""
    stored = manifest.tables.get(mirror_table(table.schema))
    if stored is None:
        return None
    mark = manifest.ledger.watermarks.get(table.name)
    return Past(
        stored.begins_at,
        _left(stored, table),
        mark.recorded_at if mark else None,
        is_shortened=stored.kept_since is not None,
    )


def note_columns(buffer: WriteBuffer, table: Table, at: datetime) -> None:
    """Record which columns of a temporal table the source no longer has, and since when."""
    if table.mode is Mode.TEMPORAL:
        left = _left(buffer.table, table)
        buffer.date(buffer.table.begins_at, {name: since or at for name, since in left.items()})


def _left(stored: StoredTable, table: Table) -> Mapping[str, datetime | None]:
    known = {*table.schema.names, *HISTORY_NAMES}
    return {name: stored.left.get(name) for name in stored.schema.names if name not in known}
