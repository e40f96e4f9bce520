"""A consumer of a table's changes: what it has added up, and where it stands."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from rhei_pipeline import HTAP, TableChanges
from rhei_pipeline.errors import ChangesLostError
from rhei_pipeline.testing.oracle import by_key

_OLD = "_rhei_old_"
Key = tuple[Any, ...]


@dataclass
class Consumer:
    """Reads a table's changes, each time from where it stood, and adds them up.

    Attributes:
        key: The columns of the table's key.
        rows: What it has by now, by key.
        position: Where it stands, as the text that it has kept.
    """

    table: str
    key: Collection[str]
    rows: dict[Key, dict[str, Any]] = field(default_factory=dict)
    position: str | None = None

    def read(self, htap: HTAP, *, may_lose: bool = False) -> None:
        """Read on; each change fits what it has. All is taken afresh where a column was renamed."""
        try:
            found = htap.changes(self.table, self.position, "snapshot" if may_lose else "raise")
        except ChangesLostError:
            found, may_lose = htap.changes(self.table, self.position, "snapshot"), True
            now = {name for name in found.rows.column_names if not name.startswith("_rhei_")}
            assert all(row.keys() != now for row in self.rows.values())
        self.take(found, may_lose=may_lose)
        again = htap.changes(self.table, self.position)
        assert again.rows.num_rows == 0
        assert str(again.position) == self.position

    def take(self, found: TableChanges, *, may_lose: bool = False) -> None:
        """Add up an answer and keep its position."""
        if found.snapshot:
            assert self.position is None or may_lose
            self.rows = {}
        assert self.position is None or found.snapshot or self.position <= str(found.position)
        for row in found.rows.to_pylist():
            self._apply(row)
        self.position = str(found.position)

    def _apply(self, row: dict[str, Any]) -> None:
        key = tuple(row[name] for name in self.key)
        operation = row["_rhei_operation"]
        assert (operation == "I") == (key not in self.rows), row
        if operation != "I":
            had = self.rows.pop(key)
            old = {n.removeprefix(_OLD): v for n, v in row.items() if n.startswith(_OLD)}
            assert _alike(had, old | {name: row[name] for name in self.key}), (had, row)
        if operation != "D":
            self.rows[key] = {n: v for n, v in row.items() if not n.startswith("_rhei_")}

    def check(self, present: list[dict[str, Any]]) -> None:
        """Demand that it has what the mirror has."""
        held = by_key(present, self.key)
        assert held.keys() == self.rows.keys(), (self.table, held, self.rows)
        for key, row in held.items():
            assert _alike(self.rows[key], row), (self.table, row, self.rows[key])


def _alike(had: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Compare in the columns that there are now; one that came later is null in what was before."""
    return all(_meaning(had.get(name)) == _meaning(value) for name, value in now.items())


def _meaning(value: Any) -> str:
    """A column that gets another scale has the same numbers."""
    if isinstance(value, Decimal) and value.is_finite():
        value = value.normalize()
    return repr(value)
