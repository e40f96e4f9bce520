"""What every source of changes promises, however it learns of them: a suite to subclass.

class TestMySource(SourceContract):
    @pytest.fixture
    def bench(self) -> Iterator[SourceBench]:
        application = MyApplication()          # an `Application`: it writes the table `t`
        source = MySource(application)
        yield SourceBench(source, application)
        source.close()
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pytest

from rhei_pipeline.capabilities import (
    bytes_held_by,
    doubt_about,
    keyless_rows,
    rescan_due,
    shape_after,
    snapshot_of_rows,
)
from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.changes import LIVE, SEQUENCE, ChangeBatch, Position, event_schema
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.protocols import ChangeSource, Rescan, SourceSnapshot

#: Values of `t` by key.
Rows = Mapping[int, str | None]


class Application(Protocol):
    """What writes to the source: to a table `t(k integer, v text)`, empty at first, with key `k`.

    Each call commits at its end.
    """

    def insert(self, rows: Rows) -> None:
        """Insert rows, all in one transaction."""

    def update(self, key: int, value: str | None) -> None:
        """Give the row of a key another value."""

    def delete(self, key: int) -> None:
        """Delete the row of a key."""

    def move(self, key: int, to: int) -> None:
        """Give the row of a key another key."""

    def unfinished(self, rows: Rows) -> AbstractContextManager[object]:
        """Within the block, have rows inserted and not committed; roll them back at its end."""

    def add_column(self) -> None:
        """Add a column `w` of text behind the others."""


@dataclass(frozen=True, slots=True)
class SourceBench:
    """A source, its application, and what can be asked of such a source.

    Attributes:
        logs: It tells of every version and of deletes. One that does not tells of what rows have
            become, and asks for a comparison to find deletes.
        forgets: What is acknowledged is forgotten, so that earlier positions are not proved.
    """

    source: ChangeSource
    application: Application
    logs: bool = True
    forgets: bool = True

    def table(self, mode: Mode = Mode.DESTRUCTIVE) -> Table:
        """Return the table, captured."""
        made = Table(self.source.describe("t"), mode)
        self.source.install(made, 0)
        return made

    def head(self, table: Table) -> Position:
        """Return where the source is now."""
        with self.source.snapshot() as snapshot:
            return snapshot.head(table)


def batches(
    snapshot: SourceSnapshot, table: Table, after: Position, limit: int = 100
) -> list[ChangeBatch]:
    """Return all batches; each has the schema of the table's events."""
    found = list(snapshot.changes(table, after, limit))
    assert all(batch.events.schema.equals(event_schema(table.schema)) for batch in found)
    return found


def net(found: list[ChangeBatch]) -> dict[int, str | None]:
    """Return what became of each key; net changes come once a key."""
    events = pa.concat_tables([batch.events for batch in found]) if found else None
    rows = events.to_pylist() if events is not None else []
    if all(batch.net for batch in found):
        assert len({row["k"] for row in rows}) == len(rows)
    return {row["k"]: row["v"] if row[LIVE] else "gone" for row in rows}


class SourceContract:
    """What every source of changes promises; the subclass's fixture `bench` yields one."""

    def test_net_changes_are_what_keys_have_become(self, bench: SourceBench) -> None:
        application = bench.application
        application.insert({1: "a", 2: "b", 3: "c"})
        table = bench.table()
        after = bench.head(table)
        application.update(1, "x")
        application.update(1, None)
        application.delete(2)
        application.insert({4: "d", 5: "e"})
        application.delete(5)
        application.move(3, to=9)
        with bench.source.snapshot() as snapshot:
            found = net(batches(snapshot, table, after))
            gone = {2: "gone", 5: "gone", 3: "gone"} if bench.logs else {}
            assert found == {1: None, 4: "d", 9: "c", **gone}
            assert rescan_due(snapshot, table, after) is (Rescan.NONE if bench.logs else Rescan.ALL)
            assert batches(snapshot, table, snapshot.head(table)) == []

    def test_net_changes_of_a_temporal_table_are_those_of_a_destructive_one(
        self, bench: SourceBench
    ) -> None:
        table = bench.table(Mode.TEMPORAL)
        after = bench.head(table)
        bench.application.insert({1: "a", 2: "b"})
        bench.application.update(1, "x")
        bench.application.delete(2)
        with bench.source.snapshot() as snapshot:
            found = net(list(snapshot.net_changes(table, after, 100)))
        assert found == {1: "x", **({2: "gone"} if bench.logs else {})}

    def test_batches_bound_rows_and_count_every_event_once(self, bench: SourceBench) -> None:
        table = bench.table()
        after = bench.head(table)
        for key in range(25):
            bench.application.insert({key: "v"})
        with bench.source.snapshot() as snapshot:
            found = batches(snapshot, table, after, limit=10)
            assert max(batch.events.num_rows for batch in found) <= 10
            assert sum(batch.count for batch in found) == snapshot.pending(table, after) == 25
            assert len(net(found)) == 25

    def test_a_temporal_table_gets_every_version_in_order(self, bench: SourceBench) -> None:
        table = bench.table(Mode.TEMPORAL)
        after = bench.head(table)
        bench.application.insert({1: "a"})
        bench.application.update(1, "b")
        bench.application.delete(1)
        bench.application.insert({1: "c"})
        with bench.source.snapshot() as snapshot:
            found = batches(snapshot, table, after, 2)
        events = pa.concat_tables([batch.events for batch in found])
        versions = ["a", "b", None, "c"] if bench.logs else ["c"]
        assert events["v"].to_pylist() == versions
        assert events[LIVE].to_pylist() == [version is not None for version in versions]
        assert events[SEQUENCE].to_pylist() == sorted(set(events[SEQUENCE].to_pylist()))

    @pytest.mark.parametrize("mode", list(Mode))
    def test_what_is_rolled_back_never_shows(self, bench: SourceBench, mode: Mode) -> None:
        table = bench.table(mode)
        after = bench.head(table)
        with bench.application.unfinished({1: "a"}), bench.source.snapshot() as snapshot:
            assert snapshot.pending(table, after) == 0
        with bench.source.snapshot() as snapshot:
            assert batches(snapshot, table, after) == []

    @pytest.mark.parametrize("mode", list(Mode))
    def test_a_snapshot_is_one_state(self, bench: SourceBench, mode: Mode) -> None:
        table = bench.table(mode)
        after = bench.head(table)
        bench.application.insert({1: "a"})
        with snapshot_of_rows(bench.source) as snapshot:
            head = snapshot.head(table)
            bench.application.insert({2: "b"})
            bench.application.update(1, "later")
            assert snapshot.head(table) == head
            assert snapshot.count(table) == 1
            assert net(batches(snapshot, table, after)) == {1: "a"}
            rows = snapshot.rows(table, None, 10)
            assert rows is not None
            assert rows.rows.select(["k", "v"]).to_pylist() == [{"k": 1, "v": "a"}]

    def test_rows_come_whole_and_resume_in_another_snapshot(self, bench: SourceBench) -> None:
        for key in range(7):
            bench.application.insert({key: "v"})
        table = bench.table()
        resume, seen = None, []
        while True:
            with snapshot_of_rows(bench.source) as snapshot:
                found = snapshot.rows(table, resume, 3)
            if found is None:
                break
            assert found.rows.schema.equals(table.schema.arrow)
            seen += found.rows["k"].to_pylist()
            resume = found.resume
        assert seen == list(range(7))

    def test_rows_read_on_behind_a_row_that_is_gone(self, bench: SourceBench) -> None:
        bench.application.insert(dict.fromkeys((1, 3, 5, 7), "v"))
        table = bench.table()
        with snapshot_of_rows(bench.source) as snapshot:
            found = snapshot.rows(table, None, 2)
        assert found is not None
        bench.application.delete(3)
        bench.application.insert({2: "behind", 4: "new"})
        with snapshot_of_rows(bench.source) as snapshot:
            rest = snapshot.rows(table, found.resume, 10)
        assert rest is not None
        assert rest.rows["k"].to_pylist() == [4, 5, 7]

    def test_a_copy_is_caught_up_from_its_origin(self, bench: SourceBench) -> None:
        """Rows that were read, and what changed since the origin, are the rows of now."""
        bench.application.insert({1: "a", 2: "b"})
        table = bench.table()
        with bench.source.snapshot() as snapshot:
            origin = snapshot.origin(table)
        bench.application.insert({3: "c"})
        with snapshot_of_rows(bench.source) as snapshot:
            assert snapshot.proves(table, origin)
            found = snapshot.rows(table, None, 10)
        assert found is not None
        held = dict(zip(found.rows["k"].to_pylist(), found.rows["v"].to_pylist(), strict=True))
        bench.application.update(1, "x")
        bench.application.insert({4: "d"})
        with bench.source.snapshot() as snapshot:
            held |= net(list(snapshot.net_changes(table, origin, 10)))
        assert held == {1: "x", 2: "b", 3: "c", 4: "d"}

    @pytest.mark.parametrize("mode", list(Mode))
    def test_a_position_is_proved_until_it_is_acknowledged_past(
        self, bench: SourceBench, mode: Mode
    ) -> None:
        table = bench.table(mode)
        positions = [bench.head(table)]
        for key in range(3):
            bench.application.insert({key: "v"})
            positions.append(bench.head(table))
        assert [place.order for place in positions] == sorted(place.order for place in positions)
        with bench.source.snapshot() as snapshot:
            assert all(snapshot.proves(table, place) for place in positions)
        for _ in range(2):
            bench.source.acknowledge({"t": positions[2]}, prune=True)
            with bench.source.snapshot() as snapshot:
                proved = [snapshot.proves(table, place) for place in positions]
                assert proved == [not bench.forgets, not bench.forgets, True, True]
                assert snapshot.pending(table, positions[2]) == 1

    def test_what_another_source_proved_is_not_proved(self, bench: SourceBench) -> None:
        table = bench.table()
        bench.application.insert({1: "a"})
        head = bench.head(table)
        with bench.source.snapshot() as snapshot:
            assert snapshot.proves(table, head)
            assert not snapshot.proves(table, Position(head.order, "another source's"))

    def test_nothing_is_forgotten_unless_it_may_be(self, bench: SourceBench) -> None:
        table = bench.table()
        after = bench.head(table)
        bench.application.insert({1: "a"})
        assert bench.source.acknowledge({"t": bench.head(table)}, prune=False) == 0
        bench.source.acknowledge({"t": after}, prune=True)
        with bench.source.snapshot() as snapshot:
            assert snapshot.proves(table, after)
            assert net(batches(snapshot, table, after)) == {1: "a"}

    def test_installing_again_keeps_what_is_pending(self, bench: SourceBench) -> None:
        table = bench.table()
        after = bench.head(table)
        bench.application.insert({1: "a"})
        assert bench.source.is_installed(table)
        bench.source.install(table, after.order)
        with bench.source.snapshot() as snapshot:
            assert snapshot.proves(table, after)
            assert net(batches(snapshot, table, after)) == {1: "a"}

    def test_positions_begin_behind_the_least(self, bench: SourceBench) -> None:
        table = Table(bench.source.describe("t"))
        bench.source.install(table, 1000)
        assert bench.head(table).order > 1000

    @pytest.mark.parametrize("mode", list(Mode))
    def test_touched_keys_are_read_again(self, bench: SourceBench, mode: Mode) -> None:
        bench.application.insert({1: "a", 2: "b"})
        table = bench.table(mode)
        after = bench.head(table)
        bench.source.touch(table, [(2,)])
        with bench.source.snapshot() as snapshot:
            assert net(batches(snapshot, table, after)) == {2: "b"}

    def test_a_change_of_the_schema_shows_in_the_version(self, bench: SourceBench) -> None:
        table = bench.table()
        before = bench.source.schema_version()
        with bench.source.snapshot() as snapshot:
            assert snapshot.schema_version == before
        bench.application.add_column()
        assert bench.source.schema_version() != before
        assert bench.source.describe("t").names == (*table.schema.names, "w")
        assert table.schema != bench.source.describe("t")

    def test_a_table_that_is_not_there_is_named(self, bench: SourceBench) -> None:
        with pytest.raises(SchemaError, match="'nowhere'"):
            bench.source.describe("nowhere")

    def test_nothing_is_in_doubt_while_all_is_well(self, bench: SourceBench) -> None:
        table = bench.table()
        bench.application.insert({1: "a"})
        with snapshot_of_rows(bench.source) as snapshot:
            assert doubt_about(snapshot, table) is None
            assert keyless_rows(snapshot, table) == ()
            assert shape_after(snapshot, table, snapshot.head(table)) is None
        assert all(size >= 0 for size in bytes_held_by(bench.source).values())

    def test_age_of_the_oldest_pending_change(self, bench: SourceBench) -> None:
        table = bench.table()
        after = bench.head(table)
        with bench.source.snapshot() as snapshot:
            assert snapshot.oldest_pending(table, after) is None
        bench.application.insert({1: "a"})
        with bench.source.snapshot() as snapshot:
            oldest = snapshot.oldest_pending(table, after)
            assert oldest is not None
            assert 0 <= (snapshot.clock - oldest).total_seconds() < 60
