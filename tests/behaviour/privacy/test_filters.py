"""Row filters: the mirror has the rows of which the condition is true, whatever happens to them."""

from collections.abc import Callable
from typing import Any

import pytest

from rhei_pipeline.errors import QueryError, SchemaError
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.masking import KEY, hashed, holding

MakeWorld = Callable[..., World]
MakePostgres = Callable[..., PostgresWorld]
AnyWorld = World | PostgresWorld

WHERE = "(status in ('open', 'late') or n between 10 and 19) and not n = 13"
CREATE = "create table t(id integer primary key, status text, n bigint, at timestamp)"
BESIDE = "create table u(id integer primary key, v text, at timestamp)"


def table(**more: Any) -> dict[str, Any]:
    own = {"name": "t", "where": WHERE, "polling": {"updated_at": "at"}}
    return {**own, "schema_changes": "freeze", **more}


def write(world: AnyWorld) -> None:
    """Rows come into the filter, leave it, change within and beside it, and change their keys."""
    now = "current_timestamp"
    world.run(
        f"insert into t values (1, 'open', 1, {now}), (2, 'shut', 2, {now}),"
        f" (3, null, 12, {now}), (4, null, null, {now}), (5, 'open', 13, {now})"
    )


def rewrite(world: AnyWorld) -> None:
    now = "at = current_timestamp"
    world.run(
        f"update t set status = 'shut', {now} where id = 1",
        f"update t set status = 'late', {now} where id = 2",
        f"update t set n = 14, {now} where id = 3",
        f"update t set n = 5, {now} where id = 4",
        f"update t set n = 15, {now} where id = 5",
        "insert into t values (6, 'open', 6, current_timestamp), (7, 'x', 7, current_timestamp)",
        f"update t set status = 'x', {now} where id = 6",
        f"update t set status = 'open', {now} where id = 7",
    )


def expected(world: AnyWorld, where: str = WHERE) -> list[tuple[Any, ...]]:
    """Return what the source's own engine finds."""
    found = world.app.execute(f"select id, status, n from t where {where}").fetchall()
    return sorted(tuple(row) for row in found)


def shown(world: AnyWorld) -> list[tuple[Any, ...]]:
    rows = world.htap.query("select * from t", hint="olap").to_pylist()
    present = [row for row in rows if row.get("_rhei_valid_to") is None]
    return sorted((row["id"], row["status"], row["n"]) for row in present)


def walk(world: AnyWorld) -> None:
    """Copy, sync, verify, and change the filter: at every point the mirror has what is in it."""
    world.run(CREATE, BESIDE, "insert into u values (1, 'x', current_timestamp)")
    write(world)
    assert world.htap.sync_now().errors == {}
    assert shown(world) == expected(world) != []
    rewrite(world)
    world.htap.sync_now()
    assert shown(world) == expected(world)
    verified = world.htap.verify()
    assert verified.equal
    assert verified.tables["t"].rows == len(expected(world))
    answered = world.htap.query("select count(*) as n from t")
    assert answered["n"].to_pylist() == [len(expected(world))]
    other = "n >= 7"
    world.crash()
    assert world.tables is not None
    world.tables = [{**world.tables[0], "where": other}, world.tables[1]]
    world.run("update t set n = 8, at = current_timestamp where id = 2")
    world.htap.sync_now()
    assert shown(world) == expected(world, other)
    world.crash()
    world.tables = [{"name": "t", "polling": {"updated_at": "at"}}, world.tables[1]]
    world.htap.sync_now()
    assert shown(world) == expected(world, "true")
    assert world.htap.verify().equal


@pytest.mark.parametrize(
    "way",
    [
        {"buffered": True},
        {"mode": "temporal", "storage": "ipc"},
        {"method": "polling"},
    ],
    ids=["triggers-buffered", "triggers-temporal-files", "polling"],
)
def test_a_mirror_of_sqlite_has_what_is_in_the_filter(
    way: dict[str, Any], make_world: MakeWorld
) -> None:
    walk(make_world(tables=[table(), table(name="u", where="id > 0")], **way))


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "mode"),
    [("logical", "temporal"), ("trigger", "temporal"), ("polling", "destructive")],
)
def test_a_mirror_of_postgres_has_what_is_in_the_filter(
    method: str, mode: str, make_postgres: MakePostgres
) -> None:
    world = make_postgres(
        tables=[table(), table(name="u", where="id > 0")], mode=mode, capture={"method": method}
    )
    walk(world)


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_what_is_outside_of_the_filter_is_in_no_file(mode: str, make_world: MakeWorld) -> None:
    world = make_world(tables=[{"name": "t", "where": "n < 10"}], mode=mode, buffered=True)
    world.run("create table t(id integer primary key, v text, n integer)")
    world.run("insert into t values (1, 'kept-here', 1), (2, 'never-here', 10)")
    world.htap.sync_now()
    world.run(
        "insert into t values (3, 'never-here', 11)",
        "update t set v = 'kept-too', n = 2 where id = 1",
        "update t set v = 'never-here', n = 12 where id = 1",
    )
    world.htap.sync_now()
    assert world.present("t") == []
    # A plain mirror is told of the last state alone; what it had before was copied.
    found = {part[:3] for part in holding(world.directory, "kept-")}
    assert found == {"mir", *(["cdc"] * (mode == "temporal"))}
    assert holding(world.directory, "never-here") == []


def test_versions_end_and_begin_where_rows_leave_and_enter(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal", tables=[{"name": "t", "where": "status = 'open'"}])
    world.run(CREATE, "insert into t(id, status) values (1, 'open')")
    world.htap.sync_now()
    world.run("update t set status = 'shut'", "update t set status = 'open'", "delete from t")
    world.htap.sync_now()
    versions = world.htap.query(
        "select status, _rhei_operation as o, _rhei_valid_to is null as open from t order by"
        " _rhei_valid_from",
        hint="olap",
    )
    assert versions["status"].to_pylist() == ["open", "open"]
    assert versions["o"].to_pylist() == ["D", "D"]
    assert not any(versions["open"].to_pylist())


def test_a_value_that_the_log_left_out_is_never_guessed(make_postgres: MakePostgres) -> None:
    """A row that enters without its TOAST value is a dead letter, unless the log has all."""
    world = make_postgres(tables=[{"name": "t", "where": "n > 0"}], capture={"method": "logical"})
    world.run(
        "create table t(id int primary key, n int, big text)",
        "alter table t alter column big set storage external",
        "insert into t values (1, 1, repeat('a', 3000)), (2, 0, repeat('b', 3000))",
    )
    world.htap.sync_now()
    world.run(
        "update t set n = 2 where id = 1",
        "update t set n = 0, big = repeat('c', 3000) where id = 1",
        "update t set n = 3 where id = 1",
        "update t set n = 1 where id = 2",
    )
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 2
    assert world.present("t") == []
    world.run("alter table t replica identity full")
    world.htap.repair("t")
    assert world.htap.dead_letters().num_rows == 0
    world.assert_equal("t")
    world.run("update t set n = 0", "update t set n = 5")
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    world.assert_equal("t")


def test_a_filter_on_a_value_that_the_log_left_out_says_so(make_postgres: MakePostgres) -> None:
    world = make_postgres(
        tables=[{"name": "t", "where": "big <> 'x'"}], capture={"method": "logical"}
    )
    world.run(
        "create table t(id int primary key, n int, big text)",
        "alter table t alter column big set storage external",
        "insert into t values (1, 1, repeat('a', 3000))",
    )
    world.htap.sync_now()
    world.run("update t set n = 2")
    assert "replica identity full" in world.htap.sync_now().errors["t"]
    world.run("alter table t replica identity full")
    world.htap.initial_sync("t")
    world.run("update t set n = 3")
    assert world.htap.sync_now().errors == {}
    world.assert_equal("t")


def test_a_condition_names_columns_as_postgres_does(make_postgres: MakePostgres) -> None:
    """Names are in lower case unless they are quoted; a table is not left out for that."""
    world = make_postgres(
        tables=[
            {"name": "t", "where": "Status = 'open' and \"N\" > 1"},
            {"name": "u", "where": "n between symmetric 3 and 1"},
        ],
        capture={"method": "trigger"},
    )
    world.run(
        'create table t(id int primary key, status text, "N" int)',
        "create table u(id int primary key, n int)",
        "insert into t values (1, 'open', 2), (2, 'shut', 2), (3, 'open', 1)",
        "insert into u values (1, 2)",
    )
    errors = world.htap.sync_now().errors
    assert set(errors) == {"u"}
    assert "BETWEEN is not a comparison" in errors["u"]
    assert [row["id"] for row in world.present("t")] == [1]
    assert world.htap.verify("t").equal


def test_a_masked_column_is_filtered_by_what_the_source_has(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RHEI__MASKING__KEY", KEY)
    world = make_world(
        tables=[{"name": "t", "where": "status = 'open'", "mask": {"status": "hash"}}]
    )
    world.run(CREATE, "insert into t(id, status) values (1, 'open'), (2, 'shut')")
    world.htap.sync_now()
    assert [row["status"] for row in world.present("t")] == [hashed("open")]
    with pytest.raises(QueryError, match="masked or filtered"):
        world.htap.query("select count(*) from t where status = 'open'")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("status like 'o%'", "LIKE is not a comparison"),
        ("n > random()", "no literal"),
        ("id in (select 1)", "not a comparison"),
        ("n = 1) or (1 = 1", "more than a condition|cannot be read"),
        ("n = 1 limit 1", "more than a condition"),
        ("status > 'a'", "order of texts"),
        ("n = 'one'", "no literal of the type"),
        ("statsu = 'open'", "did you mean 'status'"),
        ("noted = 'x'", "in a way of the source's own"),
    ],
)
def test_a_condition_that_is_not_certain_leaves_its_table_out(
    where: str, said: str, make_world: MakeWorld
) -> None:
    given = {"noted": "string"}
    world = make_world(tables=[{"name": "t", "where": where, "types": given}])
    world.run(
        "create table t(id integer primary key, status text, n integer, noted text)",
        "insert into t values (1, 'open', 1, 'x'), (2, 'shut', 2, 'y')",
    )
    with pytest.raises(SchemaError, match=said):
        world.htap.initial_sync("t")
    world.crash()
    world.tables = [{"name": "t", "where": "status = 'open' or n is null"}]
    assert world.htap.sync_now().errors == {}
    assert [row["id"] for row in world.present("t")] == [1]


def test_a_table_is_registered_with_its_mask_and_filter(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row is read before they are known; what is said later counts from then on."""
    monkeypatch.setenv("RHEI__MASKING__KEY", KEY)
    world = make_world(tables=[])
    world.run(CREATE, "insert into t(id, status, n) values (1, 'open', 1), (2, 'shut', 2)")
    world.htap.register_table("T", mask={"status": "hash"}, where="n < 2")
    world.htap.sync_now()
    assert [(row["id"], row["status"]) for row in world.present("t")] == [(1, hashed("open"))]
    world.crash()
    world.htap.register_table("t", mask={"status": "redact"}, where="n > 1")
    world.htap.sync_now()
    assert [(row["id"], row["status"]) for row in world.present("t")] == [(2, "***")]
    with pytest.raises(QueryError, match="masked or filtered"):
        world.htap.query("select id from t where status = 'shut'")
