"""One published state of a mirror: which version of each Delta table belongs to it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A table of a published state.

    Attributes:
        namespace: The schema it is in, as in the mirror; None for the main one.
        relation: Its name there.
        folder: Where its Delta table is, below the mirror.
        version: The Delta table's version that shows the state.
    """

    namespace: str | None
    relation: str
    folder: str
    version: int

    @property
    def name(self) -> str:
        """What a query calls it; a schema stands before two underscores."""
        if self.namespace in (None, "public"):
            return self.relation
        return f"{self.namespace}__{self.relation}"


@dataclass(frozen=True, slots=True)
class PublishedState:
    """What all Delta tables of a mirror show together.

    Attributes:
        version: The mirror's version.
        watermarks: The position of each table of the source.
    """

    version: int
    committed_at: str
    watermarks: Mapping[str, int]
    tables: tuple[PublishedTable, ...]

    def text(self) -> str:
        """Write it as JSON."""
        tables = [
            {name: getattr(table, name) for name in ("namespace", "relation", "folder", "version")}
            for table in self.tables
        ]
        whole: dict[str, Any] = {
            "version": self.version,
            "committed_at": self.committed_at,
            "watermarks": dict(self.watermarks),
            "tables": tables,
        }
        return json.dumps(whole)

    @classmethod
    def read(cls, text: str) -> "PublishedState":
        """Read what `text` has written."""
        whole = json.loads(text)
        tables = tuple(PublishedTable(**table) for table in whole.pop("tables"))
        return cls(tables=tables, **whole)
