"""A Delta table that somebody else made where one of a mirror's is to be."""

from collections.abc import Callable

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from rhei_pipeline.testing.oracle import arrow_rows
from tests.support.delta_readers import read_by_delta_rs
from tests.support.fix_world import World

MakeWorld = Callable[..., World]


def test_a_delta_table_of_others_is_named_and_left_as_it_is(make_world: MakeWorld) -> None:
    world = make_world(storage="delta", delta={"interval_seconds": 0})
    world.run("create table t(id integer primary key)", "create table u(id integer primary key)")
    world.run("insert into t values (1), (2)", "insert into u values (1)")
    theirs = world.directory / "delta" / "delta" / "main" / "t"
    write_deltalake(theirs, pa.table({"name": ["theirs"]}))

    def look() -> None:
        assert read_by_delta_rs(DeltaTable(theirs)).to_pylist() == [{"name": "theirs"}]
        assert DeltaTable(theirs).version() == 0

    assert "somebody else made" in str(world.htap.sync_now().not_published)
    look()
    assert read_by_delta_rs(DeltaTable(theirs.parent / "u")).num_rows == 1
    assert "somebody else made" in str(world.htap.sync_status().not_published)
    world.assert_equal("t", "u")
    world.htap.repair("t")
    look()
    world.crash()
    world.tables = [{"name": "u"}]
    world.htap.sync_now()
    world.htap.drop_table("t")
    world.htap.sync_now()
    look()


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_table_that_others_compacted_is_published_again_while_the_source_is_quiet(
    make_world: MakeWorld, mode: str
) -> None:
    world = make_world(storage="delta", mode=mode, delta={"interval_seconds": 0})
    world.run("create table t(id integer primary key, v int)")
    for key in range(3):
        world.run(f"insert into t values ({key}, {key})")
        world.htap.sync_now()
    shown = str(world.directory / "delta" / "delta" / "main" / "t")
    before = set(DeltaTable(shown).file_uris())
    DeltaTable(shown).optimize.compact()
    assert not before & set(DeltaTable(shown).file_uris())
    world.crash()
    assert world.htap.sync_now().not_published is None
    assert set(DeltaTable(shown).file_uris()) == before
    held = world.htap.query("select * from t", hint="olap")
    assert arrow_rows(read_by_delta_rs(DeltaTable(shown))) == arrow_rows(held)
