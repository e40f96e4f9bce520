"""Narrower types, other keys, dropped tables and lost modes, with a PostgreSQL source."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.fix_postgres import PostgresWorld

MakePostgres = Callable[..., PostgresWorld]
METHODS = ("logical", "trigger", "polling")
TYPES = (
    ("double precision", "1.5", "integer", "2", "float64"),
    ("timestamptz", "'2026-01-05 12:00+00'", "timestamp", "'2026-01-06 12:00'", "timestamptz"),
    ("bytea", "'ab'", "text", "'ab'", "binary"),
    ("text", "'007'", "integer using v::int", "8", "string"),
    ("numeric(9,3)", "1.234", "numeric(9,1)", "7", "decimal(9,3)"),
    ("integer", "10", "boolean using v <> 0", "true", "int32"),
    ("boolean", "true", "text", "'maybe'", None),
    ("integer", "10", "bigint", str(2**40), None),
)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def polled(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name, "polling": {"updated_at": "at", "deletes": "reconcile"}, **options}


@pytest.mark.parametrize("storage", [None, "parquet"])
@pytest.mark.parametrize("case", TYPES, ids=lambda case: f"{case[0]}-{case[2]}")
def test_a_type_is_taken_exactly_or_its_table_waits_for_a_way_out(
    make_postgres: MakePostgres,
    method: str,
    storage: str | None,
    case: tuple[str, str, str, str, str | None],
) -> None:
    old, value, new, now, override = case
    world = make_postgres(
        mode="temporal",
        storage=storage,
        tables=[polled("t"), polled("u")],
        capture={"method": method},
    )
    world.run(
        f"create table t(id int primary key, v {old}, at timestamptz not null default now())",
        "create table u(id int primary key, at timestamptz not null default now())",
        f"insert into t(id, v) values (1, {value})",
    )
    world.htap.sync_now()
    before = world.versions("t")
    world.run(f"alter table t alter column v type {new}", "insert into u values (1)")
    world.run(f"insert into t(id, v) values (2, {now})")
    report = world.htap.sync_now()
    world.assert_equal("u")
    if override is None:
        assert not report.errors
        first, second = (row["v"] for row in world.versions("t", "id"))
        assert [str(first), str(second)] == [value, now.strip("'")]
        return
    assert "its past does not fit" in report.errors["t"]
    # What was written since may be among the versions, where the log tells it as a value of then.
    assert world.versions("t")[:1] == before
    world.crash()
    if override in {"binary", "timestamptz", "int32"}:
        # A text is no bytea, a local time no instant, a boolean no integer: these begin anew.
        world.htap.drop_table("t", keep_as="t_before")
        assert world.versions("t_before")[:1] == before
    else:
        world.tables = [polled("t", types={"v": override}), polled("u")]
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
