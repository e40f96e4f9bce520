"""Polling PostgreSQL: nothing is written to the server, nothing is lost where proved."""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from rhei_pipeline.capture.keyset import Clock, Horizon, PollOptions
from rhei_pipeline.capture.postgres_polling import PostgresPollingSource
from rhei_pipeline.errors import QueryError, SchemaError
from rhei_pipeline.oltp.postgres import PostgresDatabase
from rhei_pipeline.protocols import Step
from rhei_pipeline.schema import Table
from rhei_pipeline.wiring import unseen_events
from tests.fix_postgres import PostgresWorld

Make = Callable[..., PostgresWorld]

UNBUFFERED_STEPS = sorted(set(Step) - {Step.BUFFERING, Step.BRIDGED, Step.BRIDGE_ACKNOWLEDGED})


@pytest.fixture
def make(make_postgres: Make) -> Make:
    """Make a world whose table `t(id, v, updated_at, deleted_at)` is polled."""

    def made(
        kind: str = "timestamptz", *, mode: str = "destructive", **polling: Any
    ) -> PostgresWorld:
        table = {"name": "t", "polling": {"clock": "database", **polling}}
        world = make_postgres(
            capture={"method": "polling"}, mode=mode, tables=[table], batch_rows=3
        )
        world.run(
            "drop table if exists t",
            f"create table t(id int primary key, v text, updated_at {kind}, deleted_at text)",
            "create index t_updated on t(updated_at, id)",
        )
        return world

    return made


def put(world: PostgresWorld, key: int, value: str, stamp: str = "now()") -> None:
    world.run(
        f"insert into t values ({key}, '{value}', {stamp}) on conflict (id) do update"
        " set v = excluded.v, updated_at = excluded.updated_at, deleted_at = excluded.deleted_at"
    )


def mirrored(world: PostgresWorld) -> dict[int, str]:
    found = world.htap.query("select id, v from t", hint="olap").to_pylist()
    return {row["id"]: row["v"] for row in found}


def test_what_is_written_arrives(make: Make) -> None:
    world = make()
    put(world, 1, "a")
    put(world, 2, "a")
    assert world.htap.sync_now().inserted == 2
    put(world, 2, "b")
    put(world, 3, "c")
    report = world.htap.sync_now()
    assert (report.events, report.inserted, report.updated) == (2, 1, 1)
    assert world.htap.sync_now().events == 0
    assert mirrored(world) == {1: "a", 2: "b", 3: "c"}
    assert world.htap.verify().equal
    assert world.htap.sync_status().tables["t"].proof == "proved"
