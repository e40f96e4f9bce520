"""What a history shows of a column whose values came to mean something else."""

import pyarrow as pa
import pytest

from rhei_pipeline.model.set_aside import as_they_were, names_aside, with_former

#: By column: the values of two rows. Then what is shown, by column.
SHOWN = {
    "what it was": (
        {"id": [1, 2], "v": [None, None], "_rhei_was_1_v": [7, None]},
        {"id": [1, 2], "v": [7, None]},
    ),
    "what it is": (
        {"v": [8, None], "_rhei_was_1_v": [None, None], "id": [1, 2]},
        {"v": [8, None], "id": [1, 2]},
    ),
    "what it was second": (
        {"v": [None, None], "_rhei_was_1_v": [None, None], "_rhei_was_2_v": [9, 9]},
        {"v": [9, 9]},
    ),
    "both, where rows have either": (
        {"v": [None, 8], "_rhei_was_1_v": [7, None]},
        {"v": [None, 8], "_rhei_was_1_v": [7, None]},
    ),
    "capitals by now": ({"V": [None, None], "_rhei_was_1_v": [7, 7]}, {"V": [7, 7]}),
    "capitals before": ({"v": [None, None], "_rhei_was_1_V": [7, 7]}, {"v": [7, 7]}),
    "a column that is gone": ({"id": [1, 2], "_rhei_was_1_v": [7, 7]}, {"id": [1, 2], "v": [7, 7]}),
}


@pytest.mark.parametrize("case", SHOWN)
def test_an_instant_has_the_column_that_has_values_then(case: str) -> None:
    held, shown = SHOWN[case]
    assert as_they_were(pa.table(held)).to_pydict() == shown


def test_where_no_row_has_a_value_the_column_is_the_first_one() -> None:
    types = {"v": pa.int64(), "_rhei_was_2_v": pa.float64(), "_rhei_was_1_v": pa.string()}
    found = as_they_were(pa.table({name: pa.nulls(1, kind) for name, kind in types.items()}))
    assert found.schema == pa.schema([("v", pa.string())])


#: By column: the values of two rows at an instant and, behind '<', at another. Then what is shown.
DIFFERENCES = {
    "what it was at both": (
        {"id": [1, 2], "v": [None, None], "_rhei_was_1_v": [7, None]}
        | {"<v": [None, None], "<_rhei_was_1_v": [6, 5]},
        {"id": [1, 2], "v": [7, None], "<v": [6, 5]},
    ),
    "what it was at one": (
        {"id": [1, 2], "v": [8, None], "_rhei_was_1_v": [None, None]}
        | {"<v": [None, None], "<_rhei_was_1_v": [6, 5]},
        {"id": [1, 2], "v": [8, None], "<v": [6, 5]},
    ),
    "all, where rows have either at one": (
        {"v": [8, 9], "_rhei_was_1_v": [None, None]}
        | {"<v": [None, 4], "<_rhei_was_1_v": [6, None]},
        {"v": [8, 9], "_rhei_was_1_v": [None, None]}
        | {"<v": [None, 4], "<_rhei_was_1_v": [6, None]},
    ),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_a_difference_has_the_column_that_has_values_at_each_instant(case: str) -> None:
    held, shown = DIFFERENCES[case]
    assert as_they_were(pa.table(held), ("", "<")).to_pydict() == shown


def test_where_an_instant_has_no_value_its_column_is_that_of_the_other() -> None:
    columns = {"_rhei_was_1_v": pa.nulls(1, pa.string()), "v": pa.array([7])}
    columns |= {"<_rhei_was_1_v": pa.nulls(1, pa.string()), "<v": pa.nulls(1, pa.int64())}
    found = as_they_were(pa.table(columns), ("", "<"))
    assert found.schema == pa.schema([("v", pa.int64()), ("<v", pa.int64())])


def test_names_are_free_ones_and_follow_their_column() -> None:
    assert names_aside(["v"], ["v", "_rhei_was_1_V"]) == {"_rhei_was_2_v": "v"}
    assert names_aside(["V"], ["V", "_rhei_was_1_v"]) == {"_rhei_was_2_V": "V"}
    standing = ["w", "_rhei_was_1_v", "_rhei_was_2_v", "_rhei_was_1_u"]
    assert with_former({"w": "v"}, standing) == {
        "w": "v",
        "_rhei_was_1_w": "_rhei_was_1_v",
        "_rhei_was_2_w": "_rhei_was_2_v",
    }
