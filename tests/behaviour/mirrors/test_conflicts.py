"""What if DuckDB refuses a commit as if somebody else had written?"""

from collections.abc import Callable

import pytest

from rhei_pipeline.errors import MirrorConflictError
from rhei_pipeline.protocols import Step
from tests.support.fix_world import World
from tests.support.parts import connection_of, engine_of


def test_a_conflict_is_tried_again_and_then_named(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()

    def write_too() -> None:
        cursor = connection_of(engine_of(world.htap).mirror).cursor()
        cursor.execute("update _rhei_watermark set proof = proof")
        cursor.close()

    world.faults.do_at(Step.RECORDED, write_too)
    world.run("insert into t values (2, 'b')")
    assert world.htap.sync_now().inserted == 1

    world.faults.do_at(Step.RECORDED, write_too, times=2)
    world.run("insert into t values (3, 'c')")
    with pytest.raises(MirrorConflictError, match="nothing of it is committed: try again"):
        world.htap.sync_now()
    assert world.htap.query("select id from t", hint="olap").num_rows == 2
    assert world.htap.sync_now().inserted == 1
    assert world.htap.verify().equal
