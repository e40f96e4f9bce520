"""Money that many writers move between two tables: its sum is the same wherever anyone looks."""

import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg
import pytest

from tests.support.declared_worlds import CAPTURES, MODES
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.model import instant_between

pytestmark = pytest.mark.pairs

AnyWorld = World | PostgresWorld
WRITERS, TRANSFERS, ACCOUNTS = 3, 30, 4
TOTAL = 2 * ACCOUNTS * 100
_POLLED = {"updated_at": "at", "deletes": "reconcile"}
_CREATE = "create table {} (id integer primary key, v integer not null, at {} not null)"
_NOW = {"sqlite": "cast(julianday('now') * 86400000 as integer)", "postgres": "clock_timestamp()"}


def _world(
    request: pytest.FixtureRequest, capture: str, mode: str, storage: str | None
) -> AnyWorld:
    source, _, _ = capture.partition("-")
    tables = [
        {"name": name, **({"polling": _POLLED} if capture.endswith("polling") else {})}
        for name in ("a", "b")
    ]
    if source == "sqlite":
        make = request.getfixturevalue("make_world")
        world: AnyWorld = make(mode=mode, storage=storage, tables=tables, **CAPTURES[capture])
    else:
        make = request.getfixturevalue("make_postgres")
        world = make(mode=mode, storage=storage, tables=tables, capture=CAPTURES[capture])
    for name in ("a", "b"):
        world.run(
            _CREATE.format(name, "integer" if source == "sqlite" else "timestamptz"),
            f"create index {name}_at on {name}(at, id)",
            *(f"insert into {name} values ({n}, 100, {_NOW[source]})" for n in range(ACCOUNTS)),
        )
    return world


def _transfer(run: Callable[[str], object], now: str, chance: random.Random) -> None:
    """Move an amount from one account to another one, sometimes in vain, in one transaction."""
    places = sorted(chance.sample([(table, n) for table in "ab" for n in range(ACCOUNTS)], 2))
    amount = chance.randint(1, 20)
    for (table, account), by in zip(places, (amount, -amount), strict=True):
        run(f"update {table} set v = v + {by}, at = {now} where id = {account}")
    run("commit" if chance.random() < 0.9 else "rollback")


def _write(world: AnyWorld, number: int) -> None:
    chance = random.Random(number)
    if isinstance(world, World):
        lite = sqlite3.connect(world.path, isolation_level=None, timeout=60)
        for _ in range(TRANSFERS):
            lite.execute("begin immediate")
            _transfer(lite.execute, _NOW["sqlite"], chance)
        lite.close()
        return
    with psycopg.connect(world.dsn, autocommit=True) as other:
        for _ in range(TRANSFERS):
            other.execute("begin")
            _transfer(lambda sql: other.execute(sql.encode()), _NOW["postgres"], chance)


@contextmanager
def _writers(world: AnyWorld) -> Iterator[list[threading.Thread]]:
    writers = [
        threading.Thread(target=_write, args=(world, number), daemon=True)
        for number in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    yield writers
    for writer in writers:
        writer.join()


@pytest.mark.parametrize("storage", [None, "parquet"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("capture", CAPTURES)
def test_the_sum_of_money_is_the_same_in_every_state_and_at_every_instant(
    request: pytest.FixtureRequest, capture: str, mode: str, storage: str | None
) -> None:
    world = _world(request, capture, mode, storage)
    world.htap.sync_now()
    begun = instant_between()
    with _writers(world) as writers:
        while any(writer.is_alive() for writer in writers):
            assert not world.htap.sync_now().errors
            assert _sum(world, mode) == TOTAL
    world.htap.sync_now()
    assert _sum(world, mode) == TOTAL
    world.assert_equal("a", "b")
    if mode == "temporal":
        _assert_whole(world, [begun])
        # The others date a change by its statement, so an instant may be within a transaction.
        if capture in {"postgres-trigger", "postgres-logical", "postgres-stream"}:
            later = [at for at in _instants(world) if at > begun]
            assert len(later) >= TRANSFERS
            _assert_whole(world, later)


def _sum(world: AnyWorld, mode: str) -> int:
    present = "where _rhei_valid_to is null" if mode == "temporal" else ""
    both = " union all ".join(f"select v from {name} {present}" for name in ("a", "b"))
    return int(world.htap.query(f"select sum(v) as s from ({both}) t", hint="olap")["s"][0].as_py())


def _versions(world: AnyWorld) -> list[dict[str, Any]]:
    return [version for name in ("a", "b") for version in world.versions(name)]


def _instants(world: AnyWorld) -> list[datetime]:
    return sorted({version["_rhei_valid_from"] for version in _versions(world)})


def _assert_whole(world: AnyWorld, instants: list[datetime]) -> None:
    """At each instant the versions that are valid have all the money."""
    versions = _versions(world)
    for at in instants:
        valid = [
            version["v"]
            for version in versions
            if version["_rhei_valid_from"] <= at
            and (version["_rhei_valid_to"] is None or at < version["_rhei_valid_to"])
        ]
        assert (len(valid), sum(valid)) == (2 * ACCOUNTS, TOTAL), at
