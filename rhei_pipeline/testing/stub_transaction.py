"""All that one transaction of a stub mirror may do."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import date, datetime

import pyarrow as pa

from rhei_pipeline.changes.scd2 import DELETED, FLOOR, LOCATOR, REPEATED, repeated
from rhei_pipeline.errors import MirrorError, SchemaError
from rhei_pipeline.mirrors.exact_casts import in_other_types, keys_in_types
from rhei_pipeline.model.changes import (
    Comparison,
    Counts,
    DeadLetter,
    LetterName,
    LetterReason,
    NetChanges,
    Operation,
    Versions,
)
from rhei_pipeline.model.key_span import WHOLE, KeySpan
from rhei_pipeline.model.progress import AsOf, CopyProgress, Ledger, Watermark, refuse_lower
from rhei_pipeline.model.schema import (
    OPERATION,
    VALID_FROM,
    VALID_TO,
    FormerNames,
    Mode,
    Table,
    renamed,
)
from rhei_pipeline.model.set_aside import with_former
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.sql.text import mirror_table
from rhei_pipeline.testing.stub_content import (
    Key,
    Named,
    StubContent,
    StubTable,
    by_key,
    chosen_rows,
    differs,
    key_of,
    keys_table,
    merge_into,
    rows_table,
    take_on_shape,
)


class StubTransaction:
    """All that one transaction of a stub mirror may do; see `MirrorTransaction`."""

    def __init__(self, content: StubContent) -> None:
        self._content = content

    def ledger(self) -> Ledger:
        """Return what is recorded, as this transaction sees it."""
        return self._content.ledger()

    def merge(self, table: Table, changes: NetChanges) -> Counts:
        """Overwrite rows by key and remove tombstones; count what really changed."""
        standing = self._standing(table)
        before = by_key(standing.rows, table.schema)
        rows = dict(before)
        counts = merge_into(rows, table.schema, changes)
        nothing = dict.fromkeys(standing.fields)  # in columns that it keeps
        standing.rows = [nothing | before.get(key, {}) | row for key, row in rows.items()]
        return counts

    def present_keys(self, table: Table) -> pa.Table:
        """Return the keys of all rows that are valid now."""
        return keys_table(self._standing(table).present, table.schema)

    def copied_keys(self, table: Table) -> pa.Table:
        """Return the keys of all rows in the copy."""
        return keys_table(self._content.copies[table.name].values(), table.schema)

    def present_rows(self, table: Table, keys: pa.Table) -> pa.Table:
        """Return the rows of those keys that are valid now."""
        return chosen_rows(by_key(self._standing(table).present, table.schema), keys, table.schema)

    def copied_rows(self, table: Table, keys: pa.Table) -> pa.Table:
        """Return the rows of those keys in the copy."""
        return chosen_rows(self._content.copies[table.name], keys, table.schema)

    def open_versions(self, table: Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return the open versions of the events' keys, and the floors of those that ended."""
        schema, standing = table.schema, self._standing(table)
        touched = {key_of(row, schema) for row in events.to_pylist()}
        opened, floors = list[Named](), dict[Key, datetime]()
        for place, row in enumerate(standing.rows):
            key = key_of(row, schema)
            if key in touched and row[VALID_TO] is None:
                opened.append({**row, LOCATOR: place})
            elif key in touched:
                floors[key] = max(floors.get(key, row[VALID_TO]), row[VALID_TO])
        places = [(VALID_FROM, INSTANT), (LOCATOR, pa.int64())]
        found = pa.Table.from_pylist(opened, schema=pa.schema([*schema.arrow, *places]))
        versions = found.select([*schema.primary_key, VALID_FROM, LOCATOR])
        versions = versions.append_column(REPEATED, repeated(found, events, schema))
        open_keys = {key_of(row, schema) for row in opened}
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
        refuse_lower(watermark, self._content.watermarks.get(watermark.table))
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

    def letter_reasons(self, table: Table) -> Mapping[LetterReason, int]:
        """Count the open dead letters of a table by column and reason."""
        kept = self._content.letters
        own = [kept[table.name, name][0] for name in self.quarantined(table)]
        return Counter((letter.column, letter.reason) for letter in own)

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
        self._content.copies[table.name] |= by_key(rows.to_pylist(), table.schema)
        self._content.progress[table.name] = progress

    def drop_copy(self, table: Table) -> None:
        """Drop the copy under way."""
        self._content.copies.pop(table.name, None)
        self._content.progress.pop(table.name, None)

    def keep_copies(self, tables: Collection[Table]) -> None:
        """Drop all copies under way but those of these tables."""
        for name in self._content.progress.keys() - {table.name for table in tables}:
            self._content.copies.pop(name, None)
            self._content.progress.pop(name)

    def heal_copy(self, table: Table, changes: NetChanges) -> None:
        """Bring the copy up to a later state."""
        merge_into(self._content.copies[table.name], table.schema, changes)

    def keep_unknown(self, table: Table, keys: pa.Table) -> None:
        """Give the copy the table's present rows of keys that it could not read."""
        schema, standing = table.schema, self._content.tables.get(mirror_table(table.schema))
        if standing is None or not set(schema.primary_key) <= standing.fields.keys():
            return
        former = pa.schema([(name, standing.fields[name]) for name in schema.primary_key])
        asked = {key_of(row, schema) for row in keys_in_types(keys, former).to_pylist()}
        kept = [row for row in standing.present if key_of(row, schema) in asked]
        held = [name for name in schema.names if name in standing.fields]
        before = pa.schema([(name, standing.fields[name]) for name in held])
        cast = in_other_types(pa.Table.from_pylist(kept, schema=before), schema.arrow)
        nothing, copy = dict.fromkeys(schema.names), self._content.copies[table.name]
        for row in cast.to_pylist():
            copy.setdefault(key_of(row, schema), nothing | row)

    def adopt_copy(self, table: Table, at: datetime) -> int | None:
        """Make the copy the table where none of its shape stands; return its rows, else None."""
        name, schema = mirror_table(table.schema), table.schema
        standing = self._content.tables.get(name)
        if standing is not None and standing.set_aside:
            raise SchemaError("the mirror has another table of this name", table=table.name)
        if standing is not None and standing.is_temporal:
            take_on_shape(standing, table, at)
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
        self._content.tables[name] = StubTable(table, fields, rows, at)
        self.drop_copy(table)
        return len(rows)

    def add_columns(self, table: Table, values: Mapping[str, pa.Scalar]) -> None:
        """Add columns behind those of a table; each row has this value in them."""
        standing = self._standing(table)
        standing.fields |= {name: table.schema.arrow.field(name).type for name in values}
        added = {name: value.as_py() for name, value in values.items()}
        standing.rows, standing.table = [added | row for row in standing.rows], table

    def reshape(self, table: Table, at: datetime, former: FormerNames) -> None:
        """Give a table fewer, renamed or wider columns; a history keeps those that are gone."""
        standing = self._standing(table)
        news = {old: new for new, old in with_former(former, standing.fields).items()}
        standing.left = {news.get(name, name): left_at for name, left_at in standing.left.items()}
        standing.fields = {news.get(name, name): kind for name, kind in standing.fields.items()}
        standing.rows = [{news.get(n, n): value for n, value in r.items()} for r in standing.rows]
        standing.table = table if former else standing.table
        if table.mode is Mode.TEMPORAL:
            take_on_shape(standing, table, at)
            return
        own = {column.name: column.type for column in table.schema.columns}
        standing.fields = own | (standing.fields | own if table.keeps_dropped else {})
        standing.rows = [{name: row[name] for name in standing.fields} for row in standing.rows]
        standing.table = table

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
        held = by_key(self._standing(table).present, schema)
        news = [row for key, row in copy.items() if differs(held.get(key), row, schema)]
        gone = [row for key, row in held.items() if key not in copy]
        self.drop_copy(table)
        for low in range(0, len(news), limit):
            yield NetChanges(rows_table(news[low : low + limit], schema), keys_table((), schema))
        for low in range(0, len(gone), limit):
            yield NetChanges(rows_table((), schema), keys_table(gone[low : low + limit], schema))

    def count(self, table: Table) -> int:
        """Count the rows that are valid now."""
        return len(self._standing(table).present)

    def compare_digests(
        self, table: Table, parts: Iterable[pa.Table]
    ) -> tuple[list[int], pa.Table]:
        """Name the parts that differ, and the keys of the table's rows that are in none."""
        schema, stale = table.schema, list[int]()
        held = by_key(self._standing(table).present, schema)
        extra = dict(held)
        for number, part in enumerate(parts):
            rows = by_key(part.to_pylist(), schema)
            if any(differs(held.get(key), row, schema) for key, row in rows.items()):
                stale.append(number)
            extra = {key: row for key, row in extra.items() if key not in rows}
        return stale, keys_table(extra.values(), schema)

    def compare(
        self, table: Table, rows: Iterable[pa.Table], span: KeySpan | None = WHOLE
    ) -> Comparison:
        """Compare the table's present rows with the source's."""
        schema, source = table.schema, dict[Key, Named]()
        for part in rows:
            source |= by_key(part.to_pylist(), schema)
        held = by_key(self._standing(table).present, schema)
        both = held.keys() & source.keys()
        extra = keys_table([row for key, row in held.items() if key not in source], schema)
        return Comparison(
            missing=keys_table([row for key, row in source.items() if key not in held], schema),
            extra=extra.slice(0, 0) if span is None else extra.filter(span.holds(extra)),
            different=keys_table(
                [source[key] for key in both if differs(held[key], source[key], schema)], schema
            ),
            duplicate=keys_table((), schema),
        )

    def _standing(self, table: Table) -> StubTable:
        found = self._content.tables.get(mirror_table(table.schema))
        if found is None:
            raise MirrorError("it is not in the mirror", table=table.name)
        return found
