"""Rows that are drawn by lot are each drawn once, whatever bytes their texts are."""

from rhei_pipeline.capabilities import draw_rows
from tests.support.fix_world import World
from tests.support.parts import engine_of


def test_no_row_is_drawn_twice_where_a_text_is_not_utf_8(world: World) -> None:
    world.run(
        "create table t(id integer primary key, v text)",
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000)"
        " insert into t select i, 'a' from n",
        "update t set v = cast(x'ff' as text) where id > 1900",
    )
    world.htap.sync_now()
    engine = engine_of(world.htap)
    with engine.source.snapshot() as snapshot:
        for _ in range(5):
            batches = draw_rows(snapshot, engine.pipeline.table("t"), 0.5, 100)
            drawn = [key for batch in batches for key in batch.rows["id"].to_pylist()]
            assert len(drawn) == len(set(drawn))
            assert max(drawn) <= 1900
