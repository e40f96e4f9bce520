"""What a migration leaves in the logs of images: it is applied before capture is made again."""

import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from rhei_pipeline.capabilities import reads_wider, shape_after
from rhei_pipeline.errors import MirrorDamagedError, SchemaDriftError, SchemaError
from rhei_pipeline.model.blame import Blame
from rhei_pipeline.model.missing_table import MissingTableError
from rhei_pipeline.model.progress import Ledger, TableState
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.protocols import ChangeSource, Mirror
from rhei_pipeline.sync.alterations import find_widened
from rhei_pipeline.sync.initial_sync import take_on_shape

_log = logging.getLogger(__name__)


def find_pending(
    known: Collection[Table],
    source: ChangeSource,
    mirror: Mirror,
    blame: Blame,
    broken: set[str],
    owe: Callable[[Table], None],
) -> list[Table]:
    """Return which mirrored tables to bring up to date before capture is made again, if any.

    They are read in the shape they were made in, so no version is lost to a migration. The
    tables that the migration left alone come along, so that the mirror stays one state. One that
    is refused as it stands waits, with what its log has of it, until it can be described again.
    `blame` is left with the table at which an error came up. Tables whose capture is not as it was
    made are added to `broken`. `owe` is called for those that have to be copied once they are read:
    their log has columns that are not read now.
    """
    ledger = _without_overtaken_copies(known, source, mirror, blame)
    ready = [table for table in known if ledger.state(table.name) is TableState.READY]
    ready = _describable(ready, source, blame)
    for table in ready:
        with blame.of(table.name):
            if not source.is_installed(table):
                broken.add(table.name)
    changed = [t for t in ready if t.name in broken and t.mode is Mode.TEMPORAL]
    wider = find_widened(changed, source, mirror, ledger, blame) if changed else ()
    first = {t.name for t in ready if t.name not in wider and _is_read_first(t, source)}
    if not first & broken:
        return []
    with source.snapshot() as snapshot:
        readable = []
        for table in ready:
            with blame.of(table.name):
                in_shape = table.name in first or not _has_drifted(table, broken, source)
                if in_shape and snapshot.proves(table, ledger.watermarks[table.name].position):
                    readable.append(table)
    if reads_wider(source):
        for table in _widened([t for t in readable if t.name in broken], source, blame):
            owe(table)
    return readable


def take_on_next_shapes(
    tables: Collection[Table],
    source: ChangeSource,
    mirror: Mirror,
    blame: Blame,
    owe: Callable[[Table], None],
) -> list[Table]:
    """Give histories the shape in which their logs go on, where that is not today's.

    `blame` is left with the table at which an error came up. `owe` is called before one is given
    another shape: that it has to be copied must outlive whatever its next shapes are.

    Returns:
        Those tables, in that shape; there is more to read of them now.
    """
    marks, found = mirror.ledger().watermarks, []
    with source.snapshot() as snapshot:
        for table in tables:
            with blame.of(table.name):
                shape = shape_after(snapshot, table, marks[table.name].position)
                if shape is not None:
                    shape = replace(shape, mirror_name=table.schema.mirror_name)
                    found.append(replace(table, schema=shape))
    taken = []
    for table in found:
        with blame.of(table.name):
            owe(table)
            if _takes_on(table, mirror, snapshot.clock):
                taken.append(table)
    return taken


def _takes_on(table: Table, mirror: Mirror, at: datetime) -> bool:
    try:
        take_on_shape(table, mirror, at)
    except (SchemaDriftError, MirrorDamagedError) as error:
        # What today's shape asks of the mirror is asked next, and named where it fails.
        _log.warning(
            "%s; versions written between two schema changes are read with today's columns", error
        )
        return False
    return True


def _without_overtaken_copies(
    known: Collection[Table], source: ChangeSource, mirror: Mirror, blame: Blame
) -> Ledger:
    """Drop copies of histories that a migration overtook; return what is recorded then.

    Such a copy has to be begun again in any case. Without it, its table goes on where it was,
    in the shape in which the log still holds the versions of before the migration.
    """
    ledger, overtaken = mirror.ledger(), []
    for table in known:
        with blame.of(table.name):
            is_copied = table.mode is Mode.TEMPORAL and ledger.goes_on(table.name)
            if is_copied and not source.is_installed(table):
                overtaken.append(table)
    if not overtaken:
        return ledger
    with mirror.transaction() as transaction:
        for table in overtaken:
            transaction.drop_copy(table)
    return mirror.ledger()


def _is_read_first(table: Table, source: ChangeSource) -> bool:
    """Return whether what its log holds can be applied, and would be lost otherwise."""
    if table.mode is Mode.TEMPORAL:
        return True
    try:
        source.describe(table.name)
    except SchemaError:
        return source.logs_rows
    return False


def _describable(tables: Collection[Table], source: ChangeSource, blame: Blame) -> list[Table]:
    """Return the tables that are gone, or can be mirrored as they stand."""
    found = []
    for table in tables:
        with blame.of(table.name):
            try:
                source.describe(table.name)
            except MissingTableError:
                pass
            except SchemaError:
                continue
            found.append(table)
    return found


def _widened(tables: Collection[Table], source: ChangeSource, blame: Blame) -> list[Table]:
    """Return the tables that have other columns beside those that they had."""
    found = []
    for table in tables:
        with blame.of(table.name), suppress(SchemaError):  # one that is gone has none
            if not {*source.describe(table.name).names} <= {*table.schema.names}:
                found.append(table)
    return found


def _has_drifted(table: Table, broken: Collection[str], source: ChangeSource) -> bool:
    return table.name in broken or source.describe(table.name) != table.schema
