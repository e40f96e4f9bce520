"""A server that has few connections for the user: what needs more than one goes on with one."""

from collections.abc import Callable, Iterator

import psycopg
import pytest

from rhei_pipeline.errors import SourceFullError
from rhei_pipeline.sources.postgres import database
from rhei_pipeline.sources.postgres.logical import reader
from tests.support.fix_postgres import PostgresWorld

pytestmark = pytest.mark.turns

ROWS, BATCH = 200, 20
ROLE = "few_sessions"


@pytest.fixture
def few(make_postgres: Callable[..., PostgresWorld]) -> Iterator[Callable[..., PostgresWorld]]:
    """Make a world whose pipeline has a role of its own, which may have so many sessions."""
    worlds: list[PostgresWorld] = []

    def made(sessions: int, method: str) -> PostgresWorld:
        plain = make_postgres()
        dsn = psycopg.conninfo.make_conninfo(plain.dsn, user=ROLE)
        world = make_postgres(source={"dsn": dsn}, capture={"method": method}, batch_rows=BATCH)
        worlds.append(world)
        world.run(
            f"create role {ROLE} login replication connection limit {sessions}",
            f"grant create on database {world.app.info.dbname} to {ROLE}",
            "create table t(id int primary key, v int, w text)",
            f"insert into t select i, 0, repeat('w', 100) from generate_series(1, {ROWS}) i",
            f"alter table t owner to {ROLE}",
            f"grant create, usage on schema public to {ROLE}",
        )
        return world

    yield made
    for world in worlds:
        world.crash()
        world.run(
            f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = '{ROLE}'"
        )
        world.run(f"reassign owned by {ROLE} to current_user", f"drop owned by {ROLE}")
        world.run(f"drop role {ROLE}")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(reader, "STREAM_BYTES", 2**13)


@pytest.mark.parametrize(
    ("sessions", "method"), [(3, "logical"), (4, "logical"), (5, "logical"), (2, "trigger")]
)
def test_a_mirror_needs_no_more_sessions_than_there_are(
    few: Callable[..., PostgresWorld], sessions: int, method: str
) -> None:
    world = few(sessions, method)
    assert world.htap.sync_now().tables["t"].copied_rows == ROWS  # by several readers, if possible
    for change in ("where id = 1", "", "where id = 2"):  # the second one is read apart, if possible
        world.run(f"update t set v = v + 1 {change}")
        assert not world.htap.sync_now().errors
        world.assert_equal("t")


@pytest.mark.parametrize("method", ["logical", "trigger"])
def test_a_server_without_a_free_connection_is_named_until_it_has_one(
    few: Callable[..., PostgresWorld], method: str
) -> None:
    world = few(1, method)
    with pytest.raises(SourceFullError, match=r"no connection free: .*\(.*connection limit"):
        world.htap.sync_now()
    world.run(f"alter role {ROLE} connection limit 5")
    assert world.htap.sync_now().tables["t"].copied_rows == ROWS
    world.assert_equal("t")
