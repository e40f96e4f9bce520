"""DataFusion functions that end a query with an error where only the source answers exactly."""

import pyarrow as pa
import pyarrow.compute as pc
from datafusion import SessionContext, udf

from rhei_pipeline.model.semantics import APART, FINITE, NEAR, ONLY_SOURCE


def register(context: SessionContext) -> None:
    """Register the functions that translated queries call in a session."""
    boolean, double = pa.bool_(), pa.float64()
    context.register_udf(udf(_only_source, [boolean], boolean, "immutable", ONLY_SOURCE))
    context.register_udf(udf(_finite, [double], double, "immutable", FINITE))
    context.register_udf(udf(_apart, [double, double], double, "immutable", APART))


def _only_source(conditions: pa.Array) -> pa.Array:
    if pc.any(conditions).as_py():
        raise ValueError("only the source answers this exactly")
    return conditions


def _finite(numbers: pa.Array) -> pa.Array:
    if not pc.all(pc.is_finite(numbers), min_count=0).as_py():
        raise ValueError("only the source answers this exactly")
    return numbers


def _apart(left: pa.Array, right: pa.Array) -> pa.Array:
    difference = pc.subtract(left, right)
    bound = pc.multiply(pc.add(pc.abs(left), pc.abs(right)), NEAR)
    if pc.any(pc.less_equal(pc.abs(difference), bound)).as_py():
        raise ValueError("only the source answers this exactly")
    return difference
