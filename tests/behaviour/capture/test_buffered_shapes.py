"""Columns that are added while changes wait to be taken into a buffer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhei_pipeline.protocols import Step
from rhei_pipeline.testing import Crash
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

#: What is done between two syncs: rows are written before, between and behind the columns' coming.
CHANGES = {
    "between": [
        "alter table p add column t int default 1",
        "update p set t = 2 where id = 2",
        "alter table p add column n varchar default 'n'",
    ],
    "all around": [
        "update p set a = 'q' where id = 1",
        "alter table p add column t int default 1",
        "insert into p values (4, 'z', 9)",
        "delete from p where id = 3",
        "update p set a = 'z', id = 7 where id = 2",
        "alter table p add column n varchar default 'n'",
        "update p set a = 'zz' where id = 1",
    ],
}

WAYS: dict[str, dict[str, object]] = {
    "trigger": {"method": "trigger"},
    "logical": {"method": "logical"},
    "streaming": {"method": "logical", "streaming": True},
}


def followed(world: World | PostgresWorld, changes: list[str]) -> None:
    """Change a table whose changes are buffered, and look whether its mirror follows."""
    world.run("create table p(id integer primary key, a varchar)")
    world.run("insert into p values (1, 'x'), (2, 'y'), (3, 'y')")
    assert not world.htap.sync_now().errors
    world.run(*changes)
    for behind in ("update p set a = 'more' where id = 1", "insert into p(id) values (11)"):
        assert not world.htap.sync_now().errors
        assert world.htap.verify().equal
        world.assert_equal("p")
        world.run(behind)
    assert not world.htap.sync_now().errors
    world.assert_equal("p")


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("storage", [None, "parquet"])
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.each
def test_a_row_has_what_it_has_in_columns_that_came_later(
    make_postgres: Callable[..., PostgresWorld],
    tmp_path: Path,
    way: str,
    mode: str,
    storage: str | None,
    changes: str,
) -> None:
    world = make_postgres(
        capture={**WAYS[way], "buffer": {"path": tmp_path / "cdc"}}, mode=mode, storage=storage
    )
    followed(world, CHANGES[changes])


@pytest.mark.parametrize("changes", CHANGES)
def test_nor_does_a_history_by_triggers_lack_a_version(
    make_postgres: Callable[..., PostgresWorld], tmp_path: Path, changes: str
) -> None:
    capture = {"method": "trigger", "buffer": {"path": tmp_path / "cdc"}}
    world = make_postgres(capture=capture, mode="temporal")
    followed(world, CHANGES[changes])
    told = {(version["id"], version["a"], version["t"]) for version in world.versions("p")}
    between: dict[str, set[tuple[int, str, int | None]]] = {
        "between": {(2, "y", 2)},
        "all around": {(1, "q", None), (4, "z", 9), (7, "z", 1)},
    }
    assert between[changes] <= told


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("storage", [None, "parquet"])
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.each
def test_the_same_holds_for_sqlite(
    make_world: Callable[..., World], mode: str, storage: str | None, changes: str
) -> None:
    followed(make_world(mode=mode, storage=storage, buffered=True), CHANGES[changes])


MIGRATIONS = {
    "added": ("add column c integer", "add column d integer", "add column e integer"),
    "dropped": ("drop column t", "drop column n", "drop column m"),
    "renamed": ("rename column t to t1", "rename column t1 to t2", "rename column t2 to t"),
    "mixed": ("add column c integer", "drop column c", "rename column t to u"),
}


def long(name: str) -> Any:
    """Return a case that is not in the short form."""
    return pytest.param(name, marks=pytest.mark.long)


def assert_no_version_lacks(world: World | PostgresWorld, migrations: str) -> None:
    """Have processes die in the first syncs after two migrations, and a third one follow."""
    world.run("create table p(id integer primary key, a varchar, t integer, n integer, m integer)")
    world.run("insert into p(id, a) values (1, 'x')")
    world.htap.sync_now()
    for change, values in zip(MIGRATIONS[migrations], ("ab", "cd", "ef"), strict=True):
        world.run(f"alter table p {change}")
        world.run(*(f"update p set a = '{value}'" for value in values))
        if "f" in values:
            break
        world.faults.arm(Step.CAPTURED)
        with pytest.raises(Crash):
            world.htap.sync_now()
        world.crash()
    assert not world.htap.sync_now().errors
    world.assert_equal("p")
    assert list(dict.fromkeys(row["a"] for row in world.versions("p"))) == ["x", *"abcdef"]


@pytest.mark.long
@pytest.mark.parametrize("migrations", MIGRATIONS)
@pytest.mark.parametrize("way", WAYS)
def test_versions_of_a_shape_that_the_mirror_never_had_are_in_the_history(
    make_postgres: Callable[..., PostgresWorld], tmp_path: Path, way: str, migrations: str
) -> None:
    capture = {**WAYS[way], "buffer": {"path": tmp_path / "cdc"}}
    assert_no_version_lacks(make_postgres(capture=capture, mode="temporal"), migrations)


@pytest.mark.parametrize(
    "migrations", ["mixed", *(long(name) for name in MIGRATIONS if name != "mixed")]
)
def test_nor_do_they_lack_of_sqlite(make_world: Callable[..., World], migrations: str) -> None:
    assert_no_version_lacks(make_world(mode="temporal", buffered=True), migrations)


@pytest.mark.parametrize(
    ("change", "storage"),
    [
        ("rename column a to b", None),
        ("drop column a", "parquet"),
        pytest.param("rename column a to b", "parquet", marks=pytest.mark.long),
        pytest.param("drop column a", None, marks=pytest.mark.long),
    ],
)
def test_a_comparison_that_is_due_waits_until_the_mirror_has_the_shape_of_the_source(
    make_world: Callable[..., World], change: str, storage: str | None
) -> None:
    """A process dies before it compares, and a migration follows."""
    world = make_world(mode="temporal", storage=storage, buffered=True)
    world.run("create table p(id integer primary key, a varchar)", "insert into p values (1, 'x')")
    world.htap.sync_now()
    found = world.app.execute("select name, sql from sqlite_master where type = 'trigger'")
    triggers = dict(found.fetchall())
    world.run(*(f'drop trigger "{name}"' for name in triggers))
    world.run("insert into p values (2, 'unseen')", *triggers.values())
    world.run("insert into p values (3, 'seen')")
    world.faults.arm(Step.CAPTURED)
    with pytest.raises(Crash):
        world.htap.sync_now()
    world.crash()
    world.run(f"alter table p {change}")
    assert not world.htap.sync_now().errors
    assert not world.htap.sync_now().errors
    world.assert_equal("p")
