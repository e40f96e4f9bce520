"""A copy in ranges in a bucket whose store fails at any request of whoever works on it.

`make test-cluster` runs them: a store for tests answers slowly.
"""

import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import MirrorUnreachableError, RheiError, SchemaError
from rhei_pipeline.protocols import Step
from rhei_pipeline.testing.faults import CrashAt
from rhei_pipeline.testing.oracle import arrow_rows
from rhei_pipeline.wiring.copy_ranges import copy_range
from tests.support.fix_object_store import Store
from tests.support.fix_world import World
from tests.support.model import source_rows
from tests.support.store_faults import FaultAt, drawn_fault

pytestmark = pytest.mark.usefixtures("soon")
ROWS = 24


def declared(world: World, bucket: Store, number: int) -> Settings:
    """Return the declaration of a mirror of its own, which has no patience with its store."""
    stored = {**bucket.settings, **bucket.keys, "retry_seconds": 0}
    place = {"path": f"{bucket.url}/{number}", "object_store": stored}
    mirror = {"kind": "datafusion", "storage": "parquet", **place}
    registry = {"path": world.directory / f"{number}.json"}
    own = {"mirror": mirror, "registry": registry, "tables": [{"name": "t", "copy_ranges": 2}]}
    return Settings(**{**world.settings.model_dump(), **own})


def play(world: World, settings: Settings, errors: list[RheiError]) -> None:
    """Copy while a worker copies the second range, and an application writes."""
    faults = CrashAt()

    def help_() -> None:
        world.run("update t set v = v || 'n' where id % 3 = 0")
        try:
            copy_range(settings, "t", 2)
        except RheiError as error:
            errors.append(error)

    faults.do_at(Step.RANGES_PLANNED, help_)
    with HTAP(settings, on_step=faults) as htap:
        errors += [RheiError(text) for text in htap.sync_now().errors.values()]


def fail_at(world: World, bucket: Store, number: int, fault: FaultAt) -> int:
    """Play while a fault befalls it, then go on; return how many requests there were."""
    settings, errors = declared(world, bucket, number), list[RheiError]()
    bucket.fault = fault
    try:
        play(world, settings, errors)
    except RheiError as error:
        errors.append(error)
    finally:
        bucket.fault = None
    for told in errors:
        is_known = isinstance(told, MirrorUnreachableError | SchemaError)
        assert is_known or "the store did not answer" in str(told), (fault, told)
    world.run(f"delete from t where id = {number % ROWS}")
    with suppress(SchemaError):  # nothing is planned, or all is done
        copy_range(settings, "t")
    with HTAP(settings) as htap:
        assert htap.sync_now().errors == {}
        found = arrow_rows(htap.query("select * from t", hint="olap"))
        assert found == source_rows(world.app, "t"), fault
        assert htap.verify().equal, fault
    return fault.count


@pytest.fixture
def filled(make_world: Callable[..., World]) -> World:
    world = make_world(batch_rows=3)
    world.run("create table t(id integer primary key, v text)")
    world.app.executemany("insert into t values (?, 'old')", [(n,) for n in range(ROWS)])
    return world


@pytest.mark.cluster
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_store_that_fails_at_some_request_loses_and_doubles_nothing(
    filled: World, bucket: Store
) -> None:
    drawn = random.Random(7)
    requests = fail_at(filled, bucket, 0, FaultAt(0))
    for number in drawn.sample(range(1, requests + 1), 6):
        fail_at(filled, bucket, number, drawn_fault(drawn, number))


@pytest.mark.soak
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_store_that_fails_at_any_request_loses_and_doubles_nothing(
    filled: World, bucket: Store
) -> None:
    drawn = random.Random(11)
    requests = fail_at(filled, bucket, 0, FaultAt(0))
    for number in range(1, requests + 1):
        fail_at(filled, bucket, number, drawn_fault(drawn, number))
