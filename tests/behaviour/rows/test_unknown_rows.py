"""A row that cannot be mirrored is unknown, not absent: its last good version stays as it is."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

pytestmark = pytest.mark.turns

BOTH_MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])
MIRRORS = pytest.mark.parametrize("storage", [None, "parquet"])
SQLITE_CAPTURES = [
    {"method": "trigger"},
    {"method": "trigger", "buffered": True},
    {
        "method": "polling",
        "tables": [{"name": "t", "polling": {"updated_at": "at", "deletes": "reconcile"}}],
    },
]
POSTGRES_CAPTURES = [
    {"capture": {"method": "logical"}},
    {"capture": {"method": "trigger"}},
    {
        "capture": {"method": "polling"},
        "tables": [{"name": "t", "polling": {"updated_at": "at", "deletes": "reconcile"}}],
    },
]


def _copied_by_drift(world: World | PostgresWorld) -> None:
    world.run("alter table t add column c text")
    world.htap.sync_now()


def _copied_by_retyping(world: World | PostgresWorld) -> None:
    # Another type, and the column before it: a plain mirror is made again.
    world.run("alter table t add column d int", "alter table t drop column b")
    world.htap.sync_now()


def _repaired(world: World | PostgresWorld) -> None:
    world.htap.repair("t")
    world.htap.repair("t")


def _copied(world: World | PostgresWorld) -> None:
    world.htap.initial_sync("t")


def _copied_after_reopening(world: World | PostgresWorld) -> None:
    world.crash()
    world.run("alter table t add column c text")
    world.htap.sync_now()


COPIES = pytest.mark.parametrize(
    "copied",
    [_copied_by_drift, _copied_by_retyping, _repaired, _copied, _copied_after_reopening],
)


def _shown(world: World | PostgresWorld) -> dict[int, Any]:
    temporal = world.mode == "temporal"
    where = " where _rhei_valid_to is null" if temporal else ""
    found = world.htap.query(f"select id, a from t{where}", hint="olap").to_pylist()
    shown = {row["id"]: row["a"] for row in found}
    assert len(shown) == len(found)
    return shown


def _assert_kept(world: World | PostgresWorld, good: dict[int, Any], last_good: Any) -> None:
    """Row 1 is shown at its last good value, named by one dead letter, and is no difference."""
    assert _shown(world) == {**good, 1: last_good}
    assert world.htap.dead_letters()["key"].to_pylist() == ['{"id": 1}']
    found = world.htap.verify().tables["t"]
    assert (found.missing, found.extra, found.different, found.dead_letters) == (0, 0, 0, 1)
    if world.mode == "temporal":
        versions = [v for v in world.versions("t") if v["id"] == 1]
        assert [(v["a"], v["_rhei_valid_to"]) for v in versions][-1] == (last_good, None)
        assert "D" not in {v["_rhei_operation"] for v in versions}


@BOTH_MODES
@MIRRORS
@COPIES
@pytest.mark.parametrize("options", SQLITE_CAPTURES)
def test_copies_leave_an_unknown_row_of_sqlite_alone(
    make_world: Callable[..., World],
    mode: str,
    storage: str | None,
    copied: Callable[[World], None],
    options: dict[str, Any],
) -> None:
    world = make_world(mode=mode, storage=storage, **options)
    world.run(
        "create table t(id integer primary key, a integer, b text, at integer not null)",
        "insert into t values (1, 10, 'x', 1), (2, 20, 'y', 1), (3, 30, 'z', 1)",
    )
    world.htap.sync_now()
    world.run(
        "update t set a = 'n/a', at = 2 where id = 1", "update t set a = 21, at = 2 where id = 2"
    )
    world.htap.sync_now()
    copied(world)
    _assert_kept(world, {2: 21, 3: 30}, 10)
    world.run("delete from t where id = 2", "update t set a = 31, at = 3 where id = 3")
    if options["method"] == "polling":
        world.htap.repair("t")
    world.htap.sync_now()
    _assert_kept(world, {3: 31}, 10)
    world.run("update t set a = 11, at = 4 where id = 1")
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    world.assert_equal("t")
    assert world.htap.verify().equal


@pytest.mark.parametrize(("mode", "storage"), [("destructive", None), ("temporal", "parquet")])
@pytest.mark.parametrize("copied", [_copied_by_drift, _copied_by_retyping, _repaired])
@pytest.mark.parametrize("options", POSTGRES_CAPTURES)
def test_copies_leave_an_unknown_row_of_postgres_alone(
    make_postgres: Callable[..., PostgresWorld],
    mode: str,
    storage: str | None,
    copied: Callable[[PostgresWorld], None],
    options: dict[str, Any],
) -> None:
    world = make_postgres(mode=mode, storage=storage, **options)
    world.run(
        "create table t(id int primary key, a numeric(6, 2), b text,"
        " at timestamptz not null default clock_timestamp())",
        "insert into t values (1, 10.5), (2, 20.5), (3, 30.5)",
    )
    world.htap.sync_now()
    good = _shown(world)
    world.run("update t set a = 'NaN', at = clock_timestamp() where id = 1")
    world.htap.sync_now()
    copied(world)
    _assert_kept(world, {2: good[2], 3: good[3]}, good[1])
    world.run("update t set a = 11.5, at = clock_timestamp() where id = 1")
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    world.assert_equal("t")
    assert world.htap.verify().equal


@BOTH_MODES
@MIRRORS
def test_an_unknown_row_that_was_deleted_while_the_log_was_lost_is_gone(
    make_world: Callable[..., World], mode: str, storage: str | None
) -> None:
    world = make_world(mode=mode, storage=storage)
    world.run(
        "create table t(id integer primary key, a integer)",
        "insert into t values (1, 10), (2, 20)",
    )
    world.htap.sync_now()
    world.run("update t set a = 'n/a' where id = 1")
    world.htap.sync_now()
    for (name,) in world.app.execute(
        "select name from sqlite_master where type = 'trigger'"
    ).fetchall():
        world.run(f'drop trigger "{name}"')
    world.run("delete from t where id = 1")
    world.htap.sync_now()
    assert _shown(world) == {2: 20}
    assert world.htap.dead_letters().num_rows == 0
    assert world.htap.verify().equal


@BOTH_MODES
@MIRRORS
def test_a_key_of_several_types_is_found_again(
    make_world: Callable[..., World], mode: str, storage: str | None
) -> None:
    world = make_world(mode=mode, storage=storage)
    world.run(
        "create table t(d date, x blob, n decimal(6, 2), f real, s timestamp, a integer,"
        " primary key (d, x, n, f, s)) without rowid",
        "insert into t values ('2020-01-02', x'00ff', 1.5, 0.1, '2020-01-02 03:04:05.678', 10)",
    )
    world.htap.sync_now()
    world.run("update t set a = 'n/a'")
    world.htap.sync_now()
    world.run("alter table t add column c text")
    world.htap.sync_now()
    where = " where _rhei_valid_to is null" if mode == "temporal" else ""
    assert world.htap.query(f"select a from t{where}", hint="olap")["a"].to_pylist() == [10]
    assert world.htap.dead_letters().num_rows == 1


@MIRRORS
def test_a_key_that_reads_like_another_one_keeps_no_row_of_it(
    make_world: Callable[..., World], storage: str | None
) -> None:
    world = make_world(storage=storage, mode="temporal", prune=False)
    world.run(
        "create table k (a text, b integer, v text, primary key (a, b))",
        "insert into k values ('x', 1, 'one'), ('x', 2, 'two'), ('x', 3, 'three')",
        "create table d (day date primary key, v text)",
        "insert into d values ('1970-01-02', 'first'), ('2026-01-01', 'later')",
    )
    world.htap.sync_now()
    world.run("insert into k values ('x', 1.5, 'no'), ('x', '0x2', 'no')")
    world.run("insert into d values (1, 'no')")
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 3
    # No trigger has seen that these are gone.
    ends = [world.app.execute(f"select max(seq) from _rhei_log_{t}").fetchone()[0] for t in "kd"]
    world.run("begin", "delete from k where b in (1, 2)", "delete from d where v = 'first'")
    for table, end in zip("kd", ends, strict=True):
        world.run(f"delete from _rhei_log_{table} where seq > {end}")
    world.run("commit")
    assert world.htap.verify("k", max_rows=10).tables["k"].extra == 2
    assert world.htap.repair("k", key=("x", 1)).deleted == 1
    assert [world.htap.repair(name).deleted for name in ("k", "d")] == [1, 1]
    found = world.htap.query("select v from k where _rhei_valid_to is null", hint="olap")
    assert found["v"].to_pylist() == ["three"]
    assert {part.extra for part in world.htap.verify().tables.values()} == {0}


@pytest.mark.each
@MIRRORS
@pytest.mark.parametrize(
    ("mode", "before", "behind", "keys"),
    [
        ("destructive", "integer", "text", "'1', 'a'"),
        ("temporal", "integer", "text", "'1', 'a'"),
        ("destructive", "text", "integer", "1, 5"),
        ("destructive", "integer", "date", "'2026-01-01', '2026-01-02'"),
    ],
)
def test_a_key_gets_another_type_beside_a_row_of_sqlite_that_does_not_fit(
    make_world: Callable[..., World],
    mode: str,
    before: str,
    behind: str,
    keys: str,
    storage: str | None,
) -> None:
    world = make_world(mode=mode, storage=storage, tables=[{"name": "t"}])
    world.run(
        f"create table t(id {before} primary key, n integer)",
        "insert into t values (1, 1), (2, 1)",
    )
    world.htap.sync_now()
    world.run(
        f"create table u(id {behind} primary key, n integer)",
        *(f"insert into u values ({key}, 'x')" for key in keys.split(", ")),
        "drop table t",
        "alter table u rename to t",
    )
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 2
    world.run("update t set n = 7")
    world.htap.sync_now()
    assert [row["n"] for row in world.present("t")] == [7, 7]
    assert world.htap.dead_letters().num_rows == 0


@pytest.mark.each
@MIRRORS
@BOTH_MODES
@pytest.mark.parametrize("method", ["logical", "trigger"])
def test_a_key_gets_another_type_beside_a_row_of_postgres_that_does_not_fit(
    make_postgres: Callable[..., PostgresWorld], mode: str, storage: str | None, method: str
) -> None:
    world = make_postgres(mode=mode, storage=storage, capture={"method": method})
    world.run(
        "create table t(id int primary key, n numeric(6, 2))", "insert into t values (1, 1), (2, 2)"
    )
    world.htap.sync_now()
    world.run("update t set n = 'NaN'", "alter table t alter id type text using 'a' || id::text")
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 2
    world.run("update t set n = 7")
    world.htap.sync_now()
    world.assert_equal("t")


@pytest.mark.parametrize("storage", [None, "ipc"])
def test_versions_that_came_during_a_copy_stay_where_a_row_then_fits_no_more(
    make_world: Callable[..., World], storage: str | None
) -> None:
    """The copy has such a row as it was before; the history keeps what it has learned since."""
    world = make_world(mode="temporal", batch_rows=1, storage=storage)
    world.run(
        "create table t(id integer primary key, n integer)",
        "insert into t values (1, 1), (2, 2), (3, 3)",
    )
    world.htap.sync_now()
    written = list[int]()

    def write(_table: str, rows: int, _of: int) -> None:
        if not written:
            written.append(rows)
            world.run("update t set n = 20 where id = 1", "insert into t values (9, 9)")
            world.run("update t set n = 'no number' where id in (1, 9)")

    world.htap.initial_sync("t", write)
    assert written == [1]  # its first row, before it was changed
    found = [
        (row["id"], row["n"], row["_rhei_operation"], row["_rhei_valid_to"] is None)
        for row in world.versions("t", "id, _rhei_valid_from")
    ]
    assert found == [
        (1, 1, "I", False),
        (1, 20, "U", True),
        (2, 2, "I", True),
        (3, 3, "I", True),
        (9, 9, "I", True),
    ]
    assert world.htap.dead_letters("t").num_rows == 2
    world.run("update t set n = id * 10")
    world.htap.sync_now()
    world.assert_equal("t")


@BOTH_MODES
def test_a_whole_comparison_deletes_no_row_that_is_there_and_fits_no_more(
    make_world: Callable[..., World], mode: str
) -> None:
    """Its values are not among those compared; a row that was deleted is none of the source's."""
    polled = {"updated_at": "at", "deletes": "reconcile", "reconcile_seconds": 0}
    world = make_world(mode=mode, method="polling", tables=[{"name": "t", "polling": polled}])
    world.run(
        "create table t(id integer primary key, n integer, at integer)",
        "insert into t values (1, 1, 1), (2, 2, 1), (3, 3, 1)",
    )
    world.htap.sync_now()
    world.run("update t set n = 'no number', at = 2 where id = 1", "delete from t where id = 3")
    for _ in range(2):
        world.htap.sync_now()
        assert sorted(row["id"] for row in world.present("t")) == [1, 2]
        assert world.htap.dead_letters("t").num_rows == 1
    world.run("delete from t where id = 1")
    world.htap.sync_now()
    world.assert_equal("t")
    assert world.htap.dead_letters("t").num_rows == 0
