"""Rows that could not be mirrored: list them, and have them tried again."""

import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime

import pyarrow as pa

from rhei_pipeline.errors import DeadLettersFullError
from rhei_pipeline.model.schema import Table, TableSchema
from rhei_pipeline.sync.context import PipelineContext


class DeadLetters:
    """The dead letters of one pipeline's tables.

    Args:
        context: What the pipeline works on.
    """

    def __init__(self, context: PipelineContext) -> None:
        self._context = context

    def replay(self, letters: pa.Table) -> int:
        """Mark the letters' rows to be read again by the next sync; return how many.

        A row that fits by now is applied and its letter resolved; one that does not stays one.
        Those of a table that is left out are left: nothing of it is read, and in one that is full
        of letters they would come again once these are dropped.
        """
        keys_by_table: dict[str, list[tuple[object, ...]]] = {}
        for letter in letters.to_pylist():
            key = tuple(map(_bound, json.loads(letter["key"]).values()))
            keys_by_table.setdefault(letter["table_name"], []).append(key)
        left_out = self._context.parts.left_out.errors
        touched = {name: keys for name, keys in keys_by_table.items() if name not in left_out}
        for name, keys in touched.items():
            self.read_again(name, keys)
        return sum(map(len, touched.values()))

    def read_again(self, name: str, keys: Collection[tuple[object, ...]]) -> None:
        """Mark the rows of these keys to be read again by the next sync."""
        with self._context.lock:
            self._context.source.touch(self._context.table(name), list(keys))

    def drop(self, names: Collection[str]) -> int:
        """Forget the open letters of tables; a row that is met again becomes one again.

        Returns:
            How many there were.
        """
        with self._context.lock, self._context.mirror.transaction() as transaction:
            count = 0
            for name in names:
                table = self.table(name)
                letters = transaction.quarantined(table)
                # As of a table without history: those that are resolved would say that rows fit.
                transaction.release(Table(table.schema), letters, datetime.now(UTC))
                count += len(letters)
            return count

    def table(self, name: str) -> Table:
        """Return a table, also one that is left out because it would have too many dead letters.

        One that was never in place is known by its name alone.
        """
        left_out = self._context.parts.left_out.errors.items()
        full = (n for n, error in left_out if isinstance(error, DeadLettersFullError))
        found = next((each for each in full if each.lower() == name.lower()), None)
        if found is None:
            return self._context.mirrored(name)
        return self._context.registry.table(found) or Table(TableSchema(found, (), ()))


def keys_by_column(letters: pa.Table) -> dict[tuple[str, str], list[tuple[object, ...]]]:
    """Return the keys of dead letters by table and column; a letter of no column is left out."""
    found: dict[tuple[str, str], list[tuple[object, ...]]] = {}
    for letter in letters.to_pylist():
        if letter["column_name"] is not None:
            key = tuple(map(_bound, json.loads(letter["key"]).values()))
            found.setdefault((letter["table_name"], letter["column_name"]), []).append(key)
    return found


def _bound(part: object) -> object:
    return bytes.fromhex(part["hex"]) if isinstance(part, Mapping) else part
