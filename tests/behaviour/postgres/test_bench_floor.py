"""The loop that PostgreSQL's log is measured against mirrors its table, or tells that it fails."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import psycopg
import pytest

from benchmarks import postgres
from benchmarks.postgres_floor import PostgresFloor

_ALL = "select id, customer_id, status, amount, note, total from orders order by id"


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(postgres._TABLE.replace("1000000", "100").encode())
        connection.execute("create sequence ids start 2000000")
        yield connection


def test_the_floor_applies_each_kind_of_change_and_is_worth_nothing_where_it_differs(
    connection: psycopg.Connection, dsn: str, tmp_path: Path
) -> None:
    connection.execute("create table held as table orders")
    connection.execute("delete from orders")
    floor = PostgresFloor(dsn, tmp_path / "floor.duckdb")
    floor.sync()
    connection.execute("insert into orders table held")
    connection.execute("update orders set note = null, status = 'sent' where id < 9")
    floor.sync()
    connection.execute("delete from orders where id between 5 and 20")
    connection.execute("update orders set amount = -0.5, note = '' where id = 4")
    floor.sync()
    floor.prove()
    mirrored = floor._mirror.execute(_ALL).fetchall()
    assert mirrored == connection.execute(_ALL).fetchall()
    assert len(mirrored) == 84
    floor._mirror.execute("delete from orders where id = 4")
    with pytest.raises(SystemExit, match="worth nothing"):
        floor.prove()
    floor.close()
    left = "select count(*) from pg_replication_slots where slot_name = 'floor'"
    assert connection.execute(left).fetchone() == (0,)
    with duckdb.connect(tmp_path / "floor.duckdb") as mirror:
        assert mirror.execute("select lsn > '0/0' from position").fetchone() == (True,)


@pytest.mark.long
def test_our_cost_is_told_against_that_of_the_floor(
    connection: psycopg.Connection, dsn: str, tmp_path: Path
) -> None:
    found = dict(postgres.against_the_floor(connection, dsn, tmp_path, rounds=1))
    assert [float(ratio) > 0 for ratio in found.values()] == [True] * 3
