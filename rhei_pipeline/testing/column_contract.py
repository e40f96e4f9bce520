"""What every mirror promises of columns that come, go, or get other names."""

from dataclasses import replace
from datetime import date

import pyarrow as pa
import pytest

from rhei_pipeline.model.changes import Counts, NetChanges
from rhei_pipeline.model.schema import Column, DroppedColumns, Mode, Table
from rhei_pipeline.model.schema import TableSchema as Schema
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.protocols import Mirror
from rhei_pipeline.sql.text import mirror_table
from rhei_pipeline.testing.mirror_work import (
    NOW,
    SCHEMA,
    apply,
    copy,
    held,
    keys,
    merge,
    rows,
)

_WIDE = Schema("t", (*SCHEMA.columns, Column("w", pa.int64())), SCHEMA.primary_key)
_BEGUN = rows(a=1.0, b=2.0).append_column("w", pa.array([1, 2]))


class ColumnContract:
    """A part of `MirrorContract`, whose fixture it takes."""

    @pytest.mark.parametrize(
        "value", [7, -0.5, None, "it's", b"\x00\xff", date(1969, 12, 31), NOW, True, float("inf")]
    )
    def test_an_added_column_has_its_value_in_the_rows_that_stand(
        self, mirror: Mirror, value: object
    ) -> None:
        merge(mirror, rows(a=1.0, b=2.0), keys())
        given = pa.scalar(value, INSTANT) if value is NOW else pa.scalar(value)
        kind = pa.string() if value is None else given.type
        wider = Schema("t", (*SCHEMA.columns, Column("w", kind)), SCHEMA.primary_key)
        with mirror.transaction() as transaction:
            transaction.add_columns(Table(wider), {"w": given.cast(kind)})

        def merged(values: list[object]) -> Counts:
            news = rows(a=1.0, b=2.0).append_column("w", pa.array(values, kind))
            with mirror.transaction() as transaction:
                return transaction.merge(Table(wider), NetChanges(news, keys()))

        assert merged([value, value]).total == 0
        assert mirror.query("select w from t")["w"].cast(kind).to_pylist() == [value, value]
        assert merged([value, None]).updated == (value is not None)
        assert merged([value, None]).total == 0

    def test_what_stands_in_an_added_column_is_not_given_to_rows_without_it(
        self, adapter: Mirror
    ) -> None:
        narrow = Table(replace(SCHEMA, name="h"), Mode.TEMPORAL)
        copy(adapter, narrow, rows(a=1.0))
        wide = replace(narrow, schema=replace(_WIDE, name="h"))
        with adapter.transaction() as transaction:
            transaction.add_columns(wide, {"w": pa.scalar(7)})
            transaction.reshape(narrow, NOW, {})
            apply(transaction, narrow, ("b", 1.0, 1))
            apply(transaction, narrow, ("a", 2.0, 2))
        found = adapter.query("select k, w from h order by v, k").to_pylist()
        assert [tuple(row.values()) for row in found] == [("a", 7), ("b", None), ("a", None)]

    def test_a_table_goes_on_without_a_column_and_a_history_keeps_it(self, mirror: Mirror) -> None:
        wide = Schema("t", (*SCHEMA.columns, Column("w", pa.int64())), SCHEMA.primary_key)
        begun = rows(a=1.0, b=2.0).append_column("w", pa.array([1, 2]))
        for name, mode in (("t", Mode.DESTRUCTIVE), ("h", Mode.TEMPORAL)):
            copy(mirror, Table(replace(wide, name=name), mode), begun)
            narrow = Table(replace(SCHEMA, name=name), mode)
            with mirror.transaction() as transaction:
                transaction.reshape(narrow, NOW, {})
                transaction.reshape(narrow, NOW, {})  # safe to repeat
        assert merge(mirror, rows(a=1.0, b=3.0), keys()) == Counts(0, 1, 0)
        assert held(mirror) == {"a": 1.0, "b": 3.0}
        assert mirror.tables()[mirror_table(SCHEMA)].schema.names == ("k", "v")
        assert mirror.query("select w from h order by k")["w"].to_pylist() == [1, 2]
        past = mirror.past(Table(replace(SCHEMA, name="h"), Mode.TEMPORAL))
        assert past is not None
        assert past.left == {"w": NOW}

    def test_a_renamed_column_keeps_its_values_and_versions(self, mirror: Mirror) -> None:
        columns = (Column("n", pa.string()), Column("w", pa.float64()))
        former = {"n": "k", "w": "v"}
        for name, mode in (("p", Mode.DESTRUCTIVE), ("q", Mode.TEMPORAL)):
            copy(mirror, Table(replace(SCHEMA, name=name), mode), rows(a=1.0, b=2.0))
            other = Table(replace(SCHEMA, name=name, columns=columns, primary_key=("n",)), mode)
            with mirror.transaction() as transaction:
                transaction.reshape(other, NOW, former)
                transaction.reshape(other, NOW, former)  # safe to repeat
            assert mirror.tables()[mirror_table(other.schema)].schema.primary_key == ("n",)
        plain = Table(replace(other.schema, name="p"))
        news = rows(a=1.0, b=3.0).rename_columns(["n", "w"])
        with mirror.transaction() as transaction:
            gone = keys().rename_columns(["n"])
            assert transaction.merge(plain, NetChanges(news, gone)) == Counts(0, 1, 0)
        found = mirror.query("select n, w from p order by n").to_pylist()
        assert found == [{"n": "a", "w": 1.0}, {"n": "b", "w": 3.0}]
        versions = mirror.query("select n, w from q order by n").to_pylist()
        assert versions == [{"n": "a", "w": 1.0}, {"n": "b", "w": 2.0}]

    def test_a_plain_table_keeps_a_dropped_column_by_its_key_where_it_is_to(
        self, mirror: Mirror
    ) -> None:
        copy(mirror, Table(_WIDE), _BEGUN)
        keeping = Table(SCHEMA, dropped=DroppedColumns.KEEP)
        with mirror.transaction() as transaction:
            transaction.reshape(keeping, NOW, {})
            transaction.reshape(keeping, NOW, {})  # safe to repeat
            assert transaction.merge(keeping, NetChanges(rows(a=3.0, c=4.0), keys())).updated == 1
        assert _kept(mirror) == {"a": 1, "b": 2, "c": None}
        with mirror.transaction() as transaction:
            transaction.merge(keeping, NetChanges(rows(), keys("b")))
            transaction.merge(keeping, NetChanges(rows(b=2.0), keys()))
        assert _kept(mirror) == {"a": 1, "b": None, "c": None}
        with mirror.transaction() as transaction:
            transaction.reshape(replace(keeping, dropped=DroppedColumns.DROP), NOW, {})
        assert mirror.query("select * from t").column_names == ["k", "v"]

    def test_a_dropped_column_is_not_kept_by_another_key(self, mirror: Mirror) -> None:
        copy(mirror, Table(_WIDE), _BEGUN)
        keeping = Table(SCHEMA, dropped=DroppedColumns.KEEP)
        with mirror.transaction() as transaction:
            transaction.reshape(keeping, NOW, {})
        other = replace(keeping, schema=replace(SCHEMA, primary_key=("v",)))
        assert copy(mirror, other, rows(a=2.0, b=1.0)) == 2
        assert mirror.query("select * from t").column_names == ["k", "v"]

    def test_a_history_drops_a_column_where_it_is_to(self, mirror: Mirror) -> None:
        wide = Table(replace(_WIDE, name="h"), Mode.TEMPORAL)
        copy(mirror, wide, _BEGUN)
        narrow = Table(replace(SCHEMA, name="h"), Mode.TEMPORAL, DroppedColumns.DROP)
        with mirror.transaction() as transaction:
            transaction.reshape(narrow, NOW, {})
        assert "w" not in mirror.query("select * from h").column_names
        assert mirror.query("select v from h order by k")["v"].to_pylist() == [1.0, 2.0]
        past = mirror.past(narrow)
        assert past is not None
        assert not past.left


def _kept(mirror: Mirror) -> dict[str, int | None]:
    found = mirror.query("select k, w from t order by k").to_pylist()
    return {row["k"]: row["w"] for row in found}
