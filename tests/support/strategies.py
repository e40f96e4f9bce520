"""Random histories of an application: writes of every shape, syncs, and crashes between them."""

import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from rhei_pipeline.protocols import Step
from tests.support.playing import Work

SCHEMA = (
    "create table items(id integer primary key, code text unique, qty real, note text)",
    "create table pairs(a text collate nocase, b integer, v blob, w integer,"
    " primary key(a, b)) without rowid",
    "create unique index pairs_w on pairs(w) where w > 1",
    "create unique index pairs_v on pairs(length(v), b)",
    # The application's own trigger touches the row again.
    "create trigger app_touch after update of qty on items begin"
    " update items set note = coalesce(note, '') || '!' where id = new.id and"
    " length(coalesce(note, '')) < 4; end",
    "create table child(id integer primary key, item integer references items(id)"
    " on delete cascade on update cascade)",
)
TABLES = ("items", "pairs", "child")
KEYS = {"items": ("id",), "pairs": ("a", "b"), "child": ("id",)}
#: The classes that the mirror keeps values of, where others than these are taken by the source.
FITTING: dict[str, tuple[type, ...]] = {
    "qty": (float,),
    "note": (str,),
    "remark": (str,),
    "v": (bytes,),
    "w": (int,),
}

_VERBS = ("insert", "insert or replace", "insert or ignore", "upsert")
_IDS = st.integers(1, 4)
_ROWS = {
    "items": st.tuples(
        _IDS,
        st.sampled_from([None, "a", "b", "c"]),
        st.sampled_from([None, 0.0, 1.5, float("inf"), 1e300, 0.1]),
        st.sampled_from([None, "", "x", "é\0"]),
    ),
    "pairs": st.tuples(
        st.sampled_from(["k", "K", "ß"]),
        st.integers(1, 2),
        st.sampled_from([None, b"", b"\0\xff", b"abc"]),
        st.sampled_from([None, 1, 2, 3]),
    ),
    "child": st.tuples(_IDS, st.sampled_from([None, 1, 2, 3])),
}
_COLUMNS = {
    "items": ["id", "code", "qty", "note"],
    "pairs": ["a", "b", "v", "w"],
    "child": ["id", "item"],
}


@dataclass(frozen=True)
class Write:
    """One statement with its values."""

    sql: str
    params: tuple[Any, ...]

    def run(self, connection: sqlite3.Connection) -> None:
        """Run it; a broken constraint is the application's everyday life."""
        with suppress(sqlite3.IntegrityError):
            connection.execute(self.sql, self.params)


@dataclass(frozen=True)
class Spoiling(Write):
    """One statement after which a row does not fit its columns."""


@dataclass(frozen=True)
class Transaction:
    """Several writes; some of them inside a savepoint that is rolled back; then an end."""

    writes: tuple[Write, ...]
    undone: tuple[Write, ...]
    commits: bool

    def run(self, connection: sqlite3.Connection) -> None:
        """Run it."""
        connection.execute("begin immediate")
        for write in self.writes:
            write.run(connection)
        connection.execute("savepoint s")
        for write in self.undone:
            write.run(connection)
        connection.execute("rollback to s")
        connection.execute("commit" if self.commits else "rollback")


@dataclass(frozen=True)
class Statement:
    """Something an administrator does."""

    sql: tuple[str, ...]


@st.composite
def writes(draw: st.DrawFn) -> Write:
    """Draw one write to one table."""
    table = draw(st.sampled_from(TABLES))
    kind = draw(st.sampled_from(["put", "put", "update", "move", "delete"]))
    row = draw(_ROWS[table])
    columns, key = _COLUMNS[table], KEYS[table]
    where = " and ".join(f"{name} = ?" for name in key)
    other = draw(_ROWS[table])
    marks = ", ".join("?" for _ in columns)
    either = draw(st.sampled_from(["update", "update or replace", "update or ignore"]))
    if kind == "put":
        verb = draw(st.sampled_from(_VERBS))
        if verb == "upsert":
            values = [name for name in columns if name not in key]
            sets = ", ".join(f"{name} = excluded.{name}" for name in values)
            target = ", ".join(key)
            sql = f"insert into {table} values ({marks}) on conflict({target}) do update set {sets}"
        else:
            sql = f"{verb} into {table} values ({marks})"
        return Write(sql, row)
    if kind == "update":
        place = draw(st.integers(len(key), len(columns) - 1))
        return Write(
            f"{either} {table} set {columns[place]} = ? where {where}",
            (other[place], *row[: len(key)]),
        )
    if kind == "move":
        sets = ", ".join(f"{name} = ?" for name in key)
        return Write(
            f"{either} {table} set {sets} where {where}", (*other[: len(key)], *row[: len(key)])
        )
    return Write(f"delete from {table} where {where}", row[: len(key)])


#: Values that SQLite keeps in columns which are declared to hold others.
_UNFIT = {
    "items": ("qty = 'n/a'", "note = x'00'"),
    "pairs": ("w = 'many'", "v = 'text'"),
}


@st.composite
def spoilings(draw: st.DrawFn) -> Spoiling:
    """Draw a statement that gives one row a value that does not fit."""
    table = draw(st.sampled_from(sorted(_UNFIT)))
    row, key = draw(_ROWS[table]), KEYS[table]
    where = " and ".join(f"{name} = ?" for name in key)
    return Spoiling(
        f"update {table} set {draw(st.sampled_from(_UNFIT[table]))} where {where}",
        row[: len(key)],
    )


transactions = st.builds(
    Transaction,
    st.lists(writes(), min_size=1, max_size=4).map(tuple),
    st.lists(writes(), max_size=2).map(tuple),
    st.sampled_from([True, True, True, False]),
)
_STEPS = st.none() | st.sampled_from(list(Step))
_TABLE = st.sampled_from(TABLES)
syncs = st.builds(Work, st.just("sync"), _TABLE, _STEPS, st.integers(1, 3))
works = st.builds(
    Work,
    st.sampled_from(["copy", "repair", "repair", "verify", "replay", "reopen"]),
    _TABLE,
    _STEPS,
    st.integers(1, 2),
)
#: What does not touch a row, and what rebuilds a table behind everybody's back.
harmless = st.sampled_from([Statement(("vacuum",)), Statement(("analyze",))])
migrations = st.sampled_from(
    [
        Statement(("alter table items add column extra integer default 7",)),
        Statement(("alter table items drop column note",)),
        Statement(("alter table items rename column note to remark",)),
        Statement(("drop index pairs_w", "alter table pairs drop column w")),
        Statement(
            (
                "create table rebuilt(id integer primary key, item integer)",
                "insert into rebuilt select id, item from child",
                "drop table child",
                "alter table rebuilt rename to child",
            )
        ),
        Statement(("delete from _rhei_log_items",)),
        Statement(("drop trigger _rhei_insert_pairs",)),
    ]
)

_done = transactions | writes() | spoilings() | syncs | works | harmless
calm = st.lists(_done, min_size=3, max_size=25)
stormy = st.lists(_done | migrations, min_size=3, max_size=25)
