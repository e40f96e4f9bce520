"""What is written of rows that a DuckDB mirror has already, in part or as they are."""

import random
from collections.abc import Callable

import pytest

from rhei_pipeline.mirrors.duckdb import row_places, upsert
from tests.support.fix_world import World
from tests.support.parts import connection_of, engine_of, telling_of


@pytest.mark.parametrize(("many", "few", "nulls"), [(1, 0, 100), (1000, 250, 100), (1, 250, 0)])
def test_rows_are_written_where_a_number_or_a_text_differs(
    make_world: Callable[..., World],
    monkeypatch: pytest.MonkeyPatch,
    many: int,
    few: int,
    nulls: int,
) -> None:
    monkeypatch.setattr(upsert, "_MANY", many)
    monkeypatch.setattr(row_places, "FEW_PLACES", few)
    monkeypatch.setattr(upsert, "_MOST_NULLS", nulls)
    world = make_world(mode="destructive", tables=[{"name": "t"}])
    world.run(
        "create table t(id integer primary key, n integer, x real, v text, b blob)",
        "with recursive r(i) as (select 1 union all select i + 1 from r where i < 60)"
        " insert into t select i, i, 0.0, 'v' || i, zeroblob(3) from r",
    )
    world.htap.sync_now()
    world.run(
        "update t set n = -n where id <= 10",
        "update t set v = null where id between 11 and 20",
        "update t set b = x'01' where id between 16 and 25",
        "update t set n = 0, v = 'both' where id between 26 and 30",
        "update t set x = -0.0 where id between 31 and 35",
        "update t set v = v where id between 36 and 45",  # logged, and equal
        "insert into t select id + 60, n, x, v, b from t where id > 55",
        "delete from t where id = 60",
    )
    report = world.htap.sync_now()
    # SQLite keeps no sign of a zero in a column of reals.
    assert (report.inserted, report.updated, report.deleted) == (5, 30, 1)
    world.assert_equal("t")
    rows = connection_of(engine_of(world.htap).mirror).execute("select count(*) from t").fetchall()
    assert rows == [(64,)]


def test_rows_that_are_all_equal_or_all_new_need_no_more_than_that(
    make_world: Callable[..., World],
) -> None:
    world = make_world(mode="destructive", tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    world.run("update t set v = 'a'")
    equal = world.htap.sync_now()
    world.run("insert into t values (2, 'b')")
    new = world.htap.sync_now()
    assert (equal.inserted, equal.updated, new.inserted, new.updated) == (0, 0, 1, 0)
    world.assert_equal("t")


@pytest.mark.parametrize("few", [0, 250])
def test_rows_that_all_go_or_differ_are_replaced_at_once(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(row_places, "FEW_PLACES", few)
    world = make_world(mode="destructive", tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, v text)")
    world.run("insert into t values (1, 'a'), (2, null), (3, null)")
    world.htap.sync_now()
    world.run(
        "delete from t where id <> 1", "update t set v = 'b'", "insert into t values (4, 'd')"
    )
    report = world.htap.sync_now()
    assert (report.inserted, report.updated, report.deleted) == (1, 1, 2)
    world.assert_equal("t")
    world.run("delete from t")
    report = world.htap.sync_now()
    assert (report.inserted, report.updated, report.deleted) == (0, 0, 2)
    world.assert_equal("t")


@pytest.mark.parametrize("many", [1, 1000])
def test_columns_that_told_all_rows_are_asked_first_and_decide_nothing_alone(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    monkeypatch.setattr(upsert, "_MANY", many)
    world = make_world(mode="destructive", tables=[{"name": "t"}])
    world.run(
        "create table t(id integer primary key, n integer, x real, v text)",
        "with recursive r(i) as (select 1 union all select i + 1 from r where i < 40)"
        " insert into t select i, i, 0.5, 'v' || i from r",
    )
    world.htap.sync_now()
    telling = telling_of(engine_of(world.htap).mirror)
    text = ("v",) if many > 40 else None  # where numbers come first, they alone may tell
    told = [("n",), ("n",), text, ("n", "x"), ("n", "x"), None, text, text]
    for columns, statements, updated in zip(
        told,
        (
            ["update t set n = n + 100 where id <= 20"],
            ["update t set n = -n, v = 'both' where id > 10"],
            ["update t set v = 'text' where id <= 20"],  # none of them differs in n
            ["update t set n = n + 1 where id <= 20", "update t set x = 2.5 where id > 20"],
            ["update t set x = null where id <= 20", "insert into t values (50, 1, 1.5, null)"],
            ["update t set v = v", "delete from t where id = 50"],  # logged, and equal
            ["update t set v = upper(v) || id"],
            ["update t set v = null where id = 3"],
        ),
        (20, 30, 20, 40, 20, 0, 40, 1),
        strict=True,
    ):
        world.run(*statements)
        assert world.htap.sync_now().updated == updated
        assert telling.get("t") == columns
        world.assert_equal("t")


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_counted_as_they_changed_whatever_told_the_last_ones(
    make_world: Callable[..., World], seed: int
) -> None:
    """Rows that differ in one column are deleted before it is known which of them there are."""
    drawn, world = random.Random(seed), make_world(mode="destructive", tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, n integer, v text)")
    held: dict[int, tuple[int, str]] = {}
    telling = telling_of(engine_of(world.htap).mirror)
    were_told = 0
    for turn in range(40):
        now = dict(held)
        touched = drawn.sample(range(1, 60), drawn.randint(1, 12))
        if drawn.random() < 0.3:
            touched = [key for key in touched if key in held] or touched  # none of them is new
        for key in [*touched, *range(100 + turn * 3, 100 + turn * 3 + drawn.choice([0, 0, 2]))]:
            n, text = now.get(key, (0, ""))
            is_told = drawn.random() < (0.95 if turn % 4 else 0.5)
            now[key] = (n + 1 if is_told else n, drawn.choice([text, text, f"{turn}"]))
            world.run(f"insert or replace into t values ({key}, {now[key][0]}, '{now[key][1]}')")
        if turn % 7 == 6:
            (gone,) = drawn.sample(sorted(now), 1)
            del now[gone]
            world.run(f"delete from t where id = {gone}")
        were_told += "t" in telling
        report = world.htap.sync_now()
        differ = sum(now[key] != held[key] for key in now.keys() & held.keys())
        counts = (len(now.keys() - held.keys()), differ, len(held.keys() - now.keys()))
        assert (report.inserted, report.updated, report.deleted) == counts, turn
        world.assert_equal("t")
        held = now
    assert were_told > 10


def test_a_column_that_told_rows_may_be_gone_or_renamed(make_world: Callable[..., World]) -> None:
    world = make_world(mode="destructive", tables=[{"name": "t"}])
    world.run(
        "create table t(id integer primary key, n integer, m integer)",
        "insert into t values (1, 1, 1), (2, 2, 2)",
    )
    world.htap.sync_now()
    world.run("update t set n = n + 1")
    assert world.htap.sync_now().updated == 2
    world.run("alter table t drop column n", "update t set m = m + 1 where id = 1")
    world.htap.sync_now()
    world.assert_equal("t")
    world.run("update t set m = m + 1")
    assert world.htap.sync_now().updated == 2
    world.assert_equal("t")
