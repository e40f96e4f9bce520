"""A Sail cluster of several processes answers as a mirror on one machine does, from a bucket."""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import rhei_pipeline as rhei
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import MirrorUnreachableError, QueryError
from rhei_pipeline.model.streaming import Begun
from rhei_pipeline.testing.oracle import exact
from tests.support.dagster_deployment import awaited
from tests.support.fix_cluster import with_cluster
from tests.support.fix_object_store import Store
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.model import instant_between
from tests.support.sail_cluster import SailCluster, sail_cluster
from tests.support.store_faults import WAYS

TABLES = [{"name": "orders", "mode": "temporal"}, {"name": "customers"}]
SYNCS = 50
#: After how many syncs segments are merged, the tables published, and the answers compared.
EVERY = 5
NOW = "_rhei_valid_to is null"
#: In the SQL that Spark and DuckDB have in common.
ASKED = [
    "select status, count(*) as c, cast(sum(n) as bigint) as s, min(n) as l from orders"
    f" where {NOW} group by status",
    "select _rhei_operation as o, count(*) as c, cast(sum(n) as bigint) as s from orders"
    " group by _rhei_operation",
    "select region, count(*) as c, min(name) as l, max(name) as h from customers group by region",
    f"select c.region, count(*) as n, cast(sum(o.n) as bigint) as s from orders o"
    f" left join customers c on c.id = o.customer where o.{NOW} group by c.region",
    "select id, status, row_number() over (partition by id order by _rhei_valid_from) as v"
    " from orders",
    "select count(*) as c, count(distinct customer) as d, max(price) as p,"
    " cast(sum(price) as decimal(18, 2)) as s from orders",
]


@pytest.fixture
def cluster(tmp_path: Path, bucket: Store) -> Iterator[SailCluster]:
    """Start a cluster of processes that reads the bucket."""
    pytest.importorskip("pysail", reason="pysail is not installed")
    with sail_cluster(tmp_path / "sail", bucket) as made:
        yield made


def in_bucket(
    world: World | PostgresWorld, cluster: SailCluster, bucket: Store, **more: Any
) -> Settings:
    """Return a declaration whose mirror is in the bucket, and is read by the cluster."""
    settings = with_cluster(world, cluster.endpoint, TABLES, **more)
    stored = {"path": bucket.url, "object_store": bucket.settings | bucket.keys}
    stored["delta"] = {"interval_seconds": 3600}  # a store for tests takes seconds to publish to
    return settings.with_fields({"mirror": settings.mirror.model_dump() | stored})


def on_one_machine(world: World) -> Settings:
    """Return a declaration of a DuckDB mirror of the same source."""
    return Settings(
        source={"path": world.path},
        mirror={"kind": "duckdb", "path": world.directory / "alone.duckdb"},
        registry={"path": world.directory / "alone.json"},
        tables=TABLES,
    )


def fill(world: World) -> None:
    """Make two tables with rows."""
    world.run(
        "create table customers(id integer primary key, name text, region text)",
        "create table orders(id integer primary key, customer integer, status text, n bigint,"
        " price decimal(10, 2))",
    )
    drawn = random.Random(3)
    for key in range(40):
        region = drawn.choice(["north", "south", None])
        world.app.execute("insert into customers values (?, ?, ?)", (key, f"č{key % 9}", region))
    for key in range(400):
        world.app.execute("insert into orders values (?, ?, ?, ?, ?)", order(drawn, key))


def order(drawn: random.Random, key: int) -> tuple[object, ...]:
    status = drawn.choice(["new", "sent", "žluť", "", None])
    number = drawn.choice([drawn.randrange(-99, 99), 2**40, None])
    return key, drawn.randrange(45), status, number, drawn.randrange(-999, 9999) / 100


def change(world: World, drawn: random.Random) -> None:
    """Insert, update and delete, give rows other keys, and some their old ones again."""
    world.app.execute("begin")
    for _ in range(drawn.randrange(1, 12)):
        key, other = drawn.randrange(450), drawn.randrange(450, 900)
        match drawn.randrange(6):
            case 0:
                world.app.execute("delete from orders where id = ?", (key,))
            case 1:
                world.app.execute("update or replace orders set id = ? where id = ?", (other, key))
            case 2:
                world.app.execute("update or replace orders set id = ? where id = ?", (key, other))
            case 3:
                sql = "insert or replace into orders values (?, ?, ?, ?, ?)"
                world.app.execute(sql, order(drawn, key))
            case 4:
                sql = "update customers set name = name || 'x', region = ? where id % 7 = ?"
                world.app.execute(sql, (drawn.choice(["east", None]), key % 7))
            case _:
                world.app.execute("update orders set n = n + 1 where id % 17 = ?", (key % 17,))
    world.app.execute("commit")


def rows(found: pa.Table) -> list[tuple[str, ...]]:
    return sorted(exact(row.values()) for row in found.to_pylist())


def engine(found: pa.Table) -> str:
    told: bytes = (found.schema.metadata or {})[b"rhei.engine"]
    return told.decode()


def as_of(instant: datetime) -> str:
    """Return a query of the rows that were valid at an instant, in the SQL of all engines."""
    at = f"timestamp '{instant:%Y-%m-%d %H:%M:%S.%f}+00:00'"
    return (
        "select id, customer, status, n, price from orders"
        f" where _rhei_valid_from <= {at} and ({NOW} or _rhei_valid_to > {at})"
    )


def compare(there: HTAP, here: HTAP, instants: list[datetime]) -> None:
    """The cluster's answers are those of the mirror on one machine."""
    for sql in [*ASKED, *map(as_of, instants)]:
        found = there.query(sql, hint="cluster")
        assert engine(found) == "cluster", (found.schema.metadata, sql)
        assert rows(found) == rows(here.query(sql, hint="olap")), sql


@pytest.mark.cluster
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_cluster_of_processes_answers_as_a_mirror_on_one_machine(
    make_world: Callable[..., World], bucket: Store, cluster: SailCluster
) -> None:
    world, drawn, instants = make_world(storage="delta", tables=TABLES), random.Random(4), []
    fill(world)
    with ExitStack() as held:
        there = held.enter_context(rhei.open(in_bucket(world, cluster, bucket)))
        here = held.enter_context(rhei.open(on_one_machine(world)))
        for number in range(1, SYNCS + 1):
            for htap in (there, here):
                htap.sync_now()
            instants.append(instant_between())
            if number % EVERY == 0:
                there.maintain()
                compare(there, here, drawn.sample(instants, 2))
            if number < SYNCS:
                change(world, drawn)
        first = date(2030, 1, 1)
        days = {first + timedelta(days=n): at for n, at in enumerate(instants[::10])}
        taken = there.snapshot("orders", days)
        assert (set(taken.engines.values()), taken.reason) == ({"cluster"}, None)
        here.snapshot("orders", days)
        kept = "select * from snapshot.orders"
        assert rows(there.query(kept, hint="olap")) == rows(here.query(kept, hint="olap"))
        assert there.verify().equal


#: What the cluster is asked of a PostgreSQL source's mirror, and the source of itself.
ALIKE = [
    "select status, count(*) as c, sum(n) as s, min(price) as l from {orders} group by status",
    "select region, count(*) as c, max(name) as h from customers group by region",
    "select c.region, count(*) as n, sum(o.price) as s from {orders} o"
    " left join customers c on c.id = o.customer group by c.region",
]


@pytest.mark.cluster
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_cluster_of_processes_answers_as_a_postgresql_source(
    make_postgres: Callable[..., PostgresWorld], bucket: Store, cluster: SailCluster
) -> None:
    world = make_postgres(storage="delta", tables=TABLES)
    world.run(
        "create table customers(id integer primary key, name text, region text)",
        "create table orders(id integer primary key, customer integer, status text, n integer,"
        " price numeric(10, 2))",
        "insert into customers select i, 'č' || i % 9, nullif('r' || i % 4, 'r3')"
        " from generate_series(1, 40) i",
        "insert into orders select i, i % 45, nullif('s' || i % 5, 's4'), i, i / 7.0"
        " from generate_series(1, 400) i",
    )
    with rhei.open(in_bucket(world, cluster, bucket)) as there:
        for turn in range(1, 4):
            there.sync_now()
            there.maintain()
            for sql in ALIKE:
                now = f"(select * from orders where {NOW})"
                found = there.query(sql.format(orders=now), hint="cluster")
                assert engine(found) == "cluster"
                expected = there.query(sql.format(orders="orders"), hint="oltp")
                assert rows(found) == rows(expected), sql
            world.run(
                f"update orders set n = n + 1, status = null where id % 7 = {turn}",
                f"delete from orders where id % 11 = {turn}",
                f"update customers set id = id + 100 where id % 9 = {turn}",
                f"insert into orders values ({1000 + turn}, 1, 'new', null, 0.01)",
            )
        assert there.verify().equal


class _HoldsFiles(list[str]):
    """Has a store answer no request for a file of rows."""

    def __init__(self, bucket: Store) -> None:
        super().__init__([""])
        self._bucket, self.held = bucket, 0

    def pop(self, _place: Any = 0) -> str:
        if not self._bucket.seen[-1].endswith(".parquet"):
            return ""
        self.held += 1
        return "slow"


@contextmanager
def in_mid_query(
    bucket: Store, there: HTAP, hint: Any, begun: Begun | None = None
) -> Iterator[Callable[[], pa.Table]]:
    """Ask, and enter the block while the cluster reads; what is yielded returns the answer."""
    holding = bucket.failing["GET"] = _HoldsFiles(bucket)
    bucket.released.clear()

    def answer() -> pa.Table:
        bucket.failing.clear()
        bucket.released.set()
        return asked.result()

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(there.query, COUNTED, hint=hint, begun=begun)
        try:
            awaited("the cluster reads a file", lambda: holding.held)
            yield answer
        finally:
            bucket.failing.clear()
            bucket.released.set()


COUNTED = "select status, count(*) as c from orders group by status"


@pytest.mark.cluster
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_what_is_killed_in_mid_query_costs_no_answer_and_the_next_comes_from_the_cluster(
    make_world: Callable[..., World], bucket: Store, cluster: SailCluster
) -> None:
    world = make_world(storage="delta", tables=TABLES)
    fill(world)
    with rhei.open(in_bucket(world, cluster, bucket, min_rows=1)) as there:
        there.sync_now()
        expected = rows(there.query(COUNTED, hint="olap"))
        assert engine(there.query(COUNTED)) == "cluster"
        workers = set(cluster.pods.running)
        assert engine(there.query(COUNTED)) == "cluster"
        assert set(cluster.pods.running) == workers  # they were started for the one before
        for hint in ("auto", "cluster"):
            with in_mid_query(bucket, there, hint) as answer:
                cluster.kill_driver()
                found = answer()
            assert (engine(found), rows(found)) == ("olap", expected)
            told: bytes = (found.schema.metadata or {})[b"rhei.reason"]
            assert f"the cluster at '{cluster.endpoint}' failed".encode() in told
            cluster.start()
            found = there.query(COUNTED, hint="cluster")
            assert (engine(found), rows(found)) == ("cluster", expected)
        with in_mid_query(bucket, there, "cluster") as answer:
            for worker in cluster.pods.names():
                cluster.pods.kill(worker)
            found = answer()
        assert rows(found) == expected
        assert engine(there.query(COUNTED, hint="cluster")) == "cluster"
        cancels = list[Callable[[], None]]()
        with in_mid_query(bucket, there, "cluster", cancels.append) as answer:
            cancels[0]()
            with pytest.raises(QueryError, match="the query was cancelled"):
                answer()
        found = there.query(COUNTED, hint="cluster")
        assert (engine(found), rows(found)) == ("cluster", expected)


@pytest.mark.cluster
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_store_that_fails_the_cluster_costs_no_answer_and_leaves_no_worker(
    make_world: Callable[..., World], bucket: Store, cluster: SailCluster
) -> None:
    world = make_world(storage="delta", tables=TABLES)
    fill(world)
    drawn = random.Random(2)

    def away(_method: str, path: str) -> str:
        return drawn.choice(WAYS) if "/delta/" in path else ""

    def at_times(method: str, path: str) -> str:
        return away(method, path) if drawn.random() < 0.3 else ""

    with rhei.open(in_bucket(world, cluster, bucket, min_rows=1)) as there:
        there.sync_now()
        expected = rows(there.query(COUNTED, hint="olap"))
        for fault, by in ((at_times, "cluster"), (away, "olap"), (None, "cluster")):
            bucket.fault = fault
            found = there.query(COUNTED, hint="cluster")
            assert (engine(found), rows(found)) == (by, expected)
        bucket.fault = away
        found = there.query(COUNTED)
        assert (engine(found), rows(found)) == ("olap", expected)
        assert (
            b"not by the cluster: the cluster at" in (found.schema.metadata or {})[b"rhei.reason"]
        )
        bucket.fault = lambda *_: "503"
        with pytest.raises(MirrorUnreachableError, match=r"store did not answer.*try again"):
            there.query(COUNTED, hint="cluster")
        bucket.fault = None
        assert engine(there.query(COUNTED, hint="cluster")) == "cluster"
    awaited("the sessions' workers have ended", lambda: not cluster.pods.names())
