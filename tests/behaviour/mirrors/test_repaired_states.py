"""What a repair makes of a mirror of files, where it is a matter of one file."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rhei_pipeline.mirrors.datafusion.manifest import Segment
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.progress import CopyProgress, TableState, Watermark
from rhei_pipeline.testing.mirror_work import (
    HISTORY,
    TABLE,
    apply,
    copy,
    held,
    keys,
    merge,
    rows,
    versions,
)
from tests.support.damage import damage
from tests.support.parts import manifest_of, store_of


@pytest.fixture(params=["ipc", "parquet"])
def mirror(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DataFusionMirror]:
    with closing(DataFusionMirror(request.param, tmp_path / "m")) as made:
        yield made


def segments(mirror: DataFusionMirror, relation: str) -> tuple[Segment, ...]:
    tables = manifest_of(mirror).tables.values()
    return next(table.segments for table in tables if table.relation == relation)


def spoil(mirror: DataFusionMirror, name: str) -> None:
    damage(Path(mirror.path) / name, "flip most")


def test_rows_that_were_deleted_do_not_come_back_with_what_told_so(
    mirror: DataFusionMirror,
) -> None:
    copy(mirror, TABLE, rows(**dict.fromkeys("abcdefgh", 1.0)))
    merge(mirror, rows(), keys("b"))
    (part,) = segments(mirror, "t")
    assert part.gone is not None
    spoil(mirror, part.gone.file)
    assert mirror.heal(TABLE)
    assert held(mirror) == {}  # a copy reads them again
    merge(mirror, rows(b=2.0), keys())
    assert held(mirror) == {"b": 2.0}


def test_versions_that_ended_do_not_come_back_with_what_told_so(
    mirror: DataFusionMirror,
) -> None:
    copy(mirror, HISTORY, rows(a=1.0, b=2.0, c=3.0, d=4.0))
    with mirror.transaction() as transaction:
        apply(transaction, HISTORY, ("a", 5.0, 1))
    before = versions(mirror)
    (part,) = (part for part in segments(mirror, "h") if part.ended)
    assert part.gone is not None
    spoil(mirror, part.gone.file)
    assert mirror.heal(HISTORY)
    assert versions(mirror) == before
    (part,) = (part for part in segments(mirror, "h") if part.ended)
    assert part.gone is not None
    spoil(mirror, part.gone.file)
    spoil(mirror, part.ended[0].file)
    assert mirror.heal(HISTORY)
    assert [version[:2] for version in versions(mirror)] == [("a", 5.0)]


def test_a_copy_of_which_a_file_is_damaged_begins_again(mirror: DataFusionMirror) -> None:
    copy(mirror, TABLE, rows(a=1.0))
    progress = CopyProgress("t", Position(3, "p"), "shape", resume="here")
    with mirror.transaction() as transaction:
        transaction.begin_copy(TABLE, progress)
        transaction.append_copy(TABLE, rows(a=1.0, b=2.0), progress)
        transaction.record(Watermark("t", Position(2, "p"), datetime.now(UTC)))
    relation = next(t.relation for t in manifest_of(mirror).tables.values() if t.relation != "t")
    (part,) = segments(mirror, relation)
    spoil(mirror, store_of(mirror).place(part.name))
    assert mirror.heal(TABLE)
    assert mirror.ledger().state("t") is TableState.READY
    assert held(mirror) == {"a": 1.0}


@pytest.mark.parametrize("ahead", [timedelta(hours=2), timedelta(hours=-2)])
def test_a_history_may_have_gaps_until_both_clocks_have_passed(
    mirror: DataFusionMirror, ahead: timedelta
) -> None:
    copy(mirror, HISTORY, rows(a=1.0))
    begun = datetime.now(UTC)
    synced = begun + ahead  # by the source's clock
    with mirror.transaction() as transaction:
        transaction.record(Watermark("h", Position(2, "p"), synced))
    spoil(mirror, store_of(mirror).place(segments(mirror, "h")[0].name))
    assert mirror.heal(HISTORY)
    until = mirror.gaps_until(HISTORY)
    assert until is not None
    assert max(begun, synced) <= until <= max(datetime.now(UTC), synced)
