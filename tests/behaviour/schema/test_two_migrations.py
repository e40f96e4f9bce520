"""A second migration that comes before the mirror has the first one."""

from collections.abc import Callable

import pytest

from rhei_pipeline.protocols import Step
from tests.support.fix_world import World


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_a_history_has_what_all_rows_have_in_a_column_whose_log_it_read_first(
    make_world: Callable[..., World], storage: str | None
) -> None:
    """It was given that column before a crash, without one row's value: that is not forgotten.

    Though a later migration leaves the table in the very shape that it was given.
    """
    world = make_world(mode="temporal", storage=storage)
    world.run(
        "create table t(id integer primary key, v text)",
        "insert into t values (1, 'a'), (2, 'a')",
    )
    world.htap.sync_now()
    world.run("alter table t add column x integer default 7")
    world.faults.arm(Step.SNAPSHOT, 2)  # by then the log of the second shape is made
    assert world.surviving(world.htap.sync_now)
    world.run(
        "update t set v = 'b' where id = 1",
        "alter table t add column y integer",
        "update t set v = 'c' where id = 1",
    )
    world.faults.arm(Step.SNAPSHOT, 2)  # by then its history has that shape
    assert world.surviving(lambda: world.htap.sync_now())  # noqa: PLW0108  (opening crashes)
    world.run("alter table t drop column y")
    assert not world.htap.sync_now().errors
    world.assert_equal("t")
    found = [(row["v"], row["x"]) for row in world.versions("t") if row["id"] == 1]
    assert (found[:2], found[-1]) == ([("a", None), ("b", 7)], ("c", 7))
