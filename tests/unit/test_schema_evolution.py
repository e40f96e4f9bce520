"""A history in files takes on other columns: in place where reading casts, anew, or not at all."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from rhei_pipeline.errors import SchemaDriftError
from rhei_pipeline.mirrors.datafusion.files import MemoryFiles
from rhei_pipeline.mirrors.datafusion.formats import Ipc
from rhei_pipeline.mirrors.datafusion.manifest import Manifest
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore
from rhei_pipeline.mirrors.datafusion.transaction import FileTransaction
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.progress import CopyProgress
from rhei_pipeline.model.schema import Column, Mode, Table, TableSchema
from rhei_pipeline.sql.text import mirror_table

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def table(*columns: tuple[str, pa.DataType], key: str = "k") -> Table:
    return Table(TableSchema("t", tuple(Column(*each) for each in columns), (key,)), Mode.TEMPORAL)


class Files:
    """The files of one mirror, and its newest state."""

    def __init__(self) -> None:
        self.store = SegmentStore(MemoryFiles(), Ipc())
        self.state = Manifest(1, "m", "memory", NOW)

    def copy(self, wanted: Table, rows: pa.Table) -> None:
        """Copy rows beside the table, and put the copy in its place or take on its shape."""
        progress = CopyProgress("t", Position(1, "p"), "shape", complete=True)
        transaction = FileTransaction(self.state, self.store)
        transaction.begin_copy(wanted, progress)
        transaction.append_copy(wanted, rows, progress)
        if transaction.adopt_copy(wanted, NOW) is None:
            transaction.drop_copy(wanted)
        self.state = transaction.prepare_commit()

    def rows(self, wanted: Table, keys: list[Any]) -> dict[str, list[Any]]:
        """Return the present rows of these keys."""
        kind = wanted.schema.arrow_key.field(0)
        asked = pa.table([pa.array(keys, kind.type)], [kind.name])
        found = FileTransaction(self.state, self.store).present_rows(wanted, asked)
        return {name: found.sort_by(kind.name)[name].to_pylist() for name in found.column_names}

    @property
    def segments(self) -> list[str]:
        """The names of the table's files of rows."""
        stored = self.state.tables[mirror_table(table(("k", pa.int64())).schema)]
        return [segment.name for segment in stored.segments]


def dec(precision: int, scale: int) -> pa.DataType:
    return pa.decimal128(precision, scale)


IN_PLACE, ANEW, REFUSED = "in place", "anew", "refused"
# What a value was and is to be, how the history takes that on, and what the value then is.
TYPES: list[tuple[pa.DataType, pa.DataType, Any, str, Any]] = [
    (pa.int16(), pa.int64(), 7, IN_PLACE, 7),
    (pa.int64(), pa.int32(), 7, ANEW, 7),
    (pa.int64(), pa.int32(), 2**31, REFUSED, None),
    (pa.float32(), pa.float64(), 0.5, IN_PLACE, 0.5),
    (pa.float64(), pa.float32(), 0.1, REFUSED, None),
    (dec(5, 2), dec(9, 4), Decimal("1.25"), IN_PLACE, Decimal("1.2500")),
    (dec(9, 4), dec(5, 2), Decimal("1.2500"), ANEW, Decimal("1.25")),
    (dec(9, 4), dec(5, 2), Decimal("1.2550"), REFUSED, None),
    (dec(5, 2), dec(5, 3), Decimal("1.25"), ANEW, Decimal("1.250")),  # two whole digits are left
    (pa.int64(), pa.string(), 7, ANEW, "7"),
    (pa.string(), pa.int64(), "seven", REFUSED, None),
    (pa.string(), pa.int64(), None, ANEW, None),
]


@pytest.mark.parametrize(("old", "new", "value", "how", "expected"), TYPES, ids=str)
def test_a_type_is_taken_on_in_place_anew_or_not(
    old: pa.DataType, new: pa.DataType, value: object, how: str, expected: object
) -> None:
    before, after = (table(("k", pa.int64()), ("v", kind)) for kind in (old, new))
    files = Files()
    files.copy(before, pa.table({"k": [1], "v": pa.array([value], old)}))
    state, named = files.state, files.segments
    if how == REFUSED:
        with pytest.raises(SchemaDriftError):
            files.copy(after, after.schema.arrow.empty_table())
        assert files.state is state
        assert files.rows(before, [1])["v"] == [value]
        return
    files.copy(after, after.schema.arrow.empty_table())
    assert files.rows(after, [1]) == {"k": [1], "v": [expected]}
    assert (files.segments == named) is (how == IN_PLACE)


def test_columns_that_come_are_null_in_the_past_and_those_that_leave_stay() -> None:
    before = table(("k", pa.int64()), ("gone", pa.string()))
    after = table(("k", pa.int64()), ("come", pa.string()))
    files = Files()
    files.copy(before, pa.table({"k": [1], "gone": ["kept"]}))
    named = files.segments
    files.copy(after, after.schema.arrow.empty_table())
    assert files.rows(after, [1]) == {"k": [1], "come": [None]}
    assert files.rows(before, [1]) == {"k": [1], "gone": ["kept"]}
    assert files.segments == named


def test_a_key_of_another_type_is_found_by_its_new_values() -> None:
    before, after = (table(("k", dec(*digits))) for digits in ((5, 2), (9, 4)))
    files = Files()
    files.copy(before, pa.table({"k": pa.array([Decimal("1.25")], dec(5, 2))}))
    files.copy(after, after.schema.arrow.empty_table())
    assert files.rows(after, [Decimal("1.2500")]) == {"k": [Decimal("1.2500")]}


def test_another_key_is_taken_on_where_it_tells_the_past_apart() -> None:
    columns = (("k", pa.int64()), ("n", pa.int64()))
    before, after = table(*columns), table(*columns, key="n")
    once, twice = (pa.table({"k": [1, 2], "n": numbers}) for numbers in ([5, 6], [5, 5]))
    files = Files()
    files.copy(before, once)
    files.copy(after, after.schema.arrow.empty_table())
    assert files.rows(after, [6]) == {"k": [2], "n": [6]}
    other = Files()
    other.copy(before, twice)
    with pytest.raises(SchemaDriftError):
        other.copy(after, after.schema.arrow.empty_table())
    assert other.rows(before, [1, 2])["n"] == [5, 5]


def test_history_is_not_given_up_for_a_table_without() -> None:
    before = table(("k", pa.int64()))
    files = Files()
    files.copy(before, pa.table({"k": [1]}))
    with pytest.raises(SchemaDriftError):
        files.copy(replace(before, mode=Mode.DESTRUCTIVE), pa.table({"k": [1]}))
