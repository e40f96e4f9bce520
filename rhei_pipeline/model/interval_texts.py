"""Intervals as PostgreSQL writes them in ISO 8601, `P1Y2M3DT4H5M6.5S`, and as Arrow's.

Months, days and microseconds are kept apart: a month is no number of days, nor a day of hours.
Source: EncodeInterval in src/backend/utils/adt/datetime.c.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_FORM = (
    r"^P(?:(?P<y>-?\d{1,9})Y)?(?:(?P<mo>-?\d{1,2})M)?(?:(?P<d>-?\d{1,10})D)?"
    r"(?:T(?:(?P<h>-?\d{1,7})H)?(?:(?P<mi>-?\d{1,2})M)?"
    r"(?:(?P<minus>-?)(?P<s>\d{1,2})(?:\.(?P<us>\d{1,6}))?S)?)?$"
)
_NOTHING = "PT0S"
_DIGITS = 6
_MINUTE, _HOUR = 60 * 10**_DIGITS, 3600 * 10**_DIGITS
_YEAR = 12
#: Arrow has 64 bits for nanoseconds: 292 years of hours.
_MOST = np.iinfo(np.int64).max // 1000
_HELD = np.dtype([("months", "<i4"), ("days", "<i4"), ("nanos", "<i8")])
INTERVAL_TYPE = pa.month_day_nano_interval()


def intervals_of(texts: pa.Array) -> pa.Array:
    """Return the intervals that texts are.

    Raises:
        pyarrow.ArrowInvalid: One is none, or is more than 292 years of hours.
    """
    found = pc.extract_regex(texts.cast(pa.string()), _FORM)
    if found.null_count != texts.null_count:
        raise pa.ArrowInvalid
    y, mo, d, h, mi = (_whole(found, name) for name in ("y", "mo", "d", "h", "mi"))
    fraction = pc.utf8_rpad(pc.struct_field(found, "us"), _DIGITS, "0")
    seconds = _whole(found, "s") * 10**_DIGITS + _numbers(fraction)
    sign = np.where(_is(found, "minus", "-"), -1, 1)
    micros = h * _HOUR + mi * _MINUTE + sign * seconds
    held = np.empty(len(texts), _HELD)
    months = y * _YEAR + mo
    if _beyond(months, np.int32) or _beyond(d, np.int32) or (np.abs(micros) > _MOST).any():
        raise pa.ArrowInvalid
    held["months"], held["days"], held["nanos"] = months, d, micros * 1000
    valid = pc.is_valid(texts).buffers()[1] if texts.null_count else None
    return pa.Array.from_buffers(INTERVAL_TYPE, len(texts), [valid, pa.py_buffer(held)])


def admit_intervals(texts: pa.Array) -> None:
    """Refuse texts of which one is no interval, or is not written as PostgreSQL writes it.

    Raises:
        pyarrow.ArrowInvalid: One is not.
    """
    if not interval_texts(intervals_of(texts)).equals(texts.cast(pa.string())):
        raise pa.ArrowInvalid


def interval_texts(intervals: pa.Array) -> pa.Array:
    """Return intervals as PostgreSQL writes them."""
    data = intervals.buffers()[1]
    held = np.frombuffer(data, _HELD)[intervals.offset : intervals.offset + len(intervals)]
    months, micros = held["months"].astype(np.int64), held["nanos"] // 1000
    rest = np.abs(micros) % _HOUR
    minutes, seconds = rest // _MINUTE, rest % _MINUTE
    sign = np.sign(micros)
    clock = _joined(
        _part(sign * (np.abs(micros) // _HOUR), "H"),
        _part(sign * minutes, "M"),
        _seconds(seconds, micros < 0),
    )
    day = _joined(
        _part(np.sign(months) * (np.abs(months) // _YEAR), "Y"),
        _part(np.sign(months) * (np.abs(months) % _YEAR), "M"),
        _part(held["days"].astype(np.int64), "D"),
    )
    whole = _joined("P", day, pc.if_else(pc.equal(clock, ""), "", "T"), clock)
    shown = pc.if_else(pc.equal(whole, "P"), _NOTHING, whole)
    return pc.if_else(pc.is_valid(intervals), shown, pa.scalar(None, pa.string()))


def with_interval_texts(rows: pa.Table) -> pa.Table:
    """Return rows with texts for their intervals."""
    for place, field in enumerate(rows.schema):
        if field.type == INTERVAL_TYPE:
            texts = [interval_texts(chunk) for chunk in rows.column(place).chunks]
            rows = rows.set_column(place, field.name, pa.chunked_array(texts, pa.string()))
    return rows


def _seconds(micros: np.ndarray, is_negative: np.ndarray) -> pa.Array:
    fraction = pc.utf8_lpad(_texts(micros % 10**_DIGITS), _DIGITS, "0")
    fraction = pc.utf8_rtrim(fraction, "0")
    point = pc.if_else(pc.equal(fraction, ""), "", ".")
    minus = pc.if_else(pa.array(is_negative), "-", "")
    shown = _joined(minus, _texts(micros // 10**_DIGITS), point, fraction, "S")
    return pc.if_else(pa.array(micros != 0), shown, "")


def _part(numbers: np.ndarray, unit: str) -> pa.Array:
    return pc.if_else(pa.array(numbers != 0), _joined(_texts(numbers), unit), "")


def _texts(numbers: np.ndarray) -> pa.Array:
    return pa.array(numbers).cast(pa.string())


def _joined(*parts: pa.Array | str) -> pa.Array:
    return pc.binary_join_element_wise(*parts, "")


def _whole(found: pa.Array, name: str) -> np.ndarray:
    return _numbers(pc.struct_field(found, name))


def _numbers(texts: pa.Array) -> np.ndarray:
    digits = pc.if_else(pc.equal(texts, ""), "0", texts)
    numbers: np.ndarray = pc.fill_null(digits, "0").cast(pa.int64()).to_numpy(zero_copy_only=False)
    return numbers


def _is(found: pa.Array, name: str, text: str) -> np.ndarray:
    same = pc.fill_null(pc.equal(pc.struct_field(found, name), text), fill_value=False)
    found_there: np.ndarray = same.to_numpy(zero_copy_only=False)
    return found_there


def _beyond(numbers: np.ndarray, kind: type[np.signedinteger]) -> bool:
    limits = np.iinfo(kind)
    return bool(((numbers < limits.min) | (numbers > limits.max)).any())
