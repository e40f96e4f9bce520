"""A pipeline that is closed while it is asked: who asked hears that, and closing succeeds."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Semaphore

import pytest

from rhei_pipeline.errors import MirrorError, QueryError
from rhei_pipeline.holder.held import Hint
from rhei_pipeline.model.query_limits import QueryClock
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

#: Under way for longer than it takes to close. DataFusion works on at a join that was cancelled,
#: so it has an end of its own.
LONG = "select sum(a.v * b.v - c.v + d.v) as n from t a, t b, t c, t d"
CLOSED = r"the mirror is closed \(open it again\)"


def filled(world: World | PostgresWorld) -> World | PostgresWorld:
    numbers = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 200)"
    world.run(
        "create table t(id integer primary key, v integer)",
        f"insert into t {numbers} select i, i from n",
    )
    world.htap.sync_now()
    return world


def close_under_way(world: World | PostgresWorld, hints: Sequence[Hint]) -> None:
    htap = world.htap

    def ask(hint: Hint, is_begun: Event) -> object:
        return htap.query(LONG, hint=hint, begun=lambda _: is_begun.set())

    begun = [Event() for _ in hints]
    with ThreadPoolExecutor(len(hints)) as asking:
        asked = [asking.submit(ask, *one) for one in zip(hints, begun, strict=True)]
        assert all(is_begun.wait(60) for is_begun in begun)
        htap.close()
        for one in asked:
            with pytest.raises(MirrorError, match=CLOSED):
                one.result(60)
    world.crash()
    assert world.htap.query("select count(*) as n from t", hint="olap")["n"].to_pylist() == [200]


@pytest.mark.parametrize("storage", [None, "ipc"])
def test_queries_under_way_end_when_a_pipeline_is_closed(
    storage: str | None, make_world: Callable[..., World]
) -> None:
    world = filled(make_world(storage=storage))
    close_under_way(world, ["olap", "oltp", "auto"])
    streamed = world.htap.stream("select a.id from t a, t b, t c")
    next(streamed.batches)
    world.htap.close()
    with pytest.raises(MirrorError, match=CLOSED):
        list(streamed.batches)


def test_queries_of_postgres_under_way_end_when_a_pipeline_is_closed(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    close_under_way(filled(make_postgres(capture={"method": "trigger"})), ["olap", "oltp"])


def test_no_thread_watches_over_queries_once_a_pipeline_is_closed() -> None:
    clock, cancelled, before = QueryClock(3_600), Semaphore(0), set(threading.enumerate())
    with pytest.raises(MirrorError, match=CLOSED), clock.timing() as query:
        query.begun(cancelled.release)
        clock.close()
        # One that its engine misses is cancelled again, until the query has ended.
        assert all(cancelled.acquire(timeout=30) for _ in range(2))
        raise QueryError("the query was cancelled")
    _assert_ended(before)


def test_a_query_that_begins_after_the_end_is_ended_at_once() -> None:
    """One may have the clock in hand already when another thread closes the pipeline."""
    clock, cancelled = QueryClock(60), Event()
    clock.close()
    with pytest.raises(MirrorError, match=CLOSED), clock.timing() as query:
        query.begun(cancelled.set)
        assert cancelled.is_set()
        raise QueryError("the query was cancelled")


def test_no_thread_watches_over_queries_of_whoever_is_done_asking() -> None:
    clock, before = QueryClock(3_600), set(threading.enumerate())
    with clock.timing() as under_way:
        clock.rest()
        with clock.timing():
            pass
        assert {*threading.enumerate()} - before  # what is under way is still watched over
        under_way.refuse_ended()
    _assert_ended(before)
    with clock.timing():
        assert {*threading.enumerate()} - before  # as is what begins later
    _assert_ended(before)


def _assert_ended(before: set[threading.Thread]) -> None:
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()
