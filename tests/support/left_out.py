"""What holds of a table that is left out: the others flow, it is named, and nothing fails."""

import re

from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World


def assert_left_out(world: World | PostgresWorld, table: str, reason: str) -> None:
    """A table cannot be mirrored; the table `good`, made here, is, and its changes flow."""
    world.run(
        "create table good(id integer primary key, v text, updated_at timestamp)",
        "insert into good values (1, 'a', '2020-01-01')",
    )
    assert world.htap.sync_now().tables["good"].inserted == 1
    world.run("insert into good values (2, 'b', '2020-01-02')")
    report = world.htap.sync_now()
    assert (report.tables["good"].inserted, report.tables["good"].error) == (1, None)
    assert re.search(reason, report.errors[table]), report.errors
    assert world.htap.left_out == {table: report.errors[table]}
    status = world.htap.sync_status().tables[table]
    assert (status.error, status.lag_events, status.lag_seconds) == (
        report.errors[table],
        None,
        None,
    )
    assert world.htap.verify().tables["good"].equal
