"""All objects of a SQLite schema at one time, and whether two times explain what lies between.

SQLite counts schema changes, one a statement. A column that was dropped and added again, a table
or a trigger that was dropped and made again, leave two counts and no difference: rows may be others
than they were, and no log tells of it.
"""

import hashlib
import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

from rhei_pipeline.sources.sqlite.schema_growth import columns_added
from rhei_pipeline.sources.sqlite.schema_renaming import columns_dropped, columns_renamed

#: Statements that leave no trace and harm nothing come alone: VACUUM, a second ANALYZE. What can
#: change rows unseen takes two.
HARMLESS = 1
#: To make a table again takes so many statements, and one for each of its indexes and triggers.
_MADE_AGAIN = 2
_DIGEST_BYTES = 9
_NO_COLUMNS: Mapping[str, Sequence[str]] = MappingProxyType({})


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
        columns: The names of their columns; of a schema of before, where somebody noted them.
        gone: In lower case, the names that columns had which are gone or renamed. Nothing tells
            one that comes under such a name from the one that had it.
    """

    version: int
    objects: Mapping[tuple[str, str], SchemaObject]
    texts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    columns: Mapping[str, Sequence[str]] = field(default_factory=lambda: _NO_COLUMNS)
    gone: Mapping[str, Collection[str]] = field(default_factory=lambda: MappingProxyType({}))

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
        return cls(version, objects, texts, _columns(connection))

    @classmethod
    def parse(
        cls, version: int, text: str, columns: Mapping[str, Sequence[str]] = _NO_COLUMNS
    ) -> "SchemaState":
        """Read what `text` wrote."""
        rows = json.loads(text)
        objects = {(kind, name): SchemaObject(*fields) for kind, name, *fields in rows}
        return cls(version, objects, columns=columns)

    def after(self, before: "SchemaState") -> "SchemaState":
        """Return the same with the names that are gone since; of tables whose rows are known."""
        gone = {}
        for name in self.former_names(before):
            had = {n.lower() for n in (*before.columns.get(name, ()), *before.gone.get(name, ()))}
            gone[name] = had - {n.lower() for n in self.columns.get(name, ())}
        return replace(self, gone=gone)

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
        whose own definition is another, by more than columns added, dropped or renamed.
        """
        return {*tables} - self.former_names(before).keys()

    def former_names(self, before: "SchemaState") -> Mapping[str, Mapping[str, str]]:
        """Return the tables whose rows are as they were, and which name each column had.

        A table's columns that came since have none. Of a table that is as it was defined, and
        whose columns nobody noted, none is told.
        """
        grown, altered = self._grown(before), self._altered_columns(before)
        least = sum(grown.values()) + sum(count for count, _ in altered.values())
        told = {*grown, *altered}
        least += self._least_statements(before, told, renames=bool(altered))
        unexplained = self.version - before.version - least
        if not 0 <= unexplained <= HARMLESS:
            return {}
        found = {
            name: {column: column for column in before.columns.get(name, ())}
            for name in self.texts
            if name in grown or self._is_as_defined(before, name)
        }
        # With one statement more, another column may have come in the place of one that went.
        return found if unexplained else found | {n: names for n, (_, names) in altered.items()}

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
        return {n: count for n, count in found.items() if count and not self._comes_back(before, n)}

    def _comes_back(self, before: "SchemaState", table: str) -> bool:
        """Return whether a column has the name of one that is gone."""
        gone = before.gone.get(table, ())
        return any(name.lower() in gone for name in self.columns.get(table, ()))

    def _altered_columns(
        self, before: "SchemaState"
    ) -> Mapping[str, tuple[int, Mapping[str, str]]]:
        """Return the tables with columns renamed or dropped and no more.

        With the least number of statements, and the former name of each column that is left.
        """
        found = {}
        for name, text in self.texts.items():
            then, was = before.objects.get(("table", name)), before.columns.get(name, ())
            if then is None or not was or then.digest == _digest(text):
                continue
            if self._comes_back(before, name):
                continue
            now = self.columns.get(name, ())
            renamed = columns_renamed(text, now, was, partial(_is_of, then.digest))
            count = len(renamed) or columns_dropped(now, was)
            if 0 < count < _MADE_AGAIN + self._attached(before, name):
                found[name] = count, {column: renamed.get(column, column) for column in now}
        return found

    def _attached(self, before: "SchemaState", table: str) -> int:
        """Count the indexes and triggers that a table had and still has."""
        return sum(
            kind != "table" and one.table == table and (kind, name) in self.objects
            for (kind, name), one in before.objects.items()
        )

    def _least_statements(
        self, before: "SchemaState", told: Collection[str], *, renames: bool
    ) -> int:
        """Return how many statements the differences need at least; so none hides behind them.

        Beside those that are told of. With `renames`, these may have rewritten what names a table.
        """
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
        # Each column that was added took a statement, which changed nothing else.
        alone = not renames and not (tables and dropped)
        return least + self._altered(before, told, alone=alone, renames=renames)

    def _altered(
        self, before: "SchemaState", told: Collection[str], *, alone: bool, renames: bool
    ) -> int:
        """Count the statements, at least, that changed other objects in place.

        Renaming a thing rewrites whatever names it, in one statement; so does naming it back.
        """
        changed = [
            key
            for key, one in self.objects.items()
            if key in before.objects
            and before.objects[key].digest != one.digest
            and not (key[0] == "table" and key[1] in told)
        ]
        altered = [key for key in changed if key[0] == "table"]
        if altered:
            own = [key for key in altered if not self.objects[key].refers]
            return len(own) or int(alone)
        same = {key for key in self.objects if key[0] == "table"} == {
            key for key in before.objects if key[0] == "table"
        }
        return 2 if changed and same and not renames else 0


def _columns(connection: sqlite3.Connection) -> Mapping[str, Sequence[str]]:
    """Return the names of the columns of each table but virtual ones."""
    found: dict[str, list[str]] = {}
    for table, column in connection.execute(
        "select t.name, c.name from sqlite_master t, temp.pragma_table_xinfo(t.name) c"
        " where t.type = 'table' and t.sql not like 'create virtual %'"
        " and t.name not like 'sqlite\\_%' escape '\\' order by t.name, c.cid"
    ):
        found.setdefault(table, []).append(column)
    return found


def _dropped_themselves(names: AbstractSet[str]) -> set[str]:
    """Leave out the tables that a virtual table took along."""
    return {name for name in names if not any(name.startswith(f"{one}_") for one in names)}


def _is_of(digest: str, sql: str) -> bool:
    return _digest(sql) == digest


def _digest(sql: str) -> str:
    return hashlib.blake2b(sql.encode(), digest_size=_DIGEST_BYTES).hexdigest()
