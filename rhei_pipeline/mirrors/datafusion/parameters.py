"""The values that DataFusion binds to the placeholders of a statement."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rhei_pipeline.errors import QueryError

#: Values of a statement, by place or by name.
Params = Sequence[Any] | Mapping[str, Any]
#: How a statement may name a value; in a text it means nothing, which only lets more pass.
_NAMED = re.compile(r"[$:](\w+)")


def named_values(params: Params) -> dict[str, Any]:
    """Return the values by the names that a statement with numbered placeholders has for them."""
    if isinstance(params, Mapping):
        return dict(params)
    return {str(place): value for place, value in enumerate(params, start=1)}


def refuse_surplus(bound: str, params: Params) -> None:
    """Refuse values that a statement has no placeholder for: DataFusion would ignore them.

    Raises:
        QueryError: The statement, with numbered placeholders, names one of them nowhere.
    """
    taken = set(_NAMED.findall(bound)) if params else ()
    surplus = next((name for name in named_values(params) if name not in taken), None)
    if surplus is not None:
        raise QueryError(
            f"the query has no placeholder for parameter {surplus!r}",
            hint="give one value for each placeholder",
        )
