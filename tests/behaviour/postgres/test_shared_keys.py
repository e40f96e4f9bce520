"""Two rows have one key for a while: its constraint is dropped, or is checked at commit only."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.fix_postgres import PostgresWorld

MakePostgres = Callable[..., PostgresWorld]

WAYS = ["logical", "streaming", "buffer", "trigger"]
DROP = "alter table t drop constraint t_pkey"
ADD = "alter table t add constraint t_pkey primary key (id)"
OTHER = "alter table t add constraint t_pkey primary key (a, id)"
FULL = "alter table t replica identity full"
LATE = f"{ADD} deferrable initially deferred"
DEFERRED = [FULL, DROP, LATE]
NEW, OLD_GOES = "insert into t values (1, 7, 'new')", "delete from t where a = 1"
NEW_GOES = "delete from t where a = 7"
#: What is done before the first sync, and what before the next one.
CASES = {
    "no key": ([FULL], [DROP, NEW, OLD_GOES, ADD]),
    "no key, and the new row goes": ([FULL], [DROP, NEW, NEW_GOES, ADD]),
    "no key, and the old row moves": ([FULL], [DROP, NEW, "update t set id = 9 where a = 1", ADD]),
    "in one transaction": ([FULL], [f"begin; {DROP}; {NEW}; {OLD_GOES}; {ADD}; commit"]),
    "whole rows for a while": (
        [],
        [FULL, DROP, NEW, OLD_GOES, ADD, "alter table t replica identity default"],
    ),
    "another key": ([FULL], [DROP, OTHER, NEW, OLD_GOES, DROP, ADD]),
    "another key, and the new row moves": (
        [],
        [DROP, OTHER, NEW, "update t set v = 'moved', id = 5 where a = 7", DROP, ADD],
    ),
    "an index": (
        [FULL, DROP, "create unique index t_id on t (id)"],
        ["drop index t_id", NEW, OLD_GOES, "create unique index t_id on t (id)"],
    ),
    "an index, and the new row goes": (
        [FULL, DROP, "create unique index t_id on t (id)"],
        ["drop index t_id", NEW, NEW_GOES, "create unique index t_id on t (id)"],
    ),
    "a key beside an index": (
        [FULL, DROP, LATE, "create unique index t_id on t (id)"],
        ["drop index t_id", f"begin; {NEW}; {NEW_GOES}; commit"],
    ),
    "checked at commit": (DEFERRED, [f"begin; {NEW}; {OLD_GOES}; commit"]),
    "checked at commit, and the new row goes": (DEFERRED, [f"begin; {NEW}; {NEW_GOES}; commit"]),
    "swapped": (
        DEFERRED,
        ["begin; update t set id = 2 where a = 1; update t set id = 1 where a = 2; commit"],
    ),
    "moved up": (DEFERRED, ["update t set id = id + 1"]),
    "made to be checked at commit": ([FULL], [f"begin; {DROP}; {LATE}; {NEW}; {OLD_GOES}; commit"]),
    "made to be checked at commit, and the new row goes": (
        [FULL],
        [f"begin; {DROP}; {LATE}; {NEW}; {NEW_GOES}; commit"],
    ),
    "checked at commit for a while": (
        [FULL],
        [f"begin; {DROP}; {LATE}; {NEW}; {OLD_GOES}; commit; begin; {DROP}; {ADD}; commit"],
    ),
    "made to be checked at commit, and swapped": (
        [FULL],
        [
            f"begin; {DROP}; {LATE}; commit",
            "begin; update t set id = 2 where a = 1; update t set id = 1 where a = 2; commit",
        ],
    ),
}


def world_of(
    make_postgres: MakePostgres, way: str, mode: str, path: Path, before: list[str]
) -> PostgresWorld:
    """Make a table of two rows, and sync it."""
    capture: dict[str, Any] = {"method": "trigger" if way == "trigger" else "logical"}
    capture |= {"streaming": True} if way == "streaming" else {}
    capture |= {"buffer": {"path": path / "cdc"}} if way == "buffer" else {}
    tables = [{"name": "t", "primary_key": ["id"]}]
    storage = "parquet" if way in {"streaming", "trigger"} else None
    world = make_postgres(mode=mode, storage=storage, tables=tables, capture=capture)
    world.run(
        "create table t(id int primary key, a int not null, v text)",
        "insert into t values (1, 1, 'x'), (2, 2, 'y')",
        *before,
    )
    assert not world.htap.sync_now().errors
    return world


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", [case for case in CASES if "new row goes" in case])
def test_nor_is_one_of_which_the_log_has_nothing(
    make_postgres: MakePostgres, way: str, case: str, tmp_path: Path
) -> None:
    """What came with its key went: the log could be that of a row that came and went alone."""
    before, then = CASES[case]
    world = world_of(make_postgres, way, "temporal", tmp_path, before)
    world.run(*then)
    assert not world.htap.sync_now().errors
    world.assert_equal("t")


@pytest.mark.parametrize("way", WAYS)
def test_what_was_logged_by_a_key_before_it_was_dropped_is_read(
    make_postgres: MakePostgres, way: str, tmp_path: Path
) -> None:
    world = world_of(make_postgres, way, "temporal", tmp_path, [])
    world.run(
        "update t set v = 'p' where id = 1",
        "insert into t values (3, 3, 'a')",
        "delete from t where id = 3",
        DROP,
        "insert into t values (4, 4, 'z')",
    )
    world.htap.sync_now()
    world.run(ADD)
    assert not world.htap.sync_now().errors
    assert {"x", "y", "p", "a", "z"} == {row["v"] for row in world.versions("t")}
    world.assert_equal("t")
    assert world.htap.verify().equal


@pytest.mark.parametrize("is_emptied", [False, True])
def test_rows_that_come_and_go_behind_a_truncation_are_read_from_the_log(
    make_postgres: MakePostgres, tmp_path: Path, *, is_emptied: bool
) -> None:
    world = world_of(make_postgres, "logical", "temporal", tmp_path, DEFERRED)
    world.run(
        "insert into t values (3, 3, 'a')",
        "truncate t" if is_emptied else "delete from t where id = 3",
        "insert into t values (3, 4, 'b')",
        "delete from t where id = 3",
        "insert into t values (3, 5, 'c')",
    )
    assert not world.htap.sync_now().errors
    assert [row["v"] for row in world.versions("t") if row["id"] == 3] == ["a", "b", "c"]
    world.assert_equal("t")


@pytest.mark.each
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_no_row_is_lost_that_shared_its_key_for_a_while(
    make_postgres: MakePostgres, way: str, mode: str, case: str, tmp_path: Path
) -> None:
    before, then = CASES[case]
    world = world_of(make_postgres, way, mode, tmp_path, before)
    world.run("update t set v = 'p' where id = 1", *then)
    assert not world.htap.sync_now().errors
    world.assert_equal("t")
    world.run("update t set v = 'last' where id = (select max(id) from t)")
    assert world.htap.sync_now().updated == 1
    world.assert_equal("t")
    assert world.htap.verify().equal


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("way", ["logical", "streaming", "buffer"])
@pytest.mark.parametrize("is_deferred", [False, True])
def test_nor_is_one_whose_key_is_another_text_for_the_same_value(
    make_postgres: MakePostgres, tmp_path: Path, way: str, mode: str, *, is_deferred: bool
) -> None:
    """Zero and minus zero, which the log tells apart, and no database does."""
    key = [FULL, DROP, f"alter table t alter id type float8, {ADD.removeprefix('alter table t')}"]
    shared = [DROP, "insert into t values ('-0', 7, 'new')", "update t set id = 9 where a = 1", ADD]
    if is_deferred:
        key[-1] += " deferrable initially deferred"
        shared = [f"begin; {shared[1]}; {shared[2]}; commit"]
    before = [*key, "update t set id = 0 where a = 1"]
    world = world_of(make_postgres, way, mode, tmp_path, before)
    world.run(*shared)
    assert not world.htap.sync_now().errors
    assert sorted(row["a"] for row in world.present("t")) == [1, 2, 7]
    assert world.htap.verify().equal


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("synced_behind", [DROP, NEW])
def test_nor_is_one_where_a_sync_came_between(
    make_postgres: MakePostgres, way: str, mode: str, synced_behind: str, tmp_path: Path
) -> None:
    world = world_of(make_postgres, way, mode, tmp_path, [FULL])
    for statement in (DROP, NEW, OLD_GOES, ADD):
        world.run(statement)
        if statement == synced_behind:
            world.htap.sync_now()
    assert not world.htap.sync_now().errors
    world.assert_equal("t")


@pytest.mark.parametrize("way", ["logical", "buffer"])
def test_a_history_is_read_from_the_log_where_no_two_rows_shared_a_key_that_was_made_anew(
    make_postgres: MakePostgres, way: str, tmp_path: Path
) -> None:
    world = world_of(make_postgres, way, "temporal", tmp_path, [FULL])
    world.run(
        "alter table t add long text",
        "alter table t alter long set storage external",
    )
    world.htap.sync_now()
    world.run(
        "update t set v = 'p', long = repeat('long ', 2000) where id = 1",
        DROP,
        "update t set v = 'q' where id = 1",
        "update t set id = 3 where id = 2",
        "insert into t values (2, 5, null)",
        "delete from t where id = 2",
        ADD,
        "update t set v = 'r' where id = 1",
    )
    assert not world.htap.sync_now().errors
    assert [row["v"] for row in world.versions("t") if row["id"] == 1] == ["x", "p", "q", "r"]
    assert [(row["id"], row["a"]) for row in world.versions("t", "id, a") if row["id"] > 1] == [
        (2, 2),
        (2, 5),
        (3, 2),
    ]
    world.assert_equal("t")


def test_a_key_that_is_checked_at_commit_is_read_from_the_log_where_no_two_rows_share_it(
    make_postgres: MakePostgres, tmp_path: Path
) -> None:
    world = world_of(make_postgres, "logical", "temporal", tmp_path, DEFERRED)
    world.run(
        "begin; insert into t values (3, 3, 'a'); update t set v = 'b' where id = 3;"
        " delete from t where id = 3; insert into t values (3, 4, 'c'); commit",
        "update t set v = 'd' where id = 3",
    )
    world.htap.sync_now()
    assert [row["v"] for row in world.versions("t") if row["id"] == 3][-2:] == ["c", "d"]
    # A row that comes and goes is the only one of its key at the end of each transaction.
    world.run("insert into t values (5, 5, 'e')", "delete from t where id = 5")
    world.htap.sync_now()
    assert [row["v"] for row in world.versions("t") if row["id"] == 5] == ["e"]
    world.assert_equal("t")


def test_the_function_of_an_earlier_version_is_replaced_with_the_next_trigger(
    make_postgres: MakePostgres, tmp_path: Path
) -> None:
    world = world_of(make_postgres, "trigger", "temporal", tmp_path, [])
    found = "select prosrc from pg_proc where proname = 'misfit'"
    own = world.app.execute(found).fetchall()
    world.run(
        "create or replace function _rhei.misfit(relation oid, log text, operation text,"
        " key smallint[]) returns text[] language plpgsql as 'begin return null; end'",
        "drop trigger _rhei_update on t",
    )
    world.htap.sync_now()
    assert world.app.execute(found).fetchall() == own


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("of", ["whole", "part"])
def test_nor_is_one_of_a_partitioned_table(make_postgres: MakePostgres, mode: str, of: str) -> None:
    world = make_postgres(mode=mode, tables=[{"name": "t"}], capture={"method": "logical"})
    world.run(
        "create table t(id int constraint t_pkey primary key, a int not null, v text)"
        " partition by range (id)",
        "create table part partition of t for values from (0) to (100)",
        "insert into t values (1, 1, 'x'), (2, 2, 'y')",
        "alter table part replica identity full",
    )
    if of == "whole":
        world.run(FULL)
    world.htap.sync_now()
    world.run("update t set v = 'p' where id = 1", DROP, NEW, OLD_GOES, ADD)
    assert not world.htap.sync_now().errors
    world.assert_equal("t")
