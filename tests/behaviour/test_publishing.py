"""A published copy of a DuckDB mirror: always whole, always a committed state."""

import subprocess
import sys

from rhei_pipeline import HTAP, Settings
from tests.fix_world import World

_READ = """
import duckdb, sys
with duckdb.connect(sys.argv[1], read_only=True) as opened:
    print(opened.execute("select sum(v), count(*) from t").fetchone())
"""


def published(world: World, interval: float) -> Settings:
    copy = {"path": world.directory / "published" / "copy.duckdb", "interval_seconds": interval}
    mirror = {"path": world.directory / "mirror.duckdb", "published": copy}
    return Settings(**{**world.settings.model_dump(), "mirror": mirror})


def read(world: World) -> str:
    copy = str(world.directory / "published" / "copy.duckdb")
    found = subprocess.run(
        [sys.executable, "-c", _READ, copy], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


def filled(world: World) -> World:
    world.run("create table t(id integer primary key, v int)", "insert into t values (1, 1)")
    return world


def test_other_processes_read_the_copy_while_the_mirror_is_open(world: World) -> None:
    with HTAP(published(filled(world), 0)) as htap:
        htap.sync_now()
        assert read(world) == "(1, 1)"
        world.run("insert into t values (2, 10)")
        htap.sync_now()
        assert read(world) == "(11, 2)"
        assert htap.verify().equal
    assert not list((world.directory / "published").glob("*.partial"))


def test_within_the_interval_the_copy_stays_and_closing_brings_it_up(world: World) -> None:
    with HTAP(published(filled(world), 3600)) as htap:
        htap.sync_now()
        world.run("insert into t values (2, 10)")
        htap.sync_now()
        assert read(world) == "(1, 1)"
    assert read(world) == "(11, 2)"
