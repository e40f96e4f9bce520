"""What a mirror has not read stands in the log that another one replaced, and in the new one."""

from collections.abc import Callable

import pytest

from rhei_pipeline.wiring.engine import unseen_events
from tests.support.fix_postgres import PostgresWorld

MakePostgres = Callable[..., PostgresWorld]


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_changes_in_a_former_log_and_in_the_one_that_replaced_it_are_counted_from_outside(
    make_postgres: MakePostgres, mode: str
) -> None:
    first, second = (make_postgres(capture={"method": "trigger"}, mode=mode) for _ in range(2))
    first.run("create table t(id int primary key, v text)", "insert into t values (1, 'a')")
    for world in (first, second):
        world.htap.sync_now()
        assert unseen_events(world.settings) == 0
    first.run("insert into t values (2, 'b')", "insert into t values (3, 'c')")
    first.htap.sync_now()
    first.run("alter table t add w int")
    first.htap.sync_now()
    formers = first.app.execute("select count(*) from _rhei.former").fetchone()
    assert formers == (int(mode == "temporal"),)
    assert unseen_events(second.settings) == 2, "they are in the former log, and nothing is lost"
    first.run("insert into t values (4, 'd', 4)")
    assert unseen_events(first.settings) == 1
    assert unseen_events(second.settings) == 3
    for world in (second, first):
        world.htap.sync_now()
        assert unseen_events(world.settings) == 0
        world.assert_equal("t")
