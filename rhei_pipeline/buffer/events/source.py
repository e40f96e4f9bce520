"""A log of an application's own events as the source: events in, mirror out, no database."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from rhei_pipeline.buffer.events.declared import declared_schema
from rhei_pipeline.buffer.events.snapshot import Folded, LogSnapshot
from rhei_pipeline.buffer.log import ChangeLog
from rhei_pipeline.errors import CaptureError
from rhei_pipeline.model.changes import CHANGED_AT, SEQUENCE, Position, key_text
from rhei_pipeline.model.plain_values import plain_rows
from rhei_pipeline.model.polling import PollOptions
from rhei_pipeline.model.progress import changed_positions
from rhei_pipeline.model.schema import Table, TableOptions, TableSchema

_BEGINS = "begins/"


class EventLogSource:
    """A `ChangeSource` over a log; each table is the stream of its name.

    Args:
        log: The log; the caller closes it.
        reader: Whose positions are recorded in it.
        options: The tables' columns, types and keys, by name.

    Not for several threads at once; the caller holds a lock around its work. Events may be
    appended in other threads all the time.
    """

    #: An event holds a whole row.
    logs_rows = True

    def __init__(self, log: ChangeLog, reader: str, options: Mapping[str, TableOptions]) -> None:
        self._log, self._reader = log, reader
        self._options = dict(options)
        self._version = 0
        self._folds: dict[str, tuple[Position, TableSchema, Folded]] = {}
        self._acknowledged: dict[str, Position] = {}

    def describe(self, name: str) -> TableSchema:
        """Return a table's schema, as declared."""
        return declared_schema(name, self._options)

    def redeclare(self, name: str, options: TableOptions, _polling: PollOptions) -> None:
        """Take what is said of a table from now on."""
        if self._options.get(name) != options:
            self._options[name] = options
            self._version += 1

    def schema_version(self) -> int:
        """Return how often what is said of tables has changed."""
        return self._version

    def install(self, table: Table, least: int) -> None:
        """Begin the numbers of a table without events behind `least`.

        Raises:
            CaptureError: The log ends before what the mirror has.
        """
        head = self._log.head(table.name).order
        if head >= least or not least:
            return
        if self._log.low(table.name) < head:
            raise CaptureError(
                f"its log ends at event {head}, and the mirror has {least}",
                table=table.name,
                hint=f"put the newer log back, or start again: 'rhei drop-table {table.name}'",
            )
        with self._log.writing() as writer:
            writer.restart(table.name, least + 1)
            writer.set_fact(_BEGINS + table.name, str(least + 1).encode())

    def is_installed(self, table: Table) -> bool:
        """Return whether the table is declared with this schema."""
        return table.name in self._options and self.describe(table.name) == table.schema

    @contextmanager
    def snapshot(self) -> Iterator[LogSnapshot]:
        """Hold the events appended so far."""
        heads = {stream: self._log.head(stream) for stream in self._log.streams}
        yield LogSnapshot(self._log, heads, self._begins, self._known, self._folds, self._version)

    def acknowledge(self, needed_from: Mapping[str, Position], *, prune: bool) -> int:  # noqa: ARG002
        """Record the mirror's positions; the log is its application's, and never pruned here."""
        news = changed_positions(needed_from, self._acknowledged)
        if news:
            with self._log.writing(durably=False) as writer:
                for name, position in news.items():
                    writer.set_watermark(f"{self._reader}/{name}", position)
            self._acknowledged |= news
        return 0

    def touch(self, table: Table, keys: Sequence[tuple[Any, ...]]) -> None:
        """Append the last event of each key again, so that the log tells it again."""
        names = table.schema.primary_key
        wanted = {key_text(dict(zip(names, key, strict=True))) for key in keys}
        last: dict[str, pa.Table] = {}
        for extent in self._log.extents(table.name, -1):
            for part in self._log.parts(table.name, extent) if extent.parts else ():
                present = [name for name in names if name in part.column_names]
                for row, key in enumerate(plain_rows(part.select(present))):
                    text = key_text(key)
                    if text in wanted:
                        last[text] = part.slice(row, 1)
        if last:
            again = pa.concat_tables(last.values(), promote_options="permissive")
            now = [name for name in again.column_names if name not in (SEQUENCE, CHANGED_AT)]
            self._log.append(again.select(now), stream=table.name)

    def held_bytes(self) -> dict[str, int]:
        """Return the bytes of the log."""
        return {"log": self._log.held_bytes}

    def forget_mirror(self) -> None:
        """Delete the positions of this mirror."""
        with self._log.writing() as writer:
            for name in self._log.facts(f"watermark/{self._reader}/"):
                writer.set_fact(f"watermark/{self._reader}/{name}", None)

    def close(self) -> None:
        """Do nothing: the log is closed by whoever opened it."""

    def _begins(self, name: str) -> int:
        return int(self._log.fact(_BEGINS + name) or 0)

    def _known(self, name: str) -> frozenset[str]:
        return frozenset(self._options[name].types)


def unapplied(log: ChangeLog, reader: str) -> int | None:
    """Count the events that a mirror has not acknowledged; None: it never came."""
    found = log.facts(f"watermark/{reader}/")
    if not found:
        return None
    orders = {name: int(json.loads(value)[0]) for name, value in found.items()}
    return sum(max(log.head(name).order - order, 0) for name, order in orders.items())
