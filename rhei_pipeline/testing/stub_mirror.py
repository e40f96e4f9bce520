"""A mirror in memory: tables as dicts by key, histories as lists of versions. Keeps `Mirror`."""

import math
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from types import MappingProxyType
from typing import Any

import duckdb
import pyarrow as pa

from rhei_pipeline.changes.scd2 import (
    DELETED,
    FLOOR,
    LOCATOR,
    REPEATED,
    refuse_lost_history,
    refuse_unknown_key,
    repeated,
)
from rhei_pipeline.errors import MirrorError, QueryError, RheiError, SchemaError
from rhei_pipeline.mirrors.duckdb.read_only import DuckDBGuard
from rhei_pipeline.mirrors.exact_casts import (
    InexactError,
    cast_exactly,
    in_other_types,
    past_does_not_fit,
)
from rhei_pipeline.mirrors.key_change import refuse_unfit_key
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.changes import (
    Comparison,
    Counts,
    DeadLetter,
    LetterName,
    NetChanges,
    Operation,
    Versions,
)
from rhei_pipeline.model.progress import AsOf, CopyProgress, Ledger, Past, Watermark
from rhei_pipeline.model.query_limits import NO_LIMITS, AnswerLimits, whole
from rhei_pipeline.model.reports import MaintenanceReport
from rhei_pipeline.model.schema import (
    HISTORY_FIELDS,
    INSTANT,
    OPERATION,
    VALID_FROM,
    VALID_TO,
    Mode,
    Table,
    TableSchema,
    renamed,
)
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.sql.text import mirror_table, quote
from rhei_pipeline.testing.oracle import exact

Key = tuple[Any, ...]
Named = dict[str, Any]

_LETTER = pa.schema(
    [
        ("table_name", pa.string()),
        ("key", pa.string()),
        ("column_name", pa.string()),
        ("reason", pa.string()),
        ("captured_at", INSTANT),
        ("resolved_at", INSTANT),
    ]
)


@dataclass
class _Standing:
    """A table of the mirror.

    Attributes:
        fields: The types of all columns it ever had, without those of its history.
        rows: In the order in which they came; of a temporal table, its versions.
        begins_at, left: What is recorded of a temporal table's past; see `Past`.
        set_aside: It follows no table of the source.
    """

    table: Table
    fields: dict[str, pa.DataType]
    rows: list[Named]
    begins_at: datetime | None = None
    left: dict[str, datetime] = field(default_factory=dict)
    set_aside: bool = False

    @property
    def is_temporal(self) -> bool:
        return self.table.mode is Mode.TEMPORAL

    @property
    def present(self) -> list[Named]:
        """The rows that are valid now."""
        return [row for row in self.rows if not self.is_temporal or row[VALID_TO] is None]

    @property
    def arrow(self) -> pa.Table:
        history = HISTORY_FIELDS if self.is_temporal else ()
        fields = [pa.field(name, kind) for name, kind in self.fields.items()]
        return pa.Table.from_pylist(self.rows, schema=pa.schema([*fields, *history]))


@dataclass
class _Content:
    """All that a mirror holds."""

    tables: dict[str, _Standing] = field(default_factory=dict)
    copies: dict[str, dict[Key, Named]] = field(default_factory=dict)
    watermarks: dict[str, Watermark] = field(default_factory=dict)
    progress: dict[str, CopyProgress] = field(default_factory=dict)
    letters: dict[tuple[str, LetterName], tuple[DeadLetter, datetime | None]] = field(
        default_factory=dict
    )
    snapshots: dict[str, list[Named]] = field(default_factory=dict)
    snapshot_types: dict[str, dict[str, pa.DataType]] = field(default_factory=dict)

    def copied(self) -> "_Content":
        """Return the same, to be changed apart from this one; rows are replaced, not changed."""
        made = _Content(**{name: dict(value) for name, value in vars(self).items()})
        made.tables = {
            name: replace(
                each, rows=list(each.rows), fields=dict(each.fields), left=dict(each.left)
            )
            for name, each in self.tables.items()
        }
        made.copies = {name: dict(rows) for name, rows in self.copies.items()}
        made.snapshots = {name: list(rows) for name, rows in self.snapshots.items()}
        made.snapshot_types = deepcopy(self.snapshot_types)
        return made

    def ledger(self) -> Ledger:
        marks, copies = dict(self.watermarks), dict(self.progress)
        return Ledger(MappingProxyType(marks), MappingProxyType(copies))


class StubTransaction:
    """All that one transaction of a stub mirror may do; see `MirrorTransaction`."""

    def __init__(self, content: _Content) -> None:
        self._content = content

    def ledger(self) -> Ledger:
        """Return what is recorded, as this transaction sees it."""
        return self._content.ledger()

    def merge(self, table: Table, changes: NetChanges) -> Counts:
        """Overwrite rows by key and remove tombstones; count what really changed."""
        standing = self._standing(table)
        rows = _by_key(standing.rows, table.schema)
        counts = _merge(rows, table.schema, changes)
        standing.rows = list(rows.values())
        return counts

    def present_keys(self, table: Table) -> pa.Table:
        """Return the keys of all rows that are valid now."""
        return _keys(self._standing(table).present, table.schema)

    def copied_keys(self, table: Table) -> pa.Table:
        """Return the keys of all rows in the copy."""
        return _keys(self._content.copies[table.name].values(), table.schema)

    def present_rows(self, table: Table, keys: pa.Table) -> pa.Table:
        """Return the rows of those keys that are valid now."""
        return _chosen(_by_key(self._standing(table).present, table.schema), keys, table.schema)

    def copied_rows(self, table: Table, keys: pa.Table) -> pa.Table:
        """Return the rows of those keys in the copy."""
        return _chosen(self._content.copies[table.name], keys, table.schema)

    def open_versions(self, table: Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return the open versions of the events' keys, and the floors of those that ended."""
        schema, standing = table.schema, self._standing(table)
        touched = {_key(row, schema) for row in events.to_pylist()}
        opened, floors = list[Named](), dict[Key, datetime]()
        for place, row in enumerate(standing.rows):
            key = _key(row, schema)
            if key in touched and row[VALID_TO] is None:
                opened.append({**row, LOCATOR: place})
            elif key in touched:
                floors[key] = max(floors.get(key, row[VALID_TO]), row[VALID_TO])
        places = [(VALID_FROM, INSTANT), (LOCATOR, pa.int64())]
        found = pa.Table.from_pylist(opened, schema=pa.schema([*schema.arrow, *places]))
        versions = found.select([*schema.primary_key, VALID_FROM, LOCATOR])
        versions = versions.append_column(REPEATED, repeated(found, events, schema))
        open_keys = {_key(row, schema) for row in opened}
        ended = [
            dict(zip(schema.primary_key, key, strict=True)) | {FLOOR: floor}
            for key, floor in floors.items()
            if key not in open_keys
        ]
        shape = pa.schema([*schema.arrow_key, (FLOOR, INSTANT)])
        return versions, pa.Table.from_pylist(ended, schema=shape)

    def supersede(self, table: Table, versions: Versions) -> None:
        """Close and open versions."""
        standing = self._standing(table)
        for closing in versions.closings.to_pylist():
            row = {**standing.rows[closing[LOCATOR]], VALID_TO: closing[VALID_TO]}
            if closing[DELETED]:
                row[OPERATION] = Operation.DELETE.value
            standing.rows[closing[LOCATOR]] = row
        nothing = dict.fromkeys(standing.fields)
        standing.rows += [nothing | row for row in versions.openings.to_pylist()]

    def record(self, watermark: Watermark) -> None:
        """Record progress; refuses to go back."""
        known = self._content.watermarks.get(watermark.table)
        if known is not None and known.position.order > watermark.position.order:
            raise MirrorError(
                f"its watermark would go back from {known.position.order}"
                f" to {watermark.position.order}",
                table=watermark.table,
                hint="another sync has committed since; run this one again",
            )
        self._content.watermarks[watermark.table] = watermark

    def quarantine(self, letters: Iterable[DeadLetter]) -> int:
        """Keep dead letters, the newest of each name; return how many."""
        met = list(letters)
        self._content.letters |= {(each.table, each.name): (each, None) for each in met}
        return len(met)

    def quarantined(self, table: Table) -> set[LetterName]:
        """Name the open dead letters of a table."""
        found = self._content.letters.items()
        return {name for (own, name), (_, at) in found if own == table.name and at is None}

    def release(self, table: Table, letters: Collection[LetterName], at: datetime) -> None:
        """Resolve dead letters; a temporal table keeps them as resolved."""
        for name in set(letters) & self.quarantined(table):
            letter, _ = self._content.letters.pop((table.name, name))
            if table.mode is Mode.TEMPORAL:
                self._content.letters[table.name, name] = (letter, at)

    def write_snapshots(self, table: Table, days: Mapping[date, AsOf]) -> dict[date, int]:
        """Keep a temporal table's rows as of each day's instant."""
        standing, name = self._standing(table), table.schema.snapshot_name
        rows = self._content.snapshots.setdefault(name, [])
        types = self._content.snapshot_types.setdefault(name, {})
        rows[:] = [row for row in rows if row["snapshot_date"] not in days]
        written = {}
        for day, asked in days.items():
            types |= {column: standing.fields[column] for column in asked.columns}
            found = [
                {"snapshot_date": day} | {column: row[column] for column in asked.columns}
                for row in standing.rows
                if row[VALID_FROM] <= asked.instant
                and (row[VALID_TO] is None or row[VALID_TO] > asked.instant)
            ]
            rows += found
            written[day] = len(found)
        return written

    def begin_copy(self, table: Table, progress: CopyProgress) -> None:
        """Start an empty copy beside the table."""
        self._content.copies[table.name] = {}
        self._content.progress[table.name] = progress

    def append_copy(self, table: Table, rows: pa.Table, progress: CopyProgress) -> None:
        """Append rows to the copy and record how far it has come."""
        self._content.copies[table.name] |= _by_key(rows.to_pylist(), table.schema)
        self._content.progress[table.name] = progress

    def drop_copy(self, table: Table) -> None:
        """Drop the copy under way."""
        self._content.copies.pop(table.name, None)
        self._content.progress.pop(table.name, None)

    def heal_copy(self, table: Table, changes: NetChanges) -> None:
        """Bring the copy up to a later state."""
        _merge(self._content.copies[table.name], table.schema, changes)

    def keep_unknown(self, table: Table, keys: pa.Table) -> None:
        """Give the copy the table's present rows of keys that it could not read."""
        schema, standing = table.schema, self._content.tables.get(mirror_table(table.schema))
        if standing is None or not set(schema.primary_key) <= standing.fields.keys():
            return
        asked = {_key(row, schema) for row in keys.to_pylist()}
        kept = [row for row in standing.present if _key(row, schema) in asked]
        held = [name for name in schema.names if name in standing.fields]
        before = pa.schema([(name, standing.fields[name]) for name in held])
        cast = in_other_types(pa.Table.from_pylist(kept, schema=before), schema.arrow)
        nothing, copy = dict.fromkeys(schema.names), self._content.copies[table.name]
        for row in cast.to_pylist():
            copy.setdefault(_key(row, schema), nothing | row)

    def adopt_copy(self, table: Table, at: datetime) -> int | None:
        """Make the copy the table where none of its shape stands; return its rows, else None."""
        name, schema = mirror_table(table.schema), table.schema
        standing = self._content.tables.get(name)
        if standing is not None and standing.set_aside:
            raise SchemaError("the mirror has another table of this name", table=table.name)
        if standing is not None and standing.is_temporal:
            _take_on_shape(standing, table, at)
            return None
        fields = {column.name: column.type for column in schema.columns}
        if standing is not None and table.mode is Mode.DESTRUCTIVE:
            same = list(standing.fields.items()) == list(fields.items())
            if same and standing.table.schema.primary_key == schema.primary_key:
                standing.table = table
                return None
        rows = list(self._content.copies[table.name].values())
        if table.mode is Mode.TEMPORAL:
            since = {VALID_FROM: at, VALID_TO: None, OPERATION: Operation.INSERT.value}
            rows = [row | since for row in rows]
        self._content.tables[name] = _Standing(table, fields, rows, at)
        self.drop_copy(table)
        return len(rows)

    def record_key(self, table: Table) -> None:
        """Record the key that a table was built for."""
        self._standing(table).table = table

    def drop_table(self, table: Table, keep_as: str | None = None) -> int:
        """Drop a table with all that is recorded of it, or set it aside; return its rows."""
        content, name = self._content, mirror_table(table.schema)
        if keep_as is not None:
            kept = renamed(table.schema, keep_as)
            if mirror_table(kept) in content.tables:
                raise SchemaError(
                    "the name is taken",
                    table=table.name,
                    hint="give another name after '--keep-as'",
                )
        standing = content.tables.pop(name, None)
        snapshots = content.snapshots.pop(table.schema.snapshot_name, None)
        types = content.snapshot_types.pop(table.schema.snapshot_name, {})
        if keep_as is not None and standing is not None:
            own = Table(kept, standing.table.mode)
            content.tables[mirror_table(kept)] = replace(standing, table=own, set_aside=True)
        if keep_as is not None and snapshots is not None:
            content.snapshots[kept.snapshot_name] = snapshots
            content.snapshot_types[kept.snapshot_name] = types
        self.drop_copy(table)
        content.watermarks.pop(table.name, None)
        content.letters = {key: it for key, it in content.letters.items() if key[0] != table.name}
        return len(standing.rows) if standing else 0

    def mend_keys(self, _table: Table, _at: datetime) -> Counts:
        """Do nothing: a key has one present row here, and no key is null."""
        return Counts()

    def copy_differences(self, table: Table, limit: int) -> Iterator[NetChanges]:
        """Yield what leads from the table's present rows to the copy's, then drop the copy."""
        schema, copy = table.schema, self._content.copies[table.name]
        held = _by_key(self._standing(table).present, schema)
        news = [row for key, row in copy.items() if _other(held.get(key), row, schema)]
        gone = [row for key, row in held.items() if key not in copy]
        self.drop_copy(table)
        for low in range(0, len(news), limit):
            yield NetChanges(_rows(news[low : low + limit], schema), _keys((), schema))
        for low in range(0, len(gone), limit):
            yield NetChanges(_rows((), schema), _keys(gone[low : low + limit], schema))

    def count(self, table: Table) -> int:
        """Count the rows that are valid now."""
        return len(self._standing(table).present)

    def compare_digests(
        self, table: Table, parts: Iterable[pa.Table]
    ) -> tuple[list[int], pa.Table]:
        """Name the parts that differ, and the keys of the table's rows that are in none."""
        schema, stale = table.schema, list[int]()
        held = _by_key(self._standing(table).present, schema)
        extra = dict(held)
        for number, part in enumerate(parts):
            rows = _by_key(part.to_pylist(), schema)
            if any(_other(held.get(key), row, schema) for key, row in rows.items()):
                stale.append(number)
            extra = {key: row for key, row in extra.items() if key not in rows}
        return stale, _keys(extra.values(), schema)

    def compare(self, table: Table, rows: Iterable[pa.Table]) -> Comparison:
        """Compare the table's present rows with all rows of the source."""
        schema, source = table.schema, dict[Key, Named]()
        for part in rows:
            source |= _by_key(part.to_pylist(), schema)
        held = _by_key(self._standing(table).present, schema)
        both = held.keys() & source.keys()
        return Comparison(
            missing=_keys([row for key, row in source.items() if key not in held], schema),
            extra=_keys([row for key, row in held.items() if key not in source], schema),
            different=_keys(
                [source[key] for key in both if _other(held[key], source[key], schema)], schema
            ),
            duplicate=_keys((), schema),
        )

    def _standing(self, table: Table) -> _Standing:
        found = self._content.tables.get(mirror_table(table.schema))
        if found is None:
            raise MirrorError("it is not in the mirror", table=table.name)
        return found


class StubMirror:
    """A mirror in memory, queried in DuckDB's SQL; one that other code may look into.

    Every transaction works on a copy of all tables: this is for small ones.
    """

    folds_names = False
    not_published: RheiError | None = None

    def __init__(self) -> None:
        self._content = _Content()
        self._lock = threading.RLock()
        self._engine: duckdb.DuckDBPyConnection | None = None
        self._guard = DuckDBGuard()

    def ledger(self) -> Ledger:
        """Return what is recorded."""
        return self._content.ledger()

    @contextmanager
    def transaction(self, *, trial: bool = False) -> Iterator[StubTransaction]:
        """Open the one writing transaction; an error rolls it back, and so does a trial's end."""
        with self._lock:
            content = self._content.copied()
            yield StubTransaction(content)
            if not trial:
                self._content = content

    def rows(self, table: str) -> list[Named]:
        """Return a table's rows, or versions, by the name it has in the mirror."""
        return list(self._content.tables[quote(table)].rows)

    def query(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any] = (),
        begun: Begun | None = None,
        limits: AnswerLimits = NO_LIMITS,
    ) -> pa.Table:
        """Run one read-only statement on the last committed state.

        Raises:
            QueryLimitError: The answer is larger than `limits` allow.
        """
        cancel = Cancel.given(begun)
        cancel.refuse_cancelled()
        found = self._found(sql, params)
        return whole(found.schema, found.to_batches(), limits)

    def _found(self, sql: str, params: Sequence[Any] | Mapping[str, Any]) -> pa.Table:
        with self._lock:
            engine = self._engine = self._engine or _engine()
            content = self._content
            try:
                with _shown(engine, content):
                    read = self._guard.admitted(sql, engine)
                    bound = dict(params) if isinstance(params, Mapping) else list(params)
                    found = engine.sql(read, params=bound) if bound else engine.sql(read)
                    return pa.table({}) if found is None else _in_utc(found.to_arrow_table())
            except duckdb.Error as error:
                raise QueryError(f"DuckDB refused the query: {error}") from error

    def stream(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any],
        rows: int,
        begun: Begun | None = None,
    ) -> Streamed:
        """Run one read-only statement whole, and return its rows in batches."""
        cancel = Cancel.given(begun)
        found = self.query(sql, params)
        return Streamed(found.schema, _batches(found, rows, cancel.refuse_cancelled), cancel)

    def tables(self) -> Mapping[str, Table]:
        """Return the tables that are in the mirror, as they are there."""
        return {name: standing.table for name, standing in self._content.tables.items()}

    def count(self, table: Table) -> int:
        """Count the rows that are valid now."""
        return StubTransaction(self._content).count(table)

    def past(self, table: Table) -> Past | None:
        """Return what is recorded of a temporal table's past."""
        standing = self._content.tables.get(mirror_table(table.schema))
        if standing is None:
            return None
        mark = self._content.watermarks.get(table.name)
        left = MappingProxyType(dict(standing.left))
        return Past(standing.begins_at, left, mark.recorded_at if mark else None)

    def dead_letters(self, table: str | None = None) -> pa.Table:
        """Return the dead letters kept, of one table or of all."""
        found = _letters(self._content, lambda own, at: at is None and table in (None, own))
        return found.drop_columns(["resolved_at"])

    def confirm(self) -> None:
        """Do nothing: what is held is the newest."""

    def maintain(self) -> MaintenanceReport:
        """Return that nothing is due."""
        return MaintenanceReport()

    def close(self) -> None:
        """Release the engine; safe to repeat, and the content stays."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None


def _take_on_shape(standing: _Standing, table: Table, at: datetime) -> None:
    """Give a history the columns and the key of a schema, if that changes nothing of its past."""
    schema, columns = table.schema, {column.name: column for column in table.schema.columns}
    refuse_lost_history(table)
    refuse_unknown_key(schema, standing.fields)
    if standing.table.schema.primary_key != schema.primary_key:
        refuse_unfit_key(schema, standing.table.schema.primary_key, standing.arrow)
    whole = standing.arrow
    for name, column in columns.items():
        old = standing.fields.get(name)
        if old is None:
            standing.rows = [{name: None} | row for row in standing.rows]
        elif not old.equals(column.type):
            try:
                cast = cast_exactly(whole[name].combine_chunks(), column.type).to_pylist()
            except InexactError as error:
                raise past_does_not_fit(table.name, name, old, column.type) from error
            standing.rows = [
                row | {name: value} for row, value in zip(standing.rows, cast, strict=True)
            ]
        standing.fields[name] = column.type
    gone = standing.fields.keys() - columns.keys()
    standing.left = {name: standing.left.get(name, at) for name in gone}
    standing.table = table


def _merge(rows: dict[Key, Named], schema: TableSchema, changes: NetChanges) -> Counts:
    """Apply net changes to rows by key."""
    inserted = updated = deleted = 0
    for row in changes.upserts.to_pylist():
        key = _key(row, schema)
        known = rows.get(key)
        if _other(known, row, schema):
            inserted, updated = inserted + (known is None), updated + (known is not None)
            rows[key] = row
    for row in changes.tombstones.to_pylist():
        deleted += rows.pop(_key(row, schema), None) is not None
    return Counts(inserted, updated, deleted)


def _other(held: Named | None, row: Named, schema: TableSchema) -> bool:
    """Return whether there is no such row, or one with other values, bit for bit."""
    if held is None:
        return True
    return exact(held[name] for name in schema.names) != exact(row[name] for name in schema.names)


def _by_key(rows: Iterable[Named], schema: TableSchema) -> dict[Key, Named]:
    return {_key(row, schema): row for row in rows}


def _key(row: Named, schema: TableSchema) -> Key:
    """Return a row's key: 0.0 and -0.0 are one, and so are all NaNs."""
    parts = (row[name] for name in schema.primary_key)
    return tuple("nan" if isinstance(p, float) and math.isnan(p) else p for p in parts)


def _keys(rows: Iterable[Named], schema: TableSchema) -> pa.Table:
    keys = [{name: row[name] for name in schema.primary_key} for row in rows]
    return pa.Table.from_pylist(keys, schema=schema.arrow_key)


def _rows(rows: Iterable[Named], schema: TableSchema) -> pa.Table:
    chosen = [{name: row[name] for name in schema.names} for row in rows]
    return pa.Table.from_pylist(chosen, schema=schema.arrow)


def _chosen(rows: Mapping[Key, Named], keys: pa.Table, schema: TableSchema) -> pa.Table:
    asked = dict.fromkeys(_key(row, schema) for row in keys.to_pylist())
    return _rows([rows[key] for key in asked if key in rows], schema)


def _letters(content: _Content, wanted: Callable[[str, datetime | None], bool]) -> pa.Table:
    found = [
        {
            "table_name": letter.table,
            "key": letter.key,
            "column_name": letter.column,
            "reason": letter.reason,
            "captured_at": letter.captured_at,
            "resolved_at": at,
        }
        for letter, at in content.letters.values()
        if wanted(letter.table, at)
    ]
    found.sort(key=lambda row: (row["captured_at"], row["table_name"], row["key"]))
    return pa.Table.from_pylist(found, schema=_LETTER)


def _batches(
    found: pa.Table, rows: int, refuse_cancelled: Callable[[], None]
) -> Iterator[pa.RecordBatch]:
    for batch in found.to_batches(rows):
        refuse_cancelled()
        yield batch


def _engine() -> duckdb.DuckDBPyConnection:
    # It has no file of its own and opens none.
    engine = duckdb.connect(config={"enable_external_access": False, "threads": 1})
    engine.execute("set timezone = 'UTC'")
    return engine


@contextmanager
def _shown(engine: duckdb.DuckDBPyConnection, content: _Content) -> Iterator[None]:
    """Within the block, have the engine see the tables, dead letters and snapshots."""
    shown: list[tuple[str | None, str, pa.Table]] = [
        (each.table.schema.namespace, each.table.schema.mirror_relation, each.arrow)
        for each in content.tables.values()
    ]
    shown.append((None, "_rhei_dead_letter", _letters(content, lambda _, __: True)))
    for name, rows in content.snapshots.items():
        types = content.snapshot_types[name].items()
        shape = pa.schema([("snapshot_date", pa.date32()), *types])
        shown.append(("snapshot", name, pa.Table.from_pylist(rows, schema=shape)))
    with ExitStack() as stack:
        for namespace, relation, rows in shown:
            held = relation if namespace is None else "_rhei_shown"
            engine.register(held, rows)
            if namespace is None:
                stack.callback(engine.unregister, held)
                continue
            target = f"{quote(namespace)}.{quote(relation)}"
            engine.execute(f"create schema if not exists {quote(namespace)}")
            engine.execute(f"create or replace table {target} as from {held}")
            engine.unregister(held)
            stack.callback(engine.execute, f"drop table {target}")
        yield


def _in_utc(found: pa.Table) -> pa.Table:
    """Return instants as the mirror's columns have them, whatever the engine calls UTC."""
    fields = [
        field.with_type(INSTANT)
        if pa.types.is_timestamp(field.type) and field.type.tz is not None
        else field
        for field in found.schema
    ]
    return found.cast(pa.schema(fields))
