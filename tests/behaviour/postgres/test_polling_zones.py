"""A polled column of local time, whose database is given another time zone."""

from collections.abc import Callable
from contextlib import ExitStack

import psycopg
import pytest

from rhei_pipeline.sources.waiting import wait_until
from tests.support.fix_postgres import PostgresWorld

CREATE = (
    "create table t(id int primary key, v text, updated_at {} not null default localtimestamp)",
    "create index on t(updated_at)",
    "insert into t values (1, 'a'), (2, 'a'), (3, 'a')",
)
WRITTEN = "update t set v = '{}', updated_at = localtimestamp where id = {}"
OF_DATABASE = ("alter database {} set timezone = '{}'", "alter database {} reset timezone")
OF_SERVER = (
    "alter system set timezone = '{1}'; select pg_reload_conf()",
    "alter system set timezone = 'UTC'; select pg_reload_conf()",
)


def write(world: PostgresWorld, value: str, key: int) -> None:
    """Write as a new session of the application does, in the zone of its database."""
    with psycopg.connect(world.dsn, autocommit=True) as session:
        session.execute(WRITTEN.format(value, key).encode())


def give_zone(world: PostgresWorld, statements: str, zone: str = "") -> None:
    """Run statements that give the database, or its server, a zone."""
    for statement in statements.format(world.app.info.dbname, zone).split("; "):
        world.run(statement)
    # The server takes a moment to read its settings again.
    assert not zone or wait_until(lambda: zone_of(world) == zone, 30)


def zone_of(world: PostgresWorld) -> str:
    """Return the zone of a new session."""
    with psycopg.connect(world.dsn, autocommit=True) as session:
        [found] = session.execute(b"show timezone").fetchone() or [""]
    return str(found)


@pytest.mark.long
@pytest.mark.parametrize("was_open", [True, False])
@pytest.mark.parametrize("set_for", [OF_DATABASE, OF_SERVER], ids=["database", "server"])
def test_what_is_written_in_another_zone_is_found(
    make_postgres: Callable[..., PostgresWorld],
    caplog: pytest.LogCaptureFixture,
    set_for: tuple[str, str],
    *,
    was_open: bool,
) -> None:
    world = make_postgres(capture={"method": "polling"}, mode="temporal")
    change, undo = set_for
    with ExitStack() as undone:
        undone.callback(give_zone, world, undo)
        give_zone(world, change, "UTC")
        world.run(*(statement.format("timestamp") for statement in CREATE))
        world.htap.sync_now()
        write(world, "b", 1)
        assert world.htap.sync_now().updated == 1
        if not was_open:
            world.crash()

        for key, zone in ((2, "Etc/GMT+8"), (3, "Etc/GMT-9")):  # behind, and ahead of it
            give_zone(world, change, zone)
            write(world, "c", key)
            assert world.htap.sync_now().updated == 1
            assert f"and is {zone}; it is copied again" in caplog.text
            caplog.clear()
            write(world, "d", key)
            assert world.htap.sync_now().updated == 1
            assert "time zone" not in caplog.text
        world.assert_equal("t")
        assert [row["v"] for row in world.versions("t") if row["id"] > 1] == [*"aacdcd"]


def test_an_instant_has_no_zone_that_matters(
    make_postgres: Callable[..., PostgresWorld], caplog: pytest.LogCaptureFixture
) -> None:
    world = make_postgres(capture={"method": "polling"})
    world.run(*(statement.format("timestamptz") for statement in CREATE))
    world.htap.sync_now()
    give_zone(world, OF_DATABASE[0], "Etc/GMT+8")
    write(world, "b", 1)
    assert world.htap.sync_now().updated == 1
    assert "copied again" not in caplog.text
    world.assert_equal("t")
