"""What each mirror needs of a table's capture: one log serves them all, so it holds the union."""

import json
import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from rhei_pipeline.sources.sqlite.triggers.log_chain import current_log, exists, holds_images

NEEDS, _CONSUMERS = "_rhei_need", "_rhei_consumer"
_TABLE = (
    f"create table if not exists {NEEDS}("
    "mirror text not null, tbl text not null collate nocase, need text not null,"
    " noted_at integer not null, primary key(mirror, tbl)) without rowid"
)


@dataclass(frozen=True, slots=True)
class Need:
    """What one mirror, or all of a table's, need of its log.

    Attributes:
        images: Whether rows as they were; else the keys touched are enough.
        columns: Of which columns; None: of all that the table has.
        key: The chosen key; None: the declared one.
        types: What the settings say of columns.
    """

    images: bool
    columns: frozenset[str] | None = frozenset()
    key: tuple[str, ...] | None = None
    types: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Write it as JSON; equal needs are equal texts."""
        columns = None if self.columns is None else sorted(self.columns)
        form = {"images": self.images, "columns": columns, "key": self.key, "types": {**self.types}}
        return json.dumps(form, sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> "Need":
        """Read what `text` wrote."""
        form = json.loads(text)
        columns, key = form["columns"], form["key"]
        return cls(
            form["images"],
            None if columns is None else frozenset(columns),
            None if key is None else tuple(key),
            form["types"],
        )

    def among(self, names: Collection[str]) -> frozenset[str]:
        """Return the needed columns that the table has."""
        return frozenset(names if self.columns is None else self.columns & {*names})

    def joined(self, other: "Need") -> "Need":
        """Return what serves both; of a column that both give a type, this one's counts.

        Of one that needs the keys touched only, the rows' columns are not asked for.
        """
        columns = self.columns
        if other.images:
            known = [need.columns for need in (self, other) if need.images]
            every = None in known
            columns = None if every else frozenset().union(*filter(None, known))
        images = self.images or other.images
        return Need(images, columns, self.key, {**other.types, **self.types})


def is_noted(connection: sqlite3.Connection, mirror: str, table: str, need: Need) -> bool:
    """Return whether a mirror's need is noted as it is."""
    return exists(connection, NEEDS) and _own(connection, mirror, table) == need.text()


def note(connection: sqlite3.Connection, mirror: str, table: str, need: Need, at: int) -> None:
    """Note what a mirror needs, within a writing transaction; `at`: now, in microseconds."""
    connection.execute(_TABLE)
    connection.execute(
        f"insert or replace into {NEEDS} values(?, ?, ?, ?)", (mirror, table, need.text(), at)
    )


def of_others(connection: sqlite3.Connection, mirror: str, table: str) -> list[Need]:
    """Return what the other mirrors of a table need.

    Of one that has not noted it, which an older version of this package may have made, it is what
    the log holds that is there.
    """
    noted = _noted(connection, table) if exists(connection, NEEDS) else {}
    found = [Need.parse(text) for name, text in noted.items() if name != mirror]
    if _readers(connection, table) - {mirror, *noted}:
        log = current_log(connection, table)
        if log is not None:
            names = frozenset(log.schema.names) if log.schema else None
            found.append(Need(holds_images(connection, log.name), names))
    return found


def forget(connection: sqlite3.Connection, mirror: str) -> None:
    """Delete what a mirror needs."""
    if exists(connection, NEEDS):
        connection.execute(f"delete from {NEEDS} where mirror = ?", (mirror,))


def forget_table(connection: sqlite3.Connection, mirror: str, table: str) -> None:
    """Delete what a mirror needs of one table."""
    if exists(connection, NEEDS):
        connection.execute(f"delete from {NEEDS} where mirror = ? and tbl = ?", (mirror, table))


def is_read(connection: sqlite3.Connection, table: str) -> bool:
    """Return whether any mirror reads a table's log, or is about to."""
    noted = _noted(connection, table) if exists(connection, NEEDS) else {}
    return bool(noted or _readers(connection, table))


def forget_the_absent(connection: sqlite3.Connection, until: int) -> None:
    """Delete what mirrors need that noted it before an instant and read no log of the table."""
    if exists(connection, NEEDS):
        connection.execute(
            f"delete from {NEEDS} where noted_at < ? and not exists (select 1 from {_CONSUMERS} c"
            f" where c.mirror = {NEEDS}.mirror and c.tbl = {NEEDS}.tbl collate nocase)",
            (until,),
        )


def _own(connection: sqlite3.Connection, mirror: str, table: str) -> str | None:
    found = connection.execute(
        f"select need from {NEEDS} where mirror = ? and tbl = ?", (mirror, table)
    ).fetchone()
    return None if found is None else str(found[0])


def _noted(connection: sqlite3.Connection, table: str) -> dict[str, str]:
    rows = connection.execute(f"select mirror, need from {NEEDS} where tbl = ?", (table,))
    return dict(rows.fetchall())


def _readers(connection: sqlite3.Connection, table: str) -> set[str]:
    if not exists(connection, _CONSUMERS):
        return set()
    rows = connection.execute(
        f"select mirror from {_CONSUMERS} where tbl = ? collate nocase", (table,)
    )
    return {name for (name,) in rows}
