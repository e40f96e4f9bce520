"""`rhei sync --dry-run`: what a sync would do with each table, and roughly how long it takes."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rhei_pipeline.errors import RheiError

if TYPE_CHECKING:
    from rhei_pipeline.htap import HTAP
    from rhei_pipeline.model.reports import TableStatus
    from rhei_pipeline.model.schema import TableSchema
    from rhei_pipeline.settings.model import Settings
    from rhei_pipeline.wiring.source import SourceDatabase

#: What a first copy and a sync do in a second, on two cores; a guess for others.
_ROWS_EACH_SECOND = 100_000
_EVENTS_EACH_SECOND = 20_000


@dataclass(frozen=True, slots=True)
class Pending:
    """What a sync would do with a table.

    Attributes:
        work: What: copy, apply changes, nothing; or that it is left out, or that nobody knows.
        events: Changes that would be applied; None where nobody can count them.
        rows: Rows that would be copied; None where none are, or only the copy will count them.
        about_seconds: Roughly how long that takes; None where that is not known.
        error: Why it is left out.
        reason: Why nobody knows, and what the next sync does.
    """

    table: str
    work: str
    events: int | None = 0
    rows: int | None = None
    about_seconds: int | None = None
    error: str | None = None
    reason: str | None = None


def is_new(settings: "Settings") -> bool:
    """Return whether there is no mirror yet, as far as this machine's files show."""
    from rhei_pipeline.wiring.mirror import is_made

    mirror = settings.mirror
    return mirror.in_memory or (mirror.url is None and not is_made(mirror))


def without_foreign(found: Iterable[Pending], settings: "Settings") -> Iterator[Pending]:
    """Return what a sync would do, where somebody else's tables are in the place of some."""
    from rhei_pipeline.wiring.foreign_tables import foreign_tables

    refused = foreign_tables(settings)
    for each in found:
        error = refused.get(each.table)
        yield each if error is None else Pending(each.table, "left out", error=str(error))


def first_copies(settings: "Settings") -> Iterator[Pending]:
    """Return what the first sync would copy; nothing is opened but the source, to read."""
    from rhei_pipeline.model.schema import TableOptions
    from rhei_pipeline.sync.schema_registry import StoredRegistrations
    from rhei_pipeline.wiring.source import open_database
    from rhei_pipeline.wiring.table_options import table_options

    database = open_database(settings, looking=True)
    try:
        options = table_options(settings, StoredRegistrations(settings.registry.path))
        found = [name for name in database.table_names() if settings.takes(name)]
        declared = settings.tables
        for name in found if declared is None else [table.name for table in declared]:
            try:
                schema = database.read_schema(name, options.get(name, TableOptions()), None)
            except RheiError as error:
                yield Pending(name, "left out", error=str(error))
            else:
                yield _copy(schema, database)
    finally:
        database.close()


def pending(htap: "HTAP") -> Iterator[Pending]:
    """Return what a sync would do with each table of a mirror."""
    found, tables = htap.sync_status(), htap.table_schemas()
    for name, status in found.tables.items():
        if status.error:
            yield Pending(name, "left out", error=status.error)
        elif status.watermark is not None:
            yield _changes(name, status)
        elif name in tables:
            yield Pending(name, "copy")


def _changes(name: str, status: "TableStatus") -> Pending:
    events = status.lag_events
    if events is None:
        return Pending(name, "not known", events, reason=status.doubt)
    work = "apply changes" if events else "nothing"
    return Pending(name, work, events, about_seconds=math.ceil(events / _EVENTS_EACH_SECOND))


def _copy(schema: "TableSchema", database: "SourceDatabase") -> Pending:
    from rhei_pipeline.sql.text import quote

    parts = (schema.namespace, schema.relation)
    name = ".".join(quote(part) for part in parts if part is not None)
    answer = database.query(f"select count(*) from {name}")
    rows = int(answer.column(0)[0].as_py())
    seconds = math.ceil(rows / _ROWS_EACH_SECOND)
    return Pending(schema.name, "copy", rows=rows, about_seconds=seconds)
