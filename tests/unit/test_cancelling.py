"""Ending a query from another thread: only while it has its connection."""

import pytest

from rhei_pipeline.errors import QueryError
from rhei_pipeline.model.cancellation import Cancel


def test_a_query_that_has_ended_is_not_ended_again() -> None:
    """Its connection may serve somebody else by then."""
    ended: list[str] = []
    cancel = Cancel()
    with cancel.ending_by(lambda: ended.append("during")):
        cancel()
    cancel()
    assert ended == ["during"]
    with pytest.raises(QueryError, match="cancelled"):
        cancel.refuse_cancelled()
