"""DataFusion functions that end a query with an error where only the source answers exactly."""

from collections.abc import Callable
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc
from datafusion import SessionContext, udf

from rhei_pipeline.model.numerics import quotient
from rhei_pipeline.model.semantics import (
    APART,
    DIVIDED,
    FINITE,
    NEAR,
    ONLY_SOURCE,
    QUOTIENT_SCALES,
)


def register(context: SessionContext) -> None:
    """Register the functions that translated queries call in a session."""
    boolean, double = pa.bool_(), pa.float64()
    context.register_udf(udf(_only_source, [boolean], boolean, "immutable", ONLY_SOURCE))
    context.register_udf(udf(_finite, [double], double, "immutable", FINITE))
    context.register_udf(udf(_apart, [double, double, boolean], double, "immutable", APART))
    texts = [pa.string()] * 2
    for scale in QUOTIENT_SCALES:
        kept, name = pa.decimal128(38, scale), f"{DIVIDED}{scale}"
        context.register_udf(udf(_divided(scale), texts, kept, "immutable", name))


def _only_source(conditions: pa.Array) -> pa.Array:
    if pc.any(conditions).as_py():
        raise ValueError("only the source answers this exactly")
    return conditions


def _finite(numbers: pa.Array) -> pa.Array:
    if not pc.all(pc.is_finite(numbers), min_count=0).as_py():
        raise ValueError("only the source answers this exactly")
    return numbers


def _apart(left: pa.Array, right: pa.Array, exact: pa.Array) -> pa.Array:
    difference = pc.subtract(left, right)
    bound = pc.multiply(pc.add(pc.abs(left), pc.abs(right)), NEAR)
    near = pc.less_equal(pc.abs(difference), bound)
    if pc.any(pc.and_not(near, exact)).as_py():
        raise ValueError("only the source answers this exactly")
    return difference


def _divided(scale: int) -> Callable[[pa.Array, pa.Array], pa.Array]:
    def divide(left: pa.Array, right: pa.Array) -> pa.Array:
        pairs = zip(left.to_pylist(), right.to_pylist(), strict=True)
        return pa.array([_quotient(*pair, scale) for pair in pairs], pa.decimal128(38, scale))

    return divide


def _quotient(left: str | None, right: str | None, scale: int) -> Decimal | None:
    if left is None or right is None:
        return None
    found = quotient(left, right, scale)
    if found is None:
        raise ValueError("only the source answers this exactly")
    return Decimal(found)
