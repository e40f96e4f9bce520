"""What a process has open is deleted, replaced, or moved and put back, under its hands."""

import shutil
from collections.abc import Callable

import pytest

from rhei_pipeline.errors import BufferDamagedError, MirrorError, RheiError
from tests.support.fix_world import World

MakeWorld = Callable[..., World]

PLACES = ("mirror.duckdb", "parquet", "ipc", "delta", "cdc")


@pytest.mark.parametrize("place", PLACES)
def test_what_is_gone_is_named_by_the_next_cycle_and_opened_by_the_next_process(
    make_world: MakeWorld, place: str
) -> None:
    storage = place if place in {"parquet", "ipc", "delta"} else None
    kind: type[RheiError] = BufferDamagedError if place == "cdc" else MirrorError
    world = make_world(storage=storage, buffered=place == "cdc")
    there, aside = world.directory / place, world.directory / "aside"
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    world.htap.sync_now()

    there.rename(aside)
    world.run("insert into t values (2)")
    for another in (False, True):
        if another:
            there.mkdir() if aside.is_dir() else there.write_text("")
        with pytest.raises(kind, match="deleted or replaced while this process had it open") as met:
            world.htap.sync_now()
        assert "start this process again" in (met.value.hint or "")
    there.rmdir() if aside.is_dir() else there.unlink()
    aside.rename(there)
    assert world.htap.sync_now().inserted == 1
    world.assert_equal("t")

    shutil.rmtree(there) if there.is_dir() else there.unlink()
    world.run("insert into t values (3)", "delete from t where id = 1")
    if storage:
        with pytest.raises(kind, match="deleted or replaced"):
            world.htap.query("select * from t", hint="olap")
    with pytest.raises(kind, match="deleted or replaced"):
        world.htap.sync_now()
    world.crash()
    assert world.htap.sync_now().errors == {}
    world.assert_equal("t")


def test_a_registry_that_is_gone_is_written_again_by_the_next_cycle(make_world: MakeWorld) -> None:
    world = make_world(tables=[{"name": "t"}])
    world.run("create table t(id integer primary key)", "create table u(id integer primary key)")
    world.htap.sync_now()
    world.htap.register_table("u")
    (registry,) = world.directory.glob("registry*.json")
    registry.unlink()
    world.run("insert into t values (1)", "insert into u values (1)")
    assert world.htap.sync_now().inserted == 2
    assert registry.exists()
    world.crash()
    assert not world.htap.sync_now().errors
    world.run("insert into u values (2)")
    assert world.htap.sync_now().inserted == 1
