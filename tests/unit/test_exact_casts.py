"""A history takes on a type only where no value of it changes."""

from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhei_pipeline.mirrors.exact_casts import (
    InexactError,
    cast_exactly,
    in_other_types,
    is_castable,
    same_bits,
)
from rhei_pipeline.model.type_names import INSTANT

EXACT: list[tuple[Any, pa.DataType, pa.DataType, Any]] = [
    (1, pa.int64(), pa.int16(), 1),
    (2**53 + 2, pa.int64(), pa.float64(), float(2**53 + 2)),
    (0.1, pa.float64(), pa.decimal128(3, 2), Decimal("0.10")),
    (-0.0, pa.float64(), pa.float32(), -0.0),
    (Decimal("1.50"), pa.decimal128(4, 2), pa.string(), "1.50"),
    (1, pa.int32(), pa.bool_(), True),
    ("12:30:01.5", pa.string(), pa.time64("us"), time(12, 30, 1, 500_000)),
    (date(2026, 1, 2), pa.date32(), pa.timestamp("us"), datetime(2026, 1, 2)),  # noqa: DTZ001
]
INEXACT: list[tuple[Any, pa.DataType, pa.DataType]] = [
    (40_000, pa.int64(), pa.int16()),
    (2**53 + 1, pa.int64(), pa.float64()),
    (0.125, pa.float64(), pa.decimal128(3, 2)),
    (-0.0, pa.float64(), pa.int64()),
    (1.5, pa.float64(), pa.int64()),
    (2, pa.int32(), pa.bool_()),
    ("01", pa.string(), pa.int64()),
    ("1.0", pa.string(), pa.float64()),
    (b"a", pa.binary(), pa.string()),
    (datetime(2026, 1, 2, 3), pa.timestamp("us"), pa.date32()),  # noqa: DTZ001
    (datetime(2026, 1, 2), pa.timestamp("us"), INSTANT),  # noqa: DTZ001
]


@pytest.mark.parametrize(("value", "old", "new", "expected"), EXACT)
def test_a_value_that_is_one_of_both_types_is_cast(
    value: object, old: pa.DataType, new: pa.DataType, expected: object
) -> None:
    found = cast_exactly(pa.array([value, None], old), new)
    assert (repr(found[0].as_py()), found[1].as_py()) == (repr(expected), None)
    assert found.type == new


@pytest.mark.parametrize(("value", "old", "new"), INEXACT)
def test_a_value_that_would_change_is_refused(
    value: object, old: pa.DataType, new: pa.DataType
) -> None:
    with pytest.raises(InexactError):
        cast_exactly(pa.array([value], old), new)
    table = pa.table({"v": pa.array([value, None], old)})
    assert in_other_types(table, pa.schema([("v", new)]))["v"].to_pylist() == [None, None]


@given(st.lists(st.none() | st.floats(width=64), max_size=5), st.sampled_from([32, 64]))
def test_what_is_cast_comes_back_bit_for_bit(values: list[float | None], width: int) -> None:
    held = pa.array(values, pa.float64())
    for kind in (pa.float32(), pa.int64(), pa.decimal128(width // 4, 2)):
        try:
            cast = cast_exactly(held, kind)
        except InexactError:
            continue
        assert same_bits(cast_exactly(cast, pa.float64()), held)


def test_nulls_fit_every_type() -> None:
    assert not is_castable(pa.binary(), INSTANT)
    assert cast_exactly(pa.array([None], pa.binary()), INSTANT).to_pylist() == [None]
