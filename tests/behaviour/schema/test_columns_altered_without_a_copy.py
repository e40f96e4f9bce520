"""A column of PostgreSQL that is altered without its rows being written again takes no copy."""

from collections.abc import Callable
from typing import Any

import pytest

from rhei_pipeline.protocols import Step
from tests.support.fix_postgres import PostgresWorld

pytestmark = pytest.mark.turns

MakePostgres = Callable[..., PostgresWorld]

_CREATE = (
    "create type mood as enum ('calm', 'loud')",
    "create table t (id integer primary key, a integer, v varchar(9), n numeric(10, 2),"
    " m mood default 'calm', s timestamp, w text)",
    "insert into t values (1, 10, 'one', 1.25, 'calm', '2020-01-01', 'x'),"
    " (2, 20, null, -2.5, 'loud', null, ''), (3, 30, 'three', null, 'calm', '2021-01-01', null)",
)
#: What leaves every value as it is, and no other row of the table written.
_ALIKE = {
    "not_null": "alter table t alter column a set not null",
    "default": "alter table t alter column a set default 7",
    "longer": "alter table t alter column v type varchar(20)",
    "text": "alter table t alter column v type text",
    "wider": "alter table t alter column n type numeric(14, 2)",
    "many": "alter table t alter column v type text, alter column n type numeric(12, 2), drop a",
}


@pytest.fixture
def make(make_postgres: MakePostgres) -> MakePostgres:
    """Make a world with what was in it synced."""

    def made(storage: str | None = None, **options: Any) -> PostgresWorld:
        world = make_postgres(capture={"method": "logical"}, storage=storage, **options)
        world.run(*_CREATE)
        assert not world.htap.sync_now().errors
        return world

    return made


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("storage", [None, "parquet", "delta"])
@pytest.mark.parametrize("case", _ALIKE)
def test_no_row_is_read_for_a_column_that_holds_the_same_values(
    make: MakePostgres, case: str, storage: str | None, mode: str
) -> None:
    world = make(storage, mode=mode)
    before = _past(world) if mode == "temporal" else set()
    world.run(
        "update t set n = 3.75 where id = 1",
        _ALIKE[case],
        "update t set v = 'zwei' where id = 2",
        "insert into t (id, v, n) values (4, 'four', 12345678.5)"
        if case == "default"
        else "delete from t where id = 3",
    )
    report = world.htap.sync_now().tables["t"]
    assert (report.copied_rows, report.updated) == (0, 2)
    world.run("update t set n = 99999999.75, v = 'long' where id = 2")
    assert world.htap.sync_now().tables["t"].updated == 1
    world.htap.maintain()
    world.assert_equal("t")
    assert world.htap.verify("t").equal
    assert [change.rows_read for change in world.htap.schema_log("t")] == [0]
    assert before <= (_past(world) if mode == "temporal" else set())


def _past(world: PostgresWorld) -> set[tuple[object, ...]]:
    """Return what each version said when it began."""
    told = ("id", "a", "v", "n", "m", "s", "w", "_rhei_valid_from")
    return {tuple(str(version[name]) for name in told) for version in world.versions("t")}


#: What may have other values in a column of the same name.
_OTHERWISE = {
    "names_changed_places": "alter table t rename v to x; alter table t rename w to v;"
    " alter table t rename x to w",
    "an_instant": "set timezone to 'UTC'; alter table t alter column s type timestamptz",
    "there_again": "alter table t drop w; alter table t add w text default 'y'",
    "narrower": "alter table t alter column a type smallint",
}


@pytest.mark.parametrize("case", _OTHERWISE)
def test_a_table_is_copied_where_a_column_may_hold_other_values(
    make: MakePostgres, case: str
) -> None:
    world = make()
    world.run(*_OTHERWISE[case].split("; "))
    assert world.htap.sync_now().tables["t"].copied_rows == 3
    world.assert_equal("t")
    assert world.htap.verify("t").equal


#: What a column of an own type reads as may be other than before, but it is known which one it is.
_OF_OWN_TYPES = {
    "label": ["alter type mood rename value 'calm' to 'quiet'"],
    "renamed": ["alter table t rename m to feeling"],
    "both": ["alter table t rename m to k", "alter type mood rename value 'calm' to 'quiet'"],
    "attribute": ["alter type pair add attribute z integer"],
    "added": ["alter table t add e mood default 'loud'"],
    "added_without": ["alter table t add e mood[]", "update t set e = '{loud}' where id = 2"],
    "added_pair": ["create type own as (x mood)", "alter table t add e own default '(loud)'"],
}


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("method", ["logical", "polling"])
@pytest.mark.parametrize("case", _OF_OWN_TYPES)
def test_a_column_of_an_own_type_is_read_alone(
    make_postgres: MakePostgres, case: str, method: str, mode: str
) -> None:
    stamped = {"name": "t", "polling": {"deletes": "reconcile"}}
    world = make_postgres(capture={"method": method}, mode=mode, tables=[stamped])
    world.run(
        *_CREATE[:2],
        "create type pair as (x integer, y mood)",
        "alter table t add p pair, add updated_at timestamptz default clock_timestamp()",
        *_CREATE[2:],
        "update t set p = (1, m)",
    )
    assert not world.htap.sync_now().errors
    written = "updated_at = clock_timestamp() where id"
    world.run(
        f"update t set m = 'calm', a = 7, {written} = 2",
        *_OF_OWN_TYPES[case],
        f"update t set w = 'after', p = null, {written} = 3",
        f"delete from t where id = {1 if method == 'logical' else 0}",  # a poll sees it later
    )
    report = world.htap.sync_now().tables["t"]
    assert (report.error, report.copied_rows) == (None, 0)
    world.assert_equal("t")
    world.run(f"update t set w = 'later', {written} = 2")
    world.htap.sync_now()
    world.assert_equal("t")
    assert not world.htap.dead_letters("t").num_rows
    if mode == "temporal":
        assert not world.htap.broken_histories("t").num_rows


@pytest.mark.long
@pytest.mark.parametrize("step", [Step.SNAPSHOT, Step.APPLIED, Step.RECORDED, Step.COMMITTED])
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_crash_while_a_column_is_widened_loses_and_doubles_nothing(
    make: MakePostgres, step: Step, mode: str
) -> None:
    world = make("parquet", mode=mode)
    world.run(_ALIKE["many"], "update t set n = 7 where id = 1")
    world.faults.arm(step)
    assert world.surviving(world.htap.sync_now)
    world.run("update t set v = 'after' where id = 1")
    assert world.htap.sync_now().tables["t"].copied_rows == 0
    world.assert_equal("t")
    assert world.htap.verify("t").equal


def test_a_history_has_a_value_for_which_its_column_was_widened(make: MakePostgres) -> None:
    world = make(mode="temporal")
    world.run(
        "update t set n = 5 where id = 1",
        "alter table t alter column n type numeric(14, 2)",
        "update t set n = 999999999999.25 where id = 1",
    )
    assert not world.htap.sync_now().errors
    world.assert_equal("t")
    assert world.htap.verify("t").equal
    assert world.htap.dead_letters("t").num_rows == 0
