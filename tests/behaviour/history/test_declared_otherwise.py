"""A text that is declared as one thing after another: what fits none of them is kept as it was."""

from collections.abc import Callable

import pytest

from tests.support.fix_world import World
from tests.support.model import instant_between

pytestmark = pytest.mark.turns

#: A value of each type that a text can be declared as; the first is of none.
VALUES = {
    None: "none of these",
    "int32[]": "{1,NULL}",
    "int32[][]": "{{1,2},{3,NULL}}",
    "string[]": "{a}",
    "struct(a int32)": "(1)",
    "range(int32)": "[1,5)",
    "json": '{"a": 1}',
    "uuid": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "interval": "P1M",
    "map": '"a"=>"1"',
}
#: From each to another that does not take its values, back, and to text in between.
TURNS = (
    *("int32[]", "int32[][]", "struct(a int32)", "json", "uuid", "map", None, "interval"),
    *("range(int32)", "string[]", "int32[]"),
)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_what_does_not_fit_is_kept_as_it_was(make_world: Callable[..., World], mode: str) -> None:
    world = make_world(mode=mode, tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, v text)")
    for key, text in enumerate(VALUES.values()):
        world.run(f"insert into t values ({key}, '{text}')")
    world.htap.sync_now()
    noted = []
    for turn in TURNS:
        if mode == "temporal":
            noted.append(instant_between())
        world.crash()
        assert world.tables is not None
        world.tables[0]["types"] = {"v": turn} if turn else {}
        assert world.htap.sync_now().errors == {}, turn
        found = world.htap.verify().tables["t"]
        unfit = world.htap.dead_letters().num_rows
        assert (found.missing, found.extra, found.different) == (0, 0, 0), turn
        assert found.dead_letters == unfit == (len(VALUES) - _fitting(turn)), turn
        # A row that cannot be taken stays as it was known.
        assert world.htap.row_count("t") == len(VALUES)
        assert world.htap.sync_now().events == 0
    for at in noted:
        shown = world.htap.as_of("t", at).sort_by("id")["v"].to_pylist()
        assert shown == [*VALUES.values()]


def _fitting(turn: str | None) -> int:
    """Return how many of the values are of this type."""
    # An array of texts takes each array of one dimension.
    return {None: len(VALUES), "string[]": 2}.get(turn, 1)


#: What a text is declared as at first, and then.
TURNED = (
    ("int32[]", "int32[][]"),
    ("int32[][]", "int32[]"),
    ("string[]", "struct(a int32)"),
    ("json", "uuid"),
    ("interval", "map"),
    ("range(int32)", "json"),
)


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_row_that_fitted_is_kept_where_another_one_fits_by_now(
    make_world: Callable[..., World], mode: str
) -> None:
    """The mirror has the column as the first type: what was no such value never came there."""
    names = [f"t{number}" for number in range(len(TURNED))]

    def declared(place: int) -> list[dict[str, object]]:
        pairs = zip(names, TURNED, strict=True)
        return [{"name": name, "types": {"v": turned[place]}} for name, turned in pairs]

    world = make_world(mode=mode, tables=declared(0))
    for name, turned in zip(names, TURNED, strict=True):
        world.run(f"create table {name}(id integer primary key, v text)")
        world.run(*(f"insert into {name}(v) values ('{VALUES[kind]}')" for kind in turned))
    assert world.htap.sync_now().errors == {}
    assert [world.htap.row_count(name) for name in names] == [1] * len(names)
    world.crash()
    world.tables = declared(1)
    assert world.htap.sync_now().errors == {}
    assert [world.htap.row_count(name) for name in names] == [2] * len(names)
    for name, found in world.htap.verify().tables.items():
        told = (found.missing, found.extra, found.different, found.dead_letters)
        assert told == (0, 0, 0, 1), name
