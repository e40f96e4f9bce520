"""The session in which the server decodes its log is another than the one that is asked."""

from collections.abc import Callable

import psycopg
import pytest

from rhei_pipeline.errors import SourceBusyError
from rhei_pipeline.sources.postgres import identity
from rhei_pipeline.sources.postgres.connection import Connection
from rhei_pipeline.sources.postgres.logical import reader, source
from rhei_pipeline.sources.waiting import wait_until
from tests.support.fix_postgres import PostgresWorld

OURS = "from pg_stat_activity where application_name = 'rhei' and datname = current_database()"
DECODES = "query like '%pg_replication_slot_advance(%'"


@pytest.fixture
def world(make_postgres: Callable[..., PostgresWorld]) -> PostgresWorld:
    made = make_postgres()
    made.run("create table t(id int primary key, v int)", "insert into t values (1, 0)")
    made.htap.sync_now()
    change(made)
    return made


def change(world: PostgresWorld) -> None:
    world.run("update t set v = v + 1 where id = 1")
    assert world.htap.sync_now().updated == 1
    world.assert_equal("t")


def test_no_session_that_is_asked_decodes(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[int, list[str]] = {}
    execute = Connection.execute

    def noted(self: Connection, query: bytes | str, *args: object) -> psycopg.Cursor[tuple[object]]:
        text = query if isinstance(query, str) else query.decode()
        asked.setdefault(self.info.backend_pid, []).append(text)
        return execute(self, query, *args)

    monkeypatch.setattr(Connection, "execute", noted)
    for _ in range(3):
        change(world)
    found = world.app.execute(f"select pid {OURS} and {DECODES}".encode()).fetchall()
    assert [asked[pid] for (pid,) in found] == [[reader._ADVANCE] * 3]


def test_what_is_asked_is_planned_once(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[int] = []
    execute = Connection.execute

    def noted(self: Connection, query: bytes | str, *args: object) -> psycopg.Cursor[tuple[object]]:
        if b"pg_current_snapshot" in (query if isinstance(query, bytes) else query.encode()):
            found = execute(self, "select sum(custom_plans) from pg_prepared_statements").fetchone()
            plans.append(int(found[0] or 0) if found else 0)
        return execute(self, query, *args)

    for _ in range(8):  # the driver prepares what it is asked again and again
        change(world)
    monkeypatch.setattr(Connection, "execute", noted)
    change(world)
    assert {*plans} == {0}


@pytest.mark.parametrize("ended", [DECODES, f"not {DECODES}", "true"])
def test_sessions_that_the_server_ends_are_opened_again(world: PostgresWorld, ended: str) -> None:
    world.run("update t set v = v + 1 where id = 1")
    gone = world.app.execute(f"select pg_terminate_backend(pid, 5000) {OURS} and {ended}".encode())
    assert gone.fetchall()
    assert world.htap.sync_now().updated == 1
    world.assert_equal("t")
    change(world)


def test_another_server_s_log_is_not_read_for_this_one(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = world.mirror_rows("t")
    world.run("update t set v = v + 1 where id = 1")
    world.app.execute(f"select pg_terminate_backend(pid, 5000) {OURS} and {DECODES}".encode())
    with monkeypatch.context() as patched:
        patched.setattr(identity, "_ORIGIN", "select random()::text")
        with pytest.raises(SourceBusyError, match="another server answers"):
            world.htap.sync_now()
        assert world.mirror_rows("t") == before
    assert world.htap.sync_now().updated == 1
    world.assert_equal("t")


def test_a_copy_waits_for_no_log_that_the_server_writes_when_it_likes(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = list[bool]()

    def noted(condition: Callable[[], bool], seconds: float) -> bool:
        waited.append(not condition())
        return wait_until(condition, seconds)

    (before,) = world.app.execute("show wal_writer_delay").fetchone() or ("",)
    world.run("alter system set wal_writer_delay = '10s'", "select pg_reload_conf()")
    try:
        monkeypatch.setattr(source, "wait_until", noted)
        assert world.htap.repair("t").updated == 0
    finally:
        world.run(f"alter system set wal_writer_delay = '{before}'", "select pg_reload_conf()")
    assert waited == [False]
