"""Narrower types, other keys, dropped tables and lost modes, with a PostgreSQL source."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.fix_postgres import PostgresWorld

pytestmark = pytest.mark.turns

MakePostgres = Callable[..., PostgresWorld]
METHODS = ("logical", "trigger", "polling")
#: What was, a value of it, what it becomes, a value of that, and the type that holds both: None
#: where the new one does, "" where none does and the table begins again.
TYPES = {
    "reals": ("double precision", "1.5", "integer", "2", "float64"),
    "blobs": ("bytea", "'ab'", "text", "'ab'", ""),
    "texts": ("text", "'007'", "integer using v::int", "8", "string"),
    "numbers": ("numeric(9,3)", "1.234", "numeric(9,1)", "7", "decimal(9,3)"),
    "integers": ("integer", "10", "boolean using v <> 0", "true", ""),
    "answers": ("boolean", "true", "text", "'maybe'", None),
    "counts": ("integer", "10", "bigint", str(2**40), None),
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def polled(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name, "polling": {"updated_at": "at", "deletes": "reconcile"}, **options}


@pytest.mark.long
@pytest.mark.parametrize("storage", [None, "parquet"])
def test_a_type_is_taken_exactly_or_its_table_waits_for_a_way_out(
    make_postgres: MakePostgres, method: str, storage: str | None
) -> None:
    world = make_postgres(
        mode="temporal",
        storage=storage,
        tables=[polled(name) for name in (*TYPES, "u")],
        capture={"method": method},
    )
    world.run("create table u(id int primary key, at timestamptz not null default now())")
    for name, (old, value, *_) in TYPES.items():
        world.run(
            f"create table {name}(id int primary key, v {old},"
            " at timestamptz not null default now())",
            f"insert into {name}(id, v) values (1, {value})",
        )
    world.htap.sync_now()
    before = {name: world.versions(name) for name in TYPES}
    for name, (_, _, new, now, _) in TYPES.items():
        world.run(f"alter table {name} alter column v type {new}")
        world.run(f"insert into {name}(id, v) values (2, {now})")
    world.run("insert into u values (1)")
    report = world.htap.sync_now()
    world.assert_equal("u")
    assert report.errors.keys() == {name for name, case in TYPES.items() if case[-1] is not None}
    world.crash()
    world.tables = [polled("u")]
    for name, (_, value, _, now, override) in TYPES.items():
        if override is None:
            first, second = (row["v"] for row in world.versions(name, "id"))
            assert [str(first), str(second)] == [value, now.strip("'")]
        else:
            assert "its history does not fit" in report.errors[name]
            # What was written since may be among the versions, where the log tells it.
            assert world.versions(name)[:1] == before[name]
        world.tables.append(polled(name, **({"types": {"v": override}} if override else {})))
    for name, (*_, override) in TYPES.items():
        if override == "":
            world.htap.drop_table(name, keep_as=f"{name}_before")
            assert world.versions(f"{name}_before")[:1] == before[name]
    report = world.htap.sync_now()
    assert not report.errors
    assert report.dead_letters == 0
    assert world.htap.verify().equal


@pytest.mark.parametrize("storage", [None, "ipc"])
def test_another_key_and_a_dropped_table(
    make_postgres: MakePostgres, method: str, storage: str | None
) -> None:
    world = make_postgres(
        mode="temporal", storage=storage, tables=[polled("t")], capture={"method": method}
    )
    world.run(
        "create table t(id int, code int not null, v text, at timestamptz not null default now(),"
        " primary key (id))",
        "insert into t values (1, 10, 'a'), (2, 20, 'b')",
    )
    world.htap.sync_now()
    world.run(
        "alter table t drop constraint t_pkey",
        "alter table t add primary key (code)",
        "update t set v = 'c', at = clock_timestamp() where id = 1",
    )
    assert not world.htap.sync_now().errors
    world.run("update t set v = 'd', at = clock_timestamp() where id = 1")
    world.htap.sync_now()
    assert world.htap.verify().equal
    assert world.htap.drop_table("t", keep_as="t_before").rows == 4
    world.run("delete from t where id = 2")
    assert not world.htap.sync_now().errors
    assert [row["v"] for row in world.versions("t")] == ["d"]
    assert len(world.versions("t_before")) == 4
    assert world.htap.verify().equal


@pytest.mark.long
@pytest.mark.parametrize("storage", [None, "parquet"])
@pytest.mark.parametrize("way", ["logical", "streaming", "buffer", "trigger"])
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "reopened"])
@pytest.mark.parametrize("case", ["at once", "no key between", "whole rows"])
def test_rows_that_share_only_a_former_key_are_rows_of_their_own(
    make_postgres: MakePostgres,
    storage: str | None,
    way: str,
    tmp_path: Path,
    case: str,
    *,
    is_open: bool,
) -> None:
    capture: dict[str, Any] = {"method": "trigger" if way == "trigger" else "logical"}
    if way == "streaming":
        capture["streaming"] = True
    if way == "buffer":
        capture["buffer"] = {"path": tmp_path / "cdc"}
    world = make_postgres(
        mode="temporal", storage=storage, tables=[{"name": "t"}, {"name": "u"}], capture=capture
    )
    world.run(
        "create table t(id int primary key, a int not null, v text)",
        "create table u(id int primary key, v text)",
        "insert into t values (1, 1, 'x'), (2, 2, 'y')",
    )
    if case == "whole rows":
        world.run("alter table t replica identity full")
    world.htap.sync_now()
    if not is_open:
        world.crash()
    # A table of triggers gets none before it has a key again.
    is_between = case == "no key between" and way != "trigger"
    added = ["insert into t values (1, 7, 'new')"]
    world.run(
        "insert into u values (1, 'one')",
        "update t set v = 'p' where id = 1",
        "alter table t drop constraint t_pkey",
        *(added if is_between else []),
        "alter table t add primary key (a, id)",
        *([] if is_between else added),
        "update t set v = 'newer' where a = 7",
        "update u set v = 'two'",
        "delete from t where id = 2",
    )
    assert not world.htap.sync_now().errors
    found = world.htap.query(
        "select a, id, v, _rhei_operation as op from t order by a, _rhei_valid_from, v", hint="olap"
    )
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        (1, 1, "x", "I"),
        (1, 1, "p", "U"),
        (2, 2, "y", "D"),
        (7, 1, "new", "I"),
        (7, 1, "newer", "U"),
    ]
    assert world.htap.verify().equal
    world.run("update t set v = 'last' where a = 1")
    assert world.htap.sync_now().updated == 1
    assert world.htap.sync_status().lag_events == 0
    world.assert_equal("t", "u")


@pytest.mark.parametrize("way", ["logical", "streaming", "buffer"])
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "reopened"])
def test_a_transaction_that_gives_a_table_another_key_is_read_by_both_keys(
    make_postgres: MakePostgres, way: str, tmp_path: Path, *, is_open: bool
) -> None:
    capture: dict[str, Any] = {"method": "logical", "streaming": way == "streaming"}
    if way == "buffer":
        capture["buffer"] = {"path": tmp_path / "cdc"}
    world = make_postgres(mode="temporal", tables=[{"name": "t"}, {"name": "u"}], capture=capture)
    world.run(
        "create table t(id int primary key, a int not null, v text)",
        "create table u(told timestamptz primary key)",
        "insert into t values (1, 1, 'x'), (2, 2, 'y'), (4, 4, 'w')",
    )
    world.htap.sync_now()
    if not is_open:
        world.crash()
    world.run(
        "update t set v = 'p' where id = 1",
        # As a migration does it: what is not fit for the new key is removed first.
        "begin; delete from t where id = 2; update t set v = 'q' where id = 1;"
        " insert into t values (2, 3, 'z'); update t set id = 5 where id = 4;"
        " alter table t drop constraint t_pkey, add primary key (a, id);"
        " insert into t values (1, 7, 'new'); delete from t where a = 1; commit",
        "update t set v = 'newer' where a = 7",
        "insert into u values (clock_timestamp())",
    )
    assert not world.htap.sync_now().errors
    assert [list(row.values()) for row in world.htap.query(_VERSIONS, hint="olap").to_pylist()] == [
        [1, 1, "x", "I", True],
        [1, 1, "p", "U", True],
        [1, 1, "q", "D", True],
        [2, 2, "y", "D", True],
        [3, 2, "z", "I", False],
        [4, 4, "w", "D", True],
        [4, 5, "w", "I", False],
        [7, 1, "new", "I", True],
        [7, 1, "newer", "U", False],
    ]
    assert world.htap.verify().equal
    assert world.htap.sync_now().events == 0


#: All versions of `t`, and whether each ended before the application's last word in `u`.
_VERSIONS = """
select a, id, v, _rhei_operation, coalesce(_rhei_valid_to < (select max(told) from u), false)
from t order by a, id, _rhei_valid_from, v = 'q'
"""


@pytest.mark.parametrize("mode", ["temporal", "destructive"])
def test_what_is_pending_is_counted_beyond_another_key(
    make_postgres: MakePostgres, mode: str
) -> None:
    world = make_postgres(mode=mode, tables=[{"name": "t"}], capture={"method": "logical"})
    world.run("create table t(id int primary key, a int not null)", "insert into t values (1, 1)")
    world.htap.sync_now()
    world.run(
        "insert into t values (2, 2)",
        "alter table t drop constraint t_pkey, add primary key (a, id)",
        "insert into t values (2, 3), (2, 4)",
    )
    status = world.htap.sync_status().tables["t"]
    assert (status.lag_events, status.doubt) == (3, None)
    assert status.lag_seconds
    world.htap.sync_now()
    assert world.htap.sync_status().tables["t"].lag_events == 0


def test_what_is_left_of_a_dropped_table_is_read_by_its_own_key(
    make_postgres: MakePostgres,
) -> None:
    world = make_postgres(
        mode="temporal", tables=[{"name": "t"}, {"name": "u"}], capture={"method": "logical"}
    )
    shape = "create table t(id int, a int, v text, primary key({}))"
    world.run(
        shape.format("id"),
        "alter table t replica identity full",
        "create table u(told timestamptz primary key)",
        "insert into t values (1, 1, 'x'), (2, 2, 'y')",
    )
    world.htap.sync_now()
    world.run(
        "update t set v = 'p' where id = 1",
        "delete from t where id = 2",
        "insert into u values (clock_timestamp())",
        "drop table t",
        shape.format("a"),
        "insert into t values (1, 7, 'new')",
    )
    assert not world.htap.sync_now().errors
    assert [list(row.values()) for row in world.htap.query(_VERSIONS, hint="olap").to_pylist()] == [
        [1, 1, "x", "I", True],
        [1, 1, "p", "D", False],
        [2, 2, "y", "D", True],
        [7, 1, "new", "I", False],
    ]


KEYED_OTHERWISE = ["alter table t drop constraint t_pkey", "alter table t add primary key (a, id)"]


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("way", ["logical", "streaming", "buffer"])
@pytest.mark.parametrize("storage", [None, "parquet"])
@pytest.mark.parametrize(
    "then",
    [
        ("delete from t where a = 1", "id"),
        ("delete from t where a = 1", "b, id"),
        ("update t set id = 5 where a = 1", "id"),
    ],
    ids=["back", "a third one", "moved"],
)
def test_no_row_is_lost_that_shared_its_key_with_another_while_the_table_had_another_one(
    make_postgres: MakePostgres,
    mode: str,
    way: str,
    storage: str | None,
    then: tuple[str, str],
    tmp_path: Path,
) -> None:
    change, key = then
    capture: dict[str, Any] = {"method": "logical", "streaming": way == "streaming"}
    if way == "buffer":
        capture["buffer"] = {"path": tmp_path / "cdc"}
    world = make_postgres(mode=mode, storage=storage, tables=[{"name": "t"}], capture=capture)
    world.run(
        "create table t(id int primary key, a int not null, b int not null, v text)",
        "insert into t values (1, 1, 1, 'x'), (2, 2, 1, 'y')",
    )
    world.htap.sync_now()
    world.run(
        *KEYED_OTHERWISE,
        "insert into t values (1, 7, 1, 'new')",
        change,
        "alter table t drop constraint t_pkey",
        f"alter table t add primary key ({key})",
    )
    assert not world.htap.sync_now().errors
    assert world.htap.verify().equal
    world.run("update t set v = 'last' where a = 7")
    assert world.htap.sync_now().updated == 1
    world.assert_equal("t")


def test_a_key_that_is_renamed_and_renamed_back_is_the_same_in_the_log(
    make_postgres: MakePostgres,
) -> None:
    world = make_postgres(mode="temporal", tables=[{"name": "t"}], capture={"method": "logical"})
    world.run("create table t(id int primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    world.run(
        "alter table t rename id to x",
        "update t set v = 'b' where x = 1",
        "delete from t where x = 1",
        "alter table t rename x to id",
    )
    report = world.htap.sync_now()
    assert not report.errors
    assert [(row["v"], row["_rhei_operation"]) for row in world.versions("t")] == [
        ("a", "I"),
        ("b", "D"),
    ]
