"""A transaction of PostgreSQL shows whole at every instant: across rows, tables and captures."""

import struct
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from rhei_pipeline.sources.postgres.instants import apart
from rhei_pipeline.sources.postgres.logical import pgoutput
from tests.support.fix_postgres import PostgresWorld

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., PostgresWorld]
LOGICAL: dict[str, Any] = {"method": "logical"}
TRIGGER: dict[str, Any] = {"method": "trigger"}
TOTAL = 300
#: Of pgoutput: the beginning of PostgreSQL's time, a table of one column, and a row's key.
_EPOCH = 946_684_800_000_000
_ID, _V = (name + struct.pack(">ii", 23, -1) for name in (b"\1id\0", b"\0v\0"))
_SHAPE = b"R" + struct.pack(">i", 7) + b"public\0a\0d"
_RELATION = _SHAPE + struct.pack(">h", 1) + _ID
_WIDER = _SHAPE + struct.pack(">h", 2) + _ID + _V
_DELETED = b"D" + struct.pack(">i", 7) + b"K" + struct.pack(">h", 1) + b"t\0\0\0\1" + b"1"


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("storage", [None, "parquet"])
@pytest.mark.parametrize(
    "capture", [LOGICAL, {**LOGICAL, "streaming": True}, TRIGGER], ids=["log", "stream", "trigger"]
)
def test_every_instant_shows_whole_transactions(
    make_postgres: MakeWorld,
    tmp_path: Path,
    capture: dict[str, Any],
    storage: str | None,
    *,
    buffered: bool,
) -> None:
    if buffered:
        capture = {**capture, "buffer": {"kind": "rocksdb", "path": tmp_path / "buffer"}}
    tables = [{"name": "a"}, {"name": "b"}]
    world = make_postgres(capture=capture, mode="temporal", storage=storage, tables=tables)
    move_between_tables(world)


@pytest.mark.long
def test_commit_times_of_the_server_date_whole_transactions(
    dating_dsn: str, tmp_path: Path
) -> None:
    tables = [{"name": "a"}, {"name": "b"}]
    world = PostgresWorld(dating_dsn, tmp_path, tables, "temporal", capture=TRIGGER)
    try:
        move_between_tables(world)
    finally:
        world.close()


@pytest.mark.parametrize("storage", [None, "parquet"])
@pytest.mark.parametrize(
    "capture", [LOGICAL, {**LOGICAL, "streaming": True}], ids=["log", "stream"]
)
def test_what_replication_brings_is_dated_by_when_it_is_here(
    make_postgres: MakeWorld, capture: dict[str, Any], storage: str | None
) -> None:
    world = make_postgres(capture=capture, mode="temporal", storage=storage, tables=[{"name": "a"}])
    bring_from_elsewhere(world)


def test_commit_times_of_another_server_date_no_transaction(
    dating_dsn: str, tmp_path: Path
) -> None:
    world = PostgresWorld(dating_dsn, tmp_path, [{"name": "a"}], "temporal", capture=TRIGGER)
    try:
        bring_from_elsewhere(world)
    finally:
        world.close()


def bring_from_elsewhere(world: PostgresWorld) -> None:
    """Apply transactions that tell of other times; what was answered before stays true."""
    world.run("create table a(id int primary key, v int)", "insert into a values (1, 0), (2, 0)")
    world.htap.sync_now()
    world.run("update a set v = 1 where id = 1")
    world.htap.sync_now()
    asked = clock(world)
    answered = rows_as_of(world, asked)
    with applying(world) as apply:
        apply(
            asked - timedelta(hours=1),
            *("update a set v = 2 where id = 1", "delete from a where id = 2"),
            "insert into a values (3, 2)",
        )
        world.run("update a set v = 3 where id = 3")
        apply(asked + timedelta(hours=1), "update a set v = 4 where id in (1, 3)")
        assert not world.htap.sync_now().errors
    assert answered == {(1, 1), (2, 0)} == rows_as_of(world, asked)
    assert rows_as_of(world, clock(world)) == {(1, 4), (3, 4)}
    shown = [rows_as_of(world, at) for at in instants(world, "a") if at > asked]
    assert shown == [{(1, 2), (3, 2)}, {(1, 2), (3, 3)}, {(1, 4), (3, 4)}]


def clock(world: PostgresWorld) -> datetime:
    """Return what the server's clock shows."""
    found = world.app.execute("select clock_timestamp()").fetchone()
    assert found is not None
    at: datetime = found[0]
    return at


def rows_as_of(world: PostgresWorld, at: datetime) -> set[tuple[int, int]]:
    """Return the rows of `a` at an instant."""
    return {(row["id"], row["v"]) for row in world.htap.as_of("a", at).to_pylist()}


@contextmanager
def applying(world: PostgresWorld) -> Iterator[Callable[..., None]]:
    """Apply transactions as replication does, each with the time of its commit elsewhere."""
    name = f"other_{uuid.uuid4().hex[:12]}"  # known to all databases of a server
    with psycopg.connect(world.dsn, autocommit=True) as connection:
        connection.execute("select pg_replication_origin_create(%s)", (name,))
        connection.execute("select pg_replication_origin_session_setup(%s)", (name,))

        def apply(at: datetime, *statements: str) -> None:
            with connection.transaction():
                connection.execute("select pg_replication_origin_xact_setup('0/1', %s)", (at,))
                for statement in statements:
                    connection.execute(statement.encode())

        yield apply
        connection.execute("select pg_replication_origin_session_reset()")
        connection.execute("select pg_replication_origin_drop(%s)", (name,))


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_where_a_transaction_is_from_may_be_told_behind_the_end_of_a_portion(size: int) -> None:
    """A portion of messages may end between a transaction's Begin and its Origin."""
    messages = []
    for number, is_brought in enumerate([False, True, True, False, True]):
        messages.append(b"B" + struct.pack(">qqi", number, 1_000_000 * number, number))
        messages += [b"O" + struct.pack(">q", 0) + b"other\0"] * is_brought
        messages += [_RELATION] * (not number) + [_DELETED]
    context, told = pgoutput.DecodingContext(clock=_EPOCH + 9_000_000), list[int]()
    for first in range(0, len(messages), size):
        part = messages[first : first + size]
        lengths = np.fromiter(map(len, part), np.int64)
        for run in pgoutput.index(b"".join(part), lengths, first, context):
            told += (run.committed_at - _EPOCH).tolist()
    assert (told[0], told[3]) == (0, 3_000_000)
    assert min(told[1], told[2], told[4]) >= 2_999_998  # none as early as it tells
    assert size < len(messages) or told == sorted(told)


@pytest.mark.parametrize("size", range(1, 9))
def test_a_row_has_the_shape_that_was_told_last_wherever_a_portion_ends(size: int) -> None:
    begin = b"B" + struct.pack(">qqi", 1, 1, 1)
    truncated = b"T" + struct.pack(">iBi", 1, 0, 7)
    shapes = [_RELATION, _DELETED, truncated, _WIDER, truncated, _DELETED]
    messages = [begin, *shapes, *shapes, _RELATION, _DELETED]
    context, told = pgoutput.DecodingContext(clock=_EPOCH), list[tuple[int, int, bool]]()
    for first in range(0, len(messages), size):
        part = messages[first : first + size]
        lengths = np.fromiter(map(len, part), np.int64)
        for run in pgoutput.index(b"".join(part), lengths, first, context):
            shape = len(run.relation.columns), run.truncate
            told += [(int(number), *shape) for number in run.order]
    once = [(2, 1, False), (3, 1, True), (5, 2, True), (6, 2, False)]
    again = [(number + len(shapes), *shape) for number, *shape in once]
    assert told == [*once, *again, (14, 1, False)]


def move_between_tables(world: PostgresWorld) -> None:
    """Move amounts between rows of two tables; their total is the same after each transaction."""
    for name in ("a", "b"):
        world.run(
            f"create table {name}(id int primary key, v int)",
            f"insert into {name} values (1, 100), (2, 50)",
        )
    world.htap.sync_now()
    begun = max(instants(world, "a", "b"))
    for _ in range(3):
        for amount in range(1, 6):
            world.run(
                "begin",
                f"update a set v = v - {amount} where id = 1",
                f"update a set v = v - {amount} where id = 1",
                f"update b set v = v + {amount} where id = 2",
                "delete from b where id = 1",
                f"insert into b values (1, {100})",
                f"update b set v = v + {amount} where id = 2",
                "commit",
            )
        assert not world.htap.sync_now().errors
        world.assert_equal("a", "b")
    told = instants(world, "a", "b")
    assert len([at for at in told if at > begun]) == 15
    for at in told:
        for shown in (at, at + timedelta(microseconds=1)):
            rows = [r for name in ("a", "b") for r in world.htap.as_of(name, shown).to_pylist()]
            assert shown <= begun or sum(row["v"] for row in rows) == TOTAL
    # Nothing is lost: what a transaction did on its way is in the history, and shows nowhere.
    assert len([row for row in world.versions("a") if row["id"] == 1]) == 31


def instants(world: PostgresWorld, *tables: str) -> list[datetime]:
    """Return every instant at which a version of one of the tables begins."""
    return sorted({row["_rhei_valid_from"] for name in tables for row in world.versions(name)})


def test_a_truncation_and_what_follows_it_in_a_transaction_show_at_once(
    make_postgres: MakeWorld,
) -> None:
    for name, capture in (("x", LOGICAL), ("y", TRIGGER)):
        tables = [{"name": name}]
        world = make_postgres(capture=capture, mode="temporal", tables=tables)
        world.run(f"create table {name}(id int primary key)", f"insert into {name} values (1), (2)")
        world.htap.sync_now()
        world.run("begin", f"truncate {name}", f"insert into {name} values (2), (3)", "commit")
        world.htap.sync_now()
        world.assert_equal(name)
        (at,) = {row["_rhei_valid_from"] for row in world.versions(name) if row["id"] == 3}
        assert sorted(world.htap.as_of(name, at)["id"].to_pylist()) == [2, 3]
        before = at - timedelta(microseconds=1)
        assert sorted(world.htap.as_of(name, before)["id"].to_pylist()) == [1, 2]
        world.crash()


def test_transactions_of_one_microsecond_are_kept_apart() -> None:
    given = np.array([5, 5, 6, 9, 5, 3, 3])
    assert apart(given, np.array([9])).tolist() == [5, 7, 6, 10, 8, 3, 4]
    assert apart(np.array([1, 2]), np.array([3])).tolist() == [1, 2]


@pytest.mark.parametrize("storage", [None, "parquet", "delta"])
@pytest.mark.parametrize(
    "capture", [LOGICAL, {**LOGICAL, "streaming": True}, TRIGGER], ids=["log", "stream", "trigger"]
)
def test_versions_that_came_and_went_in_one_transaction_contradict_nobody(
    make_postgres: MakeWorld, capture: dict[str, Any], storage: str | None
) -> None:
    """All of a key begin and end at one instant, so their instants put them in no order."""
    world = make_postgres(capture=capture, mode="temporal", storage=storage)
    world.run("create table t(id int primary key, v text)")
    world.htap.sync_now()
    with world.app.transaction():
        world.run("insert into t select n, 'a' from generate_series(1, 3000) n")
        for value in "bcd":
            world.run(f"update t set v = '{value}'")
        world.run("delete from t where id % 3 > 0")
        world.run("insert into t select n, 'e' from generate_series(1, 3000, 3) n")
        world.run("update t set v = 'f' where id % 6 = 1", "delete from t where id % 12 = 1")
    world.htap.sync_now()
    world.assert_equal("t")
    assert not world.htap.broken_histories("t").num_rows
    assert world.htap.verify().equal
