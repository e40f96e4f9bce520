"""What an error says to do is done, and what it stopped goes on."""

import sqlite3
from collections.abc import Callable

import pytest

from rhei_pipeline.errors import RheiError
from tests.fix_world import World


def test_what_stands_in_the_way_is_moved_and_the_next_sync_goes_on(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    registry, mirror = world.directory / "registry.json", world.directory / "mirror.duckdb"
    registry.write_text("{")
    with pytest.raises(RheiError, match="delete it"):
        world.htap.sync_now()
    registry.unlink()
    mirror.write_bytes(b"no mirror" * 1000)
    with pytest.raises(RheiError, match=r"move .* away"):
        world.htap.sync_now()
    mirror.rename(world.directory / "away")
    world.app.close()
    source = world.path.rename(world.directory / "elsewhere.db")
    with pytest.raises(RheiError, match="create it with your application first"):
        world.htap.sync_now()
    source.rename(world.path)
    world.app = sqlite3.connect(world.path, isolation_level=None)
    world.htap.sync_now()
    world.assert_equal("t")
