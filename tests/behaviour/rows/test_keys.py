"""What the source's engine holds equal is one key, in whichever form it is written."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.parts import engine_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
MakePostgres = Callable[..., PostgresWorld]

BOTH_MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])
MIRRORS = pytest.mark.parametrize("storage", [None, "memory", "parquet", "ipc", "delta"])
STAMP = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
WAYS: dict[str, dict[str, Any]] = {
    "trigger": {},
    "buffer": {"buffered": True},
    "polling": {"method": "polling"},
}
POSTGRES_WAYS: dict[str, dict[str, Any]] = {
    "logical": {"method": "logical"},
    "trigger": {"method": "trigger"},
    "buffer": {"method": "logical", "buffer": {"path": "cdc"}},
}


def minus_zero(world: World, mode: str) -> list[int]:
    """Sync a key 0.0 through all the forms it can take; return how many rows each sync changed."""
    world.tables = [
        {"name": "t", "mode": mode, "types": {"k": "float64"}, "polling": {"updated_at": "at"}}
    ]
    world.run(
        "create table t(k primary key, v integer, at text)",
        f"insert into t values (0.0, 1, {STAMP}), (1.0, 1, {STAMP})",
    )
    world.htap.sync_now()
    world.assert_equal("t")
    changed = []
    for statement in (
        f"update t set k = -0.0, v = 2, at = {STAMP} where k = 0",
        f"update t set k = 0.0, at = {STAMP} where k = 0",
        f"update t set k = -0.0, at = {STAMP} where k = 0",
        f"update t set v = 3, at = {STAMP} where k = 0",
    ):
        world.run(statement)
        report = world.htap.sync_now()
        changed.append(report.inserted + report.updated)
        world.assert_equal("t")
        assert report.deleted == 0
        assert world.htap.verify().equal
    world.run(
        "update t set k = 0.0 where k = 0",
        "delete from t",
        f"insert into t values (-0.0, 9, {STAMP})",
    )
    world.htap.sync_now()
    return changed


@BOTH_MODES
@MIRRORS
def test_zero_and_minus_zero_are_one_key(
    make_world: MakeWorld, mode: str, storage: str | None
) -> None:
    world = make_world(storage=storage)
    assert minus_zero(world, mode) == [1, 1, 1, 1]
    world.assert_equal("t")
    assert world.htap.verify().equal


@BOTH_MODES
@pytest.mark.parametrize("way", ["buffer", "polling"])
def test_zero_and_minus_zero_are_one_key_however_they_come(
    make_world: MakeWorld, mode: str, way: str
) -> None:
    world = make_world(**WAYS[way])
    assert minus_zero(world, mode) == [1, 1, 1, 1]
    if way == "buffer":  # polling with the default policy does not see deletes
        world.assert_equal("t")


@BOTH_MODES
def test_a_repair_brings_back_the_form_of_a_key(make_world: MakeWorld, mode: str) -> None:
    world = make_world(tables=[{"name": "t", "mode": mode, "types": {"k": "float64"}}])
    world.run("create table t(k primary key, v integer)", "insert into t values (0.0, 1)")
    world.htap.sync_now()
    world.run("drop trigger _rhei_update_t", "update t set k = -0.0")
    assert world.htap.repair("t").updated == 1
    world.assert_equal("t")


def test_a_version_whose_key_took_another_form_keeps_the_form_it_had(
    make_world: MakeWorld,
) -> None:
    world = make_world(tables=[{"name": "t", "mode": "temporal", "types": {"k": "float64"}}])
    world.run("create table t(k primary key, v integer)", "insert into t values (0.0, 1)")
    world.htap.sync_now()
    world.run("update t set k = -0.0, v = 2", "update t set k = 0.0")
    world.htap.sync_now()
    found = [(str(one["k"]), one["v"], one["_rhei_operation"]) for one in world.versions("t")]
    assert found == [("0.0", 1, "I"), ("-0.0", 2, "U"), ("0.0", 2, "U")]


@BOTH_MODES
def test_an_integer_and_the_same_real_are_one_key(make_world: MakeWorld, mode: str) -> None:
    world = make_world(tables=[{"name": "t", "mode": mode, "types": {"k": "float64"}}])
    world.run("create table t(k, v integer, primary key(k))", "insert into t values (1, 1)")
    world.htap.sync_now()
    world.run("update t set k = 1.0, v = 2", "update t set k = 1, v = 3")
    world.htap.sync_now()
    found = world.htap.query("select * from t", hint="olap").to_pylist()
    assert [row["v"] for row in found][-1] == 3
    assert world.htap.verify().equal


@BOTH_MODES
@MIRRORS
@pytest.mark.parametrize("collation", ["nocase", "rtrim"])
def test_texts_that_a_collation_holds_equal_follow_the_source(
    make_world: MakeWorld, mode: str, storage: str | None, collation: str
) -> None:
    world = make_world(mode=mode, storage=storage)
    one, other = {"nocase": ("abc", "ABC"), "rtrim": ("abc", "abc  ")}[collation]
    world.run(
        f"create table t(k text collate {collation}, n integer, v integer, primary key(k, n))"
        " without rowid",
        f"insert into t values ('{one}', 1, 1), ('x', 1, 1)",
    )
    world.htap.sync_now()
    for statement in (
        f"update t set k = '{other}', v = 2 where k = '{one}'",
        f"update t set k = '{one}' where k = '{one}'",
        f"insert or replace into t values ('{other}', 1, 3)",
        f"delete from t where k = '{one}'",
        f"insert into t values ('{other}', 1, 4)",
        f"insert into t values ('{one}', 1, 5) on conflict do update set k = excluded.k, v = 5",
    ):
        world.run(statement)
        world.htap.sync_now()
        world.assert_equal("t")
        assert world.htap.verify().equal


#: Keys that are several to their index, and one to comparisons of their column.
COARSER = {
    "nocase": ("k text collate nocase", "k collate binary", "A"),
    "rtrim": ("k text collate rtrim", "k collate nocase", "a "),
}


@BOTH_MODES
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("coarser", COARSER)
@pytest.mark.parametrize("kind", ["", "without rowid"])
def test_a_key_that_its_own_column_holds_equal_is_refused_until_it_is_unique_so(
    make_world: MakeWorld, mode: str, way: str, coarser: str, kind: str
) -> None:
    polling = {"updated_at": "at", "deletes": "reconcile"}
    world = make_world(mode=mode, tables=[{"name": "t", "polling": polling}], **WAYS[way])
    column, unique, other = COARSER[coarser]
    world.run(
        f"create table t({column}, n integer not null, at text, primary key(n, {unique})) {kind}",
        f"insert into t values ('a', 1, {STAMP}), ('{other}', 1, {STAMP})",
    )
    assert "unique by another collation" in world.htap.sync_now().errors["t"]
    world.run("delete from t where hex(k) <> hex('a')", "create unique index one on t(n, k)")
    assert not world.htap.sync_now().errors
    world.assert_equal("t")
    world.run(f"update t set k = '{other}', at = {STAMP}")
    world.htap.sync_now()
    if way != "polling":
        world.assert_equal("t")


def test_a_key_that_is_one_to_its_index_and_several_to_its_column_is_mirrored(
    make_world: MakeWorld,
) -> None:
    world = make_world(tables=[{"name": "t"}])
    world.run(
        "create table t(k text, v integer, primary key(k collate nocase))",
        "create unique index more on t(k)",
        "insert into t values ('a', 1), ('b', 1)",
    )
    world.htap.sync_now()
    world.run("insert or replace into t values ('A', 2)", "update t set k = 'B' where k = 'b'")
    assert not world.htap.sync_now().errors
    world.assert_equal("t")


@pytest.mark.parametrize("way", POSTGRES_WAYS)
@pytest.mark.parametrize(("mode", "storage"), [("destructive", "parquet"), ("temporal", None)])
def test_postgres_keys_that_are_equal_follow_the_source(
    make_postgres: MakePostgres, mode: str, way: str, storage: str | None, tmp_path: Any
) -> None:
    capture = dict(POSTGRES_WAYS[way])
    if "buffer" in capture:
        capture["buffer"] = {"path": tmp_path / "cdc"}
    names = ["citext", "numeric", "interval", "double", "single", "padded", "blanks", "zoned"]
    tables = [{"name": f"k_{name}"} for name in names]
    world = make_postgres(mode=mode, storage=storage, capture=capture, tables=tables)
    world.run(
        "set intervalstyle = 'iso_8601'",
        "create extension citext",
        "create table k_citext(id citext primary key, v int)",
        "create table k_numeric(id numeric(8, 2) primary key, v int)",
        "create table k_interval(id interval primary key, v int)",
        "create table k_double(id float8 primary key, v int)",
        "create table k_single(id float4, n int, v int, primary key(id, n))",
        "create table k_padded(id char(5) primary key, v int)",
        "create table k_blanks(id bpchar primary key, v int)",
        "create table k_zoned(id timestamptz primary key, v int)",
        "insert into k_citext values ('abc', 1), ('x', 1)",
        "insert into k_numeric values (1.0, 1), (2.5, 1)",
        "insert into k_interval values ('1 day', 1), ('1 mon', 1)",
        "insert into k_double values (0.0, 1), (1, 1), ('NaN', 1)",
        "insert into k_single values (0.0, 1, 1), (1, 1, 1), ('NaN', 1, 1)",
        "insert into k_padded values ('a', 1), ('b', 1)",
        "insert into k_blanks values ('a  ', 1), ('b', 1)",
        "insert into k_zoned values ('2024-01-01 00:00:00+00', 1)",
    )
    rounds = [
        [
            "update k_citext set id = 'ABC', v = 2 where id = 'abc'",
            "update k_numeric set id = 1.00, v = 2 where id = 1",
            "update k_interval set id = '24:00:00', v = 2 where id = '1 day'",
            "update k_double set id = '-0.0', v = 2 where id = 0",
            "update k_single set id = '-0.0', v = 2 where id = 0",
            "update k_padded set id = 'a ', v = 2 where id = 'a'",
            "update k_blanks set id = 'a', v = 2 where id = 'a'",
            "update k_zoned set id = '2024-01-01 01:00:00+01', v = 2",
        ],
        ["update k_double set id = 0.0 where id = 0", "update k_single set id = 0.0 where id = 0"],
        [
            "update k_double set v = 3 where id = 'NaN'",
            "update k_single set v = 3 where id = 'NaN'",
            "delete from k_citext where id = 'Abc'",
            "insert into k_citext values ('aBc', 3)",
            "delete from k_interval where id = '30 days'",
            "insert into k_interval values ('720:00:00', 4)",
            "delete from k_blanks where id = 'b'",
            "insert into k_blanks values ('b ', 4)",
            "delete from k_double where id = 0",
            "insert into k_double values ('-0.0', 4)",
        ],
        ["delete from k_double where id = 'NaN'", "delete from k_single where id = 0"],
    ]
    world.htap.sync_now()
    for statements in rounds:
        world.run(*statements)
        world.htap.sync_now()
        assert copies(world, names) == {name: rows_as_text(world, name) for name in names}
    assert world.htap.verify().equal


@MIRRORS
def test_a_history_whose_key_is_a_real_is_compared_by_that_type(
    make_postgres: MakePostgres, storage: str | None
) -> None:
    tables = [{"name": "t", "mode": "temporal"}]
    world = make_postgres(storage=storage, capture={"method": "trigger"}, tables=tables)
    world.run("create table t(k float4 primary key, v int)", "insert into t values (0.1, 1)")
    world.htap.sync_now()
    world.run("update t set v = 2", "insert into t values (2.5, 1)")
    world.htap.sync_now()
    assert world.htap.verify().equal


#: Types that a text beside them does not take, with keys of them.
UNTYPED = {
    "regclass": ["pg_class", "pg_type", "pg_proc"],
    "regtype": ["integer", "text", "bigint"],
    "pair": ["(1,a)", "(2,)", "(,)"],
    "pair_domain": ["(1,a)", "(1,b)", "(2,)"],
    "pair_of_domain": ["(1,a)", "(1,b)", "(2,)"],
    "class_domain": ["pg_class", "pg_type", "pg_proc"],
    "nested": ['("(1,a)",x)', '("(,)",)', "(,)"],
}


@pytest.mark.long
@pytest.mark.parametrize("way", ["logical", "trigger", "polling"])
@pytest.mark.parametrize(("mode", "storage"), [("destructive", "parquet"), ("temporal", None)])
def test_keys_that_take_no_type_from_their_context_are_kept(
    make_postgres: MakePostgres, mode: str, storage: str | None, way: str
) -> None:
    polling = {"deletes": "reconcile", "reconcile_seconds": 0}
    tables = [{"name": f"k_{kind}", "polling": polling} for kind in UNTYPED]
    world = make_postgres(
        mode=mode, storage=storage, capture={"method": way}, tables=tables, batch_rows=2
    )
    world.run(
        "create type pair as (a int, b text)",
        "create domain pair_domain as pair",
        "create domain pair_of_domain as pair_domain",
        "create domain class_of as regclass",
        "create domain class_domain as class_of",
        "create type nested as (one pair, b text)",
    )
    now = "updated_at = clock_timestamp()"
    stamp = "updated_at timestamptz not null default clock_timestamp()"
    for kind, keys in UNTYPED.items():
        world.run(
            f"create table k_{kind}(id {kind}, n int, v int, {stamp}, primary key(id, n))",
            *(f"insert into k_{kind} values ('{key}', 1, 1)" for key in keys),
        )
    assert not world.htap.sync_now().errors
    assert world.htap.verify().equal
    for kind, (first, second, third) in UNTYPED.items():
        world.run(
            f"update k_{kind} set v = 2, {now} where id = '{third}'::{kind}",
            f"update k_{kind} set n = 2, {now} where id = '{second}'::{kind}",
            f"delete from k_{kind} where id = '{first}'::{kind}",
        )
    assert not world.htap.sync_now().errors
    names = list(UNTYPED)
    assert copies(world, names) == {name: casts_as_text(world, name) for name in names}
    assert world.htap.verify().equal
    for kind in UNTYPED:
        world.htap.repair(f"k_{kind}")
    assert world.htap.verify().equal


def casts_as_text(world: PostgresWorld, name: str) -> list[tuple[str, ...]]:
    """Return the source's rows, each key cast to text."""
    sql = f"select id::text, n, v, updated_at from k_{name}"
    return sorted(tuple(map(plain, row)) for row in world.app.execute(sql.encode()).fetchall())


def copies(world: PostgresWorld, names: list[str]) -> dict[str, list[tuple[str, ...]]]:
    """Return the mirror's present rows as text, by table."""
    found = {}
    for name in names:
        table = engine_of(world.htap).pipeline.table(f"k_{name}")
        temporal = " where _rhei_valid_to is null" if world.mode == "temporal" else ""
        columns = ", ".join(table.schema.names)
        rows = world.htap.query(f"select {columns} from k_{name}{temporal}", hint="olap")
        found[name] = sorted(tuple(map(plain, row.values())) for row in rows.to_pylist())
    return found


def rows_as_text(world: PostgresWorld, name: str) -> list[tuple[str, ...]]:
    """Return the source's rows as text."""
    key = "id::text" if name in {"citext", "interval"} else "id"
    key = "rpad(id::text, 5)" if name == "padded" else key
    rest = ", n, v" if name == "single" else ", v"
    found = world.app.execute(f"select {key}{rest} from k_{name}".encode()).fetchall()
    return sorted(tuple(map(plain, row)) for row in found)


def plain(value: Any) -> str:
    """Write a value so that each form of it is another text."""
    if hasattr(value, "astimezone"):
        return str(value.timestamp())
    return str(value)
