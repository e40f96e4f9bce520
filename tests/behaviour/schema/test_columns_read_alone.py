"""A column of PostgreSQL whose values may be others by now is read alone, and not its table."""

import random
import struct
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
import pytest

from rhei_pipeline.model.changes import RowBatch
from rhei_pipeline.protocols import Step
from rhei_pipeline.sources.postgres.rows import PostgresRowReader
from tests.support.altered_tables import STEPS, STORAGES, Way
from tests.support.fix_postgres import PostgresWorld

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., PostgresWorld]

_CREATE = (
    "create table t (id integer primary key, a integer, s smallint, r real, n numeric(10, 2),"
    " v text, d date)",
    "insert into t values (1, 10, 1, 0.5, 1.25, 'one', '2024-02-29'),"
    " (2, 20, null, -2.5, null, 'two', '0001-01-01'), (3, null, 3, null, 3, null, null),"
    " (4, 40, 4, '-0', 4, 'x', '9999-12-31')",
)
#: What is done to the table, and what of a row is written after it.
_CASES = {
    "wider": ("alter table t alter a type bigint, alter s type bigint", "a = 3000000000"),
    "wider_by_two": (
        "alter table t alter s type integer; alter table t alter s type bigint",
        "s = 8",
    ),
    "more_digits": ("alter table t alter n type numeric(14, 4)", "n = 123456789.0625"),
    "double": ("alter table t alter r type double precision", "r = 0.1"),
    "stamped": ("alter table t alter d type timestamp", "d = '2024-05-05 12:00:01.5'"),
    "computed": ("alter table t alter a type bigint using a * 1000", "a = 7"),
    "of_the_same_type": ("alter table t alter a type integer using a + 1", "a = 11"),
    "of_another": ("alter table t alter v type varchar using n::text", "v = 'later'"),
    "volatile": ("alter table t add c float8 default random()", "c = 0.5"),
    "of_each_row": ("alter table t add c bigint generated always as identity", "a = 5"),
    "renamed": (
        "alter table t rename a to amount; alter table t alter amount type bigint",
        "amount = 3000000000",
    ),
    "narrower": ("alter table t alter a type bigint; alter table t drop v", "a = 3000000000"),
    "written_again": ("alter table t alter n set default 9; vacuum full t", "n = 9"),
}
#: A history is copied for these: what was written before the change is not told apart from it.
_COPIED = {"narrower"}
WAYS = [Way("logical", storage) for storage in STORAGES]


@pytest.fixture
def make(make_postgres: Callable[..., PostgresWorld]) -> MakeWorld:
    """Make a world of a way, with what was in it synced."""

    def made(way: Way, **options: Any) -> PostgresWorld:
        world = make_postgres(capture={"method": way.capture}, storage=way.storage, **options)
        world.run(*_CREATE)
        assert not world.htap.sync_now().errors
        return world

    return made


def change(world: PostgresWorld, case: str) -> None:
    """Write a row, change the table, and write again."""
    altered, written = _CASES[case]
    if case == "double":  # a real's text is another double's
        world.run("update t set r = 0.7 where id = 1", "update t set r = 0.1 where id = 3")
    world.run("update t set a = 11, s = 12, n = 1.5, d = '1969-12-31' where id = 1")
    world.run("insert into t values (5, 50, 5, 0.25, 5, 'five')", "delete from t where id = 4")
    world.run(*altered.split("; "))
    world.run(f"update t set {written} where id = 2", "delete from t where id = 5")


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("case", _CASES)
def test_one_column_is_read_and_the_mirror_equals_its_source(
    make: MakeWorld, case: str, way: Way
) -> None:
    world = make(way)
    change(world, case)
    report = world.htap.sync_now()
    assert (report.errors, report.tables["t"].copied_rows) == ({}, 0)
    world.assert_equal("t")
    assert world.htap.sync_now().events == 0
    world.run("update t set r = 5 where id = 3", "insert into t (id, r, n) values (6, 1, 1)")
    later = world.htap.sync_now().tables["t"]
    assert (later.copied_rows, later.inserted, later.updated) == (0, 1, 1)
    world.htap.maintain()
    world.assert_equal("t")
    assert world.htap.verify("t").equal
    assert [entry.rows_read for entry in world.htap.schema_log("t")] == [3]


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_nothing_but_the_key_and_the_column_is_read(
    make: MakeWorld, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    world, read = make(Way("logical", None), mode=mode), []
    rows = PostgresRowReader.rows

    def noted(self: PostgresRowReader, *asked: Any) -> RowBatch | None:
        read.append(self.schema.names)
        return rows(self, *asked)

    monkeypatch.setattr(PostgresRowReader, "rows", noted)
    change(world, "computed")
    assert not world.htap.sync_now().errors
    assert {*read} == {("id", "a")}
    world.assert_equal("t")


@pytest.mark.parametrize("way", [Way("logical", None), Way("logical", "parquet")], ids=str)
@pytest.mark.parametrize("case", sorted(_CASES.keys() - _COPIED))
def test_a_history_gets_what_differs_as_versions_and_keeps_its_past(
    make: MakeWorld, case: str, way: Way
) -> None:
    world = make(way, mode="temporal")
    before = told(world)
    change(world, case)
    report = world.htap.sync_now()
    assert (report.errors, report.tables["t"].copied_rows) == ({}, 0)
    world.assert_equal("t")
    assert world.htap.verify("t").equal
    after = told(world)
    assert before <= after
    written = {(1, 1.5, 12), (5, 5.0, 5)}
    assert written <= {(row[0], row[1], row[2]) for row in after}
    if case in {"wider", "wider_by_two", "more_digits", "renamed"}:
        assert len(world.versions("t")) == 4 + 2 + 1


def told(world: PostgresWorld) -> set[tuple[Any, ...]]:
    """Return what each version says in columns that no case changes otherwise than in type."""
    return {
        (v["id"], None if v["n"] is None else float(v["n"]), v["s"], str(v["_rhei_valid_from"]))
        for v in world.versions("t")
    }


_REALS = ("0.1", "3.4028235e38", "1e-45", "1.1754944e-38", "16777217", "-0", "NaN", "-Infinity")


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_versions_of_a_real_are_the_doubles_that_its_values_were(
    make: MakeWorld, storage: str | None
) -> None:
    world = make(Way("logical", storage), mode="temporal")
    for key, real in enumerate(_REALS, 10):
        world.run(f"insert into t (id, r) values ({key}, '{real}')")
    world.htap.sync_now()
    for key, real in enumerate(reversed(_REALS), 10):
        world.run(f"update t set r = '{real}' where id = {key}")
    world.run("alter table t alter r type double precision", "update t set r = 0.1 where id > 9")
    report = world.htap.sync_now()
    assert (report.errors, report.tables["t"].copied_rows) == ({}, 0)
    exact = [struct.pack("d", np.float64(np.float32(real))) for real in _REALS]
    for key, pair in enumerate(zip(exact, reversed(exact), strict=True), 10):
        found = [struct.pack("d", v["r"]) for v in world.versions("t") if v["id"] == key]
        assert found == [*pair, struct.pack("d", 0.1)]
    world.assert_equal("t")
    assert world.htap.verify("t").equal


@pytest.mark.parametrize("case", sorted(_COPIED))
def test_a_history_is_copied_where_what_was_written_before_may_read_otherwise(
    make: MakeWorld, case: str
) -> None:
    world = make(Way("logical", None), mode="temporal")
    change(world, case)
    assert world.htap.sync_now().tables["t"].copied_rows == 3
    world.assert_equal("t")


@pytest.mark.long
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("case", ["computed", "volatile"])
def test_a_crash_while_a_column_is_read_loses_and_doubles_nothing(
    make: MakeWorld, case: str, step: Step, mode: str
) -> None:
    world = make(Way("logical", "parquet" if step is Step.APPLIED else None), mode=mode)
    change(world, case)
    world.faults.arm(step)
    assert world.surviving(world.htap.sync_now)
    world.run("update t set s = 1 where id = 3")
    report = world.htap.sync_now()
    assert (report.errors, report.tables["t"].copied_rows) == ({}, 0)
    world.assert_equal("t")
    assert world.htap.verify("t").equal


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_polled_column_is_read_alone_as_well(
    make_postgres: Callable[..., PostgresWorld], mode: str
) -> None:
    polled = {"name": "t", "polling": {"deletes": "disabled", "clock": "database"}}
    world = make_postgres(capture={"method": "polling"}, mode=mode, tables=[polled])
    world.run(
        "create table t (id integer primary key, a integer, updated_at timestamptz)",
        "insert into t values (1, 10, now()), (2, 20, now()), (3, 30, now())",
    )
    world.htap.sync_now()
    world.run(
        "delete from t where id = 3",
        "alter table t alter a type bigint using a * 2, add c float8 default random()",
        "update t set a = 3000000000, updated_at = now() where id = 1",
    )
    assert world.htap.sync_now().tables["t"].copied_rows == 0
    # No poll tells of the third row's deletion: it keeps what is known of it, until a copy.
    assert {"id": 3, "a": 30, "c": None}.items() <= _kept(world, 3).items()
    world.htap.initial_sync("t")
    world.assert_equal("t")


def _kept(world: PostgresWorld, key: int) -> dict[str, Any]:
    return next(row for row in world.present("t") if row["id"] == key)


def test_a_value_that_does_not_fit_its_new_column_is_named(make: MakeWorld) -> None:
    world = make(Way("logical", None))
    world.run(
        "insert into t (id, n) values (9, 'NaN')",
        "alter table t add c numeric(5, 2) default (array['NaN', random()::text])[1]::numeric",
    )
    report = world.htap.sync_now()
    assert (report.errors, report.tables["t"].copied_rows) == ({}, 0)
    letters = world.htap.dead_letters("t").to_pylist()
    assert sorted((letter["key"], letter["column_name"]) for letter in letters) == [
        *((f'{{"id": {key}}}', "c") for key in range(1, 5)),
        *(('{"id": 9}', "c"), ('{"id": 9}', "n")),
    ]
    assert report.dead_letters == len(letters)
    world.run("update t set c = 1, n = 1")
    world.htap.sync_now()
    assert world.htap.dead_letters("t").num_rows == 0
    world.assert_equal("t")


@pytest.mark.long
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_what_others_write_while_the_column_is_read_is_not_lost(make: MakeWorld, mode: str) -> None:
    world, ended = make(Way("logical", None), mode=mode), threading.Event()

    def write() -> None:
        lot = random.Random(mode)
        with psycopg.connect(world.dsn, autocommit=True) as other:
            while not ended.is_set():
                key, value = lot.randrange(1, 9), lot.randrange(1000)
                other.execute("delete from t where id = %s", (lot.randrange(1, 9),))
                other.execute(
                    "insert into t (id, a) values (%s, %s) on conflict (id) do update"
                    " set a = excluded.a, s = 1",
                    (key, value),
                )

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            world.run("alter table t alter a type integer using a + 1")
            report = world.htap.sync_now()
            assert (report.errors, report.tables["t"].copied_rows) == ({}, 0)
            assert world.htap.verify("t").equal
    finally:
        ended.set()
        writer.join()
    world.htap.sync_now()
    world.assert_equal("t")
