"""What a transaction notes in a table's feed: who writes, and which versions came late."""

from typing import Any

import pyarrow as pa
import pytest

from rhei_pipeline.changes.feed import FeedEnd, Recording, feed_schema
from rhei_pipeline.model.changes import Versions
from rhei_pipeline.model.feed_state import KIND, LATE, LINEAGE
from rhei_pipeline.model.schema import VALID_FROM, VALID_TO
from rhei_pipeline.model.type_names import INSTANT
from tests.unit.stub_world import schema

T = schema("t")
#: A version: its key, since when, until when.
Spell = tuple[int, int, int | None]
KNOWN = FeedEnd(3, 100, "me")


def table_of(spells: list[Spell]) -> pa.Table:
    keys, began, ended = zip(*spells, strict=True) if spells else ((), (), ())
    instants = [pa.array(each, pa.int64()).cast(INSTANT) for each in (began, ended)]
    return pa.table([pa.array(keys, pa.int64()), *instants], ["k", VALID_FROM, VALID_TO])


def versions(opened: list[Spell], ended: list[Spell]) -> Versions:
    return Versions(table_of(ended), table_of(opened), 0, 0, 0)


def noted(
    base: FeedEnd, opened: list[Spell], ended: list[Spell]
) -> tuple[list[tuple[Any, ...]], FeedEnd]:
    """Return the entries, without the names of lineages, and the state that follows."""
    recording = Recording(T, base)
    entries = recording.note(versions(opened, ended))
    assert entries.schema == feed_schema(T)
    instants = {name: entries[name].cast(pa.int64()).to_pylist() for name in (VALID_FROM, VALID_TO)}
    kinds, late, keys = (entries[name].to_pylist() for name in (KIND, LATE, "k"))
    for kind, lineage in zip(kinds, entries[LINEAGE].to_pylist(), strict=True):
        assert (lineage is not None) == (kind in {"begun", "lost"})
    rows = zip(kinds, late, keys, instants[VALID_FROM], instants[VALID_TO], strict=True)
    return list(rows), recording.end()


@pytest.mark.parametrize(
    ("opened", "ended", "newest"),
    [
        ([(1, 101, None)], [], 101),
        ([(1, 101, None), (2, 140, None)], [(2, 90, 130)], 140),
        ([], [(1, 90, 120)], 120),
        ([(1, 110, 150)], [], 150),
    ],
    ids=["opened", "both", "ended", "opened and ended"],
)
def test_what_lies_behind_all_that_was_there_is_not_noted(
    opened: list[Spell], ended: list[Spell], newest: int
) -> None:
    assert noted(KNOWN, opened, ended) == ([], FeedEnd(3, newest, "me"))


def test_a_version_is_late_that_begins_or_ends_no_later_than_the_newest() -> None:
    entries, end = noted(
        KNOWN,
        [(1, 100, None), (2, 101, None), (3, 40, 60)],
        [(4, 80, 100), (5, 80, 101)],
    )
    assert entries == [
        ("opened", 4, 1, 100, None),
        ("opened", 4, 3, 40, None),
        ("ended", 4, 4, 80, 100),
    ]
    assert end == FeedEnd(4, 101, "me")


def test_late_versions_alone_leave_the_newest_instant_as_it_was() -> None:
    entries, end = noted(KNOWN, [(1, 40, 60)], [])
    assert entries == [("opened", 4, 1, 40, None)]
    assert end == FeedEnd(4, 100, "me")


def test_nothing_is_noted_of_nothing() -> None:
    assert noted(KNOWN, [], []) == ([], KNOWN)
    assert noted(FeedEnd(3, 100), [], []) == ([], FeedEnd(3, 100))


def test_a_process_that_goes_on_is_noted_once_from_the_state_that_it_found() -> None:
    recording = Recording(T, FeedEnd(3, 100))
    first = recording.note(versions([(1, 101, None)], []))
    assert first[KIND].to_pylist() == ["begun"]
    assert first[LATE].to_pylist() == [3]
    assert first[VALID_FROM].cast(pa.int64()).to_pylist() == [100]
    assert recording.note(versions([(2, 102, None)], [])).num_rows == 0
    assert recording.end() == FeedEnd(3, 102, *first[LINEAGE].to_pylist())


def test_in_a_history_without_versions_none_is_late() -> None:
    entries, end = noted(FeedEnd(0, None, "me"), [(1, 1, None)], [])
    assert (entries, end) == ([], FeedEnd(0, 1, "me"))


def test_a_version_that_ends_where_it_began_voids_earlier_positions_if_it_is_late() -> None:
    entries, end = noted(KNOWN, [], [(1, 90, 90)])
    assert [entry[:2] for entry in entries] == [("ended", 4), ("lost", 4)]
    assert end.late == 4
    assert end.lineage != "me"
    assert noted(KNOWN, [], [(1, 120, 120)])[0] == []


def test_earlier_positions_are_void_once_in_a_transaction() -> None:
    recording = Recording(T, KNOWN)
    assert recording.lose()[KIND].to_pylist() == ["lost"]
    assert recording.lose().num_rows == 0
    assert recording.end().late == 4


def test_removed_versions_are_noted_with_how_many_late_commits_there_were() -> None:
    kept = Recording(T, KNOWN).kept(70, 2)
    assert kept[KIND].to_pylist() == ["kept", "counted"]
    assert kept[LATE].to_pylist() == [2, 3]
    assert kept[VALID_FROM].cast(pa.int64()).to_pylist() == [70, None]
    assert kept[LINEAGE].to_pylist() == [None, None]
