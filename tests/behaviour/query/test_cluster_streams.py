"""An answer of the cluster in batches: of any length, ended at will, and never cut short."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from typing import Literal

import adbc_driver_flightsql.dbapi as flight_sql
import adbc_driver_manager
import pyarrow as pa
import pytest

import rhei_pipeline as rhei
from rhei_pipeline import HTAP
from rhei_pipeline.errors import ComputeUnreachableError, QueryError, QueryLimitError
from rhei_pipeline.server.flight.server import FlightSqlServer
from tests.support.fix_cluster import with_cluster
from tests.support.fix_world import World

pytestmark = pytest.mark.cluster
ROWS = 2000
#: Four million rows, which the server sends in hundreds of parts.
MANY = "select a.id as a, b.id as b, a.v as v from t a cross join t b"
_SERVER = """
import signal
from pysail.spark import SparkConnectServer
server = SparkConnectServer("127.0.0.1", 0)
server.start(background=True)
print(server.listening_address[1], flush=True)
signal.pause()
"""


@pytest.fixture
def opened(make_world: Callable[..., World], cluster: str) -> Iterator[HTAP]:
    with rhei.open(with_cluster(filled(make_world), cluster, [{"name": "t"}])) as htap:
        htap.sync_now()
        yield htap


def filled(make_world: Callable[..., World]) -> World:
    world = make_world(storage="delta", tables=[{"name": "t"}])
    world.run(
        "create table t(id integer primary key, v text)",
        "with recursive n(i) as (select 0 union all select i + 1 from n where i < "
        f"{ROWS - 1}) insert into t select i, 'text ' || i from n",
    )
    return world


def test_a_long_answer_comes_in_batches_and_is_never_held_whole(opened: HTAP) -> None:
    before = pa.total_allocated_bytes()
    streamed = opened.stream(MANY, rows=1000, hint="cluster")
    counted = summed = most = 0
    for batch in streamed.batches:
        counted, summed = counted + batch.num_rows, summed + sum(batch["a"].to_pylist()[:1])
        most = max(most, pa.total_allocated_bytes() - before)
        assert batch.num_rows <= 1000
        assert batch.schema.equals(streamed.schema)
    assert counted == ROWS * ROWS
    assert most < 20 * 2**20  # all of it is 120 MB
    assert streamed.schema.metadata[b"rhei.engine"] == b"cluster"
    none = opened.stream("select id from t where id < ?", [0], hint="cluster")
    assert pa.Table.from_batches(none.batches, none.schema).num_rows == 0


def test_an_answer_ends_where_it_is_closed_cancelled_or_too_long(opened: HTAP) -> None:
    opened.stream(MANY, hint="cluster")  # of which nobody takes a row
    closed = opened.stream(MANY, hint="cluster")
    assert next(closed.batches).num_rows
    closed.batches.close()  # type: ignore[attr-defined]
    cancels: list[Callable[[], None]] = []
    cancelled = opened.stream(MANY, begun=cancels.append, hint="cluster")
    next(cancelled.batches)
    cancels[-1]()
    with pytest.raises(QueryError, match="was cancelled"):
        list(cancelled.batches)
    with pytest.raises(QueryError, match="cluster refused"):
        opened.stream("select no_column from t", hint="cluster")
    again = opened.query("select count(*) as n from t", hint="cluster")
    assert again.to_pylist() == [{"n": ROWS}]


def test_limits_hold_for_answers_in_batches(make_world: Callable[..., World], cluster: str) -> None:
    settings = with_cluster(filled(make_world), cluster, [{"name": "t"}])
    limits = settings.queries.model_copy(update={"query_rows": 10_000})
    with rhei.open(settings.model_copy(update={"queries": limits})) as htap:
        htap.sync_now()
        with pytest.raises(QueryLimitError, match="rows"):
            list(htap.stream(MANY, hint="cluster").batches)


def test_a_server_that_dies_within_an_answer_never_leaves_it_short(
    make_world: Callable[..., World],
) -> None:
    world = filled(make_world)
    command = [sys.executable, "-c", _SERVER]
    with ExitStack() as held:
        server = held.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        held.callback(server.kill)
        assert server.stdout is not None
        endpoint = f"sc://127.0.0.1:{server.stdout.readline().strip()}"
        with rhei.open(with_cluster(world, endpoint, [{"name": "t"}])) as htap:
            htap.sync_now()
            streamed = htap.stream(MANY, hint="cluster")
            begun = sum(batch.num_rows for batch in islice(streamed.batches, 3))
            server.kill()
            with pytest.raises(ComputeUnreachableError, match="broke off") as broken:
                sum(batch.num_rows for batch in streamed.batches)
            assert 0 < begun < ROWS * ROWS
            assert "ask again, or with the hint 'auto'" in str(broken.value)
            hints: tuple[Literal["cluster", "auto"], ...] = ("cluster", "auto")
            for hint in hints:
                whole = htap.stream("select id, v from t", hint=hint)
                assert sum(batch.num_rows for batch in whole.batches) == ROWS
                assert whole.schema.metadata[b"rhei.engine"] == b"olap"


def test_a_client_of_flight_sql_asks_the_cluster_by_a_header(opened: HTAP) -> None:
    header = {"adbc.flight.sql.rpc.call_header.rhei-hint": "cluster"}
    server = FlightSqlServer(opened)
    address = f"grpc://127.0.0.1:{server.port}"
    with flight_sql.connect(address, db_kwargs=header, autocommit=True) as connection:

        def ask(sql: str) -> pa.Table:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetch_arrow_table()

        # `typeof` gives Spark's name of a type.
        found = ask("select sum(id) as s, typeof(max(v)) as kind from t")
        assert found.to_pylist() == [{"s": ROWS * (ROWS - 1) // 2, "kind": "string"}]
        assert found.schema.metadata[b"rhei.engine"] == b"cluster"
        for sql in ("drop table t", "select 1; select 2", "insert into t values (-1, 'x')"):
            with pytest.raises(adbc_driver_manager.Error, match=r"is one SELECT|only reads"):
                ask(sql)
        with connection.cursor() as cursor:
            cursor.execute(MANY)
            assert next(cursor.fetch_record_batch()).num_rows
    server.shutdown()
    assert opened.query("select count(*) as n from t").to_pylist() == [{"n": ROWS}]
