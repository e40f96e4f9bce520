"""Timeouts that an administrator set for every session keep none of ours from its work."""

import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.support.fix_postgres import PostgresWorld

MakePostgres = Callable[..., PostgresWorld]
POLLED = {"name": "t", "polling": {"clock": "database", "deletes": "reconcile"}}


@pytest.mark.long
@pytest.mark.parametrize("method", ["logical", "trigger", "polling"])
def test_a_session_that_the_server_ended_as_it_waited_is_opened_again(
    make_postgres: MakePostgres, method: str
) -> None:
    tables: list[dict[str, Any]] = [POLLED if method == "polling" else {"name": "t"}]
    world = make_postgres(capture={"method": method}, tables=tables)
    world.run(
        "create table t (id int primary key, updated_at timestamptz not null default now())",
        "insert into t values (1)",
    )
    with psycopg.connect(world.dsn, autocommit=True) as admin:
        name = sql.Identifier(admin.info.dbname)
        for setting in ("idle_session_timeout", "idle_in_transaction_session_timeout"):
            admin.execute(
                sql.SQL("alter database {} set {} = '300ms'").format(name, sql.Identifier(setting))
            )
    for key in range(2, 5):
        world.htap.sync_now()
        world.run(f"insert into t values ({key})")
        time.sleep(0.7)
    world.htap.sync_now()
    world.assert_equal("t")
    assert world.htap.verify().equal
