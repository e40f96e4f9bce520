"""A slot that is kept on standbys, too: the server gives out no log that they do not have."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from threading import Event, Thread, Timer
from typing import Any

import psycopg
import pytest

from rhei_pipeline.errors import SourceBusyError
from rhei_pipeline.protocols import Step
from rhei_pipeline.sources.postgres.logical import standbys
from rhei_pipeline.sources.waiting import wait_until
from rhei_pipeline.wiring.engine import unseen_events
from rhei_pipeline.wiring.source import validate
from rhei_pipeline.wiring.standing import source_standing
from tests.support.fix_postgres import AnyServer, PostgresWorld, database, started
from tests.support.parts import connection_of, engine_of

CAPTURES: dict[str, dict[str, Any]] = {"log": {}, "stream": {"streaming": True}, "buffer": {}}
SLOT = "select slot_name::text from pg_replication_slots where database = current_database()"
NAMES = "alter system set synchronized_standby_slots = '{}'"
#: What a standby that follows would do.
FOLLOWS = "select pg_replication_slot_advance('nearby', pg_current_wal_flush_lsn())"


@pytest.fixture(scope="module")
def own_server() -> Iterator[AnyServer]:
    """A server of its own: which standbys it waits for is a setting of all its databases."""
    with started(None) as made:
        yield made


@pytest.fixture
def world(
    own_server: AnyServer,
    make_worlds: Callable[[str], Callable[..., PostgresWorld]],
    tmp_path: Any,
    request: pytest.FixtureRequest,
) -> Iterator[PostgresWorld]:
    """A mirror whose slot is a failover slot, and a change; it waits for a standby `nearby`."""
    with contextmanager(database)(own_server) as dsn:
        how = {"method": "logical", **CAPTURES[request.param]}
        if request.param == "buffer":
            how["buffer"] = {"path": tmp_path / "cdc"}
        made = make_worlds(dsn)(capture=how, mode="temporal")
        made.run("create table t(id int primary key, v text)", "insert into t values (1, 'a')")
        made.htap.sync_now()
        made.crash()
        [slot] = made.app.execute(SLOT.encode()).fetchone() or [""]
        keep_on_standbys(dsn, str(slot), is_kept=True)
        made.run("update t set v = 'b' where id = 1")
        waits_for(made, '"nearby" ')
        try:
            yield made
        finally:
            waits_for(made, "")
            made.run(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
                " where slot_name in ('nearby', 'further')"
            )


def keep_on_standbys(dsn: str, slot: str, *, is_kept: bool) -> None:
    with psycopg.connect(f"{dsn}&replication=database", autocommit=True) as connection:
        connection.execute(f'ALTER_REPLICATION_SLOT "{slot}" (FAILOVER {is_kept})'.encode())


def waits_for(world: PostgresWorld, names: str) -> None:
    world.run(NAMES.format(names), "select pg_reload_conf()")
    until = time.monotonic() + 30
    while world.app.execute(b"show synchronized_standby_slots").fetchone() != (names,):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.long
@pytest.mark.parametrize("world", CAPTURES, indirect=True)
def test_a_standby_that_does_not_follow_is_named_and_not_waited_for_without_an_end(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standbys, "STANDBY_SECONDS", 0.2)
    with rescued(world):
        assert_named(world, "there is no physical slot of that name")
        world.run("select pg_create_physical_replication_slot('nearby')")
        assert_named(world, "no standby has used it yet, or .*")
        world.run(
            "select pg_drop_replication_slot('nearby')",
            "select pg_create_physical_replication_slot('nearby', true)",
        )
        assert_named(world, "nobody uses it")

    monkeypatch.setattr(standbys, "STANDBY_SECONDS", 30.0)
    with followed(world.dsn):
        assert unseen_events(world.settings) == 1
        assert world.htap.sync_now().updated == 1
        world.run("update t set v = 'c' where id = 1")
        assert world.htap.sync_now().updated == 1
        assert [row["v"] for row in world.versions("t")] == ["a", "b", "c"]
        world.crash()
        # What the server writes by itself may be a moment ahead of its standby.
        assert wait_until(lambda: unseen_events(world.settings) == 0, 30)
        assert wait_until(lambda: "failover" not in str(validate(world.settings)), 30)


@pytest.mark.long
@pytest.mark.parametrize("world", ["log"], indirect=True)
def test_a_standby_that_is_gone_once_the_log_was_read_is_named_too(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are in the mirror; to move its slot on, the server would wait without an end."""
    monkeypatch.setattr(standbys, "STANDBY_SECONDS", 30.0)

    def lose() -> None:
        monkeypatch.setattr(standbys, "STANDBY_SECONDS", 0.2)
        waits_for(world, "gone")

    world.run("select pg_create_physical_replication_slot('nearby', true)")
    with followed(world.dsn), rescued(world):
        world.faults.do_at(Step.COMMITTED, lose)
        with pytest.raises(SourceBusyError, match="standby slot 'gone'"):
            world.htap.sync_now()
        assert [row["v"] for row in world.versions("t")] == ["a", "b"]
        waits_for(world, "")
        assert world.htap.sync_now().events == 0


@pytest.mark.parametrize("world", ["log"], indirect=True)
def test_a_slot_that_waits_for_nobody_is_read_whatever_standbys_are_named(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are named hold up the slots that are kept on standbys, and no other."""
    monkeypatch.setattr(standbys, "STANDBY_SECONDS", 0.2)
    [slot] = world.app.execute(SLOT.encode()).fetchone() or [""]
    with rescued(world):
        for is_kept, names in ((True, " "), (False, "gone")):
            keep_on_standbys(world.dsn, str(slot), is_kept=is_kept)
            waits_for(world, names)
            world.run("update t set v = v || 'b' where id = 1")
            assert "failover" not in str(validate(world.settings))
            assert world.htap.sync_now().events
            world.assert_equal("t")
            world.crash()
            assert unseen_events(world.settings) == 0


@pytest.mark.parametrize("world", ["log"], indirect=True)
def test_a_logical_slot_is_no_standby(world: PostgresWorld) -> None:
    """The server waits for its name without an end, however far it is."""
    world.run("select pg_create_logical_replication_slot('nearby', 'pgoutput')")
    assert "'nearby' (there is no physical slot of that name)" in str(validate(world.settings))


@pytest.mark.parametrize("world", ["log"], indirect=True)
def test_a_slot_is_readable_up_to_where_the_last_of_its_standbys_is(world: PostgresWorld) -> None:
    """A sensor reads so far, and no further: it would wait there."""
    [slot] = world.app.execute(SLOT.encode()).fetchone() or [""]
    connection = connection_of(engine_of(world.htap).source)
    reached = dict[str, str]()
    for name in ("nearby", "further"):
        world.run(
            "insert into t select max(id) + 1 from t",
            f"select pg_create_physical_replication_slot('{name}', true)",
        )
        moved = FOLLOWS.replace("nearby", name).replace("pg_repl", "(pg_repl") + ").end_lsn::text"
        reached |= {name: str(*(world.app.execute(moved.encode()).fetchone() or ()))}
    world.run("insert into t select max(id) + 1 from t")
    waits_for(world, "further, nearby")
    with ExitStack() as stack:
        for name, place in reached.items():
            assert standbys.readable_to(connection, str(slot)) is None
            stack.enter_context(standby(world, name, place))
        assert standbys.readable_to(connection, str(slot)) == reached["nearby"]


@contextmanager
def standby(world: PostgresWorld, slot: str, place: str) -> Iterator[None]:
    """Be a standby that stays where it is."""
    active = f"select active from pg_replication_slots where slot_name = '{slot}'"

    def is_active() -> bool:
        return world.app.execute(active.encode()).fetchone() == (True,)

    with closing(psycopg.connect(f"{world.dsn}&replication=true", autocommit=True)) as session:
        session.pgconn.send_query(f"START_REPLICATION SLOT {slot} PHYSICAL {place}".encode())
        assert wait_until(is_active, 30)
        yield
    assert wait_until(lambda: not is_active(), 30)


@contextmanager
def rescued(world: PostgresWorld) -> Iterator[None]:
    """Have a test fail, and not hang, where somebody waits for ever."""
    rescue = Timer(60, waits_for, (world, ""))
    rescue.start()
    try:
        yield
    finally:
        rescue.cancel()


@contextmanager
def followed(dsn: str) -> Iterator[None]:
    """Have the slot of a standby move on, as by one that follows; its session is in use."""
    is_over = Event()

    def follow() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not is_over.wait(0.01):
                connection.execute(FOLLOWS.encode())

    follower = Thread(target=follow)
    follower.start()
    try:
        yield
    finally:
        is_over.set()
        follower.join()


def assert_named(world: PostgresWorld, why: str) -> None:
    """Everybody who asks the slot goes on, and those who need its log name the standby."""
    assert unseen_events(world.settings) == 1  # a sync names what it waits for
    assert source_standing(world.settings).pending == 1
    named = rf"failover slot, .* standby slot 'nearby' \({why}\).*take nearby out of"
    with pytest.raises(SourceBusyError, match=named):
        world.htap.sync_now()
    assert [row["v"] for row in world.versions("t")] == ["a"]
    world.crash()
    told = [f"{found.what} {found.remedy}" for found in validate(world.settings)]
    assert any(re.search(rf"'nearby' \({why}\)", each) for each in told), told
