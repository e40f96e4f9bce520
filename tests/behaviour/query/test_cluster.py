"""A cluster reads what a mirror has published, at one state, and answers as the mirror does."""

import json
import random
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

import rhei_pipeline as rhei
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.compute.judging import tables_read
from rhei_pipeline.errors import MirrorError, MissingExtraError, QueryError, SettingsError
from rhei_pipeline.wiring.compute import validate_compute
from tests.support.fix_cluster import with_cluster
from tests.support.fix_world import World
from tests.support.parts import session_of

NOTHING = "sc://127.0.0.1:9"  # the port of 'discard', where nothing listens


def filled(make_world: Callable[..., World]) -> World:
    """Make a mirror in Delta, published after each sync, of three tables that were changed."""
    world = make_world(storage="delta", tables=[{"name": n} for n in ("orders", "customers")])
    world.run("create table customers(id integer primary key, name text, region text)")
    world.run(
        "create table orders(id integer primary key, customer integer, status text, n bigint)"
    )
    drawn = random.Random(7)
    for key in range(40):
        region = drawn.choice(["'north'", "'south'", "null"])
        world.run(f"insert into customers values ({key}, 'c{key % 9}', {region})")
    for key in range(300):
        status, n = drawn.choice(["'new'", "'sent'", "null"]), drawn.choice([key, -key, "null"])
        world.run(f"insert into orders values ({key}, {drawn.randrange(45)}, {status}, {n})")
    return world


def declared(world: World, endpoint: str, kind: str = "sail") -> Settings:
    tables = [{"name": "orders", "mode": "temporal"}, {"name": "customers"}]
    return with_cluster(world, endpoint, tables, kind)


def random_query(drawn: random.Random) -> str:
    """Return a query in the SQL that Spark and DataFusion have in common."""
    where = " and ".join(
        drawn.sample(
            [
                f"o.id % {drawn.randint(2, 9)} = 1",
                f"o.n > {drawn.randint(-200, 200)}",
                "o.status is not null",
                f"o.status in ('new', '{drawn.choice(['sent', 'gone'])}')",
                "o._rhei_valid_to is null",
                "not exists (select 1 from customers x where x.id = o.customer)",
            ],
            drawn.randint(1, 3),
        )
    )
    key = drawn.choice(["o.status", "c.region", "c.name", "o.customer % 5"])
    total = drawn.choice(["count(*)", "sum(o.n)", "min(o.n)", "count(distinct o.customer)"])
    join = drawn.choice(["join", "left join"])
    tables = f"orders o {join} customers c on c.id = o.customer"
    if drawn.random() < 0.3:
        place = "row_number() over (partition by o.status order by o.id, o._rhei_valid_from)"
        return f"select o.id, c.name, {place} as place from {tables} where {where}"
    having = drawn.choice(["", f" having count(*) > {drawn.randint(1, 4)}"])
    return f"select {key} as k, {total} as v from {tables} where {where} group by {key}{having}"


def rows(found: pa.Table) -> list[str]:
    return sorted(repr(tuple(row.values())) for row in found.to_pylist())


def label(found: pa.Table, name: str) -> str:
    value: bytes = (found.schema.metadata or {})[f"rhei.{name}".encode()]
    return value.decode()


def answers_filled(htap: HTAP, world: World, count: int) -> int:
    """Ask random queries of the cluster and of the mirror; return how many had rows."""
    drawn, with_rows = random.Random(20), 0
    htap.sync_now()
    world.run("update orders set status = 'gone', n = n + 1 where id % 7 = 0")
    world.run("delete from orders where id % 11 = 0", "delete from customers where id > 35")
    marks = {name: table.watermark for name, table in htap.sync_now().tables.items()}
    for _ in range(count):
        sql = random_query(drawn)
        found = htap.query(sql, hint="cluster")
        assert rows(found) == rows(htap.query(sql, hint="olap")), sql
        assert label(found, "engine") == "cluster"
        assert json.loads(label(found, "watermark")) == marks
        with_rows += found.num_rows > 0
    return with_rows


@pytest.mark.soak
def test_many_random_queries_have_one_answer_in_the_cluster_and_in_the_mirror(
    make_world: Callable[..., World], cluster: str
) -> None:
    world = filled(make_world)
    with rhei.open(declared(world, cluster)) as htap:
        assert answers_filled(htap, world, 3_000) > 1_800


@pytest.mark.cluster
def test_random_queries_have_one_answer_in_the_cluster_and_in_the_mirror(
    make_world: Callable[..., World], cluster: str
) -> None:
    world = filled(make_world)
    with rhei.open(declared(world, cluster)) as htap:
        assert answers_filled(htap, world, 100) > 60
        bound = htap.query("select count(*) as c from orders where n > ?", [5], hint="cluster")
        assert rows(bound) == rows(
            htap.query("select count(*) as c from orders where n > ?", [5], hint="olap")
        )
        with pytest.raises(QueryError, match=r"cluster refused .*ask it in Spark's SQL"):
            htap.query("select no_column from orders", hint="cluster")
        assert htap.query("select count(*) as c from customers", hint="cluster")[
            "c"
        ].to_pylist() == [36]
        assert validate_compute(htap.settings) == []


@pytest.mark.cluster
def test_what_some_row_is_not_fit_for_is_refused_and_quotes_no_row(
    make_world: Callable[..., World], cluster: str, capfd: pytest.CaptureFixture[str]
) -> None:
    world = filled(make_world)
    world.run("update customers set name = 'Hunter2000' where id = 7")
    with rhei.open(declared(world, cluster)) as htap:
        htap.sync_now()
        for sql in (
            "select id % (id - id) as v from customers",
            "select date(name) as v from customers",
        ):
            with pytest.raises(QueryError, match=r"cannot work out the query for some row") as met:
                htap.query(sql, hint="cluster")
            with pytest.raises(QueryError, match=r"cannot work out the query for some row"):
                list(htap.stream(sql, hint="cluster").batches)
            told = repr(traceback.format_exception(met.value))
            assert "Hunter" not in told
            assert "hint 'olap'" in told
        for sql in ("select cast(name as int) from customers", "select nonsense from customers"):
            with pytest.raises(QueryError) as met:
                htap.query(sql, hint="cluster")
            assert "Hunter" not in repr(traceback.format_exception(met.value))
        nulls = htap.query("select try_cast(name as int) as v from customers", hint="cluster")
        assert nulls["v"].null_count == 40
        with pytest.raises(QueryError, match="Divide by zero"):
            htap.query("select id % (id - id) as v from customers", hint="olap")
    logged = capfd.readouterr().err
    assert not re.search("Hunter|nonsense", logged)


@pytest.mark.cluster
def test_an_instant_in_a_statement_is_in_utc(
    make_world: Callable[..., World], cluster: str
) -> None:
    world = filled(make_world)
    with rhei.open(declared(world, cluster)) as htap:
        htap.sync_now()
        for hours, count in ((-1, 300), (1, 0)):
            instant = (datetime.now(UTC) + timedelta(hours=hours)).strftime("%Y-%m-%d %H:%M:%S")
            sql = f"select count(*) as c from orders where _rhei_valid_from > timestamp '{instant}'"
            found = htap.query(sql, hint="cluster")
            assert label(found, "engine") == "cluster"
            assert found["c"].to_pylist() == [count]
        found = htap.query("select max(_rhei_valid_from) as m from orders", hint="cluster")
        assert found.equals(htap.query("select max(_rhei_valid_from) as m from orders"))


@pytest.mark.cluster
def test_a_session_is_held_and_one_that_the_server_has_ended_is_begun_again(
    make_world: Callable[..., World], cluster: str
) -> None:
    world = filled(make_world)
    sql = "select count(*) as c from customers"
    with rhei.open(declared(world, cluster)) as htap:
        htap.sync_now()
        assert label(htap.query(sql, hint="cluster"), "engine") == "cluster"
        held = session_of(htap)
        htap.query(sql, hint="cluster")
        assert session_of(htap) is held
        held.client.release_session()  # as the server does after minutes without a query
        found = htap.query(sql, hint="cluster")
        assert (label(found, "engine"), found["c"].to_pylist()) == ("cluster", [40])
        assert session_of(htap) is not held
        with pytest.raises(QueryError, match="cluster refused"):
            htap.query("select no_column from orders", hint="cluster")
    assert session_of(htap) is None


@pytest.mark.cluster
def test_queries_at_once_have_sessions_of_their_own(
    make_world: Callable[..., World], cluster: str
) -> None:
    world = filled(make_world)
    with rhei.open(declared(world, cluster)) as htap:
        htap.sync_now()
        keys = range(0, 40, 2)
        sql = "select count(*) as c from customers where id < ?"
        with ThreadPoolExecutor(6) as pool:
            for turn in range(2):
                asked = [pool.submit(htap.query, sql, [key], hint="cluster") for key in keys]
                found = [one.result()["c"][0].as_py() for one in asked]
                assert found == [max(key - turn, 0) for key in keys]
                world.run("delete from customers where id = 0")
                htap.sync_now()  # the next ones read other versions of the tables


@pytest.mark.cluster
def test_the_cluster_shows_one_published_state_and_not_the_next(
    make_world: Callable[..., World], cluster: str
) -> None:
    world = filled(make_world)
    settings = declared(world, cluster)
    later = {"mirror": settings.mirror.model_dump() | {"delta": {"interval_seconds": 9999}}}
    both = "select (select count(*) from orders) as o, (select count(*) from customers) as c"
    with rhei.open(settings.with_fields(later)) as htap:
        with pytest.raises(MirrorError, match=r"nothing was published.*sync once"):
            htap.query(both, hint="cluster")
        htap.sync_now()
        world.run("delete from customers", "insert into orders values (999, 1, 'new', 1)")
        htap.sync_now()
        found = htap.query(both, hint="cluster")
        assert found.to_pylist() == [{"o": 300, "c": 40}]
        assert htap.query(both, hint="olap").to_pylist() == [{"o": 301, "c": 0}]


def test_where_the_cluster_is_away_the_mirror_answers_and_says_so(
    make_world: Callable[..., World],
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    settings = declared(filled(make_world), f"sc://127.0.0.1:{port}")
    (finding,) = validate_compute(settings)
    assert "nothing answers at" in finding.what
    assert "start the server there" in finding.remedy
    with rhei.open(settings) as htap:
        htap.sync_now()
        found = htap.query("select count(*) as n from orders", hint="cluster")
        assert found["n"].to_pylist() == [300]
        assert label(found, "engine") == "olap"
        assert "the mirror answers: nothing answers at" in label(found, "reason")


@pytest.mark.cluster
def test_a_server_that_ends_is_not_waited_for(make_world: Callable[..., World]) -> None:
    world = filled(make_world)
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        ending = threading.Thread(target=_hang_up, args=(mute,), daemon=True)
        ending.start()
        settings = declared(world, f"sc://127.0.0.1:{mute.getsockname()[1]}")
        with rhei.open(settings) as htap:
            htap.sync_now()
            found = htap.query("select count(*) as n from orders", hint="cluster")
            assert found["n"].to_pylist() == [300]
            assert "the mirror answers: the cluster at" in label(found, "reason")
            (finding,) = validate_compute(settings)
            assert "see the server's log" in finding.remedy


def test_a_missing_client_is_named_with_its_extra(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        settings = declared(filled(make_world), f"sc://127.0.0.1:{mute.getsockname()[1]}")
        with rhei.open(settings) as htap:
            htap.sync_now()
            with pytest.raises(MissingExtraError, match=r"pip install 'rhei-pipeline\[cluster\]'"):
                htap.query("select count(*) as n from orders", hint="cluster")
        (finding,) = validate_compute(settings)
        assert "rhei-pipeline[cluster]" in finding.remedy


def _hang_up(server: socket.socket) -> None:
    """Accept every connection, and end it."""
    with suppress(OSError):
        while True:
            server.accept()[0].close()


def test_what_a_cluster_is_not_asked(make_world: Callable[..., World]) -> None:
    known = ["orders", "sales__bills"]
    assert tables_read("with x as (select 1) select * from x, Orders", known) == {
        "Orders": "orders"
    }
    assert tables_read("select * from sales__bills union select 1", known) == {
        "sales__bills": "sales__bills"
    }
    for refused in (
        "insert into orders values (1)",
        "create view v as select 1",
        "set spark.x = 1",
        "select 1; select 2",
        "select * from delta.`/etc`",
        "select * from parquet.`/etc/x`",
        "select * from system.session.x",
        "select * from range(9)",
        "select reflect('java.lang.System', 'exit', 1)",
        "select * from (select * from nope)",
        "show tables",
        "not a statement at all )",
    ):
        with pytest.raises(QueryError):
            tables_read(refused, known)
    world: World = make_world(storage="delta")
    world.run("create table orders(id integer primary key)")
    htap: HTAP = world.htap
    with pytest.raises(SettingsError, match="declare 'compute', or leave the hint"):
        htap.query("select 1", hint="cluster")


def test_a_cluster_is_declared_for_delta_tables_alone() -> None:
    whole: dict[str, Any] = {
        "source": {"path": "app.db"},
        "compute": {"kind": "spark", "endpoint": NOTHING, "token": "hunter2"},
    }
    with pytest.raises(SettingsError, match="give the mirror the storage 'delta'"):
        Settings(**whole, mirror={"path": "m.duckdb"})
    delta = {"kind": "datafusion", "storage": "delta", "path": "m"}
    assert "hunter2" not in repr(Settings(**whole, mirror=delta))
    with pytest.raises(SettingsError, match=r"compute\.endpoint"):
        Settings(
            source={"path": "app.db"},
            mirror=delta,
            compute={"kind": "sail", "endpoint": "http://x"},
        )
