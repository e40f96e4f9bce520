"""Decimals from text, exactly or not at all: Arrow lets what has more than 128 bits wrap around."""

from decimal import Decimal, InvalidOperation

import pyarrow as pa
import pyarrow.compute as pc

#: So many digits never wrap around in 128 bits, and so many not in 256.
_SURE_DIGITS, _SURE_DIGITS_OF_256 = 38, 76
#: Of an exponent, so that no number is written out that is far too large.
_LARGEST = 500


def decimals_of(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Read a column of texts as decimals of this type.

    Raises:
        pa.ArrowInvalid: One of them is no number, or has digits for which there is no room.
    """
    # To get its scale, a number is filled up with zeros: these count, too.
    digits = (pc.max(pc.binary_length(texts)).as_py() or 0) + kind.scale
    if digits <= _SURE_DIGITS_OF_256 and not _has_exponents(texts):
        if digits <= _SURE_DIGITS:
            return texts.cast(kind)
        return texts.cast(pa.decimal256(_SURE_DIGITS_OF_256, kind.scale)).cast(kind)
    values = [None if text is None else decimal_of(text, kind) for text in texts.to_pylist()]
    return pa.array(values, kind)


def _has_exponents(texts: pa.Array) -> bool:
    return any(pc.any(pc.match_substring(texts, letter)).as_py() for letter in "eE")


def decimal_of(text: str, kind: pa.DataType) -> Decimal:
    """Read a text as a decimal that has room in this type.

    Raises:
        pa.ArrowInvalid: It is no number, or has digits for which there is no room.
    """
    try:
        sign, digits, exponent = Decimal(text).as_tuple()
    except InvalidOperation:
        raise pa.ArrowInvalid("it is no number") from None
    if not isinstance(exponent, int) or not -_LARGEST <= exponent <= _LARGEST:
        raise pa.ArrowInvalid("it has no room")
    whole, moved = int("".join(map(str, digits))), exponent + kind.scale
    found, lost = (whole * 10**moved, 0) if moved >= 0 else divmod(whole, 10**-moved)
    if lost or found >= 10**kind.precision:
        raise pa.ArrowInvalid("it has no room")
    return Decimal((sign, tuple(map(int, str(found))), -kind.scale))


def decimal_texts(values: pa.Array) -> pa.Array:
    """Return decimals with all digits of their scale; Arrow's own texts may have exponents."""
    scale = values.type.scale
    whole = pa.decimal128(_SURE_DIGITS, 0)
    moved = pa.Array.from_buffers(whole, len(values), values.buffers(), offset=values.offset)
    texts = moved.cast(pa.string())
    if not scale:
        return texts
    sign = pc.if_else(pc.starts_with(texts, "-"), "-", "")
    digits = pc.utf8_lpad(pc.utf8_ltrim(texts, "-"), scale + 1, "0")
    before = pc.utf8_slice_codeunits(digits, 0, -scale)
    behind = pc.utf8_slice_codeunits(digits, -scale)
    return pc.binary_join_element_wise(sign, before, ".", behind, "").cast(pa.string())
