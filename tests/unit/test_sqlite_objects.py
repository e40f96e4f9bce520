"""Which schema changes of SQLite explain themselves, and how its columns compare."""

import contextlib
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhei_pipeline.sources.sqlite.collations import compare_by
from rhei_pipeline.sources.sqlite.schema_objects import SchemaState

_BASE = (
    "create table t(id integer primary key, c text)",
    "create table a(id integer primary key, x text unique)",
    "create table b(id integer primary key, a_id integer references a(id))",
    "create index b_a on b(a_id)",
    "create view w as select id, x from a",
    "create trigger g after insert on a begin select new.x; end",
)
_STATEMENTS = (
    "alter table a rename column x to y",
    "alter table a rename column y to x",
    "alter table a rename column id to id2",
    "alter table a rename to a2",
    "alter table a2 rename to a",
    "alter table b add column n integer",
    "alter table b add column r integer references a(id)",
    "alter table b drop column n",
    "alter table t add column d integer default 7",
    "alter table t add column e text default 'a, b)' check (length(e) > 0)",
    "alter table t drop column d",
    "alter table t rename column c to d",
    "drop table b",
    "drop table a",
    "create table b(id integer primary key)",
    "create table n(id integer primary key autoincrement, x)",
    "drop table n",
    "create index i on n(x)",
    "drop index i",
    "drop index b_a",
    "create index b_a on b(id)",
    "drop view w",
    "create view w as select 1",
    "drop trigger g",
    "create trigger g after delete on a begin select 1; end",
    "create virtual table f using fts5(x)",
    "drop table f",
    "create table f_own(x)",
    "create virtual table r using rtree(id, low, high)",
    "drop table r",
    "analyze",
    "vacuum",
)
_HIDDEN = ("drop table t", _BASE[0])
_ADDED = {
    "create table t(id integer primary key, c text)",
    "create table t(id integer primary key, c text, check (c > ''), unique (c, id)) strict",
    "create table t(id integer, c text, primary key (id)) -- one, two)\n without rowid",
    'create table "t"("id" integer primary key, c text default ")", d text default \'a,b)\' )',
}


def changed_unseen(statements: list[str], hidden_at: int | None) -> set[str]:
    """Run statements; hide a pair that leaves no difference at a place among them."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for text in _BASE:
            connection.execute(text)
        before = SchemaState.read(connection)
        before = SchemaState.parse(before.version, before.text())
        for place in range(len(statements) + 1):
            if place == hidden_at:
                for text in _HIDDEN:
                    connection.execute(text)
            if place < len(statements):
                # One that does not fit where it comes changes nothing.
                with contextlib.suppress(sqlite3.Error):
                    connection.execute(statements[place])
        return SchemaState.read(connection).changed_unseen(before, {"t"})


@given(st.lists(st.sampled_from(_STATEMENTS), max_size=8), st.integers(0, 8))
def test_a_pair_that_leaves_no_difference_never_hides_behind_others(
    statements: list[str], place: int
) -> None:
    assert changed_unseen(statements, min(place, len(statements))) == {"t"}


def test_a_migration_of_other_tables_is_explained() -> None:
    for statements in (
        [],
        ["vacuum"],
        ["analyze"],
        ["alter table a rename column x to y", "create index i on a(y)"],
        ["alter table a rename to a2"],
        ["alter table b add column n integer", "drop index b_a"],
        ["drop table b", "drop view w", "drop trigger g"],
        ["drop table a"],
        ["create virtual table f using fts5(x)"],
        ["create table n(id integer primary key autoincrement, x)", "create index i on n(x)"],
    ):
        assert changed_unseen(statements, None) == set(), statements


@pytest.mark.parametrize("created", _ADDED)
def test_added_columns_are_explained_and_what_comes_with_them_is_not(created: str) -> None:
    added = [
        "alter table t add column x text default 'it''s, (odd'",
        'alter table t add column "y, z" integer references t(id)',
        "alter table t add column z text check (z in ('a', 'b'))",
    ]
    for count in range(1, len(added) + 1):
        assert seen_of(created, added[:count]) == set()
    for other in ("alter table t rename c to c2", "alter table t drop column x"):
        assert seen_of(created, [*added, other]) == {"t"}
    again = ["alter table t drop column z", added[2]]
    assert seen_of(created, [*added, *again]) == {"t"}


def seen_of(created: str, statements: list[str]) -> set[str]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute(created)
        before = SchemaState.read(connection)
        for text in statements:
            connection.execute(text)
        return SchemaState.read(connection).changed_unseen(before, {"t"})


def test_a_column_of_a_locked_database_is_not_said_to_have_a_collation_of_its_own(
    tmp_path: Path,
) -> None:
    file = tmp_path / "app.db"
    with (
        closing(sqlite3.connect(file, isolation_level=None)) as writer,
        closing(sqlite3.connect(file, timeout=0)) as reader,
    ):
        writer.execute("create table t(k text collate nocase primary key)")
        assert compare_by(reader, "t", ["k"]) == ["NOCASE"]
        writer.execute("begin exclusive")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            compare_by(reader, "t", ["k"])
