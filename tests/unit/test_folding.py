"""Which segments a cycle folds: by size, by count, by age, and never much at once."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa

from rhei_pipeline.mirrors.datafusion.manifest import DeletionVector, Segment
from rhei_pipeline.mirrors.datafusion.segment_merge import AGE, CYCLE_ROWS, FAN, due_in_a_cycle

NOW = datetime(2026, 5, 1, tzinfo=UTC)
OLD = NOW - AGE - timedelta(seconds=1)


def segment(
    rows: int,
    written: datetime | None = NOW,
    *,
    past: bool = False,
    tag: str = "",
    gone: int | None = None,
) -> Segment:
    name, shape = f"{rows} {written} {past} {tag}", pa.schema([("k", pa.int64())])
    lost = None if gone is None else DeletionVector("bits", 0, gone)
    return Segment(name, rows, 1, shape, past=past, tag=tag, gone=lost, written_at=written)


def test_a_full_hand_of_one_size_is_folded() -> None:
    small = [segment(100 + n) for n in range(FAN)]
    assert due_in_a_cycle([segment(50_000), *small], NOW) == [small]
    assert due_in_a_cycle(small[1:], NOW) == []


def test_versions_that_ended_and_open_ones_are_not_mixed() -> None:
    mixed = [segment(100 + n, past=n % 2 == 0) for n in range(FAN)]
    assert due_in_a_cycle(mixed, NOW) == []


def test_few_are_folded_once_they_are_old() -> None:
    few = [segment(100, OLD), segment(300, OLD)]
    assert due_in_a_cycle([*few, segment(200)], NOW) == [few]
    assert due_in_a_cycle([segment(100, None), segment(300, None)], NOW) == []
    assert due_in_a_cycle([segment(100, OLD), segment(300, OLD, past=True)], NOW) == []
    assert due_in_a_cycle([segment(100, OLD), segment(300, OLD, tag="day")], NOW) == []


def test_age_makes_no_cycle_rewrite_much() -> None:
    large, tiny = segment(900_000, OLD), [segment(10, OLD), segment(20, OLD)]
    assert due_in_a_cycle([large, *tiny], NOW) == [tiny]
    near = [segment(CYCLE_ROWS // 2, OLD), segment(CYCLE_ROWS // 2 + 1, OLD)]
    assert due_in_a_cycle(near, NOW) == []


def test_what_is_due_by_count_or_loss_comes_before_what_is_old() -> None:
    worn = segment(1000, OLD, gone=600)
    assert due_in_a_cycle([worn, segment(100, OLD), segment(300, OLD)], NOW) == [[worn]]
