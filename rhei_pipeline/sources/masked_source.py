"""A source whose columns are masked, and rows chosen, before anything is written anywhere.

It stands directly over the way of capture: buffer, mirror, dead letters, registry and whatever is
made of them know the masked values alone. What an adapter keeps in the source itself, such as the
log of its triggers, is the source's own.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pyarrow as pa

from rhei_pipeline.capabilities import (
    added_values,
    bytes_held_by,
    changed_unseen,
    end_capture,
    kept_columns,
    keyless_rows,
    reading_together,
    reads_wider,
    redeclare,
    snapshot_for_copy,
    snapshot_of_rows,
)
from rhei_pipeline.changes.filters import RowFilter, refuse_columns, row_filter
from rhei_pipeline.changes.masks import (
    MaskingKey,
    has_masked_key,
    masked_key_text,
    masked_rows,
    masked_schema,
    source_schema,
    source_table,
)
from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.changes import Position, key_text, read_keys
from rhei_pipeline.model.kept_columns import KeptColumns
from rhei_pipeline.model.plain_values import plain_rows
from rhei_pipeline.model.polling import PollOptions
from rhei_pipeline.model.schema import Table, TableOptions, TableSchema
from rhei_pipeline.model.semantics import MirroredTable
from rhei_pipeline.protocols import ChangeSource, SourceSnapshot
from rhei_pipeline.sources.masked_snapshot import MaskedSnapshot

_NOTHING = TableOptions()
#: Rows read at once while the rows of masked keys are looked for.
_ROWS = 50_000


class Filters:
    """Reads row filters.

    Args:
        dialect: The source's.
        meaning: Returns how a table's columns are compared; None where nothing is known of it.
    """

    def __init__(
        self, dialect: str, meaning: Callable[[TableSchema], MirroredTable | None]
    ) -> None:
        self._dialect = dialect
        self._meaning = meaning
        self._fitting: set[tuple[TableSchema, str]] = set()

    def of(self, table: Table) -> RowFilter | None:
        """Return the filter that a table is mirrored with."""
        where = table.schema.where
        return row_filter(where, source_schema(table.schema), self._dialect) if where else None

    def refuse_unfit(self, schema: TableSchema, where: str) -> None:
        """Refuse a condition that is not certain to be read alike everywhere.

        Raises:
            SchemaError: Says what it may be.
        """
        if (schema, where) not in self._fitting:
            found, meant = row_filter(where, schema, self._dialect), self._meaning(schema)
            refuse_columns(found, schema, meant.kinds if meant else {})
            self._fitting.add((schema, where))


class DeclaredMasks:
    """The masks and row filters of a declaration, and of tables registered at run time.

    Args:
        options: What is said of single tables.
        key: The key of hashes.
        names_keys: Whether positions in the source name keys, as those of polling do; keys are
            not masked then.
        filters: Reads the row filters.
    """

    def __init__(
        self,
        options: Mapping[str, TableOptions],
        key: MaskingKey,
        *,
        names_keys: bool = False,
        filters: Filters,
    ) -> None:
        self.key = key
        self.filters = filters
        self._options = options
        self._names_keys = names_keys
        self._redeclared: dict[str, TableOptions] = {}

    def redeclare(self, name: str, options: TableOptions) -> None:
        """Take what is said of a table from now on."""
        self._redeclared[name] = options

    def masked(self, schema: TableSchema, *, whole: bool = True) -> TableSchema:
        """Return a table's schema as the mirror has it; see `masked_schema`.

        Raises:
            SchemaError: A mask does not suit its column, or the column is missing.
        """
        rules, where = self._rules(schema.name), self._where(schema.name)
        if where and whole:
            self.filters.refuse_unfit(schema, where)
        schema = replace(schema, where=where) if where else schema
        if not rules:
            return schema
        found = masked_schema(schema, dict(rules), self.key, whole=whole)
        if self._names_keys and has_masked_key(found):
            raise SchemaError(
                "its key cannot be masked while it is polled: positions name keys",
                table=schema.name,
                hint="remove the key's mask, or capture changes by triggers or from the log",
            )
        return found

    def fits(self, table: Table) -> bool:
        """Return whether a table is masked as is declared now."""
        columns = table.schema.columns
        if not self._rules(table.name) and not any(column.masked for column in columns):
            return True
        declared = self.masked(source_table(table).schema, whole=False)
        return [c.masked for c in declared.columns] == [c.masked for c in columns]

    def _rules(self, name: str) -> Mapping[str, str]:
        return self._said(name).masks

    def _where(self, name: str) -> str:
        return self._said(name).where

    def _said(self, name: str) -> TableOptions:
        return self._redeclared.get(name) or self._options.get(name) or _NOTHING


class MaskedSource:
    """A `ChangeSource` over another one: its tables with masked columns and chosen rows.

    Args:
        inner: The source as it is.
        masks: What is declared.
    """

    def __init__(self, inner: ChangeSource, masks: DeclaredMasks) -> None:
        self._inner = inner
        self._masks = masks
        self._owned: dict[str, tuple[Table, Table]] = {}

    def describe(self, name: str) -> TableSchema:
        """Read a table's schema as it is now, with its masks."""
        return self._masks.masked(self._inner.describe(name))

    def reading_together(self, names: Collection[str]) -> AbstractContextManager[None]:
        """Read these tables together, as the source does."""
        return reading_together(self._inner, names)

    def install(self, table: Table, least: int) -> None:
        """Install capture in the source."""
        self._inner.install(source_table(table), least)

    def is_installed(self, table: Table) -> bool:
        """Return whether the source captures the table, and it has the masks declared now."""
        return self._masks.fits(table) and self._inner.is_installed(source_table(table))

    def schema_version(self) -> int:
        """Return the source's schema version."""
        return self._inner.schema_version()

    def reads_wider(self) -> bool:
        """Return the source's answer."""
        return reads_wider(self._inner)

    @property
    def logs_rows(self) -> bool:
        """Return the source's answer."""
        return self._inner.logs_rows

    def snapshot(self) -> AbstractContextManager[SourceSnapshot]:
        """Hold one committed state of the source."""
        return self._held(self._inner.snapshot())

    def row_snapshot(self) -> AbstractContextManager[SourceSnapshot]:
        """Hold one committed state with its rows."""
        return self._held(snapshot_of_rows(self._inner))

    def copy_snapshot(self) -> AbstractContextManager[SourceSnapshot]:
        """Hold one committed state; rows may be of later ones."""
        return self._held(snapshot_for_copy(self._inner))

    @contextmanager
    def _held(self, inner: AbstractContextManager[SourceSnapshot]) -> Iterator[SourceSnapshot]:
        with inner as snapshot:
            yield MaskedSnapshot(snapshot, self._masks, self._owned)

    def acknowledge(self, needed_from: Mapping[str, Position], *, prune: bool) -> int:
        """Let the source delete what is no longer needed."""
        return self._inner.acknowledge(needed_from, prune=prune)

    def touch(self, table: Table, keys: Sequence[tuple[Any, ...]]) -> None:
        """Make the source report these keys as changed; those of masked ones are looked for."""
        if has_masked_key(table.schema):
            names = table.schema.primary_key
            wanted = {key_text(dict(zip(names, key, strict=True))) for key in keys}
            keys = self._unmasked(table, wanted) if wanted else []
        self._inner.touch(source_table(table), keys)

    def _unmasked(self, table: Table, wanted: Collection[str]) -> list[tuple[Any, ...]]:
        """Return the source's keys of these masked ones; reads the whole table."""
        own, key = source_table(table), self._masks.key
        names = list(own.schema.primary_key)
        found: list[tuple[Any, ...]] = []
        with snapshot_of_rows(self._inner) as snapshot:
            resume = None
            letters = list(keyless_rows(snapshot, own))
            while batch := snapshot.rows(own, resume, _ROWS):
                plain = batch.rows.select(names)
                masked = plain_rows(masked_rows(plain, table.schema, key))
                found += [
                    tuple(row.values())
                    for row, shown in zip(plain_rows(plain), masked, strict=True)
                    if key_text(shown) in wanted
                ]
                letters += batch.rejected
                resume = batch.resume
        texts = [letter.key for letter in letters]
        texts = [text for text in texts if masked_key_text(text, table.schema, key) in wanted]
        return found + [tuple(row.values()) for row in plain_rows(read_keys(texts, own.schema))]

    def held_bytes(self) -> Mapping[str, int]:
        """Return the bytes that the source keeps."""
        return bytes_held_by(self._inner)

    def redeclare(self, name: str, options: TableOptions, polling: PollOptions) -> None:
        """Take what is said of a table from now on."""
        self._masks.redeclare(name, options)
        redeclare(self._inner, name, options, polling)

    def added_values(
        self, table: Table, known: TableSchema, after: Position
    ) -> Mapping[str, pa.Scalar] | None:
        """Return the source's answer; None where a column is masked: its values are not there."""
        added = table.schema.columns[len(known.columns) :]
        if any(column.masked for column in added):
            return None
        return added_values(self._inner, source_table(table), source_schema(known), after)

    def kept_columns(self, table: Table, known: TableSchema, after: Position) -> KeptColumns | None:
        """Return the source's answer; None where values that are to be read are not its own."""
        found = kept_columns(self._inner, source_table(table), source_schema(known), after)
        is_plain = not table.schema.where and not any(c.masked for c in table.schema.columns)
        return found if found is None or is_plain or not found.unknown else None

    def changed_unseen(self) -> Collection[str]:
        """Return the source's answer."""
        return changed_unseen(self._inner)

    def end_capture(self, name: str) -> None:
        """Capture a table no more."""
        end_capture(self._inner, name)
