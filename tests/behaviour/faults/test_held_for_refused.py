"""What a table needs is kept for it while it cannot be mirrored as it stands."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

#: What makes a table one that is refused, and what ends that.
HEIRS = ("create table heir() inherits (b)", "drop table heir")
NAMES = ("alter table b add column _rhei_x int", "alter table b drop column _rhei_x")


def long(*values: object) -> Any:
    """Return a case that is not in the short form."""
    return pytest.param(*values, marks=pytest.mark.long)


def assert_versions_come(
    world: World | PostgresWorld, refused: str, allowed: str, *, again: bool
) -> None:
    for name in "ab":
        world.run(f"create table {name}(id integer primary key, v text)")
        world.run(f"insert into {name} values (1, 'v')")
    world.htap.sync_now()
    world.run(refused)
    for value in range(3):
        for name in "ab":
            world.run(f"update {name} set v = '{value}' where id = 1")
        if again and value == 1:
            world.crash()
        assert list(world.htap.sync_now().errors) == ["b"]
    world.run(allowed)
    assert not world.htap.sync_now().errors
    world.assert_equal("a", "b")
    assert [row["v"] for row in world.versions("b")] == ["v", "0", "1", "2"]


@pytest.mark.parametrize(
    ("case", "capture", "fault"),
    [
        ("heirs", {"method": "logical"}, HEIRS),
        ("restarted", {"method": "logical"}, NAMES),
        long("names", {"method": "logical"}, NAMES),
        long("streaming", {"method": "logical", "streaming": True}, NAMES),
        long("buffer", {"method": "logical", "buffer": {"kind": "rocksdb"}}, NAMES),
        long("trigger", {"method": "trigger"}, NAMES),
    ],
)
def test_versions_of_while_a_table_was_refused_are_in_its_history(
    make_postgres: Callable[..., PostgresWorld],
    tmp_path_factory: pytest.TempPathFactory,
    case: str,
    capture: dict[str, Any],
    fault: tuple[str, str],
) -> None:
    """A slot that all tables share is not moved past what such a table needs."""
    if "buffer" in capture:
        own = {"kind": "rocksdb", "path": tmp_path_factory.mktemp("buffer") / "cdc"}
        capture = {**capture, "buffer": own}
    world = make_postgres(mode="temporal", capture=capture)
    assert_versions_come(world, *fault, again=case == "restarted")


def test_the_same_holds_for_sqlite(make_world: Callable[..., World]) -> None:
    assert_versions_come(make_world(mode="temporal"), *NAMES, again=True)
