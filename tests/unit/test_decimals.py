"""Decimals are read from text exactly, or refused: against Python's own, at every width."""

from decimal import Decimal, localcontext

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rhei_pipeline.model.decimals import decimals_of

_DIGITS = st.text("0123456789", min_size=1, max_size=90)


@st.composite
def numbers(draw: st.DrawFn) -> str:
    behind = draw(st.one_of(st.just(""), _DIGITS.map(".{}".format)))
    exponent = draw(st.one_of(st.just(""), st.integers(-330, 330).map("e{}".format)))
    zeros = "0" * draw(st.integers(0, 40))
    return f"{draw(st.sampled_from(['', '-']))}{draw(_DIGITS)}{zeros}{behind}{exponent}"


@given(numbers(), st.integers(1, 38).flatmap(lambda p: st.tuples(st.just(p), st.integers(0, p))))
@example("360000000000000000000000000000000000000", (38, 0))  # beyond 2**128
@example("3.6e+38", (38, 0))
@example("-24154990951", (38, 37))  # with its zeros, beyond 2**128
@example("5e-324", (38, 4))
@example("-0.12345678901234567890123456789012345678", (38, 38))
def test_a_number_is_read_exactly_or_refused(text: str, digits: tuple[int, int]) -> None:
    kind = pa.decimal128(*digits)
    with localcontext(prec=2000):
        scaled = Decimal(text).scaleb(kind.scale)
        fits = scaled == scaled.to_integral_value() and abs(scaled) < 10**kind.precision
    texts = pa.array([None, text])
    if fits:
        assert decimals_of(texts, kind).to_pylist() == [None, Decimal(text)]
    else:
        with pytest.raises(pa.ArrowInvalid):
            decimals_of(texts, kind)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "", "1e999999999", "x"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(pa.ArrowInvalid):
        decimals_of(pa.array([text]), pa.decimal128(38, 2))
