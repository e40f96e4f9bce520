"""Dates and instants as PostgreSQL writes them where the session's zone is UTC, infinite ones too.

Source: EncodeDateTime in src/backend/utils/adt/datetime.c.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.model.type_names import INSTANT

#: DuckDB keeps infinite instants and dates as the ends of their integers' ranges.
_INFINITE = {"infinity": 1, "-infinity": -1}
_LONGEST = np.iinfo(np.int64).max
_LATEST_DAY = np.iinfo(np.int32).max


def dates_of(texts: pa.Array) -> pa.Array:
    """Return the dates that texts are.

    Raises:
        pyarrow.ArrowInvalid: One is none, or not of the years 1 to 9999.
    """
    plain, infinite = _without_infinity(texts)
    days = plain.cast(pa.date32())
    if infinite is None:
        return days
    ends = pc.multiply(infinite, pa.scalar(_LATEST_DAY, pa.int64())).cast(pa.int32())
    return pc.coalesce(ends, days.cast(pa.int32())).cast(pa.date32())


def timestamps_of(texts: pa.Array) -> pa.Array:
    """Return the timestamps that texts are; see `dates_of`."""
    plain, infinite = _without_infinity(texts)
    return _with_infinity(plain.cast(pa.timestamp("us")), infinite)


def instants_of(texts: pa.Array) -> pa.Array:
    """Return the instants that texts are; see `dates_of`."""
    plain, infinite = _without_infinity(texts)
    # The session's zone is UTC, so every text ends in +00.
    return _with_infinity(plain.cast(INSTANT), infinite)


def _with_infinity(instants: pa.Array, infinite: pa.Array | None) -> pa.Array:
    if infinite is None:
        return instants
    ends = pc.multiply(infinite, pa.scalar(_LONGEST, pa.int64()))
    return pc.coalesce(ends, instants.cast(pa.int64())).cast(instants.type)


def _without_infinity(texts: pa.Array) -> tuple[pa.Array, pa.Array | None]:
    """Separate infinite values, as 1 and -1, from the others; None if there is none."""
    names = pa.array(list(_INFINITE), texts.type)
    place = pc.index_in(texts, names)
    if place.null_count == len(place):
        return texts, None
    signs = pa.array(list(_INFINITE.values()), pa.int64()).take(place)
    return pc.if_else(pc.is_valid(place), pa.scalar(None, texts.type), texts), signs


def instant_texts(values: pa.Array) -> pa.Array:
    """Return dates, timestamps or instants as PostgreSQL writes them."""
    kind = values.type
    is_day = pa.types.is_date32(kind)
    numbers = values.cast(pa.int32() if is_day else pa.int64())
    last = pa.scalar(_LATEST_DAY if is_day else _LONGEST, numbers.type)
    is_infinite = pc.equal(pc.abs(numbers), last)
    finite = pc.if_else(is_infinite, pa.scalar(None, numbers.type), numbers)
    plain = finite.cast(kind if is_day else pa.timestamp("us")).cast(pa.string())
    if not is_day:
        zone = "" if kind.tz is None else "+00"
        plain = pc.replace_substring_regex(plain, r"\.?0*$", zone)
    ends = pc.if_else(pc.greater(numbers, 0), "infinity", "-infinity")
    return pc.if_else(is_infinite, ends, plain)
