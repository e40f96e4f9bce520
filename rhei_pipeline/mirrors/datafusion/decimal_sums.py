"""Sums of decimals that could exceed what DataFusion adds them up in: it would wrap around.

All else that DataFusion computes of decimals, such as averages, products and casts, ends in an
error where it has no room. Translated statements have sums of their own; those written for the
mirror are looked at here, in DataFusion's own plan.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
from datafusion import DataFrame, Expr, SessionConfig, SessionContext
from datafusion import functions as f
from datafusion.expr import Aggregate, WindowExpr
from datafusion.plan import LogicalPlan

from rhei_pipeline.errors import QueryError

#: A sum has so many digits more than what it adds up, as long as there is room for them.
_SPARE_DIGITS = 10
#: The sum of reals that is compared with what there is room for is itself inexact.
_ALMOST = 1 - 1e-6
#: Its plans have no part that only an expression names.
_FLAT = {"datafusion.optimizer.enable_physical_uncorrelated_scalar_subquery": "false"}

_NAME = "_rhei_summed"

#: Runs a frame and returns its rows.
Run = Callable[[DataFrame], pa.Table]


class DecimalSums:
    """Looks at the sums of statements before they run.

    Args:
        context: Where they run, with its files and its limits.
    """

    def __init__(self, context: SessionContext) -> None:
        self._context = context
        #: For planning alone.
        self._flat = SessionContext(SessionConfig(_FLAT))

    def refuse_wrapping(self, frame: DataFrame, run: Run) -> None:
        """Refuse a statement of which a sum of decimals could have more digits than there is room.

        Only sums of decimals that leave no room for ten more digits cost anything: what they add up
        is added up as reals before, without regard to signs or groups.

        Raises:
            QueryError: It could; or what is added up cannot be known beforehand.
        """
        flat = self._flat.create_dataframe_from_logical_plan(frame.logical_plan())
        for kind, summand in self._sums(flat.optimized_logical_plan()):
            source = summand.schema().field(0).type
            if source.precision + _SPARE_DIGITS <= kind.precision:
                continue
            total = f.sum(f.abs(f.col(_NAME).cast(pa.float64()))).alias(_NAME)
            found = run(summand.aggregate([], [total]))[_NAME][0].as_py() or 0.0
            if found >= _ALMOST * 10.0 ** (kind.precision - kind.scale):
                raise QueryError(
                    f"a sum of decimals may have more than {kind.precision} digits",
                    hint="ask without the hint 'olap', or widen what is added up, as in"
                    f" sum(arrow_cast(amount, 'Decimal256(76, {source.scale})'))",
                )

    def _sums(self, plan: LogicalPlan) -> Iterator[tuple[pa.DataType, DataFrame]]:
        """Yield the type of each sum of decimals in a plan, and what is added up, as one column."""
        waiting = [plan]
        while waiting:
            node = waiting.pop()
            waiting += node.inputs()
            aggregates = _aggregates(node)
            if not any(name == "sum" for name, _ in aggregates):
                continue
            kinds = self._context.create_dataframe_from_logical_plan(node).schema().types
            for (name, arguments), kind in zip(aggregates, kinds[-len(aggregates) :], strict=True):
                if name == "sum" and pa.types.is_decimal(kind):
                    rows = self._context.create_dataframe_from_logical_plan(node.inputs()[0])
                    yield kind, rows.select(Expr(arguments[0]).alias(_NAME))


def _aggregates(node: LogicalPlan) -> list[tuple[str, list[Any]]]:
    """Return the functions of a node that aggregates, by name, each with its arguments."""
    try:
        found = node.to_variant()
    except Exception:  # noqa: BLE001  (of no kind that Python knows, so neither of these)
        return []
    if isinstance(found, Aggregate):
        return [
            (found.agg_func_name(each), found.aggregation_arguments(each))
            for each in found.aggregate_exprs()
        ]
    if isinstance(found, WindowExpr):
        return [
            (found.window_func_name(each), found.get_args(each)) for each in found.get_window_expr()
        ]
    return []
