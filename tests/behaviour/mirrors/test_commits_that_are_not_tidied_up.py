"""A commit into a store that arrives, and after which the store serves nothing of what is left."""

from collections.abc import Callable
from typing import Any

import pytest
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import MirrorError, MirrorUnreachableError
from rhei_pipeline.testing.oracle import arrow_rows
from tests.support.delta_readers import read_by_delta_rs
from tests.support.fix_object_store import Store
from tests.support.fix_world import World
from tests.support.model import source_rows

pytestmark = pytest.mark.parametrize("bucket", ["s3"], indirect=True)
FAILED = pytest.mark.parametrize(
    ("status", "error"), [("403", MirrorError), ("503", MirrorUnreachableError)]
)


def declared(world: World, bucket: Store) -> Settings:
    stored: dict[str, Any] = {**bucket.settings, **bucket.keys, "retry_seconds": 0}
    return Settings(
        source={"path": world.path},
        mirror={
            "kind": "datafusion",
            "storage": "delta",
            "path": bucket.url,
            "delta": {"interval_seconds": 0},
            "object_store": stored,
        },
        registry={"path": world.directory / "there.json"},
    )


def after_some_commits(world: World, htap: HTAP) -> None:
    """Have so many states kept that each further commit deletes one."""
    world.run(
        "create table t(id integer primary key, v integer)",
        "create table u(id integer primary key)",
        "insert into t values (1, 0), (2, 0)",
        "insert into u values (1)",
    )
    for value in range(3):
        world.run(f"update t set v = {value}")
        htap.sync_now()


def shown(bucket: Store, table: str) -> DeltaTable:
    folder = f"{bucket.url}/delta/main/{table}"
    return DeltaTable(folder, storage_options=bucket.storage_options)


@FAILED
def test_what_it_changed_is_published_though_nothing_changes_any_more(
    make_world: Callable[..., World], bucket: Store, status: str, error: type[Exception]
) -> None:
    world = make_world()
    with HTAP(declared(world, bucket)) as htap:
        after_some_commits(world, htap)
        world.run("update t set v = 7 where id = 2", "delete from t where id = 1")
        bucket.failing = {"POST": [status]}
        with pytest.raises(error):
            htap.sync_now()
        assert not bucket.failing["POST"]
        htap.sync_now()
        assert arrow_rows(read_by_delta_rs(shown(bucket, "t"))) == source_rows(world.app, "t")


@FAILED
def test_the_delta_table_of_what_it_dropped_is_deleted_by_the_same_process(
    make_world: Callable[..., World], bucket: Store, status: str, error: type[Exception]
) -> None:
    world = make_world()
    with HTAP(declared(world, bucket)) as htap:
        after_some_commits(world, htap)
        world.run("drop table u")
        htap.sync_now()
        bucket.failing = {"POST": [status]}
        with pytest.raises(error):
            htap.drop_table("u")
        assert not bucket.failing["POST"]
        htap.sync_now()
        with pytest.raises(TableNotFoundError):
            shown(bucket, "u")
