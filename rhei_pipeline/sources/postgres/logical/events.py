"""Decoded messages of PostgreSQL's log as change events."""

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.model.changes import CHANGED_AT, LIVE, SEQUENCE, ChangeBatch, event_schema
from rhei_pipeline.model.schema import TableSchema
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.sources.mended_rows import mended
from rhei_pipeline.sources.postgres.logical import pgoutput
from rhei_pipeline.sources.postgres.logical.widened import with_widened
from rhei_pipeline.sources.postgres.rows import admit_rows, kept, letters_of, without_rows
from rhei_pipeline.sources.postgres.types import admit_text
from rhei_pipeline.sources.rejections import Rejection


class LoggedRows:
    """Decoded messages of one table as change events."""

    def __init__(self, schema: TableSchema, changes: pgoutput.Changes, clock: datetime) -> None:
        self._schema = schema
        self._changes = changes
        self._clock = clock
        self._moved = self._moves()

    def _moves(self) -> np.ndarray:
        """Return which updates changed the key."""
        both = self._changes.has_old & self._changes.has_new
        moved = np.zeros(len(both), dtype=bool)
        rows = np.flatnonzero(both)
        for name in self._schema.primary_key if len(rows) else ():
            new, old = self._changes.new.texts.get(name), self._changes.old.texts.get(name)
            if new is not None and old is not None:
                differs = pc.not_equal(self._read(new.at(rows)), self._read(old.at(rows)))
                differs = pc.fill_null(differs, fill_value=False)
                moved[rows] |= differs.to_numpy(zero_copy_only=False)
        return moved

    def _read(self, texts: pgoutput.Texts) -> pa.Array:
        return texts.read(self._changes.buffer)

    def batch(self) -> ChangeBatch:
        """Return the events in order: first the old rows, then the new ones."""
        run, has_new = self._changes.run, self._changes.has_new
        ended = np.flatnonzero(~has_new | self._moved)
        lives = np.flatnonzero(has_new)
        sequence = np.concatenate([2 * run.order[ended], 2 * run.order[lives] + 1])
        order = np.argsort(sequence, kind="stable")
        live = (np.arange(len(order)) >= len(ended))[order]
        rows = np.concatenate([ended, lives])[order]
        texts, unchanged = self._texts(rows, live)
        texts = with_widened(texts, self._schema, run.relation)
        arrays, rejections = admit_rows(self._schema, texts)
        at = pa.array(run.committed_at[rows], pa.int64()).cast(INSTANT)
        own = [pa.array(sequence[order]), at, pa.array(live)]
        events = pa.table([*own, *arrays], [SEQUENCE, CHANGED_AT, LIVE, *self._schema.names])
        letters = letters_of(self._schema, rejections, texts, self._clock)
        admitted = without_rows(events.cast(event_schema(self._schema)), rejections)
        former = self._former(rows, live) if unchanged else None
        masks = {name: _mask(found, rejections) for name, found in unchanged.items()}
        if former is not None:
            former = without_rows(former, rejections)
        resolved = mended(events.select(list(self._schema.primary_key)), rejections, letters)
        return ChangeBatch(
            admitted,
            len(run.order),
            rejected=letters,
            resolved=resolved,
            unchanged=masks,
            former_keys=former,
            whole_transactions=True,
            absent=frozenset(self._schema.names) - {*run.relation.columns},
        )

    def _texts(self, rows: np.ndarray, live: np.ndarray) -> tuple[pa.Table, dict[str, np.ndarray]]:
        """Return each column's text of the events, and which values were not sent.

        `rows` has the message of each event; `live` is true of those that are new rows.
        """
        changes = self._changes
        columns, unchanged = [], {}
        for name in self._schema.names:
            became = changes.texts(changes.new, name).at(rows)
            was = changes.texts(changes.old, name)
            if name in changes.new.unchanged:
                not_sent = changes.new.unchanged[name][rows] & live
                # With REPLICA IDENTITY FULL the old row has the value.
                became = became.but(not_sent, was.at(rows))
                left_out = not_sent & ~became.is_there
                if left_out.any():
                    unchanged[name] = left_out
            if name not in self._schema.primary_key:
                became = became.only(live)
            elif not live.all():
                became = became.but(~live, was.at(rows))
            columns.append(self._read(became))
        return pa.table(columns, list(self._schema.names)), unchanged

    def _former(self, rows: np.ndarray, live: np.ndarray) -> pa.Table:
        """Return the key that each event's row had before."""
        changes, columns = self._changes, []
        for column in self._schema.key_columns:
            became = changes.texts(changes.new, column.name).at(rows)
            was = changes.texts(changes.old, column.name).at(rows)
            array, _ = admit_text(self._read(became.but(~live | self._moved[rows], was)), column)
            columns.append(array)
        return pa.table(columns, list(self._schema.primary_key))


def _mask(mask: np.ndarray, rejections: Sequence[Rejection]) -> pa.Array:
    found = pa.array(mask)
    return found.filter(kept(len(mask), rejections)) if rejections else found
