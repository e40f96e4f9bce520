"""Eight writers, long transactions, rollbacks: naive readers lose rows, ours lose nothing."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from tests.support.fix_postgres import PostgresWorld

WRITERS = 8
#: One transaction in so many is rolled back.
_ROLLBACKS = 20
_TABLE = (
    "create table t(id bigint generated always as identity primary key, writer int, turn int,"
    " updated_at timestamptz not null default now())",
    "create index t_updated on t(updated_at, id)",
    "create table hot(id int primary key, n int not null, updated_at timestamptz not null)",
    "create index hot_updated on hot(updated_at, id)",
    "insert into hot select id, 0, now() from generate_series(1, 20) id",
)


@dataclass
class Naive:
    """A reader as it is often written: positive control for what ours must not lose."""

    connection: psycopg.Connection[Any]
    condition: str
    order: str = "updated_at, id"
    keys: list[int] = field(default_factory=list)
    _at: tuple[Any, int] = ("-infinity", 0)

    def poll(self) -> None:
        """Read what seems new."""
        found = self.connection.execute(
            f"select id, updated_at from t where {self.condition} order by {self.order}".encode(),
            {"at": self._at[0], "key": self._at[1]},
        )
        for key, stamp in found:
            self.keys.append(key)
            self._at = (stamp, key)


GREATER = "updated_at > %(at)s"
KEYSET = "(updated_at, id) > (%(at)s, %(key)s)"
#: As a log's numbers are often read: they are given out in another order than is committed in.
NUMBER = "id > %(key)s"


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
                # Rows that all write: a later number may be given to what is committed first.
                connection.execute(
                    "update hot set n = n + 1, updated_at = now() where id = %s",
                    (draw.randint(1, 20),),
                )
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
        naive = [
            Naive(connection, GREATER),
            Naive(connection, KEYSET),
            Naive(connection, NUMBER, "id"),
        ]
        for thread in threads:
            thread.start()
        inserted = 0
        while any(thread.is_alive() for thread in threads):
            inserted += _inserted(world)
            for reader in naive:
                reader.poll()
            if inserted >= rows:
                stop.set()
        inserted += _inserted(world)
        for reader in naive:
            reader.poll()
    # An independent look at both sides, row by row; temporal: each row once, each change once.
    world.assert_equal("t", "hot")
    keys = {key for (key,) in world.app.execute("select id from t")}
    assert inserted == len(keys) >= rows
    assert world.htap.verify().equal
    assert len(world.htap.query("select id from t where _rhei_valid_to is null")) == len(keys)
    if world.capture["method"] != "polling":
        # Every increment is a version, and no two show the same number.
        found = world.htap.query("select id, n from hot order by id, n", hint="olap").to_pylist()
        most: dict[int, int] = dict(world.app.execute("select id, n from hot").fetchall())
        assert found == [{"id": key, "n": n} for key in sorted(most) for n in range(most[key] + 1)]
    for reader in naive:
        lost = len(keys - set(reader.keys))
        assert lost, reader.condition


def _inserted(world: PostgresWorld) -> int:
    return world.htap.sync_now().tables["t"].inserted


@pytest.fixture(params=["polling", "trigger", "logical", "logical-stream"])
def world(request: pytest.FixtureRequest, make_postgres: Callable[..., PostgresWorld]) -> Any:
    """Make a world that keeps every version that its way to capture tells of."""
    method = request.param.removesuffix("-stream")
    capture = {"method": method, "streaming": request.param.endswith("stream")}
    tables = [{"name": name, "polling": {"clock": "database"}} for name in ("t", "hot")]
    if method != "polling":
        tables = [{"name": "t"}, {"name": "hot"}]
    return make_postgres(capture=capture, mode="temporal", tables=tables)


@pytest.mark.long
def test_nothing_is_lost_or_doubled_beside_long_transactions(world: PostgresWorld) -> None:
    _lose(world, 500)


@pytest.mark.soak
def test_nothing_of_many_rows_is_lost_or_doubled(world: PostgresWorld) -> None:
    _lose(world, 12_000)
