"""Functions in DataFusion by which a query ends where only the source answers exactly."""

import pyarrow as pa
import pyarrow.compute as pc
from datafusion import SessionContext, udf

from rhei_pipeline.model.semantics import FINITE, ONLY_SOURCE


def register(context: SessionContext) -> None:
    """Give a session the functions that translated queries call."""
    boolean, double = pa.bool_(), pa.float64()
    context.register_udf(udf(_only_source, [boolean], boolean, "immutable", ONLY_SOURCE))
    context.register_udf(udf(_finite, [double], double, "immutable", FINITE))


def _only_source(conditions: pa.Array) -> pa.Array:
    if pc.any(conditions).as_py():
        raise ValueError("only the source answers this exactly")
    return conditions


def _finite(numbers: pa.Array) -> pa.Array:
    if not pc.all(pc.is_finite(numbers), min_count=0).as_py():
        raise ValueError("only the source answers this exactly")
    return numbers
