"""A transaction of PostgreSQL shows whole at every instant: across rows, tables and captures."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhei_pipeline.sources.postgres.instants import apart
from tests.support.fix_postgres import PostgresWorld

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., PostgresWorld]
LOGICAL: dict[str, Any] = {"method": "logical"}
TRIGGER: dict[str, Any] = {"method": "trigger"}
TOTAL = 300


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("storage", [None, "parquet"])
@pytest.mark.parametrize(
    "capture", [LOGICAL, {**LOGICAL, "streaming": True}, TRIGGER], ids=["log", "stream", "trigger"]
)
def test_every_instant_shows_whole_transactions(
    make_postgres: MakeWorld,
    tmp_path: Path,
    capture: dict[str, Any],
    storage: str | None,
    *,
    buffered: bool,
) -> None:
    if buffered:
        capture = {**capture, "buffer": {"kind": "rocksdb", "path": tmp_path / "buffer"}}
    tables = [{"name": "a"}, {"name": "b"}]
    world = make_postgres(capture=capture, mode="temporal", storage=storage, tables=tables)
    move_between_tables(world)


def test_commit_times_of_the_server_date_whole_transactions(
    dating_dsn: str, tmp_path: Path
) -> None:
    tables = [{"name": "a"}, {"name": "b"}]
    world = PostgresWorld(dating_dsn, tmp_path, tables, "temporal", capture=TRIGGER)
    try:
        move_between_tables(world)
    finally:
        world.close()


def move_between_tables(world: PostgresWorld) -> None:
    """Move amounts between rows of two tables; their total is the same after each transaction."""
    for name in ("a", "b"):
        world.run(
            f"create table {name}(id int primary key, v int)",
            f"insert into {name} values (1, 100), (2, 50)",
        )
    world.htap.sync_now()
    begun = max(instants(world))
    for _ in range(3):
        for amount in range(1, 6):
            world.run(
                "begin",
                f"update a set v = v - {amount} where id = 1",
                f"update a set v = v - {amount} where id = 1",
                f"update b set v = v + {amount} where id = 2",
                "delete from b where id = 1",
                f"insert into b values (1, {100})",
                f"update b set v = v + {amount} where id = 2",
                "commit",
            )
        assert not world.htap.sync_now().errors
        world.assert_equal("a", "b")
    told = instants(world)
    assert len([at for at in told if at > begun]) == 15
    for at in told:
        for shown in (at, at + timedelta(microseconds=1)):
            rows = [r for name in ("a", "b") for r in world.htap.as_of(name, shown).to_pylist()]
            assert shown <= begun or sum(row["v"] for row in rows) == TOTAL
    # Nothing is lost: what a transaction did on its way is in the history, and shows nowhere.
    assert len([row for row in world.versions("a") if row["id"] == 1]) == 31


def instants(world: PostgresWorld) -> list[datetime]:
    """Return every instant at which a version of either table begins."""
    return sorted({row["_rhei_valid_from"] for name in ("a", "b") for row in world.versions(name)})


def test_a_truncation_and_what_follows_it_in_a_transaction_show_at_once(
    make_postgres: MakeWorld,
) -> None:
    for name, capture in (("x", LOGICAL), ("y", TRIGGER)):
        tables = [{"name": name}]
        world = make_postgres(capture=capture, mode="temporal", tables=tables)
        world.run(f"create table {name}(id int primary key)", f"insert into {name} values (1), (2)")
        world.htap.sync_now()
        world.run("begin", f"truncate {name}", f"insert into {name} values (2), (3)", "commit")
        world.htap.sync_now()
        world.assert_equal(name)
        (at,) = {row["_rhei_valid_from"] for row in world.versions(name) if row["id"] == 3}
        assert sorted(world.htap.as_of(name, at)["id"].to_pylist()) == [2, 3]
        before = at - timedelta(microseconds=1)
        assert sorted(world.htap.as_of(name, before)["id"].to_pylist()) == [1, 2]
        world.crash()


def test_transactions_of_one_microsecond_are_kept_apart() -> None:
    given = np.array([5, 5, 6, 9, 5, 3, 3])
    assert apart(given, np.array([9])).tolist() == [5, 7, 6, 10, 8, 3, 4]
    assert apart(np.array([1, 2]), np.array([3])).tolist() == [1, 2]


@pytest.mark.parametrize("storage", [None, "parquet", "delta"])
@pytest.mark.parametrize(
    "capture", [LOGICAL, {**LOGICAL, "streaming": True}, TRIGGER], ids=["log", "stream", "trigger"]
)
def test_versions_that_came_and_went_in_one_transaction_contradict_nobody(
    make_postgres: MakeWorld, capture: dict[str, Any], storage: str | None
) -> None:
    """All of a key begin and end at one instant, so their instants put them in no order."""
    world = make_postgres(capture=capture, mode="temporal", storage=storage)
    world.run("create table t(id int primary key, v text)")
    world.htap.sync_now()
    with world.app.transaction():
        world.run("insert into t select n, 'a' from generate_series(1, 3000) n")
        for value in "bcd":
            world.run(f"update t set v = '{value}'")
        world.run("delete from t where id % 3 > 0")
        world.run("insert into t select n, 'e' from generate_series(1, 3000, 3) n")
        world.run("update t set v = 'f' where id % 6 = 1", "delete from t where id % 12 = 1")
    world.htap.sync_now()
    world.assert_equal("t")
    assert not world.htap.broken_histories("t").num_rows
    assert world.htap.verify().equal
