"""A bound on freshness, asked of a table that no sync brings up to date."""

import json
from collections.abc import Callable

import pytest

from rhei_pipeline.errors import QueryError
from rhei_pipeline.holder.held import Hint
from tests.support.fix_world import World

MakeWorld = Callable[..., World]
PRESENT = "select sum(v) as s from t where _rhei_valid_to is null"


@pytest.fixture(params=[None, "ipc", "parquet", "delta"])
def left_out(request: pytest.FixtureRequest, make_world: MakeWorld) -> World:
    """Declare a table with history as destructive: it is left out."""
    world = make_world(mode="temporal", storage=request.param)
    world.run("create table t(id integer primary key, v int)", "insert into t values (1, 1)")
    world.htap.sync_now()
    world.crash()
    world.mode = "destructive"
    return world


@pytest.mark.parametrize("hint", ["auto", "olap"])
def test_an_answer_from_a_table_that_is_left_out_is_never_called_fresh(
    left_out: World, hint: Hint
) -> None:
    written = left_out.htap.execute("update t set v = 5")
    with pytest.raises(QueryError, match="older than the query allows"):
        left_out.htap.query(PRESENT, hint=hint, max_staleness=0)
    with pytest.raises(QueryError, match="older than the query allows"):
        left_out.htap.query(PRESENT, hint=hint, after=written)
    assert "'t' is not followed since" in str(left_out.htap.explain_route(PRESENT).freshness)
    found = left_out.htap.query(PRESENT, hint=hint)
    assert found["s"].to_pylist() == [1]
    assert list(json.loads(found.schema.metadata[b"rhei.not_followed"])) == ["t"]


def test_the_source_answers_fresh_for_a_table_that_is_left_out(left_out: World) -> None:
    left_out.htap.execute("update t set v = 5")
    found = left_out.htap.query("select sum(v) as s from t", max_staleness=0)
    assert found["s"].to_pylist() == [5]


def test_a_table_that_the_source_has_is_not_said_to_be_in_the_mirror_alone(left_out: World) -> None:
    with pytest.raises(QueryError, match="number of bindings") as refused:
        left_out.htap.query("select v from t where v = ?")
    assert refused.value.hint is None


def test_a_query_of_a_table_that_was_set_aside_is_told_where_it_stands(left_out: World) -> None:
    left_out.htap.drop_table("t", keep_as="T_old")
    left_out.htap.sync_now()
    with pytest.raises(QueryError, match="no such table") as refused:
        left_out.htap.query('select count(*) as n from "T_old"')
    assert "'T_old' exists only in the mirror" in str(refused.value)
    assert "--hint olap" in str(refused.value)
    assert left_out.htap.query('select count(*) as n from "T_old"', hint="olap").num_rows == 1
    with pytest.raises(QueryError, match="no such table") as unknown:
        left_out.htap.query("select count(*) as n from nowhere")
    assert unknown.value.hint is None


def test_rows_that_were_rejected_since_are_asked_of_the_source(make_world: MakeWorld) -> None:
    world = make_world()
    world.run("create table t(id integer primary key, n integer)", "insert into t values (1, 1)")
    world.htap.sync_now()
    count = "select count(*) as n from t where n is not null"
    for value, engine in (("2", b"olap"), ("'two'", b"oltp"), ("3", b"olap")):
        world.run(f"insert into t values (2, {value}) on conflict do update set n = excluded.n")
        world.htap.sync_now()
        answer = world.htap.query(count)
        assert answer["n"].to_pylist() == [2]
        assert answer.schema.metadata[b"rhei.engine"] == engine
