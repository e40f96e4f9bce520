"""The note beside a DuckDB file of what was committed last, and who may say it is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhei_pipeline.errors import MirrorDamagedError, MirrorError
from tests.support.fix_world import World
from tests.support.other_process import copy

MakeWorld = Callable[..., World]


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    made = make_world(mode="destructive")
    made.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    made.htap.sync_now()
    return made


def note(world: World) -> Path:
    return world.directory / "mirror.duckdb.last"


def held(world: World) -> list[str]:
    found: list[str] = world.htap.query("select v from t", hint="olap")["v"].to_pylist()
    return found


def test_a_sync_that_has_nothing_to_apply_lets_queries_of_an_older_mirror_answer(
    world: World,
) -> None:
    world.crash()
    # What is left when a commit that moved no watermark was lost with DuckDB's log.
    note(world).write_text(note(world).read_text().rstrip() + "9")
    with pytest.raises(MirrorDamagedError, match="older than it was"):
        held(world)
    assert world.htap.sync_now().events == 0
    assert held(world) == ["a"]
    world.crash()
    assert held(world) == ["a"]


def test_a_mirror_that_is_opened_by_a_link_and_by_its_name_has_one_note(world: World) -> None:
    world.crash()
    link = world.directory / "link.duckdb"
    link.symlink_to(world.directory / "mirror.duckdb")
    world.mirror_path = str(link)
    world.run("update t set v = 'b'")
    world.htap.sync_now()
    world.crash()
    world.mirror_path = None
    assert held(world) == ["b"]
    assert not link.with_name("link.duckdb.last").exists()


def test_a_note_that_cannot_be_opened_is_named_with_the_way_out(world: World) -> None:
    world.crash()
    note(world).unlink()
    note(world).mkdir()
    with pytest.raises(MirrorError, match=r"mirror\.duckdb\.last") as refused:
        world.htap.sync_now()
    assert "delete it" in str(refused.value)
    note(world).rmdir()
    world.htap.sync_now()
    assert held(world) == ["a"]


@pytest.mark.parametrize(
    "options", [{"mode": "destructive"}, {"mode": "temporal", "buffered": True}]
)
def test_an_older_mirror_put_back_follows_what_its_table_has_become(
    make_world: MakeWorld, options: dict[str, Any]
) -> None:
    world = make_world(prune=False, **options)
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    world.crash()
    older = world.directory / "older"
    older.mkdir()
    for name in ("mirror.duckdb", "registry.json"):
        copy(world.directory / name, older / name)
    world.run("update t set v = 'b'")
    world.htap.sync_now()
    world.run("alter table t rename column v to w", "update t set w = 'c'")
    world.htap.sync_now()
    world.crash()
    for file in older.iterdir():
        file.replace(world.directory / file.name)
    world.htap.sync_now()
    world.assert_equal("t")
    assert world.htap.verify().equal
