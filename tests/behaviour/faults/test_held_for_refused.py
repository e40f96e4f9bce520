"""What a table needs is kept for it while it cannot be mirrored as it stands."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from rhei_pipeline.cli import output
from rhei_pipeline.cli.commands.syncing import _show_status
from rhei_pipeline.sources.sqlite.triggers.log_size import log_bytes
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

#: What makes a table one that is refused, and what ends that.
HEIRS = ("create table heir() inherits (b)", "drop table heir")
NAMES = ("alter table b add column _rhei_x int", "alter table b drop column _rhei_x")


def long(*values: object) -> Any:
    """Return a case that is not in the short form."""
    return pytest.param(*values, marks=pytest.mark.long)


def assert_versions_come(
    world: World | PostgresWorld, refused: str, allowed: str, *, again: bool
) -> None:
    for name in "ab":
        world.run(f"create table {name}(id integer primary key, v text)")
        world.run(f"insert into {name} values (1, 'v')")
    world.htap.sync_now()
    world.run(refused)
    for value in range(3):
        for name in "ab":
            world.run(f"update {name} set v = '{value}' where id = 1")
        if again and value == 1:
            world.crash()
        assert list(world.htap.sync_now().errors) == ["b"]
    world.run(allowed)
    assert not world.htap.sync_now().errors
    world.assert_equal("a", "b")
    assert [row["v"] for row in world.versions("b")] == ["v", "0", "1", "2"]


@pytest.mark.parametrize(
    ("case", "capture", "fault"),
    [
        ("heirs", {"method": "logical"}, HEIRS),
        ("restarted", {"method": "logical"}, NAMES),
        long("names", {"method": "logical"}, NAMES),
        long("streaming", {"method": "logical", "streaming": True}, NAMES),
        long("buffer", {"method": "logical", "buffer": {"kind": "rocksdb"}}, NAMES),
        long("trigger", {"method": "trigger"}, NAMES),
    ],
)
def test_versions_of_while_a_table_was_refused_are_in_its_history(
    make_postgres: Callable[..., PostgresWorld],
    tmp_path_factory: pytest.TempPathFactory,
    case: str,
    capture: dict[str, Any],
    fault: tuple[str, str],
) -> None:
    """A slot that all tables share is not moved past what such a table needs."""
    if "buffer" in capture:
        own = {"kind": "rocksdb", "path": tmp_path_factory.mktemp("buffer") / "cdc"}
        capture = {**capture, "buffer": own}
    world = make_postgres(mode="temporal", capture=capture)
    assert_versions_come(world, *fault, again=case == "restarted")


def test_the_same_holds_for_sqlite(make_world: Callable[..., World]) -> None:
    assert_versions_come(make_world(mode="temporal"), *NAMES, again=True)


def test_what_a_server_keeps_for_it_is_told(
    make_postgres: Callable[..., PostgresWorld],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A log that only grows fills the server's disk one day."""
    monkeypatch.setattr(output, "_MUCH_KEPT", 2**17)
    world = make_postgres(capture={"method": "logical"})
    for name in "ab":
        world.run(f"create table {name}(id integer primary key, v text)")
    world.htap.sync_now()
    world.run(REFUSALS["reserved"][0])
    world.run("insert into a select i, repeat('v', 100) from generate_series(1, 5000) i")
    world.htap.sync_now()
    _show_status(world.htap.sync_status(), as_json=False)
    assert "of its log, and more while tables are left out" in capsys.readouterr().err
    world.run(REFUSALS["reserved"][1])
    world.htap.sync_now()
    _show_status(world.htap.sync_status(), as_json=False)
    assert "the server keeps" not in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["temporal", "destructive"])
def test_what_triggers_log_in_sqlite_meanwhile_is_told(
    make_world: Callable[..., World],
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It takes room in the application's file."""
    monkeypatch.setattr(output, "_MUCH_KEPT", 2**17)
    world = make_world(mode=mode)
    for name in "ab":
        world.run(f"create table {name}(id integer primary key, v text)")
        world.run(f"insert into {name} values (-1, 'v')")
    world.htap.sync_now()
    assert world.htap.sync_status().held_bytes == {"log": 0}
    world.run(REFUSALS["reserved"][0])
    counted = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 10000)"
    world.run(f"{counted} insert into b(id, v) select i, hex(randomblob(20)) from n")
    world.htap.sync_now()
    held = world.htap.sync_status().held_bytes["log"]
    logged = world.app.execute("select * from _rhei_log_b").fetchall()
    really = sum(len(str(value)) for row in logged for value in row)
    assert really / 1.2 < held < 1.2 * really
    _show_status(world.htap.sync_status(), as_json=False)
    assert "the triggers' logs hold about" in capsys.readouterr().err
    world.run(REFUSALS["reserved"][1])
    world.htap.sync_now()
    assert world.htap.sync_status().held_bytes == {"log": 0}


def test_a_log_of_very_many_columns_has_a_size() -> None:
    """SQLite takes no expression of so many terms."""
    names = [f"c{number}" for number in range(1_500)]
    with closing(sqlite3.connect(":memory:")) as source:
        source.execute("create table _rhei_consumer(mirror, tbl)")
        source.execute("insert into _rhei_consumer values ('m', 'T')")
        source.execute(f"create table _rhei_log_t(seq integer primary key, {', '.join(names)})")
        for _ in range(3):
            source.execute(f"insert into _rhei_log_t({', '.join(names)}) values(1{', 2' * 1_499})")
        assert log_bytes(source, "m") == 3 * 1_501
        assert log_bytes(source, "another") == 0


#: What adds a column that is refused, by its name or by another's, and what lets it in.
REFUSALS = {
    "reserved": ("alter table b add column _rhei_x int", "alter table b rename _rhei_x to x"),
    "like another": ('alter table b add column "V" int', 'alter table b rename "V" to x'),
}


def assert_values_come(
    world: World | PostgresWorld, refused: str, allowed: str, *, mode: str, cut: bool
) -> None:
    """Write into a column while its table is refused; in processes of their own where `cut`."""
    for name in "ab":
        world.run(f"create table {name}(id integer primary key, v text)")
        world.run(f"insert into {name} values (1, 'v'), (2, 'v')")
    world.htap.sync_now()
    world.run(refused)
    for row in (3, 4):
        world.run("update a set v = 'new'", f"insert into b values ({row}, 'new', {row})")
        if cut:
            world.crash()
        assert list(world.htap.sync_now().errors) == ["b"]
        # What the source refuses keeps its position: it never was without the column.
        held = world.htap.query("select distinct id from b order by id", hint="olap")
        assert held["id"].to_pylist() == [1, 2] or refused != REFUSALS["reserved"][0]
    world.run("delete from b where id = 1", allowed, "update b set x = 7 where id = 2")
    if cut:
        world.crash()
    for _ in range(2):
        assert not world.htap.sync_now().errors
    world.assert_equal("a", "b")
    found = sorted((row["id"], row["x"]) for row in world.present("b"))
    assert found == [(2, 7), (3, 3), (4, 4)]
    if mode == "temporal":
        assert {row["id"] for row in world.versions("b")} == {1, 2, 3, 4}


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("mode", ["temporal", "destructive"])
@pytest.mark.parametrize(
    "capture",
    [
        {"method": "logical"},
        long({"method": "logical", "streaming": True}),
        long({"method": "logical", "buffer": {"kind": "rocksdb"}}),
        long({"method": "trigger"}),
    ],
    ids=lambda of: "-".join(map(str, of)) + of["method"],
)
def test_values_of_a_column_that_was_refused_are_in_the_mirror(
    make_postgres: Callable[..., PostgresWorld],
    tmp_path_factory: pytest.TempPathFactory,
    capture: dict[str, Any],
    mode: str,
    refusal: str,
    *,
    cut: bool,
) -> None:
    """The log, which goes on meanwhile, is read with that column once it is let in."""
    if "buffer" in capture:
        own = {"kind": "rocksdb", "path": tmp_path_factory.mktemp("buffer") / "cdc"}
        capture = {**capture, "buffer": own}
    world = make_postgres(mode=mode, capture=capture)
    assert_values_come(world, *REFUSALS[refusal], mode=mode, cut=cut)


@pytest.mark.long
@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("mode", ["temporal", "destructive"])
def test_so_they_are_of_sqlite(make_world: Callable[..., World], mode: str, *, cut: bool) -> None:
    assert_values_come(make_world(mode=mode), *REFUSALS["reserved"], mode=mode, cut=cut)


@pytest.mark.parametrize("mode", ["temporal", long("destructive")])
@pytest.mark.parametrize("method", ["logical", long("trigger")])
def test_so_they_are_where_a_row_that_did_not_fit_is_gone_since(
    make_postgres: Callable[..., PostgresWorld], method: str, mode: str
) -> None:
    """Whether columns may simply be added is judged before the log is read, and after."""
    tables = [{"name": "t", "types": {"v": "int32[]"}}]
    world = make_postgres(mode=mode, capture={"method": method}, tables=tables)
    world.run(
        "create table t(id int primary key, v int[])",
        "insert into t values (1), (2)",
        "insert into t values (3, '{{1, 2}, {3, 4}}')",
    )
    assert world.htap.sync_now().dead_letters == 1
    world.run(
        "alter table t add column x int",
        "insert into t(id, x) values (4, 4)",
        "update t set x = 1 where id = 1",
        "delete from t where id = 3",
    )
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    assert sorted((row["id"], row["x"]) for row in world.present("t")) == [
        (1, 1),
        (2, None),
        (4, 4),
    ]
