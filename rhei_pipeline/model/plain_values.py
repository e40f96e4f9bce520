"""Converts Arrow values to Python's; timestamps out of Python's range become PostgreSQL's text.

Python's dates range from the year 1 to 9999; those of PostgreSQL and the mirrors have a larger
range and include infinity.
"""

from typing import Any

import numpy as np
import pyarrow as pa

#: Infinite days and microseconds are the ends of their integers' ranges, on every mirror.
_LAST_DAY = np.iinfo(np.int32).max
_LAST_MICROSECOND = np.iinfo(np.int64).max
_ENDS = {"infinity": 1, "-infinity": -1}
_BC = " BC"


def plain_values(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """Return a column's values."""
    try:
        values: list[Any] = column.to_pylist()
    except (OverflowError, ValueError):
        return [plain_value(scalar) for scalar in column]
    return values


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return a table's rows."""
    columns = [plain_values(column) for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def instant_of(text: str, kind: pa.DataType) -> pa.Scalar:
    """Parse a timestamp or date that `plain_values` returned as text.

    Raises:
        ValueError: It is not one, or is out of the type's range.
    """
    found = _read(text, kind)
    if plain_value(found) != text:
        raise ValueError(text)
    return found


def _read(text: str, kind: pa.DataType) -> pa.Scalar:
    is_day = pa.types.is_date32(kind)
    if text in _ENDS:
        last = _LAST_DAY if is_day else _LAST_MICROSECOND
        return pa.scalar(_ENDS[text] * int(last), _number(kind)).cast(kind)
    plain, is_early = text.removesuffix("+00"), text.endswith(_BC)
    if is_early:
        year, rest = plain.removesuffix(_BC).removesuffix("+00").split("-", 1)
        plain = f"{1 - int(year):05d}-{rest}"
    found = np.array(plain.replace(" ", "T"), "datetime64[D]" if is_day else "datetime64[us]")
    return pa.scalar(int(found.astype(np.int64)), _number(kind)).cast(kind)


def _number(kind: pa.DataType) -> pa.DataType:
    return pa.int32() if pa.types.is_date32(kind) else pa.int64()


def plain_value(scalar: pa.Scalar) -> Any:  # noqa: ANN401  (of any type)
    """Return one value."""
    try:
        return scalar.as_py()
    except (OverflowError, ValueError):
        return _written(scalar)


def _written(scalar: pa.Scalar) -> Any:  # noqa: ANN401
    kind = scalar.type
    if pa.types.is_date32(kind):
        return _text(scalar.cast(pa.int32()).as_py(), "D", _LAST_DAY)
    if pa.types.is_timestamp(kind):
        written = _text(scalar.cast(pa.int64()).as_py(), kind.unit, _LAST_MICROSECOND)
        return written if kind.tz is None or written in _ENDS else _with_zone(written)
    if pa.types.is_struct(kind):
        return {name: plain_value(part) for name, part in scalar.items()}
    return [plain_value(part) for part in scalar.values]


def _with_zone(written: str) -> str:
    early = written.endswith(_BC)
    return f"{written.removesuffix(_BC)}+00{_BC if early else ''}"


def _text(number: int, unit: str, last: int) -> str:
    if abs(number) == last:
        return "infinity" if number > 0 else "-infinity"
    text = str(np.array(number, "int64").astype(f"datetime64[{unit}]")).replace("T", " ")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    if not text.startswith(("-", "0000")):
        return text
    year, rest = text.removeprefix("-").split("-", 1)
    # Year 0 is 1 BC, and so on backwards.
    return f"{int(year) + 1:04d}-{rest}{_BC}"
