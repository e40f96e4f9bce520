"""A row that no key can tell from others is named, never mirrored and never forgotten."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
MakePostgres = Callable[..., PostgresWorld]

BOTH_MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])
STAMP = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
WAYS: dict[str, dict[str, Any]] = {
    "trigger": {},
    "buffer": {"buffered": True},
    "files": {"storage": "parquet"},
    "polling": {
        "method": "polling",
        "tables": [
            {
                "name": "t",
                "polling": {
                    "updated_at": "at",
                    "deletes": "reconcile",
                    "reconcile_seconds": 0.001,
                },
            }
        ],
    },
}
ALL_WAYS = pytest.mark.parametrize("way", WAYS)


def letters(world: World | PostgresWorld) -> list[str]:
    """Return the keys of the open dead letters."""
    found = world.htap.dead_letters().to_pylist()
    return sorted(letter["key"] for letter in found)


def keyed(world: World) -> list[Any]:
    """Return the keys that the mirror shows now."""
    where = " where _rhei_valid_to is null" if world.mode == "temporal" else ""
    found = world.htap.query(f"select k from t{where} order by k", hint="olap")["k"].to_pylist()
    keys: list[Any] = found
    return keys


def unkept(world: World) -> int:
    """Return how many of the source's rows verify counts as not mirrored; all others are equal."""
    found = world.htap.verify().tables["t"]
    assert (found.missing, found.extra, found.different) == (0, 0, 0)
    return found.dead_letters


@BOTH_MODES
@ALL_WAYS
def test_a_row_with_a_null_key_is_named_until_it_gets_a_key_or_goes(
    make_world: MakeWorld, mode: str, way: str
) -> None:
    world = make_world(mode=mode, **WAYS[way])
    world.run(
        "create table t(k text primary key, v integer, at text)",
        f"insert into t values ('a', 1, {STAMP})",
    )
    world.htap.sync_now()
    world.run(f"insert into t values (null, 2, {STAMP}), ('b', 2, {STAMP})")
    world.htap.sync_now()
    assert (keyed(world), letters(world), unkept(world)) == (["a", "b"], ['{"k": null}'], 1)
    world.run(f"insert into t values (null, 3, {STAMP})")
    world.htap.sync_now()
    assert (keyed(world), letters(world), unkept(world)) == (["a", "b"], ['{"k": null}'], 2)
    world.run(f"update t set k = 'c', at = {STAMP} where v = 3")
    world.htap.sync_now()
    assert (keyed(world), letters(world), unkept(world)) == (["a", "b", "c"], ['{"k": null}'], 1)
    world.run("delete from t where v = 2 and k is null")
    world.htap.sync_now()
    assert (keyed(world), letters(world), unkept(world)) == (["a", "b", "c"], [], 0)
    world.assert_equal("t")


def test_polling_that_compares_no_keys_names_a_row_until_the_last_such_row_has_a_key(
    make_world: MakeWorld,
) -> None:
    polled = {"name": "t", "polling": {"updated_at": "at", "deletes": "disabled"}}
    world = make_world(method="polling", tables=[polled])
    world.run(
        "create table t(k text primary key, v integer, at text)",
        f"insert into t values ('a', 1, {STAMP}), (null, 2, '2020-01-01'), (null, 3, '2020-01-01')",
    )
    world.htap.sync_now()
    for key, left in (("b", ['{"k": null}']), ("c", [])):
        last = "(select max(v) from t where k is null)"
        world.run(f"update t set k = '{key}', at = {STAMP} where v = {last}")
        world.htap.sync_now()
        assert letters(world) == left
    assert keyed(world) == ["a", "b", "c"]


@BOTH_MODES
@ALL_WAYS
def test_a_key_that_becomes_null_ends_its_row_and_names_it(
    make_world: MakeWorld, mode: str, way: str
) -> None:
    world = make_world(mode=mode, **WAYS[way])
    world.run(
        "create table t(k text primary key, v integer, at text)",
        f"insert into t values ('a', 1, {STAMP}), ('b', 1, {STAMP})",
    )
    world.htap.sync_now()
    world.run(f"update t set k = null, at = {STAMP} where k = 'a'")
    world.htap.sync_now()
    assert (keyed(world), letters(world), unkept(world)) == (["b"], ['{"k": null}'], 1)
    world.run(f"update t set k = 'a', at = {STAMP} where k is null")
    world.htap.sync_now()
    assert (keyed(world), letters(world), unkept(world)) == (["a", "b"], [], 0)


@BOTH_MODES
@ALL_WAYS
def test_a_composite_key_that_is_null_in_part_is_named_by_the_part_it_has(
    make_world: MakeWorld, mode: str, way: str
) -> None:
    world = make_world(mode=mode, **WAYS[way])
    world.run(
        "create table t(k integer, n text collate nocase, at text, primary key(k, n))",
        f"insert into t values (1, 'x', {STAMP}), (2, null, {STAMP}), (null, 'y', {STAMP})",
    )
    world.htap.sync_now()
    both = ['{"k": 2, "n": null}', '{"k": null, "n": "y"}']
    assert (keyed(world), letters(world), unkept(world)) == ([1], both, 2)
    world.run(f"insert into t values (3, null, {STAMP}), (3, null, {STAMP}), (4, 'z', {STAMP})")
    world.htap.sync_now()
    assert (keyed(world), letters(world)) == ([1, 4], [both[0], '{"k": 3, "n": null}', both[1]])
    assert unkept(world) == 4
    world.run(
        f"update t set n = 'w', at = {STAMP} where k = 2",
        f"update t set n = 'Y', at = {STAMP} where k is null",
        "delete from t where k = 3",
    )
    world.htap.sync_now()
    assert (keyed(world), letters(world)) == ([1, 2, 4], ['{"k": null, "n": "Y"}'])
    assert unkept(world) == 1


@BOTH_MODES
@pytest.mark.parametrize("way", ["trigger", "files"])
def test_copy_repair_and_replay_name_it_again_and_mirror_nothing(
    make_world: MakeWorld, mode: str, way: str
) -> None:
    world = make_world(mode=mode, **WAYS[way])
    world.run(
        "create table t(k text primary key, v integer)",
        "insert into t values ('a', 1), (null, 2), (null, 3)",
    )
    world.htap.sync_now()
    for again in (
        lambda: world.htap.repair("t"),
        lambda: world.htap.initial_sync("t"),
        lambda: world.htap.replay_dead_letters("t"),
        world.crash,
    ):
        again()
        assert (keyed(world), letters(world), unkept(world)) == (["a"], ['{"k": null}'], 2)
    world.run("update t set v = 4 where k is null")
    assert world.htap.sync_now().dead_letters == 1
    assert (keyed(world), letters(world), unkept(world)) == (["a"], ['{"k": null}'], 2)


@BOTH_MODES
def test_an_application_that_fills_keys_in_by_a_trigger_leaves_no_dead_letter(
    make_world: MakeWorld, mode: str
) -> None:
    world = make_world(mode=mode)
    world.run(
        "create table t(k text primary key, v integer)",
        "create trigger fill after insert on t when new.k is null begin"
        " update t set k = 'k' || new.v where rowid = new.rowid; end",
    )
    world.htap.sync_now()
    world.run("insert into t(v) values (1), (2)")
    world.htap.sync_now()
    assert (keyed(world), letters(world), unkept(world)) == (["k1", "k2"], [], 0)
    world.crash()
    world.run("drop trigger fill")
    world.run(
        "create trigger fill after insert on t when new.k is null begin"
        " update t set k = 'k' || new.v where rowid = new.rowid; end",
        "insert into t(v) values (3)",
    )
    world.htap.sync_now()
    assert (keyed(world), letters(world), unkept(world)) == (["k1", "k2", "k3"], [], 0)


@BOTH_MODES
def test_a_keyless_row_that_replace_evicts_is_resolved(make_world: MakeWorld, mode: str) -> None:
    world = make_world(mode=mode)
    world.run(
        "create table t(k text primary key, email text unique)",
        "insert into t values (null, 'x'), ('a', 'y')",
    )
    world.htap.sync_now()
    assert letters(world) == ['{"k": null}']
    world.run("replace into t values ('b', 'x')")
    world.htap.sync_now()
    assert (keyed(world), letters(world), unkept(world)) == (["a", "b"], [], 0)


@BOTH_MODES
def test_a_row_whose_key_cannot_be_kept_is_resolved_once_it_goes(
    make_world: MakeWorld, mode: str
) -> None:
    world = make_world(mode=mode)
    world.run("create table t(k text primary key, v integer)", "insert into t values (x'00', 1)")
    world.htap.sync_now()
    world.run("update t set v = 2", "insert into t values (x'01', 2)")
    world.htap.sync_now()
    assert (letters(world), unkept(world)) == (['{"k": {"hex": "00"}}', '{"k": {"hex": "01"}}'], 2)
    world.run("delete from t where k = x'00'", "update t set k = 'b' where k = x'01'")
    world.htap.sync_now()
    assert (keyed(world), letters(world), unkept(world)) == (["b"], [], 0)


@BOTH_MODES
def test_a_keyless_row_that_came_and_went_between_two_syncs_leaves_nothing_open(
    make_world: MakeWorld, mode: str
) -> None:
    world = make_world(mode=mode)
    world.run("create table t(k text primary key, v integer)")
    world.htap.sync_now()
    world.run("insert into t values (null, 1)", "delete from t")
    world.htap.sync_now()
    assert (keyed(world), letters(world), unkept(world)) == ([], [], 0)


@BOTH_MODES
def test_a_table_without_rowid_takes_no_null_key(make_world: MakeWorld, mode: str) -> None:
    world = make_world(mode=mode)
    world.run("create table t(k text, n integer, primary key(k, n)) without rowid")
    world.htap.sync_now()
    log = world.app.execute("select sql from sqlite_master where name = '_rhei_insert_t'")
    assert "is null" not in log.fetchone()[0]  # no cost where there is no such row


@BOTH_MODES
def test_a_chosen_key_that_may_be_null_is_refused_and_its_way_out_works(
    make_world: MakeWorld, mode: str
) -> None:
    world = make_world(mode=mode, tables=[{"name": "t", "primary_key": ["k"]}])
    world.run("create table t(k text not null unique, v integer)")
    world.htap.sync_now()
    for column in ("k text unique", "k text not null unique"):
        world.run(
            f"create table new({column}, v integer)",
            "insert into new select coalesce(k, 'none'), v from t",
            "drop table t",
            "alter table new rename to t",
        )
        errors = world.htap.sync_now().errors
        if "not null" in column:
            assert not errors
        else:
            assert "not unique and without nulls" in errors["t"]
            world.run("insert into t values (null, 1)")
    assert (keyed(world), letters(world), unkept(world)) == (["none"], [], 0)


@BOTH_MODES
@pytest.mark.parametrize("method", ["logical", "trigger"])
def test_a_chosen_key_of_postgres_that_may_be_null_is_refused(
    make_postgres: MakePostgres, mode: str, method: str
) -> None:
    tables = [{"name": "t", "primary_key": ["k"]}]
    world = make_postgres(mode=mode, capture={"method": method}, tables=tables)
    world.run(
        "create table t(k text not null unique, v int)",
        "alter table t replica identity full",
        "insert into t values ('a', 1)",
    )
    world.htap.sync_now()
    world.run("alter table t alter k drop not null", "insert into t values (null, 2)")
    assert "null" in world.htap.sync_now().errors["t"]
    world.run("update t set k = 'b' where k is null", "alter table t alter k set not null")
    assert not world.htap.sync_now().errors
    world.assert_equal("t")
    assert world.htap.verify().equal


@BOTH_MODES
@pytest.mark.parametrize("identity", ["full", "using index t_k_key", None])
def test_a_chosen_key_of_postgres_whose_old_rows_may_be_null_is_refused(
    make_postgres: MakePostgres, mode: str, identity: str | None
) -> None:
    """PostgreSQL 18 takes a constraint that only rows to come have to keep."""
    method = "logical" if identity else "trigger"
    tables = [{"name": "t", "primary_key": ["k"]}]
    world = make_postgres(mode=mode, capture={"method": method}, tables=tables)
    if world.app.info.server_version < 180_000:
        pytest.skip("the server has no such constraints")
    world.run(
        "create table t(k text unique, v int)",
        "insert into t values ('a', 1), (null, 2)",
        "alter table t add constraint given not null k not valid",
        *([f"alter table t replica identity {identity}"] if identity else []),
    )
    assert "no valid unique index without nulls is on k" in world.htap.sync_now().errors["t"]
    world.run("update t set k = 'b' where k is null", "alter table t validate constraint given")
    assert not world.htap.sync_now().errors
    world.assert_equal("t")


@BOTH_MODES
@pytest.mark.parametrize("method", ["logical", "trigger"])
def test_a_chosen_key_of_postgres_whose_index_was_never_completed_is_refused(
    make_postgres: MakePostgres, mode: str, method: str
) -> None:
    """An index that could not be made stays, and is unique for rows to come alone."""
    tables = [{"name": "t", "primary_key": ["k"]}]
    world = make_postgres(mode=mode, capture={"method": method}, tables=tables)
    world.run(
        "create table t(k text not null, v int)",
        "alter table t replica identity full",
        "insert into t values ('a', 1), ('a', 2)",
    )
    with pytest.raises(psycopg.errors.UniqueViolation):
        world.run("create unique index concurrently one on t(k)")
    assert "no valid unique index without nulls is on k" in world.htap.sync_now().errors["t"]
    world.run("update t set k = 'b' where v = 2", "reindex index one")
    assert not world.htap.sync_now().errors
    world.assert_equal("t")
