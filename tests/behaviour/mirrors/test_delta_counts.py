"""What a Delta table's log tells of its files, which readers believe without reading them."""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from tests.support.delta_readers import read_by_delta_rs
from tests.support.fix_world import World

MakeWorld = Callable[..., World]
TABLE = "delta/main/t"


@pytest.fixture(params=[False, True], ids=["plain", "vectors"])
def world(request: pytest.FixtureRequest, make_world: MakeWorld) -> World:
    delta = {"interval_seconds": 0, "deletion_vectors": request.param}
    made = make_world(mode="temporal", storage="delta", delta=delta)
    made.run(
        "create table t(id integer primary key, v integer)",
        "create table none(id integer primary key)",
    )
    made.run(f"insert into t select value, value from json_each('{[*range(2000)]}')")
    made.htap.sync_now()
    return made


def test_the_rows_of_each_file_are_those_that_the_log_counts(world: World) -> None:
    for statement in ("update t set v = 9 where id = 1", "delete from t where id = 2"):
        world.run(statement)
        world.htap.sync_now()
    place = world.directory / "delta" / TABLE
    actions = pa.table(DeltaTable(place).get_add_actions(flatten=True)).to_pydict()
    told = dict(zip(actions["path"], actions["num_records"], strict=True))
    assert told == {name: pq.read_metadata(place / name).num_rows for name in told}
    assert len(told) > 1
    assert sum(told.values()) > 2000  # versions that ended are among them
    versions = world.htap.query("select count(*) as n from t", hint="olap")["n"].to_pylist()
    assert [read_by_delta_rs(DeltaTable(place)).num_rows] == versions == [2001]


def test_a_table_without_rows_is_published_with_the_columns_that_it_takes(world: World) -> None:
    world.run("alter table none add column v text")
    world.htap.sync_now()
    shown = DeltaTable(world.directory / "delta" / "delta/main/none").schema()
    assert "v" in [field.name for field in shown.fields]
