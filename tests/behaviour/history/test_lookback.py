"""The past is shown with the columns it had, and what nobody knows is never shown as nothing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import yaml
from deltalake import DeltaTable
from typer.testing import CliRunner

from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import QueryError
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.protocols import Step
from tests.support.delta_readers import read_by_delta_rs
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.forked import output_of
from tests.support.model import instant_between
from tests.support.parts import engine_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
MIRRORS = pytest.mark.parametrize("storage", [None, "memory", "ipc", "parquet", "delta"])
KEPT = pytest.mark.parametrize("storage", [None, "parquet"])
SHAPES = pytest.mark.parametrize("change", ["add column x int default 5", "rename column v to w"])
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


def as_of(world: World, at: datetime) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = world.htap.as_of("t", at).sort_by("id").to_pylist()
    return rows


@pytest.fixture
def dropped(make_world: MakeWorld, storage: str | None) -> tuple[World, datetime, datetime]:
    """A table that lost its column `n` between two instants, of which no row changed since."""
    world = make_world(mode="temporal", storage=storage)
    world.run("create table t(id integer primary key, n int, v int)")
    world.run("insert into t values (1, 10, 0), (2, 20, 0)")
    world.htap.sync_now()
    world.run("update t set n = 11 where id = 1")
    world.htap.sync_now()
    before = instant_between()
    world.run("alter table t drop column n", "insert into t values (3, 0)")
    world.htap.sync_now()
    return world, before, instant_between()


@MIRRORS
@SHAPES
def test_the_past_is_told_until_a_change_of_shape_is_followed(
    make_world: MakeWorld, storage: str | None, change: str
) -> None:
    _assert_told_while_followed(make_world(mode="temporal", storage=storage), change)


@pytest.mark.long
@KEPT
@SHAPES
@pytest.mark.parametrize("method", ["trigger", "logical"])
def test_the_past_of_postgres_is_told_until_a_change_of_shape_is_followed(
    make_postgres: Callable[..., PostgresWorld], storage: str | None, change: str, method: str
) -> None:
    world = make_postgres(capture={"method": method}, mode="temporal", storage=storage)
    _assert_told_while_followed(world, change)


def _assert_told_while_followed(world: World | PostgresWorld, change: str) -> None:
    """The change is known before the mirror has it, which has the former columns until then."""
    world.run("create table t(id integer primary key, v int)", "insert into t values (1, 0)")
    world.htap.sync_now()
    before = instant_between()
    world.run("insert into t values (2, 0)")
    world.htap.sync_now()
    after, position = instant_between(), world.htap.changes("t").position
    world.run(f"alter table t {change}", "insert into t(id) values (3)")
    htap, told = world.htap, []

    def ask() -> list[Any]:
        return [
            htap.as_of("t", before).select(["id", "v"]).to_pylist(),
            htap.diff("t", before, after)["id"].to_pylist(),
            htap.changes("t", position).rows.num_rows,
            sum(batch.num_rows for batch in htap.stream_changes("t", position).batches),
        ]

    with ThreadPoolExecutor(1) as others:
        for step in (Step.SNAPSHOT, Step.RECORDED):
            world.faults.do_at(step, lambda: told.append(others.submit(ask).result(60)))
        assert not htap.sync_now().errors
    assert told == [[[{"id": 1, "v": 0}], [2], 0, 0]] * 2
    assert htap.as_of("t", before)["id"].to_pylist() == [1]
    assert htap.verify().equal


@MIRRORS
def test_the_past_has_the_columns_that_were_dropped_since(
    dropped: tuple[World, datetime, datetime],
) -> None:
    world, before, after = dropped
    then = [{"id": 1, "v": 0, "n": 11}, {"id": 2, "v": 0, "n": 20}]
    assert as_of(world, before) == then
    assert as_of(world, after) == [{"id": n, "v": 0} for n in (1, 2, 3)]
    world.run("update t set v = 1 where id = 1", "delete from t where id = 2")
    world.htap.sync_now()
    assert as_of(world, before) == then
    assert world.htap.as_of("t", datetime.now(UTC)).column_names == ["id", "v"]
    assert world.htap.verify().equal


@KEPT
def test_a_day_taken_again_keeps_a_dropped_columns_values(
    dropped: tuple[World, datetime, datetime],
) -> None:
    world, before, after = dropped
    days = {date(2026, 1, 1): before, date(2026, 1, 2): after}
    for chosen in (days, {date(2026, 1, 1): before}):
        world.htap.snapshot("t", chosen)
        found = world.htap.query(
            "select id, n from snapshot.t where snapshot_date = date '2026-01-01' order by id",
            hint="olap",
        )
        assert found.to_pylist() == [{"id": 1, "n": 11}, {"id": 2, "n": 20}]
    later = world.htap.query(
        "select id, n from snapshot.t where snapshot_date = date '2026-01-02'", hint="olap"
    )
    assert set(later["n"].to_pylist()) == {None}


@MIRRORS
def test_a_day_of_before_a_renaming_has_its_values_under_the_new_name(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = make_world(mode="temporal", storage=storage)
    world.run(
        "create table t(id integer primary key, n int, v int)", "insert into t values (1, 10, 0)"
    )
    world.htap.sync_now()
    before = instant_between()
    world.htap.snapshot("t", {date(2026, 1, 1): before})
    world.run("alter table t rename column n to number", "update t set number = 11")
    assert world.htap.sync_now().tables["t"].copied_rows == 0
    world.htap.snapshot("t", {date(2026, 1, 2): instant_between()})
    world.crash()  # memory is copied afresh, and has no days then
    if storage != "memory":
        found = world.htap.query("select * from snapshot.t order by snapshot_date", hint="olap")
        assert sorted(found.column_names) == ["id", "number", "snapshot_date", "v"]
        assert found["number"].to_pylist() == [10, 11]
    if storage == "delta":
        published = DeltaTable(world.directory / "delta" / "delta" / "main" / "t")
        assert {*published.schema().to_arrow().names} >= {"id", "number", "v"}
        numbers = read_by_delta_rs(published).column("number").to_pylist()
        assert sorted(numbers) == [10, 11]


def test_a_day_that_has_the_new_name_of_a_column_already_keeps_both(make_world: MakeWorld) -> None:
    """As where its history was lost, and begun again without that column."""
    world = make_world(mode="temporal")
    world.run("create table t(id integer primary key, n int)", "insert into t values (1, 10)")
    world.htap.sync_now()
    world.htap.snapshot("t", {date(2026, 1, 1): instant_between()})
    mirror = engine_of(world.htap).mirror
    assert isinstance(mirror, DuckDBMirror)
    mirror._connection.execute("alter table snapshot.t add column number int")
    world.run("alter table t rename column n to number", "update t set number = 11")
    assert not world.htap.sync_now().errors
    world.htap.snapshot("t", {date(2026, 1, 2): instant_between()})
    found = world.htap.query("select n, number from snapshot.t order by snapshot_date", hint="olap")
    assert found.to_pylist() == [{"n": 10, "number": None}, {"n": None, "number": 11}]


@KEPT
def test_what_left_is_remembered_when_the_mirror_is_opened_again(
    dropped: tuple[World, datetime, datetime],
) -> None:
    world, before, after = dropped
    world.crash()
    assert as_of(world, before)[0]["n"] == 11
    assert "n" not in as_of(world, after)[0]


@KEPT
def test_columns_that_leave_one_after_the_other_are_shown_each_until_then(
    dropped: tuple[World, datetime, datetime],
) -> None:
    world, first, second = dropped
    world.run("alter table t drop column v")
    world.htap.sync_now()
    third = instant_between()
    shown = [sorted(as_of(world, at)[0]) for at in (first, second, third)]
    assert shown == [["id", "n", "v"], ["id", "v"], ["id"]]


@KEPT
def test_a_column_that_comes_back_is_one_of_the_present_again(
    dropped: tuple[World, datetime, datetime],
) -> None:
    world, before, _ = dropped
    world.run("alter table t add column n int", "update t set n = 5 where id = 1")
    world.htap.sync_now()
    assert as_of(world, datetime.now(UTC))[0] == {"id": 1, "v": 0, "n": 5}
    assert as_of(world, before)[0]["n"] == 11


@MIRRORS
def test_before_the_first_copy_nothing_is_known(make_world: MakeWorld, storage: str | None) -> None:
    world = make_world(mode="temporal", storage=storage)
    world.run("create table t(id integer primary key, v int)", "insert into t values (1, 0)")
    with pytest.raises(QueryError, match=r"table 't': it is not copied yet \(run 'rhei sync'"):
        world.htap.as_of("t", datetime.now(UTC))
    before = instant_between()
    world.htap.sync_now()
    after = instant_between()
    for unknown in (before, LONG_AGO):
        with pytest.raises(QueryError, match=rf"its history begins at {after.year}-.*\+00:00"):
            world.htap.as_of("t", unknown)
    assert as_of(world, after) == [{"id": 1, "v": 0}]


@KEPT
def test_an_empty_table_is_known_to_be_empty_from_its_first_copy_on(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = make_world(mode="temporal", storage=storage)
    world.run("create table t(id integer primary key, v int)")
    world.htap.sync_now()
    empty = instant_between()
    world.run("insert into t values (1, 0)")
    world.htap.sync_now()
    assert as_of(world, empty) == []
    with pytest.raises(QueryError, match="begins at"):
        world.htap.as_of("t", LONG_AGO)


@KEPT
def test_a_day_of_which_nothing_is_known_is_named_and_no_day_is_written(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = make_world(mode="temporal", storage=storage)
    world.run("create table t(id integer primary key, v int)", "insert into t values (1, 0)")
    world.htap.sync_now()
    known = datetime.now(UTC)
    days = {date(2001, 1, 1): LONG_AGO, known.date(): known}
    with pytest.raises(QueryError, match=r"2001-01-01 ended before \(1 of the 2 days") as caught:
        world.htap.snapshot("t", days)
    assert f"choose days from {known.date()}" in str(caught.value)
    with pytest.raises(QueryError):
        world.htap.query("select * from snapshot.t", hint="olap")
    assert world.htap.snapshot("t", {known.date(): known}) == {known.date(): 1}


def test_the_command_says_from_when_on_the_history_is_known(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal")
    world.run("create table t(id integer primary key, v int)")
    world.htap.sync_now()
    world.crash()
    config = world.directory / "pipeline.yaml"
    config.write_text(yaml.safe_dump(world.settings.model_dump(mode="json", exclude_none=True)))
    result = CliRunner().invoke(app, ["as-of", "t", "2001-01-01", "--config", str(config)])
    assert isinstance(result.exception, QueryError)
    assert "begins at" in str(result.exception)
    later = f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%d}"
    result = CliRunner().invoke(app, ["as-of", "t", later, "--config", str(config)])
    assert result.exit_code == 0, result.output


@pytest.mark.long
def test_a_mirror_of_before_this_was_recorded_tells_what_its_versions_tell(
    make_world: MakeWorld,
) -> None:
    world = make_world(mode="temporal")
    world.run("create table t(id integer primary key, n int)", "insert into t values (1, 1)")
    world.htap.sync_now()
    at = instant_between()
    world.run("alter table t drop column n")
    world.htap.sync_now()
    world.crash()
    forget = "delete from _rhei_history"
    output_of(f"import duckdb; duckdb.connect(r'{world.settings.mirror.path}').execute('{forget}')")
    assert as_of(world, at) == [{"id": 1, "n": 1}]
    with pytest.raises(QueryError, match="begins at"):
        world.htap.as_of("t", LONG_AGO)
    world.run("delete from t")
    world.htap.sync_now()
    assert as_of(world, at) == [{"id": 1, "n": 1}]
    assert world.htap.as_of("t", datetime.now(UTC)).column_names == ["id"]


def test_a_mirror_in_memory_tells_its_past_as_well(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal", mirror_path=":memory:")
    world.run("create table t(id integer primary key, n int)", "insert into t values (1, 1)")
    world.htap.sync_now()
    before = instant_between()
    world.run("alter table t drop column n")
    world.htap.sync_now()
    assert as_of(world, before) == [{"id": 1, "n": 1}]
    assert isinstance(engine_of(world.htap).mirror, DuckDBMirror)


@pytest.mark.parametrize("method", ["logical", "trigger", "polling"])
@KEPT
def test_the_past_of_postgresql_has_its_columns_too(
    make_postgres: Callable[..., PostgresWorld], method: str, storage: str | None
) -> None:
    polling = {"updated_at": "at", "deletes": "reconcile", "reconcile_seconds": 0}
    world = make_postgres(
        capture={"method": method},
        mode="temporal",
        storage=storage,
        tables=[{"name": "t", "polling": polling}],
    )
    world.run("create table t(id int primary key, n int, at timestamptz default clock_timestamp())")
    world.run("insert into t values (1, 1)")
    world.htap.sync_now()
    before = instant_between()
    world.run("alter table t drop column n")
    world.htap.sync_now()
    after = instant_between()
    assert world.htap.as_of("t", before)["n"].to_pylist() == [1]
    assert world.htap.as_of("t", after).column_names == ["id", "at"]
    with pytest.raises(QueryError, match="begins at"):
        world.htap.as_of("t", LONG_AGO)


def test_the_past_of_a_polled_table_has_its_columns_too(make_world: MakeWorld) -> None:
    polling = {"deletes": "reconcile", "reconcile_seconds": 0}
    world = make_world(
        mode="temporal", method="polling", tables=[{"name": "t", "polling": polling}]
    )
    world.run("create table t(id integer primary key, n int, updated_at text)")
    world.run("insert into t values (1, 1, '2026-01-01')")
    world.htap.sync_now()
    before = instant_between()
    world.run("alter table t drop column n")
    world.htap.sync_now()
    assert world.htap.as_of("t", before)["n"].to_pylist() == [1]
    assert "n" not in world.htap.as_of("t", instant_between()).column_names
