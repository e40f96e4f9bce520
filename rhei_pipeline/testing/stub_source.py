"""A source in memory: tables as dicts by key, and a log of versions. Keeps `ChangeSource`."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.changes import (
    CHANGED_AT,
    LIVE,
    SEQUENCE,
    ChangeBatch,
    DeadLetter,
    Position,
    RowBatch,
    event_schema,
    key_text,
)
from rhei_pipeline.model.missing_table import no_such_table
from rhei_pipeline.model.schema import Mode, Table, TableSchema

#: A primary key's parts, in the key's order: integers and texts, which JSON writes.
Key = tuple[Any, ...]
Named = dict[str, Any]

_START = datetime(2026, 1, 1, tzinfo=UTC)
_TICK = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class _Entry:
    """What became of one key: its row, or None; `shape` numbers the one that the table had."""

    sequence: int
    at: datetime
    key: Key
    row: Named | None
    shape: int


@dataclass(frozen=True, slots=True)
class _State:
    """All of one table; replaced and never changed, so that a snapshot holds it by a reference.

    Attributes:
        shapes: All that the table ever had; its own is the last.
        installed: What capture was installed for; None: nothing is logged yet.
        forgotten: The log holds every entry behind this number.
        proof: Another one whenever the log was lost.
    """

    shapes: tuple[TableSchema, ...]
    proof: str
    rows: Mapping[Key, Named] = field(default_factory=dict)
    log: tuple[_Entry, ...] = ()
    installed: TableSchema | None = None
    forgotten: int = 0
    dropped: bool = False

    @property
    def schema(self) -> TableSchema:
        return self.shapes[-1]

    def seen_in(self, table: Table) -> tuple[_Entry, ...]:
        """Return the log as far as the table had the given shape, or earlier ones."""
        known = [number for number, shape in enumerate(self.shapes) if shape == table.schema]
        newest = known[-1] if known else len(self.shapes)
        return tuple(entry for entry in self.log if entry.shape <= newest)


class StubWrites:
    """The changes of one transaction of the application, in order."""

    def __init__(self) -> None:
        self.made: list[tuple[str, Key | None, Named | None]] = []

    def put(self, table: str, /, **row: Any) -> None:
        """Insert a row, or overwrite the one of its key."""
        self.made.append((table, None, row))

    def delete(self, table: str, /, *key: Any) -> None:
        """Delete the row of a key."""
        self.made.append((table, key, None))


class StubSource:
    """A database in memory whose every change is logged, and its application's hand on it.

    It knows one mirror. Time passes by a millisecond with every transaction and every snapshot,
    and never by itself, so that histories are the same in every run.

    Args:
        shares_log: Have tables without changes move on with the others, as where all share a log.
    """

    logs_rows = True

    def __init__(self, *, shares_log: bool = False) -> None:
        self.shares_log = shares_log
        self._states: dict[str, _State] = {}
        self._sequence = 0
        self._version = 0
        self._now = _START

    # What the application does.

    def create(self, schema: TableSchema) -> None:
        """Create a table, or give one another shape; columns that are new are null."""
        known = self._states.get(schema.name)
        if known is None or known.dropped:
            self._states[schema.name] = _State((schema,), proof=f"{self._version}")
        else:
            rows = {key: _in_shape(row, schema) for key, row in known.rows.items()}
            keyed = {_key(row, schema): row for row in rows.values()}
            self._states[schema.name] = replace(known, shapes=(*known.shapes, schema), rows=keyed)
        self._version += 1

    def drop(self, table: str) -> None:
        """Drop a table; what its log holds can still be read."""
        self._states[table] = replace(self._states[table], dropped=True, rows={})
        self._version += 1

    def lose_log(self, table: str) -> None:
        """Clear a table's log, as a restored backup does: no earlier position is proved."""
        self._sequence += 1
        lost = replace(self._states[table], log=(), forgotten=self._sequence)
        self._states[table] = replace(lost, proof=f"lost at {self._sequence}")

    @contextmanager
    def transaction(self) -> Iterator[StubWrites]:
        """Commit all changes of the block at its end; an error rolls them back."""
        writes = StubWrites()
        yield writes
        self._now += _TICK
        for table, key, row in writes.made:
            self._write(table, key, row)

    def put(self, table: str, /, **row: Any) -> None:
        """Insert or overwrite one row, and commit."""
        with self.transaction() as writes:
            writes.put(table, **row)

    def delete(self, table: str, /, *key: Any) -> None:
        """Delete the row of one key, and commit."""
        with self.transaction() as writes:
            writes.delete(table, *key)

    def rows(self, table: str) -> dict[Key, Named]:
        """Return a table's rows by key, for an oracle to compare with."""
        return dict(self._states[table].rows)

    def _write(self, table: str, key: Key | None, row: Named | None) -> None:
        state = self._states[table]
        if state.dropped:
            raise SchemaError("it was dropped", table=table)
        rows = dict(state.rows)
        if row is None:
            key = key or ()
            if rows.pop(key, None) is None:
                return
        else:
            row = _in_shape(row, state.schema)
            key = _key(row, state.schema)
            rows[key] = row
        self._states[table] = self._logged(replace(state, rows=rows), key, row)

    def _logged(self, state: _State, key: Key, row: Named | None) -> _State:
        if state.installed is None or state.dropped:
            return state
        self._sequence += 1
        entry = _Entry(self._sequence, self._now, key, row, len(state.shapes) - 1)
        return replace(state, log=(*state.log, entry))

    # What capture does: see `ChangeSource`.

    def describe(self, name: str) -> TableSchema:
        """Return a table's schema as it is now."""
        state = self._states.get(name)
        if state is None or state.dropped:
            raise no_such_table(name, sorted(self._states))
        return state.schema

    def install(self, table: Table, least: int) -> None:
        """Log the table's changes from now on."""
        self.describe(table.name)
        state = self._states[table.name]
        if state.installed is None or self._sequence < least:
            self._sequence = max(self._sequence, least) + 1
        if state.installed is None:
            state = replace(state, forgotten=self._sequence)
        self._states[table.name] = replace(state, installed=table.schema)

    def is_installed(self, table: Table) -> bool:
        """Return whether capture is installed for the table as it is now."""
        state = self._states.get(table.name)
        if state is None or state.dropped:
            return False
        return state.schema == state.installed == table.schema

    def schema_version(self) -> int:
        """Return how often the schema was changed."""
        return self._version

    @contextmanager
    def snapshot(self) -> Iterator["StubSnapshot"]:
        """Hold the present state; rows can always be read."""
        self._now += _TICK
        state = (dict(self._states), self._now, self._version, self._sequence)
        yield StubSnapshot(*state, shares_log=self.shares_log)

    def acknowledge(self, needed_from: Mapping[str, Position], *, prune: bool) -> int:
        """Forget, where that is asked for, what the mirror does not need."""
        forgotten = 0
        for name, position in needed_from.items() if prune else ():
            state = self._states.get(name)
            if state is None or position.proof != state.proof:
                continue
            kept = tuple(entry for entry in state.log if entry.sequence > position.order)
            forgotten += len(state.log) - len(kept)
            least = max(state.forgotten, position.order)
            self._states[name] = replace(state, log=kept, forgotten=least)
        return forgotten

    def touch(self, table: Table, keys: Sequence[Key]) -> None:
        """Log the rows of these keys as they are now."""
        for key in keys:
            state = self._states[table.name]
            self._states[table.name] = self._logged(state, tuple(key), state.rows.get(tuple(key)))


class StubSnapshot:
    """One committed state of a stub source; see `SourceSnapshot`."""

    def __init__(
        self,
        states: Mapping[str, _State],
        clock: datetime,
        schema_version: int,
        newest: int,
        *,
        shares_log: bool,
    ) -> None:
        self._states = states
        self.clock = clock
        self.schema_version = schema_version
        self._newest = newest
        self.shares_log = shares_log

    def head(self, table: Table) -> Position:
        """Return the position of the newest change."""
        state = self._states[table.name]
        log = state.seen_in(table)
        if self.shares_log and len(log) == len(state.log):
            return Position(self._newest, state.proof)
        return Position(log[-1].sequence if log else state.forgotten, state.proof)

    def origin(self, table: Table) -> Position:
        """Return the head: rows are always read with it."""
        return self.head(table)

    def proves(self, table: Table, position: Position) -> bool:
        """Return whether the log holds every change behind the position."""
        state = self._states.get(table.name)
        if state is None or state.proof != position.proof:
            return False
        return state.forgotten <= position.order <= self._newest

    def pending(self, table: Table, after: Position) -> int:
        """Count the entries behind the position."""
        return len(self._behind(table, after))

    def oldest_pending(self, table: Table, after: Position) -> datetime | None:
        """Return when the first entry behind the position was made."""
        found = self._behind(table, after)
        return found[0].at if found else None

    def changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Read every version of a temporal table; of a destructive one, what became of each key."""
        if table.mode is Mode.DESTRUCTIVE:
            yield from self.net_changes(table, after, limit)
            return
        found = self._behind(table, after)
        for part in _parts(found, limit):
            yield _batch(table.schema, part, len(part), net=False)

    def net_changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Read what became of each key behind the position."""
        found = self._behind(table, after)
        counts: dict[Key, int] = {}
        for entry in found:
            counts[entry.key] = counts.get(entry.key, 0) + 1
        last = {entry.key: entry for entry in found}
        for part in _parts(sorted(last.values(), key=lambda entry: entry.sequence), limit):
            yield _batch(table.schema, part, sum(counts[entry.key] for entry in part), net=True)

    def next_shape(self, table: Table, after: Position) -> TableSchema | None:
        """Return the shape behind the last change in the given one, where it is not today's."""
        state, seen = self._states[table.name], self._states[table.name].seen_in(table)
        place = max(after.order, seen[-1].sequence if seen else 0)
        later = [entry for entry in state.log if entry.sequence > place]
        shape = state.shapes[later[0].shape] if later else None
        return None if shape in (table.schema, state.schema) else shape

    def rows(self, table: Table, resume: str | None, limit: int) -> RowBatch | None:
        """Read the next rows in key order."""
        rows = self._states[table.name].rows
        behind = None if resume is None else tuple(json.loads(resume))
        keys = [key for key in sorted(rows) if behind is None or key > behind][:limit]
        if not keys:
            return None
        fitting, letters = _fitting(table.schema, [rows[key] for key in keys], self.clock)
        made = pa.Table.from_pylist(fitting, schema=table.schema.arrow)
        return RowBatch(made, json.dumps(keys[-1]), tuple(letters))

    def count(self, table: Table) -> int:
        """Count the table's rows."""
        return len(self._states[table.name].rows)

    def _behind(self, table: Table, after: Position) -> list[_Entry]:
        log = self._states[table.name].seen_in(table)
        return [entry for entry in log if entry.sequence > after.order]


def _in_shape(row: Mapping[str, Any], schema: TableSchema) -> Named:
    return {name: row.get(name) for name in schema.names}


def _key(row: Mapping[str, Any], schema: TableSchema) -> Key:
    key = tuple(row[name] for name in schema.primary_key)
    if None in key:
        raise SchemaError("the key of a row is null", table=schema.name)
    return key


def _parts(entries: Sequence[_Entry], limit: int) -> Iterator[Sequence[_Entry]]:
    for low in range(0, len(entries), limit):
        yield entries[low : low + limit]


def _batch(schema: TableSchema, entries: Sequence[_Entry], count: int, *, net: bool) -> ChangeBatch:
    """Make a batch of entries; those whose values do not fit are dead letters."""
    rows, letters, now = [], list[DeadLetter](), dict[str, set[str]]()
    for entry in entries:
        row = _in_shape(entry.row or {}, schema) | dict(
            zip(schema.primary_key, entry.key, strict=True)
        )
        found = _misfits(schema, row, entry.at) if entry.row is not None else []
        letters += found
        text = key_text({name: row[name] for name in schema.primary_key})
        now[text] = {letter.column for letter in found}
        if not found:
            own = {SEQUENCE: entry.sequence, CHANGED_AT: entry.at, LIVE: entry.row is not None}
            rows.append(own | row)
    events = pa.Table.from_pylist(rows, schema=event_schema(schema))
    resolved = dict.fromkeys(
        (letter.key, letter.column if now[letter.key] else None)
        for letter in letters
        if letter.column not in now[letter.key]
    )
    return ChangeBatch(events, count, net, tuple(letters), resolved=tuple(resolved))


def _fitting(
    schema: TableSchema, rows: Iterable[Named], at: datetime
) -> tuple[list[Named], list[DeadLetter]]:
    fitting, letters = list[Named](), list[DeadLetter]()
    for each in rows:
        row = _in_shape(each, schema)
        found = _misfits(schema, row, at)
        letters += found
        if not found:
            fitting.append(row)
    return fitting, letters


def _misfits(schema: TableSchema, row: Named, at: datetime) -> list[DeadLetter]:
    key = key_text({name: row[name] for name in schema.primary_key})
    return [
        DeadLetter(schema.name, key, column.name, f"it is no {column.type}", at)
        for column in schema.columns
        if not _fits(row[column.name], column.type)
    ]


def _fits(value: object, kind: pa.DataType) -> bool:
    try:
        pa.scalar(value, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError, ValueError):
        return False
    return True
