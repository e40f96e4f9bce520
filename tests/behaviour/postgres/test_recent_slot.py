"""While one table needs the log from long before, the others have only its newest part decoded."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import psycopg
import pytest

from rhei_pipeline.protocols import Step
from rhei_pipeline.sources.postgres.logical import reader, recent_slot, snapshot
from rhei_pipeline.sync import pipeline
from rhei_pipeline.testing.faults import Crash
from tests.support.declared_worlds import CAPTURES, MODES
from tests.support.fix_postgres import PostgresWorld
from tests.support.parts import engine_of

MakeWorld = Callable[..., PostgresWorld]
BATCH, PARTS = 10, 9
#: What one round of writes puts into the log, at least.
ROUND_BYTES = 40_000
SLOTS = "select slot_name::text from pg_replication_slots where temporary order by 1"
#: The server counts what it has decoded of each slot, once it has ended.
DECODED = """
select coalesce(sum(total_bytes) filter (where not temporary), 0)::bigint,
    coalesce(sum(total_bytes) filter (where temporary), 0)::bigint
from pg_stat_replication_slots join pg_replication_slots using (slot_name)
where database = current_database()
"""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "RETAINED_BYTES", ROUND_BYTES)
    monkeypatch.setattr(recent_slot, "BEHIND_BYTES", 2 * ROUND_BYTES)
    monkeypatch.setattr(recent_slot, "STEP_BYTES", 1000)
    monkeypatch.setattr(pipeline, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(pipeline, "COPYING_SHARE", 0)


@pytest.fixture
def make(make_postgres: MakeWorld) -> MakeWorld:
    """Make a world with tables that are in place, and `big`, which was never copied."""

    def made(mode: str = "destructive", **capture: Any) -> PostgresWorld:
        world = make_postgres(
            capture=CAPTURES["postgres-logical"] | capture,
            mode=mode,
            batch_rows=BATCH,
            tables=[{"name": "big"}, {"name": "idle"}, {"name": "small"}],
        )
        world.run(
            "create table small(id int primary key, v text)",
            "create table idle(id int primary key)",
        )
        world.htap.sync_now()
        world.run(
            "create table big(id int primary key, v text)",
            f"insert into big select n, 'v' from generate_series(1, {BATCH * PARTS}) n",
        )
        return world

    return made


class Rounds:
    """Writes into both tables at each step, and notes what the server has decoded."""

    def __init__(self, world: PostgresWorld) -> None:
        self._world, self.decoded, self.slots = world, list[tuple[int, int]](), list[list[str]]()

    def __call__(self) -> None:
        n = len(self.decoded)
        self._world.run(
            f"insert into small select {1000 * n} + i, repeat(md5(i::text), 59)"
            " from generate_series(1, 22) i",
            f"update small set v = 'new{n}' where id % 7 = {n % 7}",
            f"update big set v = 'new{n}' where id % 5 = {n % 5}",
            f"delete from big where id = {n * 3 + 1}",
        )
        self._world.app.execute("select pg_sleep(0.01)")
        ((kept, recent),) = self._world.app.execute(DECODED).fetchall()
        self.decoded.append((kept, recent))
        self.slots.append([name for (name,) in self._world.app.execute(SLOTS)])


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_cycles_beside_a_long_copy_do_not_decode_all_of_the_log_again(
    make: MakeWorld, mode: str
) -> None:
    world = make(mode)
    rounds = Rounds(world)
    world.faults.do_at(Step.COPY_BATCH, rounds, times=99)
    report = world.htap.sync_now()
    assert report.tables["big"].copied_rows >= BATCH * PARTS - PARTS
    assert len(rounds.decoded) >= PARTS - 1
    # From where the copy began no cycle reads any more, and others read one or two rounds.
    kept, recent = zip(*rounds.decoded[-6:], strict=True)
    assert len({*kept}) == 1
    assert max(b - a for a, b in pairwise(recent)) < 5 * ROUND_BYTES
    assert len(rounds.slots[-1]) == 1
    world.assert_equal("big", "small")
    world.run("insert into small values (-1, 'last')")
    world.htap.sync_now()
    world.assert_equal("big", "small")
    assert world.htap.verify().equal
    assert world.app.execute(SLOTS).fetchall() == []


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_the_sessions_and_the_process_may_end_at_any_turn(make: MakeWorld, mode: str) -> None:
    world = make(mode)
    rounds = Rounds(world)

    def end_sessions() -> None:
        rounds()
        world.app.execute(
            "select pg_terminate_backend(active_pid) from pg_replication_slots where temporary"
        )

    def crash() -> None:
        rounds()
        raise Crash

    for times, work in ((4, rounds), (2, end_sessions), (2, rounds), (1, crash), (99, rounds)):
        world.faults.do_at(Step.COPY_BATCH, work, times)
    assert world.surviving(world.htap.sync_now)
    world.htap.sync_now()
    slots = [found[0] for found in rounds.slots if found]
    assert len({*slots}) >= 3
    world.assert_equal("big", "small")
    assert world.htap.verify().equal


@pytest.mark.long
def test_a_server_without_a_free_slot_has_all_of_the_log_decoded_as_before(
    make: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = make()
    rounds, taken = Rounds(world), list[str]()

    def take_all() -> None:
        rounds()
        try:
            while True:
                name = f"taken_{len(taken)}"
                world.app.execute(f"select pg_create_physical_replication_slot('{name}')")
                taken.append(name)
        except psycopg.errors.ConfigurationLimitExceeded:
            pass

    world.faults.do_at(Step.COPY_BATCH, take_all)
    world.faults.do_at(Step.COPY_BATCH, rounds, times=99)
    try:
        world.htap.sync_now()
    finally:
        for name in taken:
            world.app.execute(f"select pg_drop_replication_slot('{name}')")
    assert not any(rounds.slots)
    assert caplog.text.count("has no copy for tables that are in place") == 1
    world.assert_equal("big", "small")


@pytest.mark.long
def test_a_stream_gives_way_to_it(make: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "STREAM_BYTES", ROUND_BYTES)
    world = make(streaming=True)
    rounds = Rounds(world)
    world.faults.do_at(Step.COPY_BATCH, rounds, times=99)
    world.htap.sync_now()
    assert len(rounds.slots[-1]) == 1
    world.assert_equal("big", "small")
    rounds()
    world.htap.sync_now()
    world.htap.sync_now()
    world.assert_equal("big", "small")
    assert world.app.execute(SLOTS).fetchall() == []


@pytest.mark.long
def test_after_an_error_in_its_session_there_is_another_one(make: MakeWorld) -> None:
    """The server drops it then."""
    world = make()
    rounds = Rounds(world)

    def fail() -> None:
        rounds()
        source: Any = engine_of(world.htap).source
        log = getattr(source, "_inner", source)._sessions
        with pytest.raises(psycopg.errors.DivisionByZero):
            log.decoding.execute("select 1 / 0")
        assert world.app.execute(SLOTS).fetchall() == []

    for times, work in ((4, rounds), (2, fail), (99, rounds)):
        world.faults.do_at(Step.COPY_BATCH, work, times)
    world.htap.sync_now()
    assert len(rounds.slots[-1]) == 1
    world.assert_equal("big", "small")
    assert world.htap.verify().equal


@pytest.mark.long
@pytest.mark.parametrize("is_made_anew", [False, True])
def test_a_slot_that_is_dropped_in_mid_copy_has_tables_copied_again(
    make: MakeWorld, *, is_made_anew: bool
) -> None:
    world = make()
    rounds = Rounds(world)
    mine = "slot_name like 'rhei%' and not temporary and database = current_database()"

    def drop() -> None:
        rounds()
        dropped = world.app.execute(
            "select slot_name, pg_drop_replication_slot(slot_name) from pg_replication_slots"
            f" where {mine}"
        ).fetchall()
        if is_made_anew:  # by somebody else, behind what nobody has read
            world.run("insert into small values (7777, 7)")
            make_slot = "select pg_create_logical_replication_slot(%s, 'pgoutput')"
            world.app.execute(make_slot, (dropped[0][0],))

    world.faults.do_at(Step.COPY_BATCH, rounds, times=2)
    world.faults.do_at(Step.COPY_BATCH, drop)
    world.htap.sync_now()
    world.htap.sync_now()
    world.assert_equal("big", "small")
    assert world.htap.verify().equal
