"""Turns events into the versions that they open and close (SCD type 2)."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.changes.compaction import key_codes
from rhei_pipeline.errors import SchemaDriftError
from rhei_pipeline.model.changes import CHANGED_AT, LIVE, SEQUENCE, Operation, Versions
from rhei_pipeline.model.schema import OPERATION, VALID_FROM, VALID_TO, Mode, Table, TableSchema
from rhei_pipeline.model.selection import chosen, taken
from rhei_pipeline.model.type_names import INSTANT

#: The mirror's own way to find an open version again: it hands it out and takes it back.
LOCATOR = "_rhei_locator"
#: In open versions: true where the first event of the key says what the version holds already.
REPEATED = "_rhei_repeated"
#: The last instant a key's history already covers; a new version starts later.
FLOOR = "_rhei_floor"
#: In closings: true when nothing follows the version, because its row was deleted.
DELETED = "_rhei_deleted"

_BEFORE_ALL_EVENTS = -1
_BEFORE_ALL_INSTANTS = np.iinfo(np.int64).min
_STATE = [SEQUENCE, CHANGED_AT, LIVE, LOCATOR, REPEATED]


def refuse_lost_history(table: Table) -> None:
    """Refuse to mirror a table without history whose mirror has one.

    Raises:
        SchemaDriftError: The table is declared destructive.
    """
    if table.mode is Mode.DESTRUCTIVE:
        raise SchemaDriftError(
            "it is declared 'destructive', but its mirror holds history, which would be lost",
            table=table.name,
            hint=f"declare 'mode: temporal', or run 'rhei drop-table {table.name}' with "
            f"'--keep-as NAME' to keep the history under another name, or with "
            f"'--discard-history' to delete it",
        )


def refuse_unknown_key(schema: TableSchema, past: Collection[str]) -> None:
    """Refuse a key whose columns a temporal table's history does not have.

    Raises:
        SchemaDriftError: Only a person can decide which version belongs to which row.
    """
    unknown = [name for name in schema.primary_key if name not in past]
    if unknown:
        raise SchemaDriftError(
            f"its key is now {', '.join(schema.primary_key)}, but its history has no "
            f"{unknown[0]!r}",
            table=schema.name,
            hint="declare as 'primary_key' a unique key without nulls whose columns its history "
            f"has, or start again: 'rhei drop-table {schema.name} --keep-as NAME' keeps the "
            "history under another name",
        )


@dataclass(frozen=True, slots=True)
class _States:
    """The states of each key: its open version first, then its events, sorted by key."""

    rows: pa.Table
    key: np.ndarray
    live: np.ndarray
    base: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """Mask of each key's first state."""
        return np.concatenate([[True], self.key[1:] != self.key[:-1]])[: len(self.key)]

    @property
    def last(self) -> np.ndarray:
        """Mask of each key's last state."""
        return np.concatenate([self.key[1:] != self.key[:-1], [True]])[: len(self.key)]

    def take(self, kept: np.ndarray) -> "_States":
        """Keep the rows where `kept` is true."""
        return _States(chosen(self.rows, kept), self.key[kept], self.live[kept], self.base[kept])


def supersede(
    events: pa.Table,
    open_versions: pa.Table,
    floors: pa.Table,
    schema: TableSchema,
    *,
    seen_at: datetime | None = None,
    whole_transactions: bool = False,
) -> Versions:
    """Return the versions that end and those that begin.

    A key's versions are disjoint and start at strictly growing instants: an event whose clock
    ties with or lies behind the version before it moves on by one microsecond. An event that
    changes nothing opens no version. Kimball, The Data Warehouse Toolkit, type 2.

    With `whole_transactions`, the events of one transaction keep one instant instead: a version
    that its own transaction ended is empty (it ends where it starts). It stays in the history,
    in its order, and no instant shows it, since no other session ever saw it.

    Args:
        events: One table's change events in the source's order (`event_schema`).
        open_versions: The open versions of the keys touched: the key's columns,
            `_rhei_valid_from`, `_rhei_locator`, and `_rhei_repeated`.
        floors: For touched keys without an open version but with a past: the key's columns and
            `_rhei_floor`, the last instant their history covers.
        schema: The table's schema.
        seen_at: If given, it replaces the time of an event not later than the version before.
        whole_transactions: Events that share an instant are of one transaction.
    """
    states = _in_key_order(events, open_versions, schema)
    states = states.take(_changes_something(states, schema))
    past, instants = _floors(states, floors, schema), _instants(states)
    lowest = np.where(whole_transactions & (instants == past), past, past + 1)
    instants = _seen(instants, lowest, states, seen_at)
    parted = _parted(instants, states.first, whole_transactions=whole_transactions)
    starts = _strictly_growing(np.maximum(instants, lowest), states.first, parted)
    return _versions(states, starts, schema)


def repeated(rows: pa.Table, events: pa.Table, schema: TableSchema) -> pa.BooleanArray:
    """Return, for each open version, whether its key's first event equals it."""
    own = rows.append_column(SEQUENCE, pa.array(np.full(rows.num_rows, _BEFORE_ALL_EVENTS)))
    names = [SEQUENCE, *schema.names]
    both = pa.concat_tables(pa.table({n: part[n] for n in names}) for part in (own, events))
    order, codes = _key_order(both, schema)
    ordered, codes = both.take(pa.array(order)), codes[order]
    follows = np.flatnonzero((order[:-1] < rows.num_rows) & (codes[1:] == codes[:-1]))
    found = np.zeros(rows.num_rows, dtype=bool)
    found[order[follows]] = _equals_previous(ordered, schema)[follows + 1]
    return pa.array(found)


def _key_order(rows: pa.Table, schema: TableSchema) -> tuple[np.ndarray, np.ndarray]:
    codes = key_codes(rows.select(list(schema.primary_key)))
    return np.lexsort((rows[SEQUENCE].to_numpy(), codes)), codes


def _in_key_order(events: pa.Table, open_versions: pa.Table, schema: TableSchema) -> _States:
    bases = open_versions.num_rows
    rows = pa.concat_tables([_as_states(open_versions, schema), _with_locator(events, schema)])
    order, codes = _key_order(rows, schema)
    rows = taken(rows, order)
    live = rows[LIVE].to_numpy()
    return _States(rows, codes[order], live, order < bases)


def _as_states(open_versions: pa.Table, schema: TableSchema) -> pa.Table:
    count = open_versions.num_rows
    columns = {
        SEQUENCE: pa.array(np.full(count, _BEFORE_ALL_EVENTS)),
        CHANGED_AT: open_versions[VALID_FROM],
        LIVE: pa.array(np.full(count, fill_value=True)),
        **{name: open_versions[name] for name in schema.primary_key},
        **{column.name: pa.nulls(count, column.type) for column in schema.value_columns},
        LOCATOR: open_versions[LOCATOR],
        REPEATED: open_versions[REPEATED],
    }
    return pa.table(columns).select(_STATE + list(schema.names))


def _with_locator(events: pa.Table, schema: TableSchema) -> pa.Table:
    columns = {name: events[name] for name in (SEQUENCE, CHANGED_AT, LIVE, *schema.names)}
    count = events.num_rows
    unknown = {LOCATOR: pa.nulls(count, pa.int64()), REPEATED: pa.nulls(count, pa.bool_())}
    return pa.table({**columns, **unknown}).select(_STATE + list(schema.names))


def _changes_something(states: _States, schema: TableSchema) -> np.ndarray:
    """Mask the states that differ from the one before; equality is transitive.

    For an open version the caller supplies the result: not all mirrors read its row.
    """
    was_live = np.concatenate([[False], states.live[:-1]])[: len(states.live)] & ~states.first
    repeated_rows = pc.fill_null(states.rows[REPEATED], fill_value=False).to_numpy()
    after_base = np.concatenate([[False], states.base[:-1]])[: len(states.base)]
    repeated_before = np.concatenate([[False], repeated_rows[:-1]])[: len(repeated_rows)]
    equal = np.where(after_base, repeated_before, _equals_previous(states.rows, schema))
    changed: np.ndarray = np.where(states.live, ~(states.live & was_live & equal), was_live)
    return changed


def _equals_previous(rows: pa.Table, schema: TableSchema) -> np.ndarray:
    count = rows.num_rows
    equal = np.ones(count, dtype=bool)
    floating_keys = [c for c in schema.key_columns if pa.types.is_floating(c.type)]
    for column in [*schema.value_columns, *floating_keys]:
        values = _bits(rows[column.name])  # not joined: large ones would be copied
        later, earlier = values.slice(1), values.slice(0, max(count - 1, 0))
        same = pc.fill_null(pc.equal(later, earlier), fill_value=False)
        both_null = pc.and_(pc.is_null(later), pc.is_null(earlier))
        equal[1:] &= pc.or_(same, both_null).to_numpy()
    return equal


def _bits(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return doubles as their bits: 0.0 and -0.0 are two different values."""
    if not pa.types.is_floating(values.type):
        return values
    bits = pa.int64() if pa.types.is_float64(values.type) else pa.int32()
    return pa.chunked_array([chunk.view(bits) for chunk in values.chunks], bits)


def _instants(states: _States) -> np.ndarray:
    """Return each state's own timestamp in microseconds."""
    instants: np.ndarray = states.rows[CHANGED_AT].cast(pa.int64()).to_numpy().copy()
    return instants


def _floors(states: _States, floors: pa.Table, schema: TableSchema) -> np.ndarray:
    """Return, for each state, the last instant of its key's history."""
    lowest = np.full(len(states.key), _BEFORE_ALL_INSTANTS)
    if floors.num_rows == 0 or len(lowest) == 0:
        return lowest
    names = list(schema.primary_key)
    keys = pa.concat_tables([floors.select(names), states.rows.select(names)])
    codes = key_codes(keys)
    by_key = np.full(int(codes.max()) + 1, _BEFORE_ALL_INSTANTS)
    past = floors[FLOOR].cast(pa.int64()).to_numpy()
    np.maximum.at(by_key, codes[: floors.num_rows], past)
    found: np.ndarray = by_key[codes[floors.num_rows :]]
    return found


def _seen(
    instants: np.ndarray, lowest: np.ndarray, states: _States, seen_at: datetime | None
) -> np.ndarray:
    """Replace timestamps that are older than the state before by the time they were seen."""
    if seen_at is None or len(instants) == 0:
        return instants
    before = np.concatenate([[0], instants[:-1]])
    late = (instants < lowest) | (~states.first & (instants <= before))
    now = pa.scalar(seen_at, INSTANT).cast(pa.int64()).as_py()
    dated: np.ndarray = np.where(late & ~states.base, now, instants)
    return dated


def _parted(instants: np.ndarray, first: np.ndarray, *, whole_transactions: bool) -> np.ndarray:
    """Mask the states that start later than the one before: all, or one for each transaction."""
    if not whole_transactions:
        return np.ones(len(instants), dtype=bool)
    before = np.concatenate([[0], instants[:-1]])[: len(instants)]
    parted: np.ndarray = first | (instants != before)
    return parted


def _strictly_growing(instants: np.ndarray, first: np.ndarray, parted: np.ndarray) -> np.ndarray:
    """Within each key, make each marked instant later than the one before, by a microsecond."""
    if len(instants) == 0:
        return instants
    count = np.cumsum(parted)
    group = np.cumsum(first) - 1
    rank = count - np.maximum.accumulate(np.where(first, count, 0))
    # A running maximum of (instant - rank), restarted at each key: its ordinals are small enough
    # to carry the key's number in front without leaving 64 bits.
    distinct, ordinal = np.unique(instants - rank, return_inverse=True)
    offset = group * len(distinct)
    grown: np.ndarray = distinct[np.maximum.accumulate(offset + ordinal) - offset] + rank
    return grown


def _versions(states: _States, starts: np.ndarray, schema: TableSchema) -> Versions:
    count = len(starts)
    first, last = states.first, states.last
    was_live = np.concatenate([[False], states.live[:-1]])[:count] & ~first
    ends = np.concatenate([starts[1:], [0]])[:count]
    ended_by_delete = ~last & ~np.concatenate([states.live[1:], [True]])[:count]
    opened = states.live & ~states.base
    closed = states.base & ~last
    operation = np.where(was_live, Operation.UPDATE.value, Operation.INSERT.value)
    operation = np.where(ended_by_delete, Operation.DELETE.value, operation)
    openings = pa.table(
        {
            **_columns(chosen(states.rows.select(list(schema.names)), opened)),
            VALID_FROM: _as_instants(starts[opened]),
            VALID_TO: _as_instants(ends[opened], missing=last[opened]),
            OPERATION: pa.array(operation[opened].tolist(), pa.string()),
        }
    )
    ended = chosen(states.rows.select([LOCATOR, CHANGED_AT, *schema.primary_key]), closed)
    closings = pa.table(
        {
            LOCATOR: ended[LOCATOR],
            VALID_FROM: ended[CHANGED_AT],
            VALID_TO: _as_instants(ends[closed]),
            DELETED: pa.array(ended_by_delete[closed]),
            **{name: ended[name] for name in schema.primary_key},
        }
    )
    return Versions(
        closings=closings,
        openings=openings,
        inserted=int((opened & ~was_live).sum()),
        updated=int((opened & was_live).sum()),
        deleted=int((~states.live).sum()),
    )


def _columns(rows: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(rows.column_names, rows.columns, strict=True))


def _as_instants(microseconds: np.ndarray, missing: np.ndarray | None = None) -> pa.Array:
    return pa.array(microseconds, pa.int64(), mask=missing).cast(INSTANT)
