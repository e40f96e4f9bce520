"""Which histories stay valid under another key, and which would have two rows of one key."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from rhei_pipeline.errors import SchemaDriftError
from rhei_pipeline.mirrors.key_change import refuse_unfit_key
from rhei_pipeline.model.schema import OPERATION, VALID_FROM, VALID_TO, Column, TableSchema
from rhei_pipeline.model.type_names import INSTANT

SCHEMA = TableSchema("t", (Column("id", pa.int64()), Column("code", pa.string())), ("code",))
START = datetime(2026, 1, 1, tzinfo=UTC)

#: The new key, when the version began and ended, and its operation.
Version = tuple[str | None, int, int | None, str]
FIT: list[list[Version]] = [
    [],
    [("a", 0, 2, "I"), ("a", 2, None, "U"), ("b", 0, None, "I")],
    [("a", 0, 2, "D"), ("a", 2, None, "I")],
    [("a", 0, 2, "D"), ("a", 7, None, "I"), ("b", 3, 4, "D")],
    # Of one transaction, in the order in which files may give them.
    [("a", 5, None, "U"), ("a", 5, 5, "U"), ("a", 0, 5, "I")],
    [("a", 5, 5, "D"), ("a", 5, 5, "I"), ("a", 5, 9, "I"), ("a", 9, None, "U")],
]
UNFIT: dict[str, list[Version]] = {
    "null": [(None, 0, None, "I")],
    "two rows": [("a", 0, None, "I"), ("a", 0, None, "I")],
    "overlapping": [("a", 0, 3, "D"), ("a", 2, None, "I")],
    "one ends in another": [("a", 0, 9, "D"), ("a", 2, 3, "D")],
    "another row took the key over": [("a", 0, 3, "I"), ("a", 5, None, "I")],
    "changed, and not gone": [("a", 0, 3, "I")],
}


def refuse(versions: list[Version]) -> None:
    def instants(place: int) -> pa.Array:
        found = (version[place] for version in versions)
        return pa.array(
            [None if at is None else START + timedelta(seconds=at) for at in found],  # type: ignore[arg-type]
            INSTANT,
        )

    table = pa.table(
        {
            "code": pa.array([version[0] for version in versions], pa.string()),
            VALID_FROM: instants(1),
            VALID_TO: instants(2),
            OPERATION: pa.array([version[3] for version in versions], pa.string()),
        }
    )
    refuse_unfit_key(SCHEMA, ("id",), table)


@pytest.mark.parametrize("versions", FIT)
def test_a_history_that_fits_another_key_keeps_it(versions: list[Version]) -> None:
    refuse(versions)
    refuse(versions[::-1])


@pytest.mark.parametrize("why", UNFIT)
def test_a_history_with_two_rows_of_one_key_is_refused(why: str) -> None:
    for versions in (UNFIT[why], UNFIT[why][::-1]):
        with pytest.raises(SchemaDriftError, match="several of its rows would share one key"):
            refuse(versions)
