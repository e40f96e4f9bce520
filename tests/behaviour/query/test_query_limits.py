"""What one query may take of time and memory, and how queries take their turns."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import adbc_driver_flightsql.dbapi as flight_sql
import pytest

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import QueriesBusyError, QueryLimitError
from rhei_pipeline.holder.held import Hint
from rhei_pipeline.model.places import Places
from rhei_pipeline.server.flight.server import FlightSqlServer
from tests.support.fix_world import World

ENDLESS = (
    "with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) as m from n"
)
#: Answered by the mirror, in batches without an end in sight.
LONG = "select a.id, b.id as other from orders a, orders b, orders c, orders d, orders e, orders f"
HINTS: tuple[Hint, ...] = ("auto", "olap", "oltp")
POINT = "select id, status from orders where id = 2"


@contextmanager
def opened(world: World, **queries: Any) -> Iterator[HTAP]:
    world.run(
        "with recursive n(i) as (select 10 union all select i + 1 from n where i < 300)"
        " insert into orders select i, 'bulk', i from n"
    )
    world.htap.sync_now()
    world.htap.close()
    with opened_again(world, **queries) as htap:
        yield htap


def opened_again(world: World, **queries: Any) -> HTAP:
    return HTAP(Settings(**{**world.settings.model_dump(), "queries": queries}))


@pytest.fixture(params=[None, "memory"], ids=["duckdb", "datafusion"])
def either(make_world: Callable[..., World], request: pytest.FixtureRequest) -> World:
    world = make_world(storage=request.param)
    world.run("create table orders(id integer primary key, status text, amount real)")
    world.run("insert into orders values (1, 'new', 1.5), (2, 'new', 2.5), (3, 'paid', 3.5)")
    return world


def test_a_query_that_takes_too_long_is_ended_whichever_side_answers(world: World) -> None:
    with opened(world, query_seconds=0.2) as htap:
        for sql, hint in zip((LONG, LONG, ENDLESS), HINTS, strict=True):
            with pytest.raises(QueryLimitError, match=r"longer than 0\.2 s.*query_seconds"):
                htap.query(sql, hint=hint)
        with pytest.raises(QueryLimitError, match="longer than"):
            list(htap.stream(LONG).batches)
        assert htap.query(POINT).num_rows == 1


@pytest.mark.long
def test_an_answer_held_whole_takes_a_bounded_number_of_bytes(either: World) -> None:
    with opened(either, query_bytes=2**20) as htap:
        htap.sync_now()  # a mirror in memory begins again
        for hint in HINTS:
            with pytest.raises(QueryLimitError, match=r"1,048,576 bytes.*query_bytes"):
                htap.query(LONG, hint=hint)
        assert htap.query("select a.id from orders a, orders b limit 0").num_rows == 0
        streamed = htap.stream("select a.id, b.id as o from orders a, orders b", rows=10_000)
        assert sum(batch.num_rows for batch in streamed.batches) > 2**20 // 16


def test_the_largest_limits_are_taken(either: World) -> None:
    """SQLite counts the length of a value in 32 bits, and threads do not wait without an end."""
    longest = {"query_seconds": 2_000_000, "turn_seconds": 1_000_000_000}
    with opened(either, query_bytes=2**63 - 1, query_rows=2**63 - 1, **longest) as htap:
        htap.sync_now()
        for hint in HINTS:
            assert htap.query(POINT, hint=hint).num_rows == 1


#: Of more rows than two, and of two: for the mirror, for the mirror by its SQL, for the source.
_MANY = "select a.id from orders a join orders b on a.id = b.id"
_TWO = f"{_MANY} where a.id < 3"


def test_an_answer_has_a_bounded_number_of_rows_however_it_is_asked(either: World) -> None:
    with opened(either, query_rows=2) as htap:
        htap.sync_now()
        for hint in HINTS:
            with pytest.raises(QueryLimitError, match=r"more than 2 rows.*queries\.query_rows"):
                htap.query(_MANY, hint=hint)
            assert htap.query(_TWO, hint=hint).num_rows == 2
        # The mirror is asked for one row more than a limit, and gives it to nobody.
        limited = htap.query(f"{_MANY} order by a.id limit 2")
        assert (limited.num_rows, limited.schema.metadata[b"rhei.engine"]) == (2, b"olap")
        with pytest.raises(QueryLimitError, match="more than 2 rows"):
            htap.query(f"{_MANY} order by a.id limit 3")
        for sql in (_MANY, "select id, status from orders", f"{_MANY} order by a.id limit 3"):
            with pytest.raises(QueryLimitError, match="more than 2 rows"):
                list(htap.stream(sql).batches)
        for sql in (_TWO, f"{_MANY} order by a.id limit 2"):
            assert sum(batch.num_rows for batch in htap.stream(sql).batches) == 2
    with opened_again(either, query_rows=400) as htap:
        htap.sync_now()
        assert htap.query(_MANY).num_rows == htap.query(_MANY, hint="oltp").num_rows == 294


def test_rows_are_bounded_over_flight_too(world: World) -> None:
    with opened(world, query_rows=2) as htap, FlightSqlServer(htap) as server:
        address = f"grpc://127.0.0.1:{server.port}"
        with flight_sql.connect(address, autocommit=True) as client, client.cursor() as cursor:
            cursor.execute(_TWO)
            assert cursor.fetch_arrow_table().num_rows == 2
            for sql in (_MANY, "select id from orders"):
                with pytest.raises(flight_sql.Error, match=r"more than 2 rows.*query_rows"):
                    cursor.execute(sql)
                    cursor.fetch_arrow_table()


@pytest.mark.long
def test_a_read_of_single_rows_never_waits_behind_long_queries(world: World) -> None:
    with opened(world, at_once=2, turn_seconds=0) as htap:
        long = [htap.stream(LONG).batches for _ in range(2)]
        for batches in long:
            next(batches)
        assert htap.query(POINT).num_rows == 1
        assert htap.query(POINT, hint="oltp").num_rows == 1
        with pytest.raises(QueriesBusyError, match=r"2 queries are under way.*queries\.at_once"):
            htap.query("select count(*) from orders")
        long[0].close()  # type: ignore[attr-defined]
        assert htap.query("select count(*) from orders").num_rows == 1


def test_who_came_first_gets_the_first_free_place() -> None:
    places, order, entered = Places(1), list[int](), threading.Event()

    def wait(number: int) -> None:
        assert places.take(60.0)
        order.append(number)
        places.give_back()

    assert places.take(0)
    assert not places.take(0)
    assert not places.take(0.01)
    with ThreadPoolExecutor(5) as pool:
        waiting = []
        for number in range(5):
            waiting.append(pool.submit(wait, number))
            while len(places._waiting) <= number:
                entered.wait(0.001)
        places.give_back()
        for each in waiting:
            each.result()
    assert order == [0, 1, 2, 3, 4]
    assert places.take(0)


@pytest.mark.long
def test_a_streamed_query_is_timed_until_it_is_closed(world: World) -> None:
    with opened(world) as htap:
        told: list[tuple[str, float]] = []
        htap.watch(lambda _report: None, lambda side, seconds: told.append((side, seconds)))
        streamed = htap.stream(LONG)
        next(streamed.batches)
        assert told == []
        streamed.batches.close()  # type: ignore[attr-defined]
        list(htap.stream(POINT).batches)
        assert [side for side, _ in told] == ["olap", "oltp"]
        assert all(seconds > 0 for _, seconds in told)


@pytest.mark.long
def test_a_batch_of_wide_rows_has_few(either: World) -> None:
    either.run(
        "with recursive n(i) as (select 10 union all select i + 1 from n where i < 20000)"
        " insert into orders select i, printf('%2000s', i), i from n"
    )
    either.htap.sync_now()
    sql = "select a.status from orders a join orders b on a.id = b.id"
    streamed = either.htap.stream(sql, rows=1_000_000)
    sizes = [(batch.num_rows, batch.nbytes) for batch in streamed.batches]
    assert sum(rows for rows, _ in sizes) == 19_994
    assert max(size for _, size in sizes) < 32 * 2**20
