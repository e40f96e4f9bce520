"""A range of rows that differs is read again whole, however many come at once by then."""

from collections.abc import Callable, Iterator

import pyarrow as pa
import pytest

from rhei_pipeline.sources.postgres import rows as reading
from rhei_pipeline.sync import rescan
from tests.support.fix_postgres import PostgresWorld

ROWS, SHORT, PORTION = 100, 50, 500_000
#: Does not shrink, and is estimated at eight times its bytes: it may be compressed.
LONG = "to_jsonb((select string_agg(md5((i * 1000 + n)::text), '') from generate_series(1, {}) n))"


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_range_that_is_read_in_more_batches_the_second_time_comes_whole(
    make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Others write meanwhile: the bytes beside the table, which tell how much to read, grow."""
    monkeypatch.setattr(reading, "PORTION_BYTES", PORTION)
    monkeypatch.setattr(reading, "_SAMPLE_ROWS", SHORT)
    monkeypatch.setattr(rescan, "RANGE_ROWS", ROWS)
    polling = {"updated_at": "at", "clock": "database", "deletes": "reconcile"}
    table = {"name": "t", "polling": {**polling, "reconcile_seconds": 0}}
    world = make_postgres(capture={"method": "polling"}, tables=[table], mode=mode)
    value = f"case when i > {SHORT} then {LONG.format(90)} else '1' end"
    world.run(
        "create table t(id int primary key, v jsonb, n int, at timestamptz default now())",
        "alter table t alter v set storage main",
        # Long ago: what a poll reads again, for it may have been under way, is in no comparison.
        f"insert into t select i, {value}, 0, now() - interval '1 day'"
        f" from generate_series(1, {ROWS}) i",
    )
    world.htap.sync_now()
    reads = list[int]()
    again = rescan._Ranges.again

    def grown(ranges: rescan._Ranges, number: int) -> Iterator[pa.Table]:
        world.run(f"insert into t select 1000 + i, {LONG.format(9000)}, 0 from (select 1 i) one")
        for found in again(ranges, number):
            reads.append(found.num_rows)
            yield found

    monkeypatch.setattr(rescan._Ranges, "again", grown)
    world.run(f"update t set n = 1 where id = {ROWS}", "update t set at = now() where id = 1")
    world.htap.sync_now()
    monkeypatch.undo()
    assert len(reads) > 1, "the second read was cut"
    assert {row["id"] for row in world.present("t") if row["n"]} == {ROWS}
    world.htap.sync_now()
    assert world.htap.verify().equal
