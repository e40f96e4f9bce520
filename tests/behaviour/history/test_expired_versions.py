"""Which versions a retention takes, and which it leaves, where it is a matter of one of them."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from rhei_pipeline.changes.scd2 import supersede
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.model.changes import event_schema
from rhei_pipeline.model.retention import Ageing
from rhei_pipeline.model.schema import Column, Mode, Table, TableSchema
from rhei_pipeline.protocols import Mirror
from rhei_pipeline.testing.mirror_work import HISTORY, NOW, SECOND, copy, rows, versions


@pytest.fixture(params=["duckdb", "ipc"])
def mirror(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mirror]:
    made: Mirror
    if request.param == "duckdb":
        made = DuckDBMirror(tmp_path / "m.duckdb")
    else:
        made = DataFusionMirror(request.param, tmp_path / "m")
    yield made
    made.close()


def removed(mirror: Mirror, ageing: Ageing) -> int:
    """Return how many versions went."""
    assert isinstance(mirror, DuckDBMirror | DataFusionMirror)
    return sum(found.versions for found in mirror.expire([ageing]))


def happened(table: Table, *states: tuple[object, float, int]) -> pa.Table:
    """Return events of one transaction: key, value, and when, in seconds after `NOW`."""
    told = [
        {
            "_rhei_sequence": number,
            "_rhei_changed_at": NOW + at * SECOND,
            "_rhei_live": True,
            "k": key,
            "v": value,
        }
        for number, (key, value, at) in enumerate(states)
    ]
    return pa.Table.from_pylist(told, schema=event_schema(table.schema))


def happen(mirror: Mirror, table: Table, *states: tuple[object, float, int]) -> None:
    """Commit the versions of such a transaction."""
    events = happened(table, *states)
    with mirror.transaction() as transaction:
        opened, floors = transaction.open_versions(table, events)
        made = supersede(events, opened, floors, table.schema, whole_transactions=True)
        transaction.supersede(table, made)


def test_a_version_that_ended_at_that_instant_goes_and_the_next_one_stays(mirror: Mirror) -> None:
    copy(mirror, HISTORY, rows(a=0.0))
    for at in (1, 2, 3):
        happen(mirror, HISTORY, ("a", float(at), at))
    until = NOW + 2 * SECOND
    assert removed(mirror, Ageing(HISTORY, until - SECOND / 1_000_000, None)) == 1
    assert removed(mirror, Ageing(HISTORY, until, None)) == 1
    assert [found[1] for found in versions(mirror)] == [2.0, 3.0]


def test_a_history_is_kept_since_the_last_end_of_all_that_ever_went(mirror: Mirror) -> None:
    """Before that, some instant would be answered without a row that was valid then."""
    assert isinstance(mirror, DuckDBMirror | DataFusionMirror)
    copy(mirror, HISTORY, rows(b=0.0))
    for key, at in (("a", 1), ("b", 9), ("a", 4)):  # the one that ends last stands first
        happen(mirror, HISTORY, (key, float(at), at))
    [found] = mirror.expire([Ageing(HISTORY, None, 1)])
    assert (found.versions, found.kept_since) == (2, NOW + 9 * SECOND)
    happen(mirror, HISTORY, ("a", 6.0, 6))
    [found] = mirror.expire([Ageing(HISTORY, None, 1)])
    assert (found.versions, found.kept_since) == (1, NOW + 9 * SECOND)


def test_versions_that_nothing_tells_apart_stay_together(mirror: Mirror) -> None:
    copy(mirror, HISTORY, rows(a=0.0))
    happen(mirror, HISTORY, ("a", 1.0, 5), ("a", 2.0, 5), ("a", 3.0, 5))
    assert removed(mirror, Ageing(HISTORY, None, 2)) == 1
    assert sorted(found[1] for found in versions(mirror)) == [1.0, 2.0, 3.0]
    assert removed(mirror, Ageing(HISTORY, None, 1)) == 2
    assert [found[1] for found in versions(mirror)] == [3.0]


def test_versions_of_a_zero_are_counted_together_whatever_its_sign(mirror: Mirror) -> None:
    columns = (Column("k", pa.float64()), Column("v", pa.float64()))
    table = Table(TableSchema("z", columns, ("k",)), Mode.TEMPORAL)
    copy(mirror, table, pa.table({"k": [0.0, 1.0], "v": [0.0, 0.0]}))
    for at, key in enumerate((-0.0, 0.0, -0.0), 1):
        happen(mirror, table, (key, float(at), at))
    assert removed(mirror, Ageing(table, None, 2)) == 2
    assert sorted(found[1] for found in versions(mirror, table)) == [0.0, 2.0, 3.0]


def test_a_row_that_is_there_never_goes_even_if_its_history_contradicts_itself(
    mirror: Mirror,
) -> None:
    copy(mirror, HISTORY, rows(a=0.0))
    happen(mirror, HISTORY, ("a", 1.0, 1))
    with mirror.transaction() as transaction:
        # Of another row as far as it looks, so the version before it does not end.
        opened, floors = transaction.open_versions(HISTORY, happened(HISTORY, ("x", 2.0, 2)))
        made = supersede(happened(HISTORY, ("a", 2.0, 2)), opened, floors, HISTORY.schema)
        transaction.supersede(HISTORY, made)
    assert mirror.count(HISTORY) == 2
    assert removed(mirror, Ageing(HISTORY, None, 1)) == 1
    assert [found[1] for found in versions(mirror)] == [1.0, 2.0]
