"""The check of lag where nobody can tell how far a mirror is behind."""

from collections.abc import Callable

import pytest

from rhei_pipeline.dagster.state_checks import StateCheck, StateFinding, state_findings
from rhei_pipeline.model.schema import Column, Mode, Table, TableSchema
from rhei_pipeline.model.type_names import INSTANT
from tests.support.fix_world import World

TABLE = Table(TableSchema("t", (Column("id", INSTANT),), ("id",)), Mode.TEMPORAL)


def lags(world: World) -> list[StateFinding]:
    """Return what the check of lag says of the world's table."""
    found = state_findings(TABLE, world.htap.sync_status(), None, 60.0)
    return [finding for finding in found if finding.check is StateCheck.LAG]


@pytest.mark.parametrize(
    ("lost", "why"),
    [
        ("alter table t add column x integer", "its columns have changed"),
        ("delete from _rhei_log_t", "the source no longer tells what changed"),
    ],
)
def test_a_lag_that_nobody_can_tell_is_a_warning_until_the_next_sync(
    make_world: Callable[..., World], lost: str, why: str
) -> None:
    world = make_world(mode="temporal", tables=[{"name": "t"}])
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    world.htap.sync_now()
    world.crash()
    world.run(lost)
    (finding,) = lags(world)
    assert not finding.passed
    assert why in finding.text
    world.htap.sync_now()
    (finding,) = lags(world)
    assert finding.passed


def test_a_table_that_waits_for_its_first_copy_has_no_lag_to_warn_of(
    make_world: Callable[..., World],
) -> None:
    world = make_world(mode="temporal", tables=[{"name": "t"}])
    world.run("create table t(id integer primary key)")
    assert lags(world) == []
