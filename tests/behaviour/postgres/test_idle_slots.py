"""A server drops slots which nobody used for a while: `idle_replication_slot_timeout`."""

from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from typing import Any

import psycopg
import pytest

from rhei_pipeline.protocols import Step
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.logical import slots
from rhei_pipeline.sources.postgres.logical import source as logical_source
from rhei_pipeline.sources.postgres.logical.moment import Slot, lsn_number
from rhei_pipeline.sync import initial_sync
from tests.support.fix_postgres import PostgresWorld

ROWS, BATCH = 60, 10
CAPTURES: dict[str, dict[str, Any]] = {"log": {}, "stream": {"streaming": True}, "buffer": {}}
#: When it was used last; null: it is in use.
USED = """
select slot_name::text, inactive_since from pg_replication_slots
where database = current_database() and not temporary
"""

CONFIRMED = """
select slot_name::text, confirmed_flush_lsn::text from pg_replication_slots
where database = current_database()
"""


@pytest.fixture
def make(
    make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., PostgresWorld]:
    """Make a world whose slot is idle at once, and with a snapshot for each batch of a copy."""
    monkeypatch.setattr(logical_source, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(initial_sync, "SNAPSHOT_SECONDS", 0.0)

    def made(**how: Any) -> PostgresWorld:
        world = make_postgres(batch_rows=BATCH, **how)
        world.run(
            "create table t(id int primary key, v text)",
            f"insert into t select n, 'a' from generate_series(1, {ROWS}) n",
        )
        return world

    return made


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_copy_keeps_the_slot_in_use_that_it_needs_afterwards(
    make: Callable[..., PostgresWorld], tmp_path: Any, capture: str
) -> None:
    how = {"method": "logical", **CAPTURES[capture]}
    if capture == "buffer":
        how["buffer"] = {"path": tmp_path / "cdc"}
    world = make(capture=how, mode="temporal")
    used: list[Any] = []

    def look() -> None:
        used.extend(at for _, at in world.app.execute(USED.encode()))
        world.run("update t set v = v || 'b' where id < 4")

    world.faults.do_at(Step.COPY_BATCH, look, times=4)
    assert world.htap.initial_sync("t").rows == ROWS
    assert len(used) == 4
    assert all(later is None or earlier < later for earlier, later in pairwise(used))
    world.assert_equal("t")


def test_a_slot_that_is_in_use_or_gone_or_was_moved_on_is_left_alone(
    make: Callable[..., PostgresWorld],
) -> None:
    world = make(capture={"method": "logical"})
    world.htap.sync_now()
    world.crash()
    [slot, confirmed] = world.app.execute(CONFIRMED.encode()).fetchone() or ["", "0/0"]
    place = lsn_number(confirmed)
    connection = PostgresDatabase(world.dsn).connect()
    reader = psycopg.connect(f"{world.dsn}&replication=database", autocommit=True)
    with closing(reader):
        reader.execute(
            f'START_REPLICATION SLOT "{slot}" LOGICAL 0/0'
            f" (proto_version '1', publication_names '{slot}')".encode()
        )
        slots.use(connection, Slot(slot, place, lost=False))
    slots.use(connection, Slot(slot, place - 1, lost=False))  # as if it was moved on meanwhile
    slots.use(connection, Slot("gone", place, lost=False))
    assert connection.execute(b"select 1").fetchone() == (1,)
    connection.close()
    assert world.app.execute(CONFIRMED.encode()).fetchall() == [(slot, confirmed)]
