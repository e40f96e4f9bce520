"""All objects of a SQLite schema at one time, and whether two times explain what lies between.

SQLite counts schema changes, one a statement. A column that was dropped and added again, a table
or a trigger that was dropped and made again, leave two counts and no difference: rows may be others
than they were, and no log tells of it.
"""

import hashlib
import json
import sqlite3
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

from rhei_pipeline.sources.sqlite.schema_growth import columns_added

#: Statements that leave no trace and harm nothing come alone: VACUUM, a second ANALYZE. What can
#: change rows unseen takes two.
_HARMLESS = 1
_DIGEST_BYTES = 9


@dataclass(frozen=True, slots=True)
class SchemaObject:
    """One entry of `sqlite_schema`.

    Attributes:
        table: The table it belongs to; its own name for a table.
        digest: Stands for its CREATE text.
        refers: Whether that text names another table, so that renaming there may change it.
    """

    table: str
    digest: str
    refers: bool


@dataclass(frozen=True, slots=True)
class SchemaState:
    """A schema at one time.

    Attributes:
        version: SQLite's count of its changes.
        objects: By kind and name.
        texts: The CREATE texts of its tables; known of the present schema alone.
    """

    version: int
    objects: Mapping[tuple[str, str], SchemaObject]
    texts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> "SchemaState":
        """Read what the transaction of a connection sees."""
        (version,) = connection.execute("pragma schema_version").fetchone()
        rows = connection.execute(
            "select type, name, tbl_name, sql from sqlite_master"
            " where sql is not null and name not like 'sqlite\\_%' escape '\\'"
        ).fetchall()
        objects = {
            (kind, name): SchemaObject(table, _digest(sql), "references" in sql.lower())
            for kind, name, table, sql in rows
        }
        texts = {name: sql for kind, name, _, sql in rows if kind == "table"}
        return cls(version, objects, texts)

    @classmethod
    def parse(cls, version: int, text: str) -> "SchemaState":
        """Read what `text` wrote."""
        rows = json.loads(text)
        objects = {(kind, name): SchemaObject(*fields) for kind, name, *fields in rows}
        return cls(version, objects)

    def text(self) -> str:
        """Write the objects."""
        rows = [
            (kind, name, one.table, one.digest, one.refers)
            for (kind, name), one in self.objects.items()
        ]
        return json.dumps(rows, separators=(",", ":"))

    def changed_unseen(self, before: "SchemaState", tables: AbstractSet[str]) -> set[str]:
        """Return those of the tables whose rows may have changed since, without a change event.

        All of them where more statements were run than the differences account for; else those
        whose own definition is another, by more than added columns.
        """
        grown = self._grown(before)
        unexplained = self.version - before.version - self._least_statements(before, grown)
        if not 0 <= unexplained <= _HARMLESS:
            return set(tables)
        return {name for name in tables - grown.keys() if not self._is_as_defined(before, name)}

    def _is_as_defined(self, before: "SchemaState", table: str) -> bool:
        now, then = self.objects.get(("table", table)), before.objects.get(("table", table))
        return (now and now.digest) == (then and then.digest)

    def _grown(self, before: "SchemaState") -> Mapping[str, int]:
        """Return the tables to which columns were added and no more, and how many."""
        found = {
            name: columns_added(text, partial(_is_of, then.digest))
            for name, text in self.texts.items()
            if (then := before.objects.get(("table", name))) and then.digest != _digest(text)
        }
        return {name: count for name, count in found.items() if count}

    def _least_statements(self, before: "SchemaState", grown: Mapping[str, int]) -> int:
        """Return how many statements the differences need at least; so none hides behind them."""
        made = self.objects.keys() - before.objects.keys()
        gone = before.objects.keys() - self.objects.keys()
        tables = sum(kind == "table" for kind, _ in made)
        absent = {name for kind, name in gone if kind == "table"}
        dropped = _dropped_themselves(absent)
        others = [key for key in made if key[0] != "table"] + [
            key for key in gone if key[0] != "table" and before.objects[key].table not in absent
        ]
        # One that is gone and one that is new may be one that was renamed.
        least = max(tables, len(dropped)) + len(others)
        # Each column took a statement, which changed nothing else.
        added = sum(grown.values())
        return least + added + self._altered(before, grown, alone=not tables or not dropped)

    def _altered(self, before: "SchemaState", grown: Collection[str], *, alone: bool) -> int:
        """Count the statements, at least, that changed objects in place.

        Renaming a thing rewrites whatever names it, in one statement; so does naming it back.
        """
        changed = [
            key
            for key, one in self.objects.items()
            if key in before.objects
            and before.objects[key].digest != one.digest
            and not (key[0] == "table" and key[1] in grown)
        ]
        altered = [key for key in changed if key[0] == "table"]
        if altered:
            own = [key for key in altered if not self.objects[key].refers]
            return len(own) or int(alone)
        same = {key for key in self.objects if key[0] == "table"} == {
            key for key in before.objects if key[0] == "table"
        }
        return 2 if changed and same else 0


def _dropped_themselves(names: AbstractSet[str]) -> set[str]:
    """Leave out the tables that a virtual table took along."""
    return {name for name in names if not any(name.startswith(f"{one}_") for one in names)}


def _is_of(digest: str, sql: str) -> bool:
    return _digest(sql) == digest


def _digest(sql: str) -> str:
    return hashlib.blake2b(sql.encode(), digest_size=_DIGEST_BYTES).hexdigest()
