"""Eight writers, long transactions, rollbacks: what a poller loses, and that ours loses nothing."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from tests.fix_postgres import PostgresWorld

WRITERS = 8
#: One transaction in so many is rolled back.
_ROLLBACKS = 20
_TABLE = (
    "create table t(id bigint generated always as identity primary key, writer int, turn int,"
    " updated_at timestamptz not null default now())",
    "create index t_updated on t(updated_at, id)",
)


@dataclass
class Naive:
    """A reader as it is often written: positive control for what ours must not lose."""

    connection: psycopg.Connection[Any]
    condition: str
    keys: list[int] = field(default_factory=list)
    _at: tuple[Any, int] = ("-infinity", 0)

    def poll(self) -> None:
        """Read what seems new."""
        found = self.connection.execute(
            f"select id, updated_at from t where {self.condition} order by updated_at, id".encode(),
            {"at": self._at[0], "key": self._at[1]},
        )
        for key, stamp in found:
            self.keys.append(key)
            self._at = (stamp, key)


GREATER = "updated_at > %(at)s"
KEYSET = "(updated_at, id) > (%(at)s, %(key)s)"


@dataclass
class Writer:
    """An application's session: transactions of some rows, which take their time."""

    dsn: str
    number: int
    enough: Callable[[], bool]

    def run(self) -> None:
        """Write until there is enough."""
        draw = random.Random(self.number)
        with psycopg.connect(self.dsn) as connection:
            turn = 0
            while not self.enough():
                for _ in range(draw.randint(1, 12)):
                    turn += 1
                    connection.execute(
                        "insert into t(writer, turn) values (%s, %s)", (self.number, turn)
                    )
                    time.sleep(draw.random() * 0.004)
                connection.execute(
                    "update t set turn = -turn, updated_at = now() where writer = %s and turn = %s",
                    (self.number, draw.randint(1, turn)),
                )
                time.sleep(draw.random() ** 4 * 0.3)
                if draw.randrange(_ROLLBACKS):
                    connection.commit()
                else:
                    connection.rollback()


def _lose(world: PostgresWorld, rows: int) -> None:
    world.run(*_TABLE)
    world.htap.sync_now()
    stop = threading.Event()
    threads = [
        threading.Thread(target=Writer(world.dsn, number, stop.is_set).run)
        for number in range(WRITERS)
    ]
    with psycopg.connect(world.dsn, autocommit=True) as connection:
        naive = [Naive(connection, GREATER), Naive(connection, KEYSET)]
        for thread in threads:
            thread.start()
        inserted = 0
        while any(thread.is_alive() for thread in threads):
            inserted += world.htap.sync_now().inserted
            for reader in naive:
                reader.poll()
            if inserted >= rows:
                stop.set()
        inserted += world.htap.sync_now().inserted
        for reader in naive:
            reader.poll()
    # An independent look at both sides, row by row; temporal: each row once, each change once.
    world.assert_equal("t")
    keys = {key for (key,) in world.app.execute("select id from t")}
    assert inserted == len(keys) >= rows
    assert world.htap.verify().equal
    assert len(world.htap.query("select id from t where _rhei_valid_to is null")) == len(keys)
    for reader in naive:
        lost = len(keys - set(reader.keys))
        assert lost > len(keys) // 100, (reader.condition, lost)


@pytest.fixture
def polled(make_postgres: Callable[..., PostgresWorld]) -> PostgresWorld:
    """Make a world that is polled and keeps every version."""
    tables = [{"name": "t", "polling": {"clock": "database"}}]
    return make_postgres(capture={"method": "polling"}, mode="temporal", tables=tables)


def test_nothing_is_lost_or_doubled_beside_long_transactions(polled: PostgresWorld) -> None:
    _lose(polled, 3_000)


@pytest.mark.soak
def test_nothing_of_many_rows_is_lost_or_doubled(polled: PostgresWorld) -> None:
    _lose(polled, 12_000)
