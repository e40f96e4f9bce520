"""What every mirror promises of copies: rows beside a table, until they take its place."""

import pyarrow as pa

from rhei_pipeline.model.changes import NetChanges, Position
from rhei_pipeline.model.progress import CopyProgress, TableState, Watermark
from rhei_pipeline.model.schema import Column, Table
from rhei_pipeline.model.schema import TableSchema as Schema
from rhei_pipeline.protocols import Mirror
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


class CopyContract:
    """A part of `MirrorContract`, whose fixtures it takes."""

    def test_a_copys_progress_is_recorded_with_its_rows(self, mirror: Mirror) -> None:
        progress = CopyProgress("t", Position(3, "p"), "shape", resume="here")
        with mirror.transaction() as transaction:
            transaction.begin_copy(TABLE, progress)
            transaction.append_copy(TABLE, rows(a=1.0), progress)
        assert mirror.ledger().copies["t"] == progress
        assert mirror.ledger().state("t") is TableState.COPYING
        assert held(mirror) == {}

    def test_a_transaction_shows_what_it_has_recorded_itself(self, mirror: Mirror) -> None:
        begun = CopyProgress("t", Position(3, "p"), "shape")
        further = CopyProgress("t", Position(3, "p"), "shape", resume="here")
        reached = Watermark("t", Position(4, "p"), NOW)
        with mirror.transaction() as transaction:
            assert transaction.ledger().copies == {}
            transaction.begin_copy(TABLE, begun)
            assert transaction.ledger().copies == {"t": begun}
            transaction.append_copy(TABLE, rows(a=1.0), further)
            assert transaction.ledger().copies == {"t": further}
            transaction.drop_copy(TABLE)
            assert transaction.ledger().copies == {}
            transaction.begin_copy(TABLE, begun)
            assert transaction.ledger().copies == {"t": begun}
            transaction.keep_copies(())
            assert transaction.ledger().copies == {}
            transaction.record(reached)
            assert transaction.ledger().watermarks == {"t": reached}
        assert mirror.ledger().watermarks == {"t": reached}
        assert mirror.ledger().copies == {}

    def test_a_copy_is_healed_apart_from_its_table(self, mirror: Mirror) -> None:
        merge(mirror, rows(a=1.0), keys())
        progress = CopyProgress("t", Position(3, "p"), "shape")
        with mirror.transaction() as transaction:
            transaction.begin_copy(TABLE, progress)
            transaction.append_copy(TABLE, rows(a=1.0, b=2.0), progress)
        with mirror.transaction() as transaction:
            transaction.heal_copy(TABLE, NetChanges(rows(b=5.0, c=6.0), keys("a", "x")))
            assert sorted(transaction.copied_keys(TABLE)["k"].to_pylist()) == ["b", "c"]
            assert transaction.copied_rows(TABLE, keys("a", "b")).to_pylist() == [
                {"k": "b", "v": 5.0}
            ]
        assert held(mirror) == {"a": 1.0}
        with mirror.transaction() as transaction:
            transaction.drop_copy(TABLE)
        assert mirror.ledger().copies == {}
        assert held(mirror) == {"a": 1.0}

    def test_a_copy_is_healed_of_rows_that_its_table_does_not_have(self, adapter: Mirror) -> None:
        table = Table(Schema("n", (Column("k", pa.int64()), Column("v", pa.int64())), ("k",)))
        first, later = (pa.table({"k": [1, key], "v": [0, 0]}) for key in (2, 9))
        nothing = pa.table({"k": pa.array([], pa.int64())})
        copy(adapter, table, first)
        progress = CopyProgress("n", Position(3, "p"), "shape")
        with adapter.transaction() as transaction:
            assert transaction.merge(table, NetChanges(first, nothing)).total == 0
            transaction.begin_copy(table, progress)
            transaction.append_copy(table, later, progress)
            changed = pa.table({"k": [9], "v": [5]})
            transaction.heal_copy(table, NetChanges(changed, nothing))
            found = transaction.copied_rows(table, changed.select(["k"]))
            assert found.to_pylist() == changed.to_pylist()

    def test_copies_are_dropped_but_for_those_to_keep(self, mirror: Mirror) -> None:
        with mirror.transaction() as transaction:
            for table in (TABLE, HISTORY):
                progress = CopyProgress(table.name, Position(3, "p"), "shape")
                transaction.begin_copy(table, progress)
                transaction.append_copy(table, rows(a=1.0), progress)
        with mirror.transaction() as transaction:
            transaction.keep_copies([HISTORY])
        assert mirror.ledger().copies.keys() == {HISTORY.name}
        with mirror.transaction() as transaction:
            assert transaction.copied_keys(HISTORY)["k"].to_pylist() == ["a"]

    def test_a_copy_keeps_the_last_good_rows_of_keys_it_could_not_read(
        self, mirror: Mirror
    ) -> None:
        merge(mirror, rows(a=1.0, b=2.0), keys())
        progress = CopyProgress("t", Position(3, "p"), "shape", complete=True)
        with mirror.transaction() as transaction:
            transaction.begin_copy(TABLE, progress)
            transaction.append_copy(TABLE, rows(b=5.0), progress)
            transaction.keep_unknown(TABLE, keys("a", "b", "x"))
            assert transaction.adopt_copy(TABLE, NOW) is None
            found = list(transaction.copy_differences(TABLE, 10))
        assert [part.tombstones.num_rows for part in found] == [0]
        assert found[0].upserts.to_pylist() == [{"k": "b", "v": 5.0}]

    def test_rows_that_a_copy_could_not_read_are_there_once_in_another_shape(
        self, mirror: Mirror
    ) -> None:
        merge(mirror, rows(a=1.0, b=2.0), keys())
        wider = Table(Schema("t", (*SCHEMA.columns, Column("w", pa.int64())), ("k",)))
        progress = CopyProgress("t", Position(3, "p"), "shape", complete=True)
        with mirror.transaction() as transaction:
            transaction.begin_copy(wider, progress)
            values = rows(b=5.0).append_column("w", pa.array([7]))
            transaction.append_copy(wider, values, progress)
            transaction.keep_unknown(wider, keys("a", "b", "x"))
            assert transaction.adopt_copy(wider, NOW) == 2
        found = mirror.query("select v, w from t order by k").to_pylist()
        assert found == [{"v": 1.0, "w": None}, {"v": 5.0, "w": 7}]

    def test_keys_that_a_copy_could_not_read_may_be_of_another_type(self, mirror: Mirror) -> None:
        merge(mirror, rows(a=1.0, **{"7": 2.0}), keys())
        other = Table(Schema("t", (Column("k", pa.int64()), *SCHEMA.value_columns), ("k",)))
        progress = CopyProgress("t", Position(3, "p"), "shape", complete=True)
        with mirror.transaction() as transaction:
            transaction.begin_copy(other, progress)
            transaction.keep_unknown(other, pa.table({"k": pa.array([1, 7])}))
            assert transaction.adopt_copy(other, NOW) == 1
        assert mirror.query("select k, v from t").to_pylist() == [{"k": 7, "v": 2.0}]

    def test_of_rows_that_a_copy_could_not_read_none_comes_back_from_the_past(
        self, history: Mirror
    ) -> None:
        progress = CopyProgress("h", Position(3, "p"), "shape", complete=True)
        with history.transaction() as transaction:
            apply(transaction, HISTORY, ("a", 5.0, 1), ("b", "gone", 1))
            transaction.begin_copy(HISTORY, progress)
            transaction.append_copy(HISTORY, rows(c=3.0), progress)
            transaction.keep_unknown(HISTORY, keys("a", "b"))
            found = transaction.copied_rows(HISTORY, keys("a", "b", "c")).sort_by("k")
        assert found.to_pylist() == [{"k": "a", "v": 5.0}, {"k": "c", "v": 3.0}]

    def test_a_complete_copy_differs_by_its_net_changes(self, mirror: Mirror) -> None:
        merge(mirror, rows(a=1.0, b=2.0, c=3.0), keys())
        progress = CopyProgress("t", Position(3, "p"), "shape", complete=True)
        with mirror.transaction() as transaction:
            transaction.begin_copy(TABLE, progress)
            transaction.append_copy(TABLE, rows(a=1.0, b=5.0, d=4.0), progress)
            assert transaction.adopt_copy(TABLE, NOW) is None
            found = list(transaction.copy_differences(TABLE, 2))
        upserts = pa.concat_tables([part.upserts for part in found]).to_pylist()
        assert sorted(row["k"] for row in upserts) == ["b", "d"]
        assert pa.concat_tables([part.tombstones for part in found]).to_pylist() == [{"k": "c"}]
        assert mirror.ledger().copies == {}

    def test_a_copy_of_another_shape_takes_the_tables_place(self, mirror: Mirror) -> None:
        merge(mirror, rows(a=1.0), keys())
        wider = Table(Schema("t", (*SCHEMA.columns, Column("w", pa.int64())), ("k",)))
        values = rows(b=2.0).append_column("w", pa.array([7]))
        assert copy(mirror, wider, values) == 1
        assert mirror.query("select * from t").to_pylist() == [{"k": "b", "v": 2.0, "w": 7}]

    def test_a_copy_of_a_history_is_never_put_in_its_place(self, history: Mirror) -> None:
        progress = CopyProgress("h", Position(3, "p"), "shape", complete=True)
        with history.transaction() as transaction:
            transaction.begin_copy(HISTORY, progress)
            transaction.append_copy(HISTORY, rows(a=1.0, c=3.0), progress)
            assert transaction.adopt_copy(HISTORY, NOW + SECOND) is None
            found = list(transaction.copy_differences(HISTORY, 10))
        upserts = pa.concat_tables([part.upserts for part in found]).to_pylist()
        assert upserts == [{"k": "c", "v": 3.0}]
        assert pa.concat_tables([part.tombstones for part in found]).to_pylist() == [{"k": "b"}]
        assert len(versions(history)) == 2
