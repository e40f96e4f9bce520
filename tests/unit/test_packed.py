"""Columns packed without a look at each value are what the values are, or are not packed."""

import math

import pyarrow as pa
import pytest

from rhei_pipeline.model.schema import Column
from rhei_pipeline.sources.sqlite.packed import packed
from rhei_pipeline.sources.sqlite.types import InvalidText, admit_column

INTEGERS = [0, -1, 2**63 - 1, -(2**63)]
REALS = [0.5, -0.0, 5e-324, 2.0**53 - 1]


def test_values_of_one_class_are_packed_bit_for_bit() -> None:
    integers, reals = packed(INTEGERS, pa.int64()), packed([*REALS, 7, -(2**52)], pa.float64())
    assert integers is not None
    assert reals is not None
    assert integers.equals(pa.array(INTEGERS, pa.int64()))
    assert reals.to_pylist() == [*REALS, 7.0, -(2.0**52)]
    assert math.copysign(1, reals[1].as_py()) == -1
    integers.validate(full=True)
    reals.validate(full=True)


@pytest.mark.parametrize("odd", [None, 1.0, "1", b"1", InvalidText(b"\xff")])
def test_integers_are_not_packed_with_anything_else(odd: object) -> None:
    assert packed([1, odd, 2], pa.int64()) is None


@pytest.mark.parametrize("odd", [None, "1", b"1", 2**53 + 1, 1e300, math.inf])
def test_reals_are_not_packed_with_what_is_looked_at(odd: object) -> None:
    assert packed([0.5, odd], pa.float64()) is None


def test_a_misfit_among_packed_columns_is_named_as_ever() -> None:
    array, rejections = admit_column([1, 2.5, 3], Column("n", pa.int64()))
    assert array.to_pylist() == [1, None, 3]
    assert [(found.row, found.column) for found in rejections] == [(1, "n")]
    array, rejections = admit_column([0.5, 2**53 + 1], Column("x", pa.float64()))
    assert array.to_pylist() == [0.5, None]
    assert [found.row for found in rejections] == [1]
