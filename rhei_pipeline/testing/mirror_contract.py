"""What every mirror promises, whatever engine holds it: suites to subclass with one fixture.

class TestMyMirror(MirrorContract, MirrorQueryContract):
    @pytest.fixture
    def adapter(self) -> Iterator[Mirror]:
        mirror = MyMirror()
        yield mirror
        mirror.close()
"""

from datetime import date, datetime

import numpy as np
import pyarrow as pa
import pytest

from rhei_pipeline.errors import MirrorError, QueryError, SchemaDriftError, SchemaError
from rhei_pipeline.model.changes import Counts, DeadLetter, NetChanges, Position
from rhei_pipeline.model.progress import AsOf, TableState, Watermark
from rhei_pipeline.model.schema import HISTORY_NAMES, VALID_TO, Column, DroppedColumns, Mode, Table
from rhei_pipeline.model.schema import TableSchema as Schema
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.protocols import Mirror, MirrorTransaction
from rhei_pipeline.testing.column_contract import ColumnContract
from rhei_pipeline.testing.copy_contract import CopyContract
from rhei_pipeline.testing.mirror_work import (
    HISTORY,
    NOW,
    SCHEMA,
    SECOND,
    TABLE,
    apply,
    copy,
    held,
    keys,
    merge,
    rows,
    versions,
)

_LOCAL = pa.timestamp("us")


class MirrorContract(ColumnContract, CopyContract):
    """What every mirror promises; the subclass's fixture `adapter` yields an empty one."""

    @pytest.fixture
    def mirror(self, adapter: Mirror) -> Mirror:
        """A mirror with the empty destructive table `t`."""
        assert copy(adapter, TABLE, rows()) == 0
        return adapter

    @pytest.fixture
    def history(self, adapter: Mirror) -> Mirror:
        """A mirror with the temporal table `h`, and two baseline versions in it."""
        assert copy(adapter, HISTORY, rows(a=1.0, b=2.0)) == 2
        return adapter

    def test_a_merge_counts_rows_that_really_changed(self, mirror: Mirror) -> None:
        assert merge(mirror, rows(a=1.0, b=2.0), keys()) == Counts(2, 0, 0)
        assert merge(mirror, rows(a=1.0, b=3.0, c=None), keys("x")) == Counts(1, 1, 0)
        assert merge(mirror, rows(), keys("a", "x")) == Counts(0, 0, 1)
        assert held(mirror) == {"b": 3.0, "c": None}
        assert mirror.count(TABLE) == 2

    def test_minus_zero_is_another_value_than_zero(self, mirror: Mirror) -> None:
        merge(mirror, rows(a=0.0), keys())
        assert merge(mirror, rows(a=-0.0), keys()).updated == 1
        assert str(held(mirror)["a"]) == "-0.0"

    def test_a_zero_of_another_sign_is_the_same_key_in_another_form(self, adapter: Mirror) -> None:
        table = Table(Schema("n", (Column("k", pa.float64()), Column("v", pa.int64())), ("k",)))
        copy(adapter, table, pa.table({"k": [0.0, 1.0], "v": [7, 7]}))
        for key in (-0.0, 0.0, -0.0):
            with adapter.transaction() as transaction:
                changes = NetChanges(pa.table({"k": [key], "v": [7]}), pa.table({"k": []}))
                assert transaction.merge(table, changes) == Counts(0, 1, 0)
                assert transaction.merge(table, changes).total == 0
            found = adapter.query("select k from n order by k")["k"].to_pylist()
            assert [*map(str, found)] == [str(key), "1.0"]

    def test_every_nan_is_one_key(self, adapter: Mirror) -> None:
        columns = (Column("k", pa.float64()), Column("v", pa.int64()))
        table = Table(Schema("n", columns, ("k",)))
        # What the division of zeros gives on one machine has other bits than on the next.
        bits = np.array([0x7FF8 << 48, 0xFFF8 << 48, (0x7FF8 << 48) + 1], np.uint64)
        first, *others = (pa.array([nan]) for nan in bits.view(np.float64))
        copy(adapter, table, pa.table({"k": first, "v": [0]}))
        for number, key in enumerate(others, 1):
            with adapter.transaction() as transaction:
                changes = NetChanges(pa.table({"k": key, "v": [number]}), pa.table({"k": []}))
                assert transaction.merge(table, changes) == Counts(0, 1, 0)
        assert adapter.query("select v from n")["v"].to_pylist() == [len(others)]

    def test_null_and_a_value_differ_and_two_nulls_do_not(self, mirror: Mirror) -> None:
        merge(mirror, rows(a=None), keys())
        assert merge(mirror, rows(a=None), keys()).total == 0
        assert merge(mirror, rows(a=0.0), keys()).updated == 1

    def test_rows_and_watermark_come_and_go_together(self, mirror: Mirror) -> None:
        with pytest.raises(RuntimeError), mirror.transaction() as transaction:
            transaction.merge(TABLE, NetChanges(rows(a=1.0), keys()))
            transaction.record(Watermark("t", Position(5, "p"), NOW))
            raise RuntimeError
        assert held(mirror) == {}
        assert mirror.ledger().state("t") is TableState.NEW

    def test_a_trial_shows_its_work_within_and_leaves_nothing(self, mirror: Mirror) -> None:
        with mirror.transaction(trial=True) as transaction:
            transaction.merge(TABLE, NetChanges(rows(a=1.0), keys()))
            transaction.record(Watermark("t", Position(5, "p"), NOW))
            assert transaction.count(TABLE) == 1
            assert transaction.ledger().state("t") is TableState.READY
        assert held(mirror) == {}
        assert mirror.ledger().state("t") is TableState.NEW

    def test_a_watermark_never_goes_back(self, mirror: Mirror) -> None:
        with mirror.transaction() as transaction:
            transaction.record(Watermark("t", Position(5, "p"), NOW))
        with (
            pytest.raises(MirrorError, match="would go back"),
            mirror.transaction() as transaction,
        ):
            transaction.record(Watermark("t", Position(4, "q"), NOW))
        assert mirror.ledger().watermarks["t"] == Watermark("t", Position(5, "p"), NOW)

    @pytest.mark.parametrize("mode", list(Mode))
    def test_a_row_is_found_by_a_number_however_high_those_before_were(
        self, adapter: Mirror, mode: Mode
    ) -> None:
        """A mirror may remember how high keys go, and must never take that for lower."""
        columns = Column("k", pa.int64()), Column("v", pa.float64())
        table = Table(Schema("n", columns, ("k",)), mode)
        nothing = table.schema.arrow.empty_table()

        def put(transaction: MirrorTransaction, at: int, key: int, value: float | None) -> None:
            if mode is Mode.TEMPORAL:
                apply(transaction, table, (key, "gone" if value is None else value, at))
                return
            row = pa.table({"k": [key], "v": pa.array([value], pa.float64())})
            pair = (row, nothing) if value is not None else (nothing, row)
            transaction.merge(table, NetChanges(pair[0], pair[1].select(["k"])))

        copy(adapter, table, pa.table({"k": [1, 9], "v": [0.0, 0.0]}))
        with pytest.raises(RuntimeError), adapter.transaction() as transaction:
            put(transaction, 1, 9, None)
            put(transaction, 1, 5, 1.0)
            raise RuntimeError
        for at, key in enumerate((9, 11, 11, 12, 11, 12), 2):
            with adapter.transaction() as transaction:
                put(transaction, at, key, float(at))
        with adapter.transaction() as transaction:
            put(transaction, 8, 13, 8.0)
            put(transaction, 9, 13, 9.0)
        present = f" where {VALID_TO} is null" if mode is Mode.TEMPORAL else ""
        found = adapter.query(f"select k, v from n{present} order by k").to_pylist()
        expected = {1: 0.0, 9: 2.0, 11: 6.0, 12: 7.0, 13: 9.0}
        assert [(row["k"], row["v"]) for row in found] == [*expected.items()]

    def test_rows_are_read_by_their_keys(self, mirror: Mirror) -> None:
        merge(mirror, rows(a=1.0, b=2.0, c=None), keys())
        with mirror.transaction(trial=True) as transaction:
            transaction.merge(TABLE, NetChanges(rows(c=3.0), keys("b")))
            assert sorted(transaction.present_keys(TABLE)["k"].to_pylist()) == ["a", "c"]
            found = transaction.present_rows(TABLE, keys("b", "c", "x"))
            assert found.schema == SCHEMA.arrow
            assert found.to_pylist() == [{"k": "c", "v": 3.0}]

    def test_a_key_that_the_past_does_not_have_is_refused_and_nothing_is_lost(
        self, mirror: Mirror
    ) -> None:
        past, renamed = (
            Table(Schema("h", (Column(key, pa.string()),), (key,)), Mode.TEMPORAL)
            for key in ("k", "other")
        )
        copy(mirror, past, pa.table({"k": ["a", "b"]}))
        with pytest.raises(SchemaDriftError, match="its history has no 'other'"):
            copy(mirror, renamed, pa.table({"other": ["a"]}))
        assert mirror.count(past) == 2

    def test_a_comparison_names_what_differs_and_changes_nothing(self, mirror: Mirror) -> None:
        merge(mirror, rows(a=1.0, b=2.0, c=3.0), keys())
        with mirror.transaction() as transaction:
            found = transaction.compare(TABLE, [rows(a=1.0), rows(b=5.0, d=4.0)])
        assert found.missing.to_pylist() == [{"k": "d"}]
        assert found.extra.to_pylist() == [{"k": "c"}]
        assert found.different.to_pylist() == [{"k": "b"}]
        assert not found.duplicate.num_rows
        assert len(held(mirror)) == 3

    def test_digests_name_the_parts_that_differ_and_the_keys_too_many(self, mirror: Mirror) -> None:
        merge(mirror, rows(a=1.0, b=2.0, c=3.0, z=-0.0), keys())
        with mirror.transaction() as transaction:
            parts = [rows(a=1.0), rows(b=5.0), rows(z=0.0), rows(d=4.0), rows()]
            stale, extra = transaction.compare_digests(TABLE, parts)
        assert stale == [1, 2, 3]
        assert extra.to_pylist() == [{"k": "c"}]

    def test_a_dead_letter_is_kept_once_until_it_is_released(self, mirror: Mirror) -> None:
        letter = DeadLetter("t", '{"k": "a"}', "v", "why", NOW)
        for _ in range(2):
            with mirror.transaction() as transaction:
                transaction.quarantine([letter, letter])
        assert mirror.dead_letters("t").num_rows == 1
        assert mirror.dead_letters("other").num_rows == 0
        with mirror.transaction() as transaction:
            assert transaction.quarantined(TABLE) == {letter.name}
            transaction.release(TABLE, {letter.name}, NOW)
        assert mirror.dead_letters().num_rows == 0

    def test_a_temporal_table_keeps_what_it_lacked_as_resolved(self, mirror: Mirror) -> None:
        letter = DeadLetter("t", '{"k": "a"}', "v", "why", NOW)
        with mirror.transaction() as transaction:
            transaction.quarantine([letter])
            transaction.release(Table(SCHEMA, Mode.TEMPORAL), {letter.name}, NOW)
        assert mirror.dead_letters().num_rows == 0
        kept = mirror.query("select resolved_at is not null as resolved from _rhei_dead_letter")
        assert kept["resolved"].to_pylist() == [True]

    def test_a_first_copy_of_a_history_makes_baseline_versions(self, history: Mirror) -> None:
        assert versions(history) == [("a", 1.0, 0.0, None, "I"), ("b", 2.0, 0.0, None, "I")]
        assert history.tables()['"h"'].mode is Mode.TEMPORAL
        past = history.past(HISTORY)
        assert past is not None
        assert (past.begins_at, dict(past.left)) == (NOW, {})
        assert history.past(Table(Schema("x", SCHEMA.columns, ("k",)), Mode.TEMPORAL)) is None

    def test_versions_are_closed_and_opened_and_one_that_repeats_changes_nothing(
        self, history: Mirror
    ) -> None:
        with history.transaction() as transaction:
            changes = (("a", 1.0, 1), ("a", 5.0, 2), ("b", "gone", 3), ("c", -0.0, 4))
            assert apply(transaction, HISTORY, *changes) == Counts(1, 1, 1)
        with history.transaction() as transaction:
            assert apply(transaction, HISTORY, ("c", 0.0, 5), ("b", None, 6)) == Counts(1, 1, 0)
        assert [tuple(map(repr, version)) for version in versions(history)] == [
            tuple(map(repr, version))
            for version in [
                ("a", 1.0, 0.0, 2.0, "I"),
                ("a", 5.0, 2.0, None, "U"),
                ("b", 2.0, 0.0, 3.0, "D"),
                ("b", None, 6.0, None, "I"),
                ("c", -0.0, 4.0, 5.0, "I"),
                ("c", 0.0, 5.0, None, "U"),
            ]
        ]
        assert history.count(HISTORY) == 3

    def test_a_key_that_comes_back_is_told_how_far_its_past_goes(self, history: Mirror) -> None:
        with history.transaction() as transaction:
            apply(transaction, HISTORY, ("a", "gone", 9))
        with history.transaction() as transaction:
            # Its clock lies behind its past.
            assert apply(transaction, HISTORY, ("a", 7.0, 4)) == Counts(1, 0, 0)
        assert versions(history)[1] == ("a", 7.0, 9.000001, None, "I")

    def test_versions_begin_and_end_in_one_transaction(self, history: Mirror) -> None:
        with history.transaction() as transaction:
            apply(transaction, HISTORY, ("a", 5.0, 1), ("c", 1.0, 1))
            assert apply(transaction, HISTORY, ("a", 6.0, 2), ("c", "gone", 2)).total == 2
            assert transaction.present_keys(HISTORY).sort_by("k")["k"].to_pylist() == ["a", "b"]
        assert versions(history) == [
            ("a", 1.0, 0.0, 1.0, "I"),
            ("a", 5.0, 1.0, 2.0, "U"),
            ("a", 6.0, 2.0, None, "U"),
            ("b", 2.0, 0.0, None, "I"),
            ("c", 1.0, 1.0, 2.0, "D"),
        ]

    def test_a_past_of_many_versions_goes_as_far_as_the_latest(self, history: Mirror) -> None:
        with history.transaction() as transaction:
            states = (("a", float(n) if n % 2 else "gone", n) for n in range(2, 201))
            apply(transaction, HISTORY, *states)
        with history.transaction() as transaction:
            apply(transaction, HISTORY, ("a", 8.0, 5))
        assert versions(history)[-2] == ("a", 8.0, 200.000001, None, "I")

    def test_versions_that_are_rolled_back_never_were(self, history: Mirror) -> None:
        before = versions(history)
        with pytest.raises(RuntimeError), history.transaction() as transaction:
            apply(transaction, HISTORY, ("a", "gone", 1), ("c", 1.0, 1))
            raise RuntimeError
        assert versions(history) == before

    def test_present_rows_of_a_history_are_its_open_versions(self, history: Mirror) -> None:
        with history.transaction() as transaction:
            apply(transaction, HISTORY, ("a", 5.0, 1), ("b", "gone", 1))
            assert transaction.present_keys(HISTORY).to_pylist() == [{"k": "a"}]
            found = transaction.present_rows(HISTORY, keys("a", "b"))
            assert found.to_pylist() == [{"k": "a", "v": 5.0}]
            compared = transaction.compare(HISTORY, [rows(a=1.0, c=1.0)])
            stale, extra = transaction.compare_digests(HISTORY, [rows(a=5.0), rows(c=0.0)])
        assert compared.different.to_pylist() == [{"k": "a"}]
        assert compared.missing.to_pylist() == [{"k": "c"}]
        assert (stale, extra.num_rows) == ([1], 0)

    def test_a_history_takes_on_columns_and_keeps_those_that_left(self, history: Mirror) -> None:
        other = Table(
            Schema("h", (Column("k", pa.string()), Column("w", pa.int64())), ("k",)),
            Mode.TEMPORAL,
        )
        later = NOW + SECOND
        assert copy(history, other, other.schema.arrow.empty_table(), later) is None
        assert versions(history) == [("a", 1.0, 0.0, None, "I"), ("b", 2.0, 0.0, None, "I")]
        assert history.query("select w from h")["w"].to_pylist() == [None, None]
        past = history.past(other)
        assert past is not None
        assert (past.begins_at, dict(past.left)) == (NOW, {"v": later})

    def test_a_history_takes_on_a_type_that_changes_no_value_and_no_other(
        self, history: Mirror
    ) -> None:
        def typed(kind: pa.DataType) -> Table:
            columns = (Column("k", pa.string()), Column("v", kind))
            return Table(Schema("h", columns, ("k",)), Mode.TEMPORAL)

        whole, truth = typed(pa.int64()), typed(pa.bool_())
        assert copy(history, whole, whole.schema.arrow.empty_table()) is None
        found = history.query("select v from h order by v")
        assert (found.schema.field("v").type, found["v"].to_pylist()) == (pa.int64(), [1, 2])
        with pytest.raises(SchemaDriftError, match="its history does not fit"):
            copy(history, truth, truth.schema.arrow.empty_table())
        assert history.query("select v from h order by v")["v"].to_pylist() == [1, 2]

    def test_a_history_keeps_what_a_column_was_that_means_something_else(
        self, history: Mirror
    ) -> None:
        def typed(kind: pa.DataType) -> Table:
            columns = (Column("k", pa.string()), Column("at", kind))
            return Table(Schema("moments", columns, ("k",)), Mode.TEMPORAL)

        noon, local, instants = datetime(2026, 1, 5, 12), typed(_LOCAL), typed(INSTANT)  # noqa: DTZ001
        was = pa.table({"k": ["a"], "at": pa.array([noon], _LOCAL)})
        assert copy(history, local, was) == 1
        assert copy(history, instants, instants.schema.arrow.empty_table(), NOW + SECOND) is None
        found, past = history.query("select * from moments"), history.past(instants)
        assert (found["at"].type, found["at"].to_pylist()) == (INSTANT, [None])
        assert found["_rhei_was_1_at"].to_pylist() == [noon]
        assert past is not None
        assert dict(past.left) == {"_rhei_was_1_at": NOW + SECOND}

    @pytest.mark.parametrize("dropped", DroppedColumns)
    def test_what_a_column_was_is_renamed_with_it(
        self, history: Mirror, dropped: DroppedColumns
    ) -> None:
        def called(name: str, kind: pa.DataType) -> Table:
            columns = (Column("k", pa.string()), Column(name, kind))
            return Table(Schema("moments", columns, ("k",)), Mode.TEMPORAL, dropped)

        noon, instants = datetime(2026, 1, 5, 12), called("at", INSTANT)  # noqa: DTZ001
        copy(history, called("at", _LOCAL), pa.table({"k": ["a"], "at": pa.array([noon], _LOCAL)}))
        copy(history, instants, instants.schema.arrow.empty_table(), NOW + SECOND)
        other = called("When", INSTANT)
        with history.transaction() as transaction:
            for _ in range(2):  # safe to repeat
                transaction.reshape(other, NOW + 2 * SECOND, {"When": "at"})
        found, past = history.query("select * from moments"), history.past(other)
        assert {*found.column_names} == {"k", "When", "_rhei_was_1_When", *HISTORY_NAMES}
        assert found["_rhei_was_1_When"].to_pylist() == [noon]
        assert past is not None
        assert dict(past.left) == {"_rhei_was_1_When": NOW + SECOND}

    def test_history_is_not_given_up_for_a_destructive_table(self, history: Mirror) -> None:
        with pytest.raises(SchemaDriftError, match="'destructive'"):
            copy(history, Table(HISTORY.schema), rows(a=9.0))
        assert len(versions(history)) == 2
        assert history.ledger().copies == {}

    def test_snapshots_show_the_rows_of_their_days(self, history: Mirror) -> None:
        with history.transaction() as transaction:
            apply(transaction, HISTORY, ("a", 5.0, 10), ("b", "gone", 20))
            days = {
                date(2026, 1, day): AsOf(NOW + seconds * SECOND, ("k", "v"))
                for day, seconds in ((1, 9), (2, 10), (3, 20))
            }
            written = transaction.write_snapshots(HISTORY, days)
        assert list(written.values()) == [2, 2, 1]
        with history.transaction() as transaction:  # rewritten, not twice
            transaction.write_snapshots(HISTORY, {date(2026, 1, 3): days[date(2026, 1, 3)]})
        found = history.query("select * from snapshot.h order by snapshot_date, k").to_pylist()
        assert [(row["snapshot_date"].day, row["k"], row["v"]) for row in found] == [
            (1, "a", 1.0),
            (1, "b", 2.0),
            (2, "a", 5.0),
            (2, "b", 2.0),
            (3, "a", 5.0),
        ]

    def test_a_table_that_is_dropped_leaves_nothing(self, history: Mirror) -> None:
        with history.transaction() as transaction:
            transaction.record(Watermark("h", Position(5, "p"), NOW))
            transaction.quarantine([DeadLetter("h", '{"k": "z"}', "v", "why", NOW)])
        with history.transaction() as transaction:
            assert transaction.drop_table(HISTORY) == 2
            assert transaction.drop_table(HISTORY) == 0
        assert history.tables() == {}
        assert history.ledger().state("h") is TableState.NEW
        assert history.dead_letters().num_rows == 0
        with pytest.raises(QueryError):
            history.query("select * from h")

    def test_a_table_that_is_dropped_leaves_nothing_of_the_same_transaction(
        self, history: Mirror
    ) -> None:
        with history.transaction() as transaction:
            transaction.record(Watermark("h", Position(5, "p"), NOW))
            transaction.record(Watermark("t", Position(6, "p"), NOW))
            transaction.drop_table(HISTORY)
            assert transaction.ledger().state("h") is TableState.NEW
            assert transaction.ledger().state("t") is TableState.READY
        assert history.ledger().watermarks.keys() == {"t"}
        assert history.tables() == {}

    def test_a_history_is_set_aside_under_a_name_that_is_free(self, history: Mirror) -> None:
        copy(history, TABLE, rows())
        with (
            pytest.raises(SchemaError),
            history.transaction() as transaction,
        ):
            transaction.drop_table(HISTORY, "t")
        assert len(versions(history)) == 2
        with history.transaction() as transaction:
            assert transaction.drop_table(HISTORY, "kept") == 2
        assert history.query("select count(*) as n from kept")["n"].to_pylist() == [2]
        assert set(history.tables()) == {'"t"', '"kept"'}
        assert history.past(HISTORY) is None

    def test_a_table_of_a_namespace_is_queried_by_it(self, adapter: Mirror) -> None:
        table = Table(Schema("sales.t", SCHEMA.columns, ("k",), "sales"))
        assert copy(adapter, table, rows(a=1.0)) == 1
        assert adapter.query("select v from sales.t")["v"].to_pylist() == [1.0]
        assert list(adapter.tables()) == ['"sales"."t"']

    def test_queries_take_parameters_and_keep_types_when_empty(self, mirror: Mirror) -> None:
        merge(mirror, rows(a=1.0, b=2.0), keys())
        assert mirror.query("select v from t where k = ?", ["b"]).to_pylist() == [{"v": 2.0}]
        assert mirror.query("select k, v from t where false").schema == SCHEMA.arrow

    def test_closing_is_repeated_safely(self, adapter: Mirror) -> None:
        adapter.close()
        adapter.close()
