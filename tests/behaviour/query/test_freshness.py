"""Queries through the door: the same answer from either side, as fresh as it has to be."""

import copy
import json
import math
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import QueryError, RheiError
from rhei_pipeline.query.freshness import Writes, Written
from tests.support.fix_world import World
from tests.support.refusals import refused


def engine(found: pa.Table) -> str:
    return str(found.schema.metadata[b"rhei.engine"].decode())


def values(found: pa.Table) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in found.to_pylist()]


@pytest.fixture(params=[None, "memory"], ids=["duckdb", "datafusion"])
def odd(make_world: Callable[..., World], request: pytest.FixtureRequest) -> World:
    """Values on which engines differ, if left to themselves."""
    world = make_world(
        storage=request.param,
        tables=[{"name": "t"}, {"name": "c"}, {"name": "o", "types": {"v": "string"}}],
    )
    world.run(
        "create table t(id integer primary key, n integer, x text, r real, d decimal(8, 2),"
        " ok boolean, made timestamp)",
        "insert into t values (1, 7, 'apple', 0.5, 1.10, 1, '2024-01-01 00:00:00')",
        "insert into t values (2, -7, 'APPLE', -0.5, 2, 0, '2024-01-02 10:00:00')",
        "insert into t values (3, null, 'Äpfel', null, null, null, null)",
        "insert into t values (4, 9007199254740993, '50%', 1e300, 99.99, 1, '2024-05-01 00:00:00')",
        "insert into t values (5, 0, 'äpfel', 9007199254740992.0, -1, 0, '2023-01-01 00:00:00')",
        "create table c(id integer primary key, x text collate nocase)",
        "insert into c values (1, 'a'), (2, 'A')",
        "create table o(id integer primary key, v)",
        "insert into o values (1, 'a')",
    )
    world.htap.sync_now()
    return world


#: It looks at rows that another condition leaves out.
LEFT_BY_DATAFUSION = {
    "select max(n) from t where n > r and id < 4",
    "select count(*) from t where n between -7 and 0.5 and id < 4",
}


#: What is asked, and which side answers.
QUERIES = (
    ("select count(*) from t where x like 'aPP%'", "olap"),
    ("select count(*) from t where x like 'ä%'", "olap"),
    ("select count(*) from t where x not like '%50\\%' escape '\\'", "olap"),
    ("select id, sum(n / 2), sum(n % 3), sum(n / 0) from t where id < 4 group by id", "olap"),
    ("select sum(r / 0), sum(r * 2) from t where id < 3", "oltp"),
    ("select sum(r / 0), sum(r * 2) from t where id < 2", "olap"),
    ("select ok, count(*), sum(ok), min(ok) from t group by ok order by ok", "olap"),
    ("select x, count(*) from t group by x order by x desc", "olap"),
    ("select n, count(*) from t group by n order by n", "olap"),
    ("select max(n) from t where n > r", "oltp"),
    ("select max(n) from t where n > r and id < 4", "olap"),
    ("select max(d), min(d), count(distinct d) from t where d > 1.1", "olap"),
    ("select max(made), count(made) from t", "oltp"),
    ("select count(*) from t where made > '2024-01-01'", "oltp"),
    ("select count(*) from c where x = 'A'", "oltp"),
    ("select count(*) from c", "olap"),
    ("select count(*) from o where v = 'a'", "oltp"),
    ("select max(length(x)), min(upper(x)), max(substr(x, 2, 2)) from t", "olap"),
    ("select coalesce(max(n), 0) / 2, -max(n) from t where id = 1", "olap"),
    ("select max(n, t.id), min(r, 1) from t join c on t.id = c.id order by t.id", "olap"),
    ("select avg(n), total(n) from t where id < 4", "olap"),
    ("select avg(n), total(n) from t", "oltp"),
    ("select sum(n) + sum(n) from t where n > 8", "olap"),
    ("select x || n from t group by x || n", "olap"),
    ("select t.* from t join c on t.id = c.id", "olap"),
    ("select n, count(*) as c from t group by n order by c desc limit 1", "oltp"),
    ("select n, count(*) as c from t group by n order by c desc, n limit 2", "olap"),
    ("select ok, max(id) as m from t group by ok order by m desc limit 1", "olap"),
    ("select count(*) from t where n is 7 or x is not 'apple'", "olap"),
    ('select count(*) from t where x = "apple"', "oltp"),
    ("select case when n > 0 then 1 else 0.5 end as v, count(*) from t group by 1", "olap"),
    ("select null as a, count(*) as b from t", "olap"),
    ("select (t.n), ( n ), (count(*)), max((n)) from t group by (n)", "olap"),
    ("select (select x from t order by id) as a, count(*) as b from t", "oltp"),
    ("select n as m, count(*) as c from (select n, id as m from t) s group by m", "oltp"),
    ("select n as q, count(*) as c from t group by q order by q desc", "olap"),
    ("select ok is true as a, count(*) as c from t group by 1", "olap"),
    ("select n is true as a, count(*) as c from t group by 1", "oltp"),
    ("select ok = true as a, count(*) as c from t group by 1", "olap"),
    ("select count(*) from t where not ok and r is not null", "olap"),
    ("select count(*) from t where d in (1.1, 2, -1)", "olap"),
    ("select count(*) from t where n between -7 and 0.5 and id < 4", "olap"),
    ("select max(id) from t limit 0", "olap"),
    ("select count(*) from t where x like '%\\%%' escape '\\'", "olap"),
    ("select n as n, x as n, count(*) from t group by 1, 2", "olap"),
    ("select count(*) from t where false", "olap"),
    ("select max(x), max(n), max(r), max(d) from t where id > 100", "olap"),
    ("select id, n, r from t where id > 100", "oltp"),
)


def test_both_sides_answer_alike(odd: World) -> None:
    for sql, side in QUERIES:
        found, expected = odd.htap.query(sql), odd.htap.query(sql, hint="oltp")
        left = odd.storage is not None and sql in LEFT_BY_DATAFUSION
        assert engine(found) == ("oltp" if left else side), (sql, found.schema.metadata)
        assert found.schema.remove_metadata() == expected.schema.remove_metadata(), sql
        if "order by" in sql:
            assert values(found) == values(expected), sql
        assert sorted(map(repr, values(found))) == sorted(map(repr, values(expected))), sql


def test_text_with_a_nul_character_is_left_to_the_source(odd: World) -> None:
    odd.run("insert into t(id, x) values (9, 'a' || char(0) || 'b')")
    odd.htap.sync_now()
    found = odd.htap.query("select max(length(x)) as n from t where id = 9")
    assert (engine(found), values(found)) == ("oltp", [(1,)])


def test_a_sum_that_overflows_is_the_sources_error(odd: World) -> None:
    odd.run(f"insert into t(id, n) values (8, {2**63 - 1}), (9, {2**63 - 1})")
    odd.htap.sync_now()
    with pytest.raises(QueryError, match="overflow"):
        odd.htap.query("select sum(n) from t")


def test_a_table_with_dead_letters_is_left_to_the_source(odd: World) -> None:
    odd.run("insert into t(id, n) values (7, 'no number')")
    odd.htap.sync_now()
    found = odd.htap.query("select count(*) from t")
    assert (engine(found), values(found)) == ("oltp", [(6,)])
    assert b"cannot be mirrored" in found.schema.metadata[b"rhei.reason"]
    odd.run("update t set n = 7 where id = 7")
    odd.htap.sync_now()
    assert engine(odd.htap.query("select count(*) from t")) == "olap"
    odd.run("update t set n = 'no number again' where id = 7")
    odd.htap.sync_now()
    assert engine(odd.htap.query("select count(*) from t")) == "oltp"


def test_an_answer_tells_how_long_ago_the_sync_began_that_it_shows(odd: World) -> None:
    synced = time.monotonic()
    for _ in range(3):
        asked = time.monotonic()
        for hint in ("auto", "olap"):
            found = odd.htap.query("select count(*) from c", hint=hint)
            told = float(found.schema.metadata[b"rhei.staleness_seconds"])
            assert asked - synced <= told + 0.001, hint
        odd.htap.query("select x from t a cross join o order by 1")


def test_a_table_that_is_not_copied_yet_is_left_to_the_source(world: World) -> None:
    found = world.htap.query("select count(*) from orders")
    assert (engine(found), values(found)) == ("oltp", [(3,)])


def test_columns_that_are_not_mirrored_are_left_to_the_source(
    make_world: Callable[..., World],
) -> None:
    world = make_world(tables=[{"name": "p", "columns": ["id", "a"]}])
    world.run("create table p(id integer primary key, a int, secret text)")
    world.run("insert into p values (1, 2, 'x')")
    world.htap.sync_now()
    assert engine(world.htap.query("select max(a) from p")) == "olap"
    assert engine(world.htap.query("select max(secret) from p")) == "oltp"
    joined = world.htap.query("select * from p join p as q on p.id = q.id")
    assert (engine(joined), joined.num_columns) == ("oltp", 6)


def test_a_temporal_table_is_what_is_valid_now_unless_history_is_asked_for(
    make_world: Callable[..., World],
) -> None:
    world = make_world(mode="temporal")
    world.run(
        "create table v(id integer primary key, n int)", "insert into v values (1, 1), (2, 2)"
    )
    world.htap.sync_now()
    world.run("update v set n = 5 where id = 1", "delete from v where id = 2")
    world.htap.sync_now()
    now = world.htap.query("select count(*), max(n) from v")
    assert (engine(now), values(now)) == ("olap", [(1, 5)])
    past = world.htap.query("select count(*) from v where _rhei_valid_to is not null")
    assert (engine(past), values(past)) == ("olap", [(2,)])


def test_parameters_work_on_both_sides(odd: World) -> None:
    for sql in (
        "select count(*) as c from t where x like ? and n > ?",
        "select id from t where x like ? and n > ?",
    ):
        found = odd.htap.query(sql, ["A%", -8])
        assert found.num_rows in {1, 2}
    assert values(odd.htap.query("select count(*) from t where id = ?2 or id = ?1", [1, 2])) == [
        (2,)
    ]
    assert values(odd.htap.query("select count(*) from t where n = ?", [None])) == [(0,)]
    assert values(odd.htap.query("select count(*) from t where id = ?", [True])) == [(1,)]


def test_a_query_refuses_to_write(odd: World) -> None:
    for sql in (
        "delete from t",
        "with x as (select 1) insert into t(id) select 9",
        "create table z(a)",
        "begin",
        "pragma query_only = 0",
        "attach 'x' as y",
        "select 1; delete from t",
    ):
        for hint in ("auto", "oltp"):
            with pytest.raises(QueryError):
                odd.htap.query(sql, hint=hint)
    assert values(odd.htap.query("select count(*) from t", hint="oltp")) == [(5,)]


def test_an_answer_shows_the_writes_made_before_it(world: World) -> None:
    world.htap.sync_now()
    written = world.htap.execute("insert into orders values (4, 'new', 1)")
    assert written == 1
    found = world.htap.query("select count(*) from orders")
    assert (engine(found), values(found)) == ("olap", [(4,)])
    marks = json.loads(found.schema.metadata[b"rhei.watermark"])
    assert marks == {"orders": world.htap.sync_status().tables["orders"].watermark}


def test_an_answer_may_lag_behind_other_writers_within_max_staleness(world: World) -> None:
    world.htap.sync_now()
    world.run("insert into orders values (4, 'new', 1)")
    assert values(world.htap.query("select count(*) from orders")) == [(3,)]
    assert values(world.htap.query("select count(*) from orders", max_staleness=3600)) == [(3,)]
    assert values(world.htap.query("select count(*) from orders", max_staleness=0)) == [(4,)]
    world.run("insert into orders values (5, 'new', 1)")
    fresh = world.htap.query("select count(*) from orders", hint="olap", max_staleness=0)
    assert values(fresh) == [(5,)]
    for none in (-1, math.nan, math.inf):
        with pytest.raises(QueryError, match="negative, or not a number"):
            world.htap.query("select count(*) from orders", max_staleness=none)


def test_a_bound_that_no_cluster_keeps_is_refused(world: World) -> None:
    written = world.htap.execute("insert into orders values (4, 'new', 1)")
    for bound in ({"max_staleness": 0}, {"after": written}):
        with pytest.raises(QueryError, match="a cluster answers from what was published last"):
            world.htap.query("select count(*) from orders", hint="cluster", **bound)
        fresh = world.htap.query("select count(*) from orders", hint="olap", **bound)
        assert values(fresh) == [(4,)]


def opened(world: World, **queries: Any) -> HTAP:
    settings = world.settings.model_dump()
    return HTAP(Settings(**{**settings, "queries": queries}))


def test_a_stale_mirror_can_send_queries_to_the_source(world: World) -> None:
    with opened(world, when_stale="oltp") as htap:
        htap.sync_now()
        htap.execute("insert into orders values (4, 'new', 1)")
        found = htap.query("select count(*) from orders")
        assert (engine(found), values(found)) == ("oltp", [(4,)])
        assert b"older than the query allows" in found.schema.metadata[b"rhei.reason"]
        htap.sync_now()
        assert engine(htap.query("select count(*) from orders")) == "olap"


def test_a_stale_query_can_wait_for_the_background_sync(world: World) -> None:
    with opened(world, when_stale="wait", wait_seconds=60) as htap:
        htap.sync_now()
        htap.start_sync(0.01)
        htap.execute("insert into orders values (4, 'new', 1)")
        found = htap.query("select count(*) from orders")
        assert (engine(found), values(found)) == ("olap", [(4,)])


def test_a_write_made_elsewhere_is_seen_by_its_token(world: World) -> None:
    world.htap.sync_now()
    world.run("insert into orders values (4, 'new', 1)")
    written = Written(1, time.monotonic_ns())
    assert values(world.htap.query("select count(*) from orders", after=written)) == [(4,)]


def test_a_write_keeps_its_moment_on_the_way_to_another_process(world: World) -> None:
    world.htap.sync_now()
    written = world.htap.execute("insert into orders values (4, 'new', 1), (5, 'new', 1)")
    pickled = pickle.loads(pickle.dumps(written))  # noqa: S301
    for same in (copy.copy(written), copy.deepcopy(written), pickled):
        assert (same, same.committed_at) == (2, written.committed_at)
    token = json.loads(json.dumps({"after": written.token}))["after"]
    assert Written.parse(token).committed_at == written.committed_at
    assert Written.parse(token) == 2
    world.crash()
    with opened(world, when_stale="oltp") as other:
        found = other.query("select count(*) from orders", after=token)
        assert (engine(found), values(found)) == ("oltp", [(5,)])
        other.sync_now()
        found = other.query("select count(*) from orders", after=token)
        assert (engine(found), values(found)) == ("olap", [(5,)])
        # What a machine gave out before it was started again cannot hold up anybody.
        assert values(other.query("select count(*) from orders", after=f"1@{10**19}")) == [(5,)]


@pytest.mark.parametrize("after", [3, "3", "3@", "@3", "3@-1", "3@1 ", "٣@٣", 3.0])
def test_what_is_no_write_is_refused_as_one(world: World, after: Any) -> None:
    world.htap.sync_now()
    for hint in ("auto", "olap"):
        with pytest.raises(
            QueryError, match=r"'after' is not a write \(pass what execute returned"
        ):
            world.htap.query("select count(*) from orders", hint=hint, after=after)


def test_a_write_noted_late_does_not_hide_a_later_one() -> None:
    writes, clock = Writes(), time.monotonic_ns
    later = writes.note(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic_ns", lambda: later.committed_at - 1)
        assert writes.note(1).committed_at < later.committed_at
    assert writes.last is later
    assert later.committed_at <= clock()


def test_what_the_source_answers_is_streamed_too(world: World) -> None:
    world.htap.sync_now()
    world.run("insert into orders values (8, 'late', x'00')")  # a value that cannot be mirrored
    world.htap.sync_now()
    world.run("delete from orders where id = 8")
    streamed = world.htap.stream("select id, status from orders where id > 0 order by id", (), 2)
    assert (streamed.schema.metadata or {})[b"rhei.engine"] == b"oltp"
    assert [batch.num_rows for batch in streamed.batches] == [2, 1]


@pytest.mark.parametrize(
    ("sql", "side"),
    [
        ("select sum(amount) as s from orders where status = 'pair'", b"oltp"),
        ("select status, count(*) as n from orders group by 1 order by n desc limit 1", b"oltp"),
        ("select status, count(*) as n from orders group by 1 order by n limit 1", b"olap"),
        ("select status, count(*) as n from orders group by 1 order by 1", b"olap"),
        ("select id from orders where id < 0 union select id from orders where id < 0", b"olap"),
    ],
)
def test_a_stream_is_the_answer_whatever_side_gives_it(world: World, sql: str, side: bytes) -> None:
    world.run("insert into orders values (10, 'pair', 1.5), (11, 'pair', -1.5)")
    world.htap.sync_now()
    streamed = world.htap.stream(sql, (), 1)
    found = pa.Table.from_batches(streamed.batches, streamed.schema)
    expected = world.htap.query(sql, hint="oltp")
    assert found.schema.remove_metadata() == expected.schema.remove_metadata()
    assert values(found) == values(expected)
    assert (found.schema.metadata or {})[b"rhei.engine"] == side


@pytest.mark.parametrize("hint", ["mirror", "source"])
def test_a_stream_is_cancelled_before_its_first_row(world: World, hint: str) -> None:
    world.run(
        "with recursive n(i) as (select 10 union all select i + 1 from n where i < 5000)"
        " insert into orders select i, 'bulk', i from n"
    )
    world.htap.sync_now()
    compared = "a.id * b.id % c.id" if hint == "mirror" else "(a.id * b.id % c.id) & 3"
    sql = f"select max({compared}) as n from orders a, orders b, orders c where c.id > 0"
    with pytest.raises(RheiError, match=r"cancelled|ended|nterrupt"):
        # The timer's thread ends what this one waits for.
        world.htap.stream(sql, begun=lambda cancel: threading.Timer(0.2, cancel).start())


def test_a_write_that_returns_rows_is_seen_like_any_other(world: World) -> None:
    world.htap.sync_now()
    sql = "insert into orders(status, amount) values ('new', ?) returning id, amount"
    found = world.htap.execute_returning(sql, [4.5])
    assert values(found) == [(4, 4.5)]
    seen = world.htap.query("select count(*), sum(amount) from orders")
    assert (engine(seen), values(seen)) == ("olap", [(4, 12.0)])
    with refused("use execute, or let it return rows with 'returning ...'", QueryError):
        world.htap.execute_returning("delete from orders")
    assert world.htap.execute_returning("delete from orders returning id").num_rows == 4
    world.crash()
    with opened(world) as other:
        token = found.schema.metadata[b"rhei.written"].decode()
        assert values(other.query("select count(*) from orders", after=token)) == [(0,)]
