"""A table with too many dead letters is left out by name, and nothing of it is lost."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.refusals import rhei

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
WAY = (
    "correct the rows in the source, run 'rhei dead-letters --table {} --drop', or raise"
    " 'dead_letters' in the declaration; then sync"
)

#: To forget letters leads out only where there is room for those that come.
WAY_WITHOUT = (
    "correct the rows in the source, or raise 'dead_letters' in the declaration; then sync"
)
COPYING_WITHOUT = (
    "correct the rows in the source, or raise 'dead_letters' in the declaration; the copy then"
    " goes on"
)
COPYING = (
    "correct the rows in the source and run 'rhei dead-letters --table {} --drop', or raise"
    " 'dead_letters' in the declaration; the copy then goes on"
)


def declared(**bounds: Any) -> list[dict[str, Any]]:
    return [{"name": "p", "dead_letters": bounds}, {"name": "q"}]


def filled(world: World) -> World:
    """Table p has as many dead letters as it may have, two; q has none."""
    world.run(
        "create table p(id integer primary key, n integer)",
        "create table q(id integer primary key)",
        *(f"insert into p values ({n}, {n})" for n in range(1, 6)),
    )
    world.htap.sync_now()
    world.run("update p set n = 'one' where id = 1", "update p set n = 'two' where id = 2")
    assert world.htap.sync_now().dead_letters == 2
    return world


def rows(world: World) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = world.htap.query(
        "select * from p order by id", hint="olap"
    ).to_pylist()
    return found


def overflow(world: World) -> None:
    """One letter more: p is left out by name, stays as it was, and q goes on."""
    before = rows(world)
    world.run(
        "insert into q select coalesce(max(id), 0) + 1 from q",
        "update p set n = 'three' where id = 3",
        "update p set n = 40 where id = 4",
    )
    report = world.htap.sync_now()
    assert list(report.errors) == ["p"]
    assert WAY.replace("{}", "p") in report.errors["p"]
    # It says which column does not fit and why, and never shows a value.
    assert re.search(r"have: column 'n': .*text.* \(3\);", report.errors["p"]), report.errors
    assert "three" not in report.errors["p"]
    world.assert_equal("q")
    assert rows(world) == before
    assert world.htap.dead_letters("p").num_rows == 2


def good(world: World) -> None:
    """What fits is in the mirror, whatever came while the table was left out."""
    report = world.htap.sync_now()
    assert not report.errors
    found = world.htap.query("select n from p where id = 4", hint="olap")["n"].to_pylist()
    assert found == [40]


@pytest.mark.parametrize("storage", [None, "ipc"])
@pytest.mark.parametrize("way", ["correct", "drop", "raise"])
def test_a_table_that_is_full_of_dead_letters_is_left_out_until_there_is_room(
    make_world: MakeWorld, tmp_path: Path, storage: str | None, way: str
) -> None:
    world = filled(make_world(storage=storage, tables=declared(max_rows=2)))
    overflow(world)
    world.crash()
    assert "p" in world.htap.sync_now().errors
    if way == "correct":
        world.run("update p set n = 10 where id = 1")
        good(world)
        assert world.htap.dead_letters("p")["key"].to_pylist() == ['{"id": 2}', '{"id": 3}']
        # Those that are there may be tried again: they are no more than before.
        assert not world.htap.replay_dead_letters("p").errors
    elif way == "drop":
        # What they are tried again for cannot come while the table is full: it would fill it anew.
        assert WAY.replace("{}", "p") in world.htap.replay_dead_letters("p").errors["p"]
        world.crash()
        with pytest.raises(AssertionError, match="'--replay' or '--drop', not both"):
            rhei(world.settings, tmp_path, "dead-letters", "--replay", "--drop")
        done = rhei(world.settings, tmp_path, "dead-letters", "--table", "p", "--drop")
        assert "2 dead letters were forgotten" in done
        good(world)
        assert world.htap.dead_letters("p")["key"].to_pylist() == ['{"id": 3}']
    else:
        world.crash()
        world.tables = declared(max_rows=3)
        good(world)
        assert world.htap.dead_letters("p").num_rows == 3
    assert world.htap.verify("q").equal


def test_a_first_copy_stops_at_the_bound_and_goes_on_from_there(make_world: MakeWorld) -> None:
    world = make_world(tables=declared(max_rows=2), batch_rows=2)
    world.run(
        "create table p(id integer primary key, n integer)",
        "create table q(id integer primary key)",
        *(f"insert into p values ({n}, 'no number')" for n in range(1, 4)),
        *(f"insert into p values ({n}, {n})" for n in range(4, 9)),
    )
    stopped = world.htap.sync_now().errors["p"]
    assert COPYING.replace("{}", "p") in stopped
    assert re.search(r"have: column 'n': .*text.* \(3\);", stopped), stopped
    assert world.htap.dead_letters("P").num_rows == 2
    world.run("update p set n = id where id < 3")
    world.crash()
    assert world.htap.drop_dead_letters("p") == 2
    world.crash()
    assert not world.htap.sync_now().errors
    assert world.htap.dead_letters("p")["key"].to_pylist() == ['{"id": 3}']
    found = world.htap.query("select count(*) as n from p", hint="olap")["n"].to_pylist()
    assert found == [7]


def test_a_first_copy_with_too_many_at_once_does_not_ask_to_forget_them(
    make_world: MakeWorld,
) -> None:
    world = make_world(tables=declared(max_rows=2))
    world.run(
        "create table p(id integer primary key, n integer)",
        "create table q(id integer primary key)",
        *(f"insert into p values ({n}, 'no number')" for n in range(1, 4)),
    )
    assert COPYING_WITHOUT in world.htap.sync_now().errors["p"]
    world.run("update p set n = id where id = 3")
    assert not world.htap.sync_now().errors
    assert world.htap.dead_letters("p").num_rows == 2


def test_to_forget_letters_is_no_way_out_where_too_many_come_again(make_world: MakeWorld) -> None:
    world = filled(make_world(tables=declared(max_rows=2)))
    world.run("update p set n = 'other' where id > 2")
    assert WAY_WITHOUT in world.htap.sync_now().errors["p"]  # three others alone are too many
    world.run("update p set n = id where id > 3", "update p set n = 'again' where id < 3")
    # Only one is another, but with those that were changed again three would come.
    assert WAY_WITHOUT in world.htap.sync_now().errors["p"]


def test_a_letter_that_is_forgotten_is_not_kept_as_one_that_was_resolved(
    make_world: MakeWorld,
) -> None:
    """Its row does not fit: a history that has it as resolved would say that it does."""
    world = filled(make_world(mode="temporal", tables=declared(max_rows=2)))
    world.run("update p set n = 1 where id = 1")
    world.htap.sync_now()
    assert world.htap.drop_dead_letters("p") == 1
    kept = world.htap.query("select key from _rhei_dead_letter", hint="olap")
    assert kept["key"].to_pylist() == ['{"id": 1}']


def test_their_size_is_bounded_as_well_and_a_lower_bound_takes_fewer(
    make_world: MakeWorld,
) -> None:
    world = filled(make_world(tables=declared(max_bytes=24)))
    overflow(world)
    world.crash()
    world.tables = declared(max_rows=0)
    # Fewer than before are taken though the bound is lower still.
    world.run("update p set n = 3 where id = 3", "update p set n = 1 where id = 1")
    good(world)
    assert world.htap.dead_letters("p").num_rows == 1


def test_postgres_keeps_what_a_full_table_needs(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    """What is left out comes once there is room; and what is dropped stays a difference."""
    lists = {"types": {"v": "int32[]"}, "dead_letters": {"max_rows": 1}}
    world = make_postgres(tables=[{"name": "t", **lists}])
    world.run("create table t(id integer primary key, v int[])", "insert into t values (1, '{1}')")
    world.htap.sync_now()
    world.run("insert into t values (2, '{{1},{2}}'), (3, '{{1},{2}}'), (4, '{4}')")
    assert WAY_WITHOUT in world.htap.sync_now().errors["t"]
    world.run("delete from t where id = 3")
    assert world.htap.sync_now().inserted == 1
    status = world.htap.sync_status().tables["t"]
    assert sum(status.dead_letter_reasons.values()) == status.dead_letters == 1
    assert world.htap.drop_dead_letters() == 1
    assert not world.htap.verify().equal


def test_letters_are_counted_in_a_mirror_that_seems_older_than_it_was(
    make_world: MakeWorld,
) -> None:
    world = filled(make_world(tables=declared(max_rows=2)))
    world.crash()
    note = world.directory / "mirror.duckdb.last"
    note.write_text(note.read_text().rstrip() + "9")
    world.run("update p set n = 'three' where id = 3")
    assert "have: column 'n'" in world.htap.sync_now().errors["p"]
