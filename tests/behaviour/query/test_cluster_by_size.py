"""`auto` has the cluster answer queries of large tables, just as the source would."""

import random
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pyarrow as pa
import pytest

import rhei_pipeline as rhei
from rhei_pipeline import HTAP, QueryError
from rhei_pipeline.compute.heavy_reads import REMEMBERED_SECONDS, holds_alike
from rhei_pipeline.compute.spark_connect import SparkConnect
from rhei_pipeline.compute.spark_sql import in_spark
from rhei_pipeline.model.schema import Column, Mode, Table, TableSchema
from rhei_pipeline.testing.oracle import exact
from tests.support.fix_cluster import with_cluster
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.parts import engine_of
from tests.support.random_queries import TEXTS, Queries

_COLUMNS = {
    "sqlite": "n integer, m integer, r real, w real, t text, u varchar(20), ok boolean,"
    " price decimal(10, 2), made timestamp",
    "postgres": 'n integer, m bigint, r double precision, w double precision, t text collate "C",'
    ' u varchar(20) collate "C", ok boolean, price numeric(10, 2), made timestamp',
}
TABLES = [{"name": "a", "mode": "temporal"}, {"name": "b"}]
#: Queries that the cluster can answer, beside those made at random.
ASKED = [
    "select t, count(*) as c, sum(n) as s, min(m) as l, max(m) as h from a group by t",
    "select count(distinct u) as c from a where n > 2 and t in ('a', 'AB', 'é')",
    "select b.u, count(*) as c from a join b on b.a_id = a.id where a.n <> 3 group by b.u",
    "select a.n, count(b.id) as c from a left join b on b.a_id = a.id group by a.n"
    " having count(*) > 1 order by c desc, a.n limit 3",
    "with x as (select n, count(*) as c from a group by n) select count(*) as k from x where c > 2",
    "select id, row_number() over (partition by ok order by id desc) as p from b",
    "select sum(case when ok then n else 0 end) as s from b where t is not null",
    "select price, count(*) as c from a where u is not null group by price",
    "select ok, max(price) as h, min(t) as l from b where id >= 7 group by ok",
]


def row(drawn: random.Random, number: int, *, sqlite: bool) -> tuple[object, ...]:
    """Return values for all columns but `id` and, now and then, none."""
    whole: list[object] = [
        drawn.randint(-4, 8),
        drawn.choice([drawn.randint(-99, 99), 2**40, -(2**53) - 1, 2**62, -(2**63)]),
        drawn.choice([drawn.uniform(-10, 10), 0.5, 1e15, -0.0]),
        float(drawn.randint(-6, 9)),
        drawn.choice(TEXTS),
        drawn.choice(TEXTS),
        drawn.choice([0, 1] if sqlite else [False, True]),
        drawn.randint(-5000, 9000) / 100,
        f"2026-0{drawn.randint(1, 9)}-11 10:00:00",
    ]
    return (number, *(None if drawn.random() < 0.12 else value for value in whole))


def filled(world: World | PostgresWorld) -> None:
    """Make two tables and their rows."""
    sqlite, drawn = isinstance(world, World), random.Random(5)
    columns = _COLUMNS["sqlite" if sqlite else "postgres"]
    world.run(
        f"create table a (id integer primary key, {columns})",
        f"create table b (id integer primary key, {columns}, a_id integer)",
    )
    marks = ", ".join(["?" if sqlite else "%s"] * 10)
    own = [row(drawn, key, sqlite=sqlite) for key in range(60)]
    other = [(*row(drawn, key, sqlite=sqlite), drawn.randint(0, 70)) for key in range(50)]
    with_a_key = f"insert into b values ({marks}, {'?' if sqlite else '%s'})"
    cursor: Any = world.app.cursor()
    cursor.executemany(f"insert into a values ({marks})", own)
    cursor.executemany(with_a_key, other)


def side(found: pa.Table) -> str:
    engine: bytes = (found.schema.metadata or {})[b"rhei.engine"]
    return engine.decode()


def counted(found: pa.Table) -> Counter[tuple[str, ...]]:
    return Counter(exact(row.values()) for row in found.to_pylist())


def asked_of(htap: HTAP, sql: str, params: list[object]) -> str | None:
    """Ask `auto` and the source; return who answered `auto`, None where the source refuses it."""
    try:
        expected = htap.query(sql, params, hint="oltp")
    except QueryError:
        return None
    found = htap.query(sql, params)
    if side(found) == "cluster":
        assert counted(found) == counted(expected), (sql, params)
        assert found.schema.remove_metadata() == expected.schema.remove_metadata(), sql
    return side(found)


def compared(
    make_world: Callable[..., World],
    make_postgres: Callable[..., PostgresWorld],
    cluster: str,
    source: str,
    count: int,
) -> Counter[str | None]:
    """Ask made-up queries of `auto`, and compare what the cluster answers; return who answered."""
    made: dict[str, Callable[..., World | PostgresWorld]]
    made = {"sqlite": make_world, "postgres": make_postgres}
    by_triggers = {"capture": {"method": "trigger"}} if source == "postgres" else {}
    world = made[source](storage="delta", tables=TABLES, **by_triggers)
    filled(world)
    queries, sides = Queries(11, source), Counter[str | None]()
    with rhei.open(with_cluster(world, cluster, TABLES, min_rows=1)) as htap:
        htap.sync_now()
        world.run("update a set n = n + 1 where id % 3 = 0", "delete from a where id % 7 = 0")
        htap.sync_now()
        for sql in ASKED:
            assert htap.explain_route(sql).engine == "cluster", sql
            assert asked_of(htap, sql, []) == "cluster", sql
        for _ in range(count):
            made_up = queries.make()
            sides[asked_of(htap, made_up.sql, made_up.params)] += 1
        reason = htap.explain_route(ASKED[0]).reason
    assert reason.endswith("its tables have 77 rows, and compute.min_rows is 1")
    return sides


@pytest.mark.cluster
@pytest.mark.parametrize("source", ["sqlite", "postgres"])
def test_what_the_cluster_answers_unasked_is_what_the_source_answers(
    make_world: Callable[..., World],
    make_postgres: Callable[..., PostgresWorld],
    cluster: str,
    source: str,
) -> None:
    assert compared(make_world, make_postgres, cluster, source, 150)["cluster"] > 10


@pytest.mark.soak
@pytest.mark.parametrize("source", ["sqlite", "postgres"])
def test_many_random_queries_have_the_sources_answer_from_the_cluster(
    make_world: Callable[..., World],
    make_postgres: Callable[..., PostgresWorld],
    cluster: str,
    source: str,
) -> None:
    assert compared(make_world, make_postgres, cluster, source, 1_500)["cluster"] > 100


def test_a_cluster_that_is_away_is_looked_for_once_in_a_while(
    make_world: Callable[..., World],
) -> None:
    world = make_world(storage="delta", tables=TABLES)
    filled(world)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        away = f"sc://127.0.0.1:{taken.getsockname()[1]}"
    looked, now = list[float](), [0.0]
    refuse = SparkConnect.refuse_unreachable

    def look(self: SparkConnect) -> None:
        looked.append(now[0])
        refuse(self)

    sql = "select t, count(*) as c from a group by t"
    with (
        pytest.MonkeyPatch.context() as patch,
        rhei.open(with_cluster(world, away, TABLES, min_rows=1)) as htap,
    ):
        patch.setattr(SparkConnect, "refuse_unreachable", look)
        patch.setattr("rhei_pipeline.compute.heavy_reads.monotonic", lambda: now[0])
        htap.sync_now()
        for _ in range(5):
            route = htap.explain_route(sql)
            assert (route.engine, side(htap.query(sql))) == ("olap", "olap")
            assert "not by the cluster: nothing answers at" in route.reason
        now[0] = REMEMBERED_SECONDS + 1
        assert side(htap.query(sql)) == "olap"
        assert htap.explain_route("select t from a where id = 1").engine == "oltp"
    assert looked == [0.0, REMEMBERED_SECONDS + 1]


@pytest.mark.cluster
def test_small_tables_and_states_that_nobody_has_published_are_left_to_the_mirror(
    make_world: Callable[..., World], cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(storage="delta", tables=TABLES)
    filled(world)
    sql = "select t, count(*) as c from a group by t"
    with rhei.open(with_cluster(world, cluster, TABLES, min_rows=61)) as htap:
        htap.sync_now()
        assert htap.explain_route(sql).reason == "it groups rows"  # 60 rows
        world.run("update a set n = 0 where id = 1")
        htap.sync_now()  # and a version that has ended
        assert side(htap.query(sql)) == "cluster"
        monkeypatch.setattr(engine_of(htap).mirror, "published", lambda _: None)
        found = htap.query(sql)
        assert side(found) == "olap"
        assert (found.schema.metadata or {})[b"rhei.reason"].endswith(
            b"not by the cluster: its tables are not published as they are now"
        )


@pytest.mark.parametrize(
    "sql",
    [
        'select sum("r") / 2 as "_out0" from "t"',
        'select upper("a") as "_out0" from "t"',
        'select count(*) from "t" where "a" like \'x%\'',
        "select count(*) from \"t\" where \"a\" = 'it''s'",
        'select count(*) from "t" where "a" = \'a\\b\'',
        'select count(*) from "t" where "n" = 1.5',
        'select count(*) from "t" where "a" in (select "b" from "u")',
        'select count(*) from "t" full join "u" on "t"."a" = "u"."a"',
        'select "a" from "t" union select "b" from "u"',
        'select arrow_cast("a", \'Float64\') from "t"',
        "select arrow_cast('2020-1-1', 'Date32') from \"t\"",
        'select sum(arrow_cast("n", \'Decimal128(38, 0)\')) from "t"',
        'select sum(distinct "n") from "t"',
        'select rank() over (order by "n") from "t"',
        'select "n" is true from "t"',
        'select count(*) from "t" where "n" = $p2',
        'select "n" + 1 from "t"',
        "not a statement",
    ],
)
def test_what_might_mean_another_thing_to_spark_is_left_to_the_mirror(sql: str) -> None:
    assert in_spark(sql, {"p1": 1}) is None


def test_columns_that_the_engines_compare_otherwise_are_left_to_the_mirror() -> None:
    kinds = {"f": pa.float32(), "b": pa.binary(), "c": pa.time64("us"), "d": pa.decimal128(20, 2)}
    kinds |= {"n": pa.int64(), "s": pa.string(), "e": pa.decimal128(19, 19), "o": pa.bool_()}
    columns = tuple(Column(name, kind) for name, kind in kinds.items())
    tables = {'"t"': Table(TableSchema("t", columns, ("n",)), Mode.DESTRUCTIVE)}
    suited = []
    for name in kinds:
        query = in_spark(f'select count(*) from "t" group by "{name}"', {})
        assert query is not None
        suited += [name] if holds_alike(query, tables) else []
    assert suited == ["n", "s", "e", "o"]


def test_parameters_are_written_where_both_read_the_same() -> None:
    sql = 'select count(*) as "_out0" from "t" where "n" = $p1'
    for value, written in ((5, "5"), (-(2**63), "-9223372036854775808"), ("é", "'é'")):
        found = in_spark(sql, {"p1": value})
        assert found is not None
        assert found.sql.endswith(f"WHERE `n` = {written}")
    for left in (1.5, True, "a'b", "a\\b", 2**63, b"x", None):
        assert in_spark(sql, {"p1": left}) is None


def test_where_auto_has_no_cluster_answer_nothing_is_said_of_one(
    make_world: Callable[..., World],
) -> None:
    world = make_world(storage="delta", tables=TABLES)
    filled(world)
    for said in ({"min_rows": None}, {"min_rows": 1, "kind": "spark"}, {}):
        nobody: Any = said
        with rhei.open(with_cluster(world, "sc://127.0.0.1:9", TABLES, **nobody)) as htap:
            htap.sync_now()
            assert htap.explain_route(ASKED[0]).reason == "it groups rows"
