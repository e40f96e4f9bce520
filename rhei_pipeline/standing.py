"""How every declared table stands, as source and mirror tell it now."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from rhei_pipeline.errors import RheiError
from rhei_pipeline.ledger import Ledger
from rhei_pipeline.metrics import Standing, TableStatus
from rhei_pipeline.protocols import ChangeSource, Mirror, SourceSnapshot
from rhei_pipeline.schema import Mode, Table


def take_stock(
    declared: Mapping[str, Mode],
    tables: Mapping[str, Table],
    errors: Mapping[str, RheiError],
    source: ChangeSource,
    mirror: Mirror,
) -> Standing:
    """Look at one state of the source and at the mirror; changes nothing.

    Of the tables declared, with their modes, some are captured and others left out for an error.
    """
    with source.snapshot() as snapshot:
        ledger = mirror.ledger()
        letters = mirror.dead_letters()["table_name"].to_pylist()
        found = {
            name: _status(name, mode, tables.get(name), snapshot, ledger, letters.count(name))
            for name, mode in declared.items()
        }
    told = {
        name: replace(status, error=str(errors[name])) if name in errors else status
        for name, status in found.items()
    }
    return Standing(MappingProxyType(told), MappingProxyType(dict(source.held_bytes())))


def _status(
    name: str,
    mode: Mode,
    table: Table | None,
    snapshot: SourceSnapshot,
    ledger: Ledger,
    letters: int,
) -> TableStatus:
    mark = ledger.watermarks.get(name)
    lag_events, lag_seconds = 0, 0.0
    if table is not None and mark is not None:
        lag_events = snapshot.pending(table, mark.position)
        oldest = snapshot.oldest_pending(table, mark.position)
        lag_seconds = 0.0 if oldest is None else (snapshot.clock - oldest).total_seconds()
    return TableStatus(
        name,
        mode.value,
        ledger.state(name),
        None if mark is None else mark.position.order,
        lag_events,
        max(lag_seconds, 0.0),
        letters,
        doubt=None if table is None else snapshot.doubt(table),
    )
