"""A row that comes into a filter: which of its values are known, and when it is a dead letter."""

from datetime import UTC, datetime

import pyarrow as pa

from rhei_pipeline.changes.filters import chosen_changes, row_filter
from rhei_pipeline.model.changes import ChangeBatch, DeadLetter, event_schema
from rhei_pipeline.model.schema import Column, TableSchema

SCHEMA = TableSchema(
    "t",
    (Column("id", pa.int64()), Column("kept", pa.bool_()), Column("v", pa.string())),
    ("id",),
)
NOW = datetime(2026, 11, 1, tzinfo=UTC)
#: Of a row: its key, whether it is in the filter, and its value; `...` where the log left it out.
Change = tuple[int, bool, object]


def chosen(*changes: Change, letters: tuple[DeadLetter, ...] = ()) -> ChangeBatch:
    """Return what the filter makes of updates, in order."""
    rows = [
        {
            "_rhei_sequence": number,
            "_rhei_changed_at": NOW,
            "_rhei_live": True,
            "id": key,
            "kept": kept,
            "v": None if value is ... else value,
        }
        for number, (key, kept, value) in enumerate(changes)
    ]
    left_out = pa.array([value is ... for _, _, value in changes])
    batch = ChangeBatch(
        pa.Table.from_pylist(rows, event_schema(SCHEMA)),
        len(rows),
        rejected=letters,
        unchanged={"v": left_out},
        former_keys=pa.table({"id": [key for key, _, _ in changes]}),
    )
    return chosen_changes(batch, SCHEMA, row_filter("kept", SCHEMA, "postgres"))


def told(batch: ChangeBatch) -> list[Change]:
    """Return events by what they are: with its former key, each is beside its own."""
    assert batch.former_keys is not None
    assert batch.former_keys["id"].to_pylist() == batch.events["id"].to_pylist()
    masks = batch.unchanged["v"].to_pylist()
    return [
        (row["id"], row["_rhei_live"], ... if is_left_out else row["v"])
        for row, is_left_out in zip(batch.events.to_pylist(), masks, strict=True)
    ]


def test_a_value_that_was_left_out_is_known_where_the_row_was_in_the_filter() -> None:
    found = chosen((1, True, "a"), (1, True, ...), (2, True, ...))
    assert told(found) == [(1, True, "a"), (1, True, ...), (2, True, ...)]
    assert not found.rejected


def test_a_row_that_comes_in_with_all_its_values_is_one_of_the_filters() -> None:
    """And a later change of it may leave out what it brought."""
    found = chosen((1, False, "a"), (1, True, "b"), (1, True, ...))
    assert told(found) == [(1, False, None), (1, True, "b"), (1, True, ...)]
    assert not found.rejected


def test_a_row_that_comes_in_without_a_value_is_a_dead_letter_beside_those_met_before() -> None:
    before = DeadLetter("t", '{"id": 7}', "v", "found a list", NOW)
    found = chosen((1, False, ...), (2, True, "b"), (1, True, ...), letters=(before,))
    assert told(found) == [(1, False, None), (2, True, "b")]
    assert [letter.key for letter in found.rejected] == [before.key, '{"id": 1}']
    assert found.rejected[1].column == "v"
