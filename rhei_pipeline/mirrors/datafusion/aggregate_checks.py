"""Aggregates that DataFusion computes falsely, without a word, for some of the values there are.

A sum of decimals wraps around where it has no room; all else that DataFusion computes of decimals,
such as averages, products and casts, ends in an error there. The least of a group in which each
real is infinite is the greatest finite one, and the other way round; beside NaN, either is what
comes last. Translated statements have aggregates of their own; those written for the mirror are
looked at here, in DataFusion's own plan.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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

_NAME = "_rhei_aggregated"
_LOOKED_AT = ("sum", "min", "max")

#: Runs a frame and returns its rows.
Run = Callable[[DataFrame], pa.Table]


@dataclass(frozen=True, slots=True)
class _Found:
    """An aggregate of a plan.

    Attributes:
        kind: The type of what it returns.
        values: What it is computed of, as one column.
    """

    name: str
    kind: pa.DataType
    values: DataFrame
    is_grouped: bool


class AggregateChecks:
    """Looks at the aggregates of statements before they run.

    Args:
        context: Where they run, with its files and its limits.
    """

    def __init__(self, context: SessionContext) -> None:
        self._context = context
        #: For planning alone.
        self._flat = SessionContext(SessionConfig(_FLAT))

    def refuse_false(self, frame: DataFrame, run: Run) -> None:
        """Refuse a statement with an aggregate that could be false.

        Only sums of decimals that leave no room for ten more digits cost anything, and the least
        and greatest reals of groups: what they are computed of is looked at before.

        Raises:
            QueryError: One could; or what it is computed of cannot be known beforehand.
        """
        flat = self._flat.create_dataframe_from_logical_plan(frame.logical_plan())
        looked_at = set()
        for found in self._found_in(flat.optimized_logical_plan()):
            if found.name == "sum" and pa.types.is_decimal(found.kind):
                _refuse_wrapping(found, run)
            elif found.name != "sum" and found.is_grouped and pa.types.is_floating(found.kind):
                values = found.values.logical_plan().display_indent()
                if values not in looked_at:
                    looked_at.add(values)
                    _refuse_infinite(found, run)

    def _found_in(self, plan: LogicalPlan) -> Iterator[_Found]:
        waiting = [plan]
        while waiting:
            node = waiting.pop()
            waiting += node.inputs()
            aggregates, is_grouped = _aggregates(node)
            if not any(name in _LOOKED_AT for name, _ in aggregates):
                continue
            kinds = self._context.create_dataframe_from_logical_plan(node).schema().types
            for (name, arguments), kind in zip(aggregates, kinds[-len(aggregates) :], strict=True):
                if name in _LOOKED_AT:
                    rows = self._context.create_dataframe_from_logical_plan(node.inputs()[0])
                    values = rows.select(Expr(arguments[0]).alias(_NAME))
                    yield _Found(name, kind, values, is_grouped)


def _refuse_wrapping(found: _Found, run: Run) -> None:
    """Refuse a sum that could have more digits than there is room for.

    What it adds up is added up as reals, without regard to signs or groups.
    """
    kind, source = found.kind, found.values.schema().field(0).type
    if source.precision + _SPARE_DIGITS <= kind.precision:
        return
    total = f.sum(f.abs(f.col(_NAME).cast(pa.float64()))).alias(_NAME)
    sum_ = run(found.values.aggregate([], [total]))[_NAME][0].as_py() or 0.0
    if sum_ >= _ALMOST * 10.0 ** (kind.precision - kind.scale):
        raise QueryError(
            f"a sum of decimals may have more than {kind.precision} digits",
            hint="ask without the hint 'olap', or widen what is added up, as in"
            f" sum(arrow_cast(amount, 'Decimal256(76, {source.scale})'))",
        )


def _refuse_infinite(found: _Found, run: Run) -> None:
    """Refuse the least or greatest of groups where a real is infinite, or NaN."""
    column = f.col(_NAME)
    ends = run(found.values.aggregate([], [f.min(column).alias("a"), f.max(column).alias("b")]))
    if not all(math.isfinite(end or 0) for end in (ends["a"][0].as_py(), ends["b"][0].as_py())):
        raise QueryError(
            f"DataFusion finds a wrong {found.name} for a group where a real is infinite or NaN",
            hint="ask without the hint 'olap': the source then answers; or leave such rows out"
            " with 'where abs(...) < 'infinity''",
        )


def _aggregates(node: LogicalPlan) -> tuple[list[tuple[str, list[Any]]], bool]:
    """Return the functions of a node, by name, with their arguments, and if it makes groups."""
    try:
        found = node.to_variant()
    except Exception:  # noqa: BLE001  (of no kind that Python knows, so neither of these)
        return [], False
    if isinstance(found, Aggregate):
        named = [
            (found.agg_func_name(each), found.aggregation_arguments(each))
            for each in found.aggregate_exprs()
        ]
        return named, bool(found.group_by_exprs())
    if isinstance(found, WindowExpr):
        return [
            (found.window_func_name(each), found.get_args(each)) for each in found.get_window_expr()
        ], False
    return [], False
