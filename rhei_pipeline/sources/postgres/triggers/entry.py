"""A captured table as the catalogue describes it, and its log as it was created."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rhei_pipeline.model.schema import Mode, Table, TableSchema
from rhei_pipeline.sources.postgres.catalog import PostgresTable
from rhei_pipeline.sources.postgres.triggers.ddl import LoggedColumn, TableLog
from rhei_pipeline.sources.postgres.triggers.logs import Captured, read_now, read_on, read_then
from rhei_pipeline.sources.postgres.triggers.position import Proof, shape_of
from rhei_pipeline.sources.postgres.triggers.registry import Registered


@dataclass(frozen=True, slots=True)
class Entry:
    """A table as the catalogue describes it, all of its columns, and its primary key."""

    source: PostgresTable
    columns: Mapping[str, LoggedColumn]
    primary: str

    def log(self, key: tuple[str, ...], names: Sequence[str], *, images: bool) -> TableLog:
        """Return a log of these columns; of a dropped column only the name is known."""
        columns = tuple(self.columns.get(name) or _dropped(name) for name in names)
        numbers = {str(self.columns[name].attribute) for name in key if name in self.columns}
        return TableLog(
            self.source,
            key,
            columns,
            images,
            whole={*names} >= {*self.columns},
            primary=self.primary if numbers == {*self.primary.split()} else None,
        )


def is_captured(found: Registered | None, table: Table, entry: Entry) -> bool:
    """Return whether log and triggers are as they would be created now, or log more."""
    if found is None or not found.intact or not _is_enough(found, table, entry):
        return False
    return found.wanted == log_of(found, entry).wanted


def _is_enough(found: Registered, table: Table, entry: Entry) -> bool:
    """Return whether a log stores what a table's mirror needs."""
    schema = entry.source.schema
    keeps_rows = found.images and {*schema.names} <= {*found.columns}
    return found.key == schema.primary_key and (keeps_rows or table.mode is Mode.DESTRUCTIVE)


def log_of(found: Registered, entry: Entry) -> TableLog:
    """Return a log with its original columns; of a dropped column only the name is known."""
    return entry.log(found.key, found.columns, images=found.images)


def log_of_the_gone(found: Registered, schema: TableSchema) -> TableLog:
    """Return the log of a dropped or renamed table, with its mirror's schema."""
    columns = tuple(map(_dropped, found.columns))
    return TableLog(PostgresTable(schema, found.relation), found.key, columns, images=True)


def _dropped(name: str) -> LoggedColumn:
    return LoggedColumn(name, 0, 0, "text", None, "operator(pg_catalog.=)", 0)


def captured(
    found: Registered, log: TableLog, table: Table, entry: Entry | None, proof: Proof | None
) -> Captured:
    """Return the logs from a position to where a table is read to.

    With the table's present schema, that is the end of the newest one. With the schema that the
    mirror knew, it is where the table was changed: later entries are read once the mirror has the
    new schema. For a table that was dropped, it is the end as well.

    `log`: the newest one, as it was created.
    `entry`: the table of that name, if the logs are of that table.
    `proof`: of the position; None for the newest log.
    """
    logs = found.generations
    if proof is None:
        logs = logs[-1:]
    else:
        places = [place for place, log in enumerate(logs) if log.identity == proof.identity]
        logs = logs[places[0] :] if places else ()
    is_same = entry is not None and entry.source.schema == table.schema
    if not logs or (table.mode is Mode.DESTRUCTIVE and len(logs) > 1 and not is_same):
        return Captured(log, (), is_now=False)
    if entry is not None and (is_same or not found.images):
        return Captured(log, read_now(logs, table, entry.columns), is_now=True)
    if proof is not None and proof.shape not in {"", shape_of(table)}:
        return Captured(log, (), is_now=False)
    if entry is None:
        return Captured(log, read_then(logs, table.schema, late=True), is_now=True)
    present = Table(entry.source.schema, table.mode)
    if len(logs) > 1 and not read_now(logs, present, entry.columns):
        return read_on(log, logs, table, present, entry.columns)
    return Captured(log, read_then(logs[:1], table.schema, late=False), is_now=False)
