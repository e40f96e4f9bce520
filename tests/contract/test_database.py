"""What every operational database promises to the door."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from rhei_pipeline.errors import QueryError, RheiError
from rhei_pipeline.model.schema import Column
from rhei_pipeline.protocols import Database
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.sqlite.database import SqliteDatabase

COLUMNS = [Column("k", pa.int64()), Column("v", pa.string())]
ROWS = [(key, None if key % 7 == 0 else f"v{key}") for key in range(1, 2501)]


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    made: Database
    if request.param == "sqlite":
        (tmp_path / "app.db").touch()
        made = SqliteDatabase(tmp_path / "app.db", read_pool=1)
    else:
        made = PostgresDatabase(request.getfixturevalue("dsn"), pool_size=2)
    made.execute("create table t(k bigint primary key, v text)")
    mark = "?" if request.param == "sqlite" else "%s"
    made.execute_batch([(f"insert into t values ({mark}, {mark})", row) for row in ROWS])
    yield made
    made.close()


def test_an_answer_comes_in_batches_of_the_types_that_are_known(database: Database) -> None:
    streamed = database.stream("select k as key, v from t order by k;", (), COLUMNS, 1000)
    assert streamed is not None
    assert streamed.schema == pa.schema([("key", pa.int64()), ("v", pa.string())])
    batches = list(streamed.batches)
    assert [batch.num_rows for batch in batches] == [1000, 1000, 500]
    table = pa.Table.from_batches(batches)
    assert list(zip(*table.to_pydict().values(), strict=True)) == ROWS
    whole = database.query("select k as key, v from t order by k", (), COLUMNS)
    assert whole.combine_chunks() == table.combine_chunks()


def test_an_empty_answer_has_its_types(database: Database) -> None:
    streamed = database.stream("select k, v from t where false", (), COLUMNS, 10)
    assert streamed is not None
    assert streamed.schema == pa.schema([("k", pa.int64()), ("v", pa.string())])
    assert list(streamed.batches) == []


def test_a_stream_is_one_state_and_gives_its_connection_back(database: Database) -> None:
    for _ in range(5):
        streamed = database.stream("select k, v from t order by k", (), COLUMNS, 100)
        assert streamed is not None
        first = next(streamed.batches)
        database.execute("delete from t where k > 2000")
        rest = list(streamed.batches)
        assert sum(batch.num_rows for batch in [first, *rest]) in {2500, 2000}
        left = database.stream("select k, v from t", (), COLUMNS, 100)
        assert left is not None
        next(left.batches)
        left.batches.close()  # type: ignore[attr-defined]
    assert database.query("select count(*) as n from t")["n"].to_pylist() == [2000]


def test_a_stream_can_be_cancelled_from_another_place(database: Database) -> None:
    sql = "select a.k, b.v from t a cross join t b"
    streamed = database.stream(sql, (), COLUMNS, 100_000)
    assert streamed is not None
    cancelled: Callable[[], None] = streamed.cancel
    next(streamed.batches)
    _after_a_moment(cancelled)
    with pytest.raises(RheiError):
        for _ in range(1000):
            if not next(streamed.batches, None):
                break
    assert database.query("select count(*) as n from t")["n"].to_pylist() == [2500]


def _after_a_moment(act: Callable[[], None]) -> None:
    timer = threading.Timer(0.02, act)
    timer.start()


@pytest.mark.parametrize("sql", ["delete from t", "insert into t values (0, 'x')"])
def test_a_stream_only_reads(database: Database, sql: str) -> None:
    with pytest.raises(QueryError):
        database.stream(sql, (), COLUMNS, 10)
    assert database.query("select count(*) as n from t")["n"].to_pylist() == [2500]


def test_a_write_returns_its_rows_or_has_no_effect(database: Database) -> None:
    mark = "?" if isinstance(database, SqliteDatabase) else "%s"
    returning = f"insert into t values ({mark}, {mark}), (9002, null) returning k, v"
    found = database.execute_returning(returning, [9001, "new"])
    assert found.to_pydict() == {"k": [9001, 9002], "v": ["new", None]}
    assert found.schema.types == [pa.int64(), pa.string()]
    assert database.execute("delete from t where k > 9000 returning k") == 2
    for sql, told in (
        ("delete from t", "returns no rows"),
        ("delete from t returning nothing", "nothing"),
        ("commit", "single statement"),
    ):
        with pytest.raises(QueryError, match=told):
            database.execute_returning(sql)
    assert database.query("select count(*) as n from t")["n"].to_pylist() == [2500]
    assert database.execute_returning("delete from t where k < 0 returning k").num_rows == 0


def test_a_write_counts_the_rows_that_it_changed_and_a_read_none(database: Database) -> None:
    keys = "with n as (select 1 as i union all select 2)"
    for sql, changed in (
        ("select k from t", 0),
        ("values (1), (2)", 0),
        ("explain select k from t", 0),
        (f"{keys} update t set v = 'w' where k in (select i from n)", 2),
        (f"{keys} delete from t where k in (select i from n)", 2),
        (f"{keys} delete from t where k in (select i from n)", 0),
        (f"{keys} insert into t(k) select i from n", 2),
        ("insert into t(k) values (-1), (-2), (-3) returning k", 3),
        ("create table other(k int)", 0),
    ):
        assert (sql, database.execute(sql)) == (sql, changed)
    twice = [(f"{keys} update t set v = 'x' where k in (select i from n)", ())] * 2
    assert database.execute_batch(twice) == 4
