"""Whether a LIMIT cut between rows that are equal in its ORDER BY: then the source answers."""

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pytest

from rhei_pipeline.query.results import unanswered

if TYPE_CHECKING:
    from rhei_pipeline.query.translation.queries import Query


def is_cut(keys: list[Any], limit: int | None, *, inexact: bool = False) -> bool:
    """Return whether an answer of one column is unanswered, ordered by these hidden keys."""
    rows = pa.table({"shown": [7] * len(keys), "key": pa.array(keys, pa.float64())})
    ordering = (SimpleNamespace(inexact=inexact),)
    query = SimpleNamespace(limit=limit, ordering=ordering, columns=(("shown", None),))
    return unanswered(rows, cast("Query", query))


@pytest.mark.parametrize(
    ("keys", "limit", "found"),
    [
        ([1.0, 2.0, 2.0], 2, True),
        ([1.0, 1.0, 2.0], 2, False),  # both of the equal ones are in it
        ([1.0, 2.0], 2, False),  # there is no row more
        ([1.0, 1.0], None, False),
        ([1.0], 0, False),
        ([1.0, None, None], 2, True),
        ([1.0, 2.0, None], 2, False),
    ],
)
def test_a_limit_between_equal_rows_is_the_sources(
    keys: list[Any], limit: int | None, *, found: bool
) -> None:
    assert is_cut(keys, limit) is found


def test_sums_of_reals_that_are_nearly_equal_are_taken_for_equal() -> None:
    near = [0.3, 0.1 + 0.2]
    assert not is_cut(near, 1)
    assert is_cut(near, 1, inexact=True)
    assert not is_cut([0.3, 0.4], 1, inexact=True)
    assert not is_cut([0.3, None], 1, inexact=True)
    assert is_cut([None, None], 1, inexact=True)
