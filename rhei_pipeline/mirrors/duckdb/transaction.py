"""One transaction of a DuckDB mirror."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import date, datetime

import numpy as np
import pyarrow as pa

from rhei_pipeline.mirrors.duckdb.block_cache import BlockCache
from rhei_pipeline.mirrors.duckdb.comparison import (
    compare_digests,
    present_sql,
    stage_differences,
    staged_differences,
)
from rhei_pipeline.mirrors.duckdb.drop import drop_table
from rhei_pipeline.mirrors.duckdb.feed import DuckDBFeeds
from rhei_pipeline.mirrors.duckdb.forgetting import forget_rows
from rhei_pipeline.mirrors.duckdb.housekeeping import (
    count_reasons,
    drop_copies,
    open_names,
    write_letters,
    write_owner,
)
from rhei_pipeline.mirrors.duckdb.large_rows import LargeRows
from rhei_pipeline.mirrors.duckdb.left_columns import set_aside, values_kept
from rhei_pipeline.mirrors.duckdb.lent_rows import UPSERTS, LentRows
from rhei_pipeline.mirrors.duckdb.logical import as_kept, kept_logical
from rhei_pipeline.mirrors.duckdb.past import write_snapshots
from rhei_pipeline.mirrors.duckdb.progress import ProgressRecords
from rhei_pipeline.mirrors.duckdb.promotion import add_column, adopt_copy, keep_unknown, reshape
from rhei_pipeline.mirrors.duckdb.retention import expire
from rhei_pipeline.mirrors.duckdb.row_comparison import RowComparing
from rhei_pipeline.mirrors.duckdb.statements import Statements
from rhei_pipeline.mirrors.duckdb.table_notes import TableNotes
from rhei_pipeline.mirrors.duckdb.tables import (
    TableNames,
    copy_name,
    copy_place,
    create,
    in_utc,
    registered,
    write_built,
)
from rhei_pipeline.mirrors.duckdb.upsert import Upsert, fit_together, numbered
from rhei_pipeline.mirrors.duckdb.versions import VersionRows
from rhei_pipeline.model.array_texts import as_texts
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
from rhei_pipeline.model.large_rows import are_large
from rhei_pipeline.model.progress import AsOf, CopyProgress, Ledger, Watermark
from rhei_pipeline.model.retention import Ageing, ExpiredHistory
from rhei_pipeline.model.schema import OPERATION, VALID_FROM, VALID_TO, FormerNames, Mode, Table
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.sql.text import listed, literal, matching, mirror_table, quote


class DuckDBTransaction:
    """A `MirrorTransaction` inside an open transaction of one connection.

    Args:
        statements: On that connection.
        lent: Shows rows to it.
        records: The recorded progress; to be written before the transaction commits.
        feeds: The order in which versions of temporal tables came.
        cache: What is cached of the file; None for a mirror in memory.
        notes: What the mirror remembers of its tables.

    Attributes:
        may_have_letters: Whether a dead letter may be open; None where that was not asked yet.
        large_rows: Of which few copies are held.
    """

    def __init__(
        self,
        statements: Statements,
        lent: LentRows,
        records: ProgressRecords,
        feeds: DuckDBFeeds,
        cache: BlockCache | None,
        notes: TableNotes,
    ) -> None:
        self._statements = statements
        self._connection = connection = statements.connection
        self._records = records
        self._feeds = feeds
        self._cache = cache
        self._names = TableNames(connection)
        self.may_have_letters: bool | None = None
        self.large_rows = LargeRows(connection, lent, self._let_go, notes.large_copies)
        self._notes = notes
        self._versions = VersionRows(statements, lent, self.large_rows, notes.highest)

    def ledger(self) -> Ledger:
        """Return what is recorded, as this transaction sees it."""
        return self._records.ledger()

    def claim(self, owner: str, *, new_id: str | None) -> None:
        """Record the owner; under a new id, no position is proved any more."""
        self._records.read_anew()
        write_owner(self._connection, owner, new_id=new_id)

    def merge(self, table: Table, changes: NetChanges) -> Counts:
        """Compare with the present rows, then delete and insert those that really changed."""
        return self._merge(table, mirror_table(table.schema), changes)

    def _merge(self, table: Table, target: str, changes: NetChanges) -> Counts:
        rows, gone, counts = changes.upserts, changes.tombstones, Counts()
        if fit_together(changes):
            rows = pa.concat_tables([rows, gone], promote_options="default")
            gone = gone.slice(0, 0)
        if rows.num_rows:
            counts += self._upsert(table, target, rows, changes.upserts.num_rows)
        if gone.num_rows:
            with registered(self._connection, "_rhei_tombstones", gone):
                same = matching("t", "k", table.schema.primary_key)
                statement = f"delete from {target} t using _rhei_tombstones k where {same}"
                counts += Counts(deleted=self._changed(statement))
        return counts

    def _upsert(self, table: Table, target: str, given: pa.Table, count: int) -> Counts:
        """Bring the first rows to a table, so many; delete those of the keys behind them."""
        shown = numbered(as_kept(self._connection, given, table.schema))
        kept = values_kept(self._connection, table, target)
        with self.large_rows.shown(UPSERTS, shown), kept:
            rows, large = shown.num_rows, are_large(shown)
            new = self._new(table, given) if target == mirror_table(table.schema) else 0
            telling = self._notes.telling
            return Upsert(self._statements, table, target, rows, count, large, new, telling).run()

    def _new(self, table: Table, rows: pa.Table) -> int:
        """Return how many of these rows a table cannot have; it is about to get them."""
        highest = self._notes.highest
        absent = highest.absent(self._statements, table, rows)
        highest.note(table, rows)
        return int(np.count_nonzero(absent))

    def present_rows(self, table: Table, keys: pa.Table) -> pa.Table:
        """Return the current rows of those keys."""
        return self._rows_of(table, present_sql(table), keys)

    def copied_rows(self, table: Table, keys: pa.Table) -> pa.Table:
        """Return the rows of those keys in the copy."""
        return self._rows_of(table, copy_name(table.schema), keys)

    def present_keys(self, table: Table) -> pa.Table:
        """Return the keys of all current rows."""
        return self._arrow(f"select {listed(table.schema.primary_key)} from {present_sql(table)}")

    def copied_keys(self, table: Table) -> pa.Table:
        """Return the keys of all rows in the copy."""
        return self._arrow(
            f"select {listed(table.schema.primary_key)} from {copy_name(table.schema)}"
        )

    def _rows_of(self, table: Table, rows: str, keys: pa.Table) -> pa.Table:
        with registered(self._connection, "_rhei_keys", keys):
            return self._arrow(
                f"select {listed(table.schema.names, 't')} from {rows} t"
                f" semi join _rhei_keys k on {matching('t', 'k', table.schema.primary_key)}"
            )

    def open_versions(self, table: Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return the open versions of the touched keys, and the last end of keys without one."""
        return self._versions.find(table, events)

    def supersede(self, table: Table, versions: Versions) -> None:
        """Close versions by their row ids, then append the new ones."""
        self._feeds.note(table, versions)
        self._versions.supersede(table, versions)

    def record(self, watermark: Watermark) -> None:
        """Record progress; a lower position is refused."""
        self._records.move(watermark)

    def quarantine(self, letters: Iterable[DeadLetter]) -> int:
        """Store dead letters; return how many."""
        count = write_letters(self._connection, letters)
        if count:
            self.may_have_letters = True
        return count

    def quarantined(self, table: Table) -> set[LetterName]:
        """Return the names of a table's open dead letters."""
        if self.may_have_letters is None:
            any_ = "select exists (from _rhei_dead_letter where resolved_at is null)"
            self.may_have_letters = bool(self._connection.execute(any_).fetchall()[0][0])
        if not self.may_have_letters:  # one question for all tables, in most mirrors
            return set()
        return open_names(self._connection, table.name)

    def letter_reasons(self, table: Table) -> Mapping[LetterReason, int]:
        """Return how many of a table's open dead letters have each column and reason."""
        return count_reasons(self._connection, table.name)

    def release(self, table: Table, letters: Collection[LetterName], at: datetime) -> None:
        """Resolve dead letters.

        A temporal table keeps them as resolved: they name versions that its history lacks.
        """
        if not letters:
            return
        keys, columns = zip(*letters, strict=True)
        named = [table.name, list(keys), list(columns)]
        chosen = (
            "d.table_name = ? and d.resolved_at is null and exists (select 1 from"
            " (select unnest(?::varchar[]) as key, unnest(?::varchar[]) as column_name) l"
            " where l.key = d.key and l.column_name = d.column_name)"
        )
        if table.mode is Mode.TEMPORAL:
            self._connection.execute(
                f"update _rhei_dead_letter d set resolved_at = ? where {chosen}", [at, *named]
            )
        else:
            self._connection.execute(f"delete from _rhei_dead_letter d where {chosen}", named)

    def expire(self, ageing: Ageing) -> ExpiredHistory | None:
        """Delete the versions that a table may lose; return what went, None if nothing did."""
        return expire(self._connection, self._feeds, ageing)

    def forget(self, table: Table, keys: pa.Table) -> list[pa.Table]:
        """Delete all that there is of these keys, with their past; return the rows."""
        found = forget_rows(self._connection, table, keys)
        if table.mode is Mode.TEMPORAL and any(rows.num_rows for rows in found):
            # Who follows the feed may not have read yet that a row is gone.
            self._feeds.drop(table)
            self._feeds.lose(table)
        return found

    def write_snapshots(self, table: Table, days: Mapping[date, AsOf]) -> dict[date, int]:
        """Store a temporal table's rows as of each day's instant, under the day."""
        return write_snapshots(self._connection, table, days)

    def begin_copy(self, table: Table, progress: CopyProgress) -> None:
        """Start an empty copy beside the table."""
        self._notes.foreign.refuse(self._connection, table.schema)
        if namespace := table.schema.namespace:
            self._connection.execute(f"create schema if not exists {quote(namespace)}")
        self._connection.execute(f"drop table if exists {copy_name(table.schema)}")
        # A table from before keeps its columns as text, and what is compared with it is as it is.
        logical = kept_logical(self._connection, table.schema)
        create(self._connection, copy_name(table.schema), table.schema.arrow, logical=logical)
        self._records.note_copy(progress)

    def append_copy(self, table: Table, rows: pa.Table, progress: CopyProgress) -> None:
        """Append rows to the copy and record its progress."""
        if rows.num_rows:
            kept = as_kept(self._connection, rows, table.schema)
            with self.large_rows.shown("_rhei_rows", kept):
                self._connection.execute(
                    f"insert into {copy_name(table.schema)} select * from _rhei_rows"
                )
            self.large_rows.note_copied(table.name, kept)
        self._records.note_copy(progress)

    def drop_copy(self, table: Table) -> None:
        """Drop the running copy; the table itself is not changed."""
        self._connection.execute(f"drop table if exists {copy_name(table.schema)}")
        self._forget_copy(table.name)

    def keep_copies(self, tables: Collection[Table]) -> None:
        """Drop all running copies but those of these tables."""
        drop_copies(self._connection, {copy_place(table.schema) for table in tables})
        for name in self.ledger().copies.keys() - {table.name for table in tables}:
            self._forget_copy(name)

    def _forget_copy(self, name: str) -> None:
        self._records.forget_copy(name)
        self.large_rows.forget_copy(name)

    def heal_copy(self, table: Table, changes: NetChanges) -> None:
        """Apply net changes that were made since to the copy."""
        self._merge(table, copy_name(table.schema), changes)

    def keep_unknown(self, table: Table, keys: pa.Table) -> None:
        """Add present rows to the copy for keys that it could not read."""
        if keys.num_rows:
            keep_unknown(self._connection, table, keys, self._names)

    def adopt_copy(self, table: Table, at: datetime) -> int | None:
        """Make the copy the table unless one with its schema exists; return its rows, or None.

        A temporal table's rows become baseline versions that are valid from `at`.

        Raises:
            SchemaDriftError: History would be lost, or does not fit the new schema.
        """
        self._notes.foreign.refuse(self._connection, table.schema)
        if self._has_another_spelling(table.name):
            self._records.read_anew()  # what is recorded of that name becomes this one's
        self._notes.highest.forget(table)
        aside = set_aside(self._connection, table)
        with self.large_rows.read_again(table.name):
            adopted = adopt_copy(self._connection, table, at, self._names)
        if adopted is not None:
            self._forget_copy(table.name)
        if table.mode is Mode.TEMPORAL:
            if adopted is None:
                self._feeds.reshaped(table, aside)
            else:
                self._feeds.born(table, pa.scalar(at, INSTANT).cast(pa.int64()).as_py())
        return adopted

    def _has_another_spelling(self, name: str) -> bool:
        lower, known = name.lower(), self._records.ledger().watermarks
        return any(other != name and other.lower() == lower for other in known)

    def mend_keys(self, table: Table, at: datetime) -> Counts:
        """Leave one present row for each key and none with a null key; return what ended."""
        name, key = mirror_table(table.schema), table.schema.primary_key
        keyless = " or ".join(f"{quote(column)} is null" for column in key)
        if table.mode is Mode.DESTRUCTIVE:
            once = f"select min(rowid) from {name} group by {listed(key)} having count(*) > 1"
            again = f"select {listed(key)} from {name} group by {listed(key)} having count(*) > 1"
            return Counts(
                deleted=self._changed(
                    f"delete from {name} where {keyless} or (rowid not in ({once})"
                    f" and ({listed(key)}) in ({again}))"
                )
            )
        self._feeds.begin(table)
        ended = self._changed(
            f"update {name} set {VALID_TO} = $at, {OPERATION} = {literal(Operation.DELETE)}"
            f" where ({keyless}) and {VALID_TO} is null",
            {"at": at},
        )
        ended += self._end_overlapping(name, key)
        if ended:
            self._feeds.lose(table)
        return Counts(deleted=ended)

    def _end_overlapping(self, name: str, key: Collection[str]) -> int:
        """End each version where the next one of its key begins, unless it ended before."""
        order = f"order by {VALID_FROM}, {VALID_TO} nulls last, rowid"
        # By places of both kinds, other than in `apart`: where it is called, nothing was deleted.
        return self._changed(
            f"update {name} as t set {VALID_TO} = n.began from (select rowid as place,"
            f" lead({VALID_FROM}) over (partition by {listed(key)} {order}) as began from {name}) n"
            f" where n.place = t.rowid and n.began < coalesce(t.{VALID_TO}, 'infinity')"
        )

    def copy_differences(self, table: Table, limit: int) -> Iterator[NetChanges]:
        """Yield the changes from the table's present rows to the copy's, then drop the copy."""
        with self.large_rows.read_again(table.name):
            large = self.large_rows.has_copied(table.name)
            stage_differences(self._connection, table, limit, large=large)
            self._let_go()
            for changes in staged_differences(self._connection, table):
                self._let_go()
                yield changes
                del changes
        self.drop_copy(table)

    def add_columns(self, table: Table, values: Mapping[str, pa.Scalar]) -> None:
        """Add columns behind those of a table; each row has this value in them."""
        for column in table.schema.columns:
            if column.name in values:
                add_column(self._connection, table, column, values[column.name])

    def reshape(self, table: Table, at: datetime, former: FormerNames) -> None:
        """Give a table fewer, renamed or wider columns; a history keeps those that are gone."""
        self._notes.highest.forget(table)
        reshape(self._connection, table, at, former)
        self._feeds.reshaped(table, former)

    def record_key(self, table: Table) -> None:
        """Record the key that the table was built for."""
        write_built(self._connection, table.schema)

    def drop_table(self, table: Table, keep_as: str | None = None) -> int:
        """Drop a table and its records; return the number of rows or versions it had."""
        self._notes.foreign.refuse(self._connection, table.schema)
        self._records.read_anew()
        self._feeds.drop(table)
        self._names.forget()
        return drop_table(self._connection, table, keep_as)

    def count(self, table: Table) -> int:
        """Return the number of current rows."""
        return self._count(f"select count(*) from {present_sql(table)}")

    def compare_digests(
        self, table: Table, parts: Iterable[pa.Table]
    ) -> tuple[list[int], pa.Table]:
        """Name the parts whose rows differ from the present ones, and the keys that are extra."""
        return compare_digests(self._connection, table, parts)

    def compare(
        self, table: Table, rows: Iterable[pa.Table], span: KeySpan | None = WHOLE
    ) -> Comparison:
        """Compare the source's rows with the table's present rows, both ways."""
        comparing = RowComparing(self._connection, table, span, self._let_go, self.large_rows)
        return comparing.compare(rows)

    def _let_go(self) -> None:
        if self._cache is not None:
            self._cache.free_read(self._connection)

    def _changed(self, sql: str, params: Mapping[str, object] | None = None) -> int:
        """Run a writing statement; return how many rows it changed."""
        return int(self._connection.execute(sql, params).fetchall()[0][0])

    _count = _changed

    def _arrow(self, sql: str) -> pa.Table:
        return as_texts(in_utc(self._connection.sql(sql).to_arrow_table()))
