"""The pure floor: compaction, versions, schemas, quoting."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhei_pipeline.buffer.codec import in_size, seal, unseal
from rhei_pipeline.changes.compaction import compact, key_codes
from rhei_pipeline.changes.scd2 import FLOOR, LOCATOR, REPEATED, repeated, supersede
from rhei_pipeline.changes.toast import complete, wanted_keys
from rhei_pipeline.errors import SchemaError
from rhei_pipeline.mirrors.met_rows import Differences
from rhei_pipeline.model.changes import ChangeBatch, DeadLetter, event_schema, key_text
from rhei_pipeline.model.schema import VALID_FROM, VALID_TO, Column, TableSchema, difference
from rhei_pipeline.model.type_names import INSTANT, parse_type, type_name
from rhei_pipeline.sql.text import quote

SCHEMA = TableSchema(
    "t", (Column("a", pa.int64()), Column("b", pa.string()), Column("v", pa.float64())), ("a", "b")
)
START = datetime(2026, 1, 1, tzinfo=UTC)

Event = tuple[int, str, float | None]
events_of_keys = st.lists(
    st.tuples(
        st.integers(-1, 2), st.sampled_from("xy"), st.none() | st.sampled_from([0.0, -0.0, 1.5])
    ),
    max_size=12,
)


def events(rows: list[Event], first: int = 1, clock: list[int] | None = None) -> pa.Table:
    """Value None is a tombstone; the clock is in microseconds after START."""
    instants = [START + timedelta(microseconds=c) for c in clock or range(len(rows))]
    columns = [
        pa.array(range(first, first + len(rows)), pa.int64()),
        pa.array(instants, INSTANT),
        pa.array([row[2] is not None for row in rows], pa.bool_()),
        pa.array([row[0] for row in rows], pa.int64()),
        pa.array([row[1] for row in rows], pa.string()),
        pa.array([row[2] for row in rows], pa.float64()),
    ]
    return pa.table(columns, schema=event_schema(SCHEMA))


def no_open() -> pa.Table:
    told = [(VALID_FROM, INSTANT), (LOCATOR, pa.int64()), (REPEATED, pa.bool_())]
    return pa.schema([*SCHEMA.arrow_key, *told]).empty_table()


def no_floors() -> pa.Table:
    return pa.schema([*SCHEMA.arrow_key, (FLOOR, INSTANT)]).empty_table()


@given(events_of_keys)
def test_compaction_keeps_each_keys_last_event(rows: list[Event]) -> None:
    net = compact(ChangeBatch(events(rows), len(rows)), SCHEMA)
    model = {(a, b): v for a, b, v in rows}
    assert {(r["a"], r["b"]): repr(r["v"]) for r in net.upserts.to_pylist()} == {
        key: repr(value) for key, value in model.items() if value is not None
    }
    assert {(r["a"], r["b"]) for r in net.tombstones.to_pylist()} == {
        key for key, value in model.items() if value is None
    }
    assert net.keys.num_rows == len(model)


@given(
    st.lists(
        st.tuples(st.integers(-(2**63), 2**63 - 1), st.text(max_size=3), st.binary(max_size=2)),
        min_size=1,
        max_size=20,
    )
)
def test_keys_have_one_number_each(keys: list[tuple[int, str, bytes]]) -> None:
    doubled = keys + keys
    table = pa.table([pa.array(part) for part in zip(*doubled, strict=True)], names=["a", "b", "c"])
    codes = key_codes(table).tolist()
    assert len(set(codes)) == len(set(keys))
    assert all(
        (codes[i] == codes[j]) == (doubled[i] == doubled[j])
        for i in range(len(codes))
        for j in range(i)
    )


def test_numbers_of_far_off_keys_do_not_run_over() -> None:
    first, second = [0, 1, 2, 3, 4, 0], [4, 0, 0, 0, 0, 2**62]
    assert len({*key_codes(pa.table({"a": first, "b": second})).tolist()}) == len(first)


@given(events_of_keys, st.lists(st.integers(-3, 3), min_size=12, max_size=12))
def test_versions_are_disjoint_and_hold_every_change(rows: list[Event], ticks: list[int]) -> None:
    clock = [sum(ticks[: place + 1]) for place in range(len(rows))]
    made = supersede(events(rows, clock=clock), no_open(), no_floors(), SCHEMA)
    by_key: dict[tuple[int, str], list[dict[str, object]]] = {}
    for version in made.openings.to_pylist():
        by_key.setdefault((version["a"], version["b"]), []).append(version)
    for key, versions in by_key.items():
        versions.sort(key=lambda version: str(version[VALID_FROM]))
        starts = [version[VALID_FROM] for version in versions]
        assert len(set(starts)) == len(starts)
        for version in versions:
            assert version[VALID_TO] is None or version[VALID_TO] > version[VALID_FROM]  # type: ignore[operator]
        for earlier, later in pairwise(versions):
            assert earlier[VALID_TO] is not None
            assert earlier[VALID_TO] <= later[VALID_FROM]  # type: ignore[operator]
        changes = [v for a, b, v in rows if (a, b) == key]
        states = [None, *changes]
        kept = [v for before, v in zip(states, changes, strict=False) if repr(before) != repr(v)]
        assert [repr(v["v"]) for v in versions] == [repr(v) for v in kept if v is not None]


@given(events_of_keys, st.lists(st.booleans(), min_size=12, max_size=12))
def test_no_instant_shows_what_a_transaction_had_not_finished(
    rows: list[Event], ends: list[bool]
) -> None:
    """Each transaction's last state of a key is the only one that an instant shows."""
    clock = [sum(ends[:place]) for place in range(len(rows))]
    made = supersede(
        events(rows, clock=clock), no_open(), no_floors(), SCHEMA, whole_transactions=True
    )
    versions = made.openings.to_pylist()
    for tick in range(sum(ends) + 1):
        instant = START + timedelta(microseconds=tick)
        shown = {
            (v["a"], v["b"]): repr(v["v"])
            for v in versions
            if v[VALID_FROM] <= instant and (v[VALID_TO] is None or v[VALID_TO] > instant)
        }
        last = {(a, b): v for (a, b, v), at in zip(rows, clock, strict=True) if at <= tick}
        assert shown == {key: repr(v) for key, v in last.items() if v is not None}


def test_a_transaction_read_in_two_parts_keeps_one_instant() -> None:
    opened = pa.table(
        {
            "a": [1],
            "b": ["x"],
            VALID_FROM: pa.array([START], INSTANT),
            LOCATOR: [10],
            REPEATED: [False],
        }
    )
    gone = pa.table({"a": [2], "b": ["x"], FLOOR: pa.array([START], INSTANT)})
    happened = events([(1, "x", 2.0), (2, "x", 3.0)], clock=[0, 0])
    made = supersede(happened, opened, gone, SCHEMA, whole_transactions=True)
    assert made.closings[VALID_TO].to_pylist() == [START]
    assert made.openings[VALID_FROM].to_pylist() == [START, START]
    later = supersede(
        events([(2, "x", 3.0)], clock=[-1]), no_open(), gone, SCHEMA, whole_transactions=True
    )
    assert later.openings[VALID_FROM].to_pylist() == [START + timedelta(microseconds=1)]


def test_a_transaction_whose_clock_went_back_starts_after_the_one_before() -> None:
    happened = events([(1, "x", 1.0), (1, "x", 2.0), (1, "x", 3.0)], clock=[5, 2, 2])
    made = supersede(happened, no_open(), no_floors(), SCHEMA, whole_transactions=True)
    starts = [
        (at - START) // timedelta(microseconds=1) for at in made.openings[VALID_FROM].to_pylist()
    ]
    assert starts == [5, 6, 6]


@pytest.mark.parametrize("dated", [-1, 0, 1])
def test_an_event_that_is_not_later_than_its_version_starts_when_it_was_seen(dated: int) -> None:
    opened = pa.table(
        {
            "a": [1],
            "b": ["x"],
            VALID_FROM: pa.array([START], INSTANT),
            LOCATOR: [10],
            REPEATED: [False],
        }
    )
    seen, written = START + timedelta(hours=1), START + timedelta(microseconds=dated)
    happened = events([(1, "x", 2.0)], clock=[dated])
    made = supersede(happened, opened, no_floors(), SCHEMA, seen_at=seen)
    assert made.openings[VALID_FROM].to_pylist() == [written if dated > 0 else seen]
    assert made.closings[VALID_FROM].to_pylist() == [START]


def test_an_open_version_is_closed_when_its_row_changes_and_left_when_it_does_not() -> None:
    opened = pa.table(
        {
            "a": [1, 2, 3],
            "b": ["x", "x", "x"],
            "v": [1.0, 2.0, 3.0],
            VALID_FROM: pa.array([START + timedelta(seconds=5)] * 3, INSTANT),
            LOCATOR: [10, 20, 30],
        }
    )
    happened = events([(1, "x", 1.0), (2, "x", 9.0), (3, "x", None)])
    same = repeated(opened, happened, SCHEMA)
    assert same.to_pylist() == [True, False, False]
    told = opened.drop_columns(["v"]).append_column(REPEATED, same)
    made = supersede(happened, told, no_floors(), SCHEMA)
    assert (made.inserted, made.updated, made.deleted) == (0, 1, 1)
    closed = {
        row[LOCATOR]: (row[VALID_TO], row["_rhei_deleted"]) for row in made.closings.to_pylist()
    }
    # Their clocks lie behind the open versions', so they move on.
    moved = START + timedelta(seconds=5, microseconds=1)
    assert closed == {20: (moved, False), 30: (moved, True)}


@pytest.mark.parametrize("floor", [START + timedelta(hours=1), START])
def test_a_key_that_comes_back_starts_behind_its_past(floor: datetime) -> None:
    floors = pa.table({"a": [1], "b": ["x"], FLOOR: pa.array([floor], INSTANT)})
    made = supersede(events([(1, "x", 1.0)]), no_open(), floors, SCHEMA)
    assert made.openings[VALID_FROM].to_pylist() == [floor + timedelta(microseconds=1)]


def test_a_null_that_stays_is_no_change_and_the_other_zero_of_a_key_is_one() -> None:
    columns = (Column("k", pa.float64()), Column("v", pa.string()), Column("w", pa.string()))
    schema, row = TableSchema("t", columns, ("k",)), {"_rhei_live": True, "v": "a", "w": None}
    told = [
        {**row, "_rhei_sequence": number, "_rhei_changed_at": START, "k": key}
        for number, key in enumerate([0.0, 0.0, -0.0])
    ]
    happened = pa.Table.from_pylist(told, schema=event_schema(schema))
    shape = {"k": pa.float64(), VALID_FROM: INSTANT, LOCATOR: pa.int64(), REPEATED: pa.bool_()}
    floors = pa.schema({"k": pa.float64(), FLOOR: INSTANT}).empty_table()
    made = supersede(happened, pa.schema(shape).empty_table(), floors, schema)
    assert list(map(str, made.openings["k"].to_pylist())) == ["0.0", "-0.0"]


def test_nothing_comes_of_nothing() -> None:
    made = supersede(events([]), no_open(), no_floors(), SCHEMA)
    assert made.openings.num_rows == made.closings.num_rows == 0


def test_the_difference_of_two_schemas() -> None:
    other = TableSchema(
        "t", (Column("a", pa.int64()), Column("v", pa.string()), Column("w", pa.int64())), ("a",)
    )
    found = difference(SCHEMA, other)
    assert [c.name for c in found.added] == ["w"]
    assert [c.name for c in found.dropped] == ["b"]
    assert [c.name for c in found.retyped] == ["v"]
    assert found.key_changed
    assert not difference(SCHEMA, SCHEMA)
    assert "added 'w' and dropped 'b'" in found.describe()
    renamed = difference(SCHEMA, other, {"w": "b"})
    assert [c.name for c in renamed.renamed] == ["w"]
    assert not renamed.added
    assert not renamed.dropped
    assert "renamed 'b' to 'w'" in renamed.describe()


@pytest.mark.parametrize(
    "name", ["int64", "decimal(10,2)", "timestamp", "timestamptz", "timestamp_ms", "date", "binary"]
)
def test_a_types_name_is_read_back(name: str) -> None:
    assert type_name(*parse_type(name)) == name


@pytest.mark.parametrize("name", ["int3", "decimal(39,0)", "decimal(2,3)", ""])
def test_an_unknown_type_is_refused(name: str) -> None:
    with pytest.raises(SchemaError):
        parse_type(name)


@given(st.text(min_size=1))
def test_quoting_keeps_any_identifier_whole(name: str) -> None:
    assert quote(name)[1:-1].replace('""', '"') == name


def test_a_schema_survives_its_json() -> None:
    assert TableSchema.from_json(SCHEMA.to_json()) == SCHEMA


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),  # the key
            st.sampled_from(["put", "keep", "gone", "move"]),
            st.integers(0, 2),  # where `move` takes it
        ),
        max_size=12,
    ),
    st.sets(st.integers(0, 2)),
)
def test_values_left_out_come_from_the_row_before(
    story: list[tuple[int, str, int]], present: set[int]
) -> None:
    schema = TableSchema("t", (Column("k", pa.int64()), Column("v", pa.string())), ("k",))
    state = {key: f"held {key}" for key in present}
    held = pa.table({"k": pa.array(state, pa.int64()), "v": pa.array(state.values(), pa.string())})
    events: list[tuple[int, bool, str | None, bool, int]] = []
    expected: list[str | None] = []
    for place, (key, kind, target) in enumerate(story):
        if kind == "put":
            state[key] = f"put {place}"
            events.append((key, True, state[key], False, key))
        elif key not in state or (kind == "move" and target in state):
            continue
        elif kind == "gone":
            del state[key]
            events.append((key, False, None, False, key))
        elif kind == "keep":
            events.append((key, True, None, True, key))
        else:
            events.append((key, False, None, False, key))
            expected.append(None)
            state[target] = state.pop(key)
            events.append((target, True, None, True, key))
            key = target  # noqa: PLW2901  (the state below is that key's)
        expected.append(state.get(key))
    count = len(events)
    keys, live, values, masks, former = zip(*events, strict=True) if events else ((),) * 5
    table = pa.table(
        [
            pa.array(range(count), pa.int64()),
            pa.array([0] * count, INSTANT),
            pa.array(live, pa.bool_()),
            pa.array(keys, pa.int64()),
            pa.array(values, pa.string()),
        ],
        schema=event_schema(schema),
    )
    batch = ChangeBatch(
        table,
        count,
        unchanged={"v": pa.array(masks, pa.bool_())},
        former_keys=pa.table({"k": pa.array(former, pa.int64())}),
    )
    wanted = wanted_keys(batch, schema)["k"].to_pylist()
    assert (
        complete(batch, held.filter(pc.is_in(held["k"], pa.array(wanted, pa.int64()))), schema)
        .events["v"]
        .to_pylist()
        == expected
    )


@pytest.mark.parametrize("others", [[], [3], [9], [3, 9]])
def test_a_value_that_is_nowhere_is_a_dead_letter(others: list[int]) -> None:
    schema = TableSchema("t", (Column("k", pa.int64()), Column("v", pa.string())), ("k",))
    row = {"_rhei_sequence": 0, "_rhei_changed_at": datetime(2026, 1, 1, tzinfo=UTC)}
    rows = [{**row, "_rhei_live": True, "k": 7, "v": None}]
    table = pa.Table.from_pylist(rows, schema=event_schema(schema))
    batch = ChangeBatch(table, 1, unchanged={"v": pa.array([True])})
    held = pa.table({"k": others, "v": ["another's"] * len(others)}, schema=schema.arrow)
    found = complete(batch, held, schema)
    assert found.events.num_rows == 0
    assert [(letter.key, letter.column) for letter in found.rejected] == [('{"k": 7}', "v")]


@pytest.mark.parametrize("is_sent_again", [False, True])
@pytest.mark.parametrize("where", ["the mirror", "the batch"])
def test_a_value_is_nowhere_where_an_earlier_state_of_its_row_did_not_fit(
    where: str, *, is_sent_again: bool
) -> None:
    schema, text = TableSchema("t", SCHEMA.columns, ("a",)), '{"a": 1}'
    table = events([(1, "x", 0.0), (1, "y", 1.0)])
    letters = (DeadLetter("t", text, "b", "it does not fit", START),)
    batch = ChangeBatch(table, 2, unchanged={"v": pa.array([True, not is_sent_again])})
    if where == "the batch":
        batch = replace(batch, rejected=letters, resolved=((text, None),))
    held = pa.table({"a": [1], "b": ["w"], "v": [9.0]}, schema=schema.arrow)
    found = complete(batch, held, schema, {text} if where == "the mirror" else ())
    assert found.events["b"].to_pylist() == (["y"] if is_sent_again else [])
    assert {letter.column for letter in found.rejected} == {
        "v",
        *(x.column for x in batch.rejected),
    }
    # What did not fit does now; of the other value that is known only where it was sent again.
    fits = {(text, None)} if is_sent_again else {(text, x.column) for x in batch.rejected}
    assert set(found.resolved) == fits


def test_an_event_of_which_two_values_are_nowhere_is_one_dead_letter() -> None:
    unsent = {"b": pa.array([True, True]), "v": pa.array([True, False])}
    table = events([(1, "x", 0.0), (2, "x", 0.0)])
    schema = TableSchema("t", SCHEMA.columns, ("a",))
    found = complete(ChangeBatch(table, 2, unchanged=unsent), schema.arrow.empty_table(), schema)
    assert [(letter.key, letter.column) for letter in found.rejected] == [
        ('{"a": 1}', "b"),
        ('{"a": 2}', "b"),
    ]


def test_equal_keys_have_equal_texts() -> None:
    assert key_text({"k": -0.0}) == key_text({"k": 0.0})
    assert key_text({"k": b"\0"}) != key_text({"k": "\0"})


def test_the_order_of_a_dead_letter_and_what_resolves_it_outlives_a_buffer() -> None:
    row, letter = events([(1, "x", 0.0)]), DeadLetter("t", '{"a": 1}', "v", "why", START)
    rejected = ChangeBatch(row.slice(0, 0), 1, rejected=(letter,))
    resolved = ChangeBatch(row, 1, resolved=((letter.key, None),))
    for order in ([rejected, resolved], [resolved, rejected], [rejected, resolved, rejected]):
        found = [unseal(seal(batch)) for batch in in_size(iter(order), 10)]
        told = [(batch.rejected, batch.resolved) for batch in found]
        assert told == [(batch.rejected, batch.resolved) for batch in order]


def test_a_key_that_only_the_mirror_has_and_has_twice_is_named_as_both() -> None:
    extra = pa.table({"k": [1, 2, 2]})
    found = Differences(extra.schema).with_extra(extra)
    assert (found.extra.num_rows, found.duplicate.to_pylist()) == (3, [{"k": 2}])
