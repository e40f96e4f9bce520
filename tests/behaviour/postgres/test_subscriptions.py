"""A polled table that a subscription fills: its rows come later than their timestamps say."""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from rhei_pipeline.wiring.source import validate
from tests.support.fix_postgres import AnyServer, PostgresWorld, database

TABLE = "create table t(id int primary key, v text, at timestamptz not null default now())"
PARTS = (
    f"{TABLE} partition by range (id)",
    "create table low partition of t for values from (0) to (100)",
)
#: What is there where it is polled, which of that is filled, and which is polled.
SHAPES = {
    "table": ((TABLE,), "t", "t"),
    "part": (PARTS, "low", "t"),
    "whole": (PARTS, "t", "low"),
}
WAY_OUT = "use 'capture: {method: logical}', or poll the server that publishes it"
LATE = "insert into {} values ({}, 'late', now() - interval '1 hour')"


@contextmanager
def _publisher(
    world: PostgresWorld, server: AnyServer, shape: tuple[str, ...], filled: str
) -> Iterator[psycopg.Connection]:
    """Make a database whose table fills a world's while this is open."""
    slot = f"filling_{uuid.uuid4().hex}"
    for here in database(server):
        with psycopg.connect(here, autocommit=True) as connection:
            for statement in shape:
                connection.execute(statement.encode())
            connection.execute(
                f"create publication p for table {filled}"
                " with (publish_via_partition_root = true)".encode()
            )
            connection.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
            world.run(
                f"create subscription filling connection '{here}' publication p"
                f" with (create_slot = false, slot_name = '{slot}', copy_data = false)"
            )
            try:
                yield connection
            finally:
                world.run(
                    "alter subscription filling disable",
                    "alter subscription filling set (slot_name = none)",
                    "drop subscription filling",
                )


def _arrived(world: PostgresWorld, key: int) -> None:
    until = time.monotonic() + 30
    while world.app.execute("select from t where id = %s", (key,)).fetchone() is None:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_subscription_brings_late_is_found_and_the_doubt_is_told(
    make_postgres: Callable[..., PostgresWorld], server: AnyServer, shape: str, mode: str
) -> None:
    statements, filled, polled = SHAPES[shape]
    polling = {"updated_at": "at", "clock": "database", "reconcile_seconds": 0}
    tables = [{"name": polled, "polling": polling}]
    world = make_postgres(capture={"method": "polling"}, mode=mode, tables=tables)
    world.run(*statements, "create index on t(at, id)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    assert world.htap.sync_status().tables[polled].proof == "proved"
    with _publisher(world, server, statements, filled) as publisher:
        assert "a subscription fills it" in str(world.htap.sync_status().tables[polled].doubt)
        (found,) = validate(world.settings)
        assert (found.table, found.remedy) == (polled, WAY_OUT)
        for key in (2, 3):
            publisher.execute(LATE.format(filled, key).encode())
            _arrived(world, key)
            assert world.htap.sync_now().inserted == 1
            world.assert_equal(polled)
        publisher.execute(LATE.format(filled, 4).encode())
        _arrived(world, 4)
    world.htap.sync_now()
    world.assert_equal(polled)
    assert world.htap.sync_status().tables[polled].proof == "proved"
    world.run("update t set v = 'b', at = now() where id = 1")
    assert world.htap.sync_now().events == 1
    world.assert_equal(polled)
    assert validate(world.settings) == []


@pytest.mark.long
def test_the_log_has_what_a_subscription_brings_late(
    make_postgres: Callable[..., PostgresWorld], server: AnyServer
) -> None:
    tables = [{"name": "t", "polling": {"updated_at": "at", "clock": "database"}}]
    world = make_postgres(capture={"method": "polling"}, tables=tables)
    world.run(TABLE, "create index on t(at, id)", "insert into t values (1, 'a')")
    with _publisher(world, server, (TABLE,), "t") as publisher:
        world.htap.sync_now()
        assert [found.remedy for found in validate(world.settings)] == [WAY_OUT]
        world.crash()
        world.capture = {"method": "logical"}
        world.htap.sync_now()
        publisher.execute(LATE.format("t", 2).encode())
        _arrived(world, 2)
        # A subscription commits without waiting for its log to be written: rows are seen before.
        until = time.monotonic() + 30
        while world.htap.sync_now().inserted == 0:
            assert time.monotonic() < until
        world.assert_equal("t")
        assert world.htap.sync_status().tables["t"].proof == "proved"
