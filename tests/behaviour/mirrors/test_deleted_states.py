"""States that another process deletes while they are read: an object store has no lock."""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

import rhei_pipeline as rhei
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import MirrorBusyError
from rhei_pipeline.mirrors.datafusion.reader import MirrorReader
from tests.support.fix_object_store import Store
from tests.support.fix_world import World

COUNT = "select count(*) as n, sum(v) as s from t where _rhei_valid_to is null"


@pytest.fixture
def shared(tmp_path: Path, bucket: Store) -> Iterator[tuple[World, Settings]]:
    """A mirror in a store, as two processes may open it."""
    world = World(tmp_path, mode="temporal")
    world.run("create table t(id integer primary key, v integer)")
    world.app.executemany("insert into t values (?, 1)", ((number,) for number in range(500)))
    form = world.settings.model_dump()
    form["mirror"] = {
        "kind": "datafusion",
        "storage": "parquet",
        "path": bucket.url,
        "retained_manifests": 1,
        "object_store": bucket.settings | bucket.keys,
    }
    yield world, Settings(**form)
    world.app.close()


def write_on(world: World, settings: Settings, number: int) -> None:
    """Have another one sync, and delete what it does not retain."""
    with HTAP(settings) as other:
        for _ in range(2):
            number += 1
            world.run(f"update t set v = {number}", f"update t set v = {number} where id = 'x'")
            other.sync_now()
            other.maintain()


READS: dict[str, Callable[[HTAP], object]] = {
    "query": lambda htap: htap.query(COUNT, hint="olap").to_pylist(),
    "auto": lambda htap: htap.query("select count(*) as n, sum(v) as s from t").to_pylist(),
    "stream": lambda htap: [
        row for batch in htap.stream(f"{COUNT} group by v").batches for row in batch.to_pylist()
    ],
    "count": lambda htap: [{"n": htap.row_count("t"), "s": 1500}],
    "changes": lambda htap: [{"n": htap.changes("t").rows.num_rows, "s": 1500}],
    "dead letters": lambda htap: [{"n": 500 + htap.dead_letters("t").num_rows, "s": 1500}],
    "verify": lambda htap: [{"n": 500 * htap.verify().equal, "s": 1500}],
}


@pytest.mark.each
@pytest.mark.parametrize("read", READS)
def test_no_read_shows_a_state_that_another_process_has_deleted(
    shared: tuple[World, Settings], read: str
) -> None:
    world, settings = shared
    with HTAP(settings) as htap:
        htap.sync_now()
        assert htap.query(COUNT, hint="olap").to_pylist() == [{"n": 500, "s": 500}]
        write_on(world, settings, 1)
        try:
            found = READS[read](htap)
        except MirrorBusyError:  # it is to be asked again
            found = READS[read](htap)
        assert found == [{"n": 500, "s": 1500}]


def test_a_state_that_was_deleted_is_no_damage(
    shared: tuple[World, Settings], bucket: Store
) -> None:
    world, settings = shared
    with HTAP(settings) as htap:
        htap.sync_now()
    with MirrorReader(bucket.url, access=bucket.access) as reader:
        write_on(world, settings, 1)
        with pytest.raises(MirrorBusyError, match="ask again"):
            reader.query(COUNT)
        reader.refresh()
        assert reader.query(COUNT).to_pylist() == [{"n": 500, "s": 1500}]


def test_a_reader_asks_a_store_once_for_its_state_and_looks_for_it_once_more(
    shared: tuple[World, Settings], bucket: Store
) -> None:
    world, settings = shared
    with HTAP(settings) as htap:
        htap.sync_now()
        for number in range(2):
            world.run(f"insert into t values ({number + 1000}, 1)")
            htap.sync_now()
    with rhei.reader(settings) as reader:
        for _ in range(2):
            bucket.seen.clear()
            assert reader.query(COUNT).to_pylist() == [{"n": 502, "s": 502}]
            asked = [unquote(path) for path in bucket.seen]
            assert sum("prefix=some/mirror/manifests" in path for path in asked) == 2
            assert sum("/some/mirror/newest" in path for path in asked) == 1
            assert sum("/some/mirror/manifests/" in path for path in asked) == 1
