"""Rows that a process beside this one reads as Arrow are those that this process reads itself."""

import importlib.util
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rhei_pipeline.model.changes import RowBatch
from rhei_pipeline.model.schema import TableOptions
from rhei_pipeline.protocols import Step
from rhei_pipeline.sources.sqlite import arrow_rows
from rhei_pipeline.sources.sqlite.arrow_rows import ArrowRows
from rhei_pipeline.sources.sqlite.catalog import read_table
from rhei_pipeline.sources.sqlite.database import SqliteDatabase
from rhei_pipeline.sources.sqlite.rows import SqliteRowReader
from rhei_pipeline.testing.faults import Crash
from tests.support.fix_world import World
from tests.support.parts import engine_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]

#: The time as SQLite knows it, to the millisecond.
NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
CLOCK = datetime(2024, 1, 1, tzinfo=UTC)
#: Tables whose values are all of their column's type, among them the edges of each type.
EXACT: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
    "plain": (
        "create table plain(id integer primary key, i int, r real, t text, b blob, n)",
        [
            (1, 2**63 - 1, float("inf"), "a\0b", b"\0\xff", None),
            (2, -(2**63), 5e-324, "", b"", None),
            (3, None, None, None, None, None),
            (4, 2**53 + 1, -1.7976931348623157e308, "ä☃𝄞", b"x", None),
            (5, 0, 0.1, "'", b"'", None),
        ],
    ),
    "declared": (
        "create table declared(k text collate nocase, d date, s timestamp, z timestamptz, h time,"
        " y boolean, m decimal(12, 3), g text as (k || '!') stored, primary key(k desc, d))"
        " without rowid",
        [
            ("B", "2024-02-29", "2024-01-01 10:00:00.5", "2024-01-01T10:00:00Z", "23:59:59", 1, 7),
            (
                "a",
                "0001-01-01",
                "1900-01-01 00:00:00",
                "2024-01-01T10:00:00+02:00",
                "00:00:00.000001",
                0,
                12.3,
            ),
            ("c", "9999-12-31", None, None, None, None, None),
            ("Ab", "2024-03-01", None, None, None, None, 0.001),
        ],
    ),
    "given": (
        "create table given(id integer primary key, u, j)",
        [(1, "6f1b0a1e-0000-4000-8000-00000000000a", '{"a": 1.50}'), (2, None, "[]")],
    ),
    "composed": (
        "create table composed(a real, b text, c blob, v, primary key(a, b, c))",
        [(a / 2, b, c, 1.5) for a in range(-2, 3) for b in ("", "x\0y") for c in (b"", b"\0")]
        + [(None, "null keys are left out", b"", None)],
    ),
    # SQLite computes it, and another version of SQLite may do so otherwise.
    "computed": (
        "create table computed(id integer primary key, r real, g text as (r || '!') virtual)",
        [(1, 0.1), (2, 1e300)],
    ),
}
#: Types that the declaration gives to columns.
GIVEN = {"given": TableOptions(types={"u": "uuid", "j": "json"})}
#: Values beside those that fit, none of which the driver would refuse or name by itself.
MIXED: dict[str, tuple[str, list[Any], Any]] = {
    "text in integers": ("v int", [1, 2, 3], "x"),
    "blob in text": ("v text", ["a", "b", "c"], b"b"),
    "not UTF-8": ("v text", ["a", "b", "c"], sqlite3.Binary(b"\xff")),
    "large integer in reals": ("v", [0.5, 1.5, 2.5], 2**53 + 1),
    "no date": ("v date", ["2024-01-01"] * 3, "2024-02-30"),
}


class Started(list[subprocess.Popen[bytes]]):
    """The processes that were started, all of which must have ended in the end."""


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    """Have small tables read beside."""
    found, begin = Started(), subprocess.Popen

    def noting(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        found.append(begin(*args, **options))
        return found[-1]

    monkeypatch.setattr(arrow_rows, "LEAST_ROWS", 1)
    monkeypatch.setattr(subprocess, "Popen", noting)
    yield found
    assert all(process.poll() is not None for process in found)


class Source:
    """A database, and its tables' rows as each way reads them."""

    def __init__(self, path: Path) -> None:
        with closing(sqlite3.connect(path)) as made:
            made.execute("pragma journal_mode = wal")
        self.database = SqliteDatabase(path)
        self.connection = self.database.connect()
        self.ahead = ArrowRows(path)

    def reader(self, table: str) -> SqliteRowReader:
        return SqliteRowReader(
            self.connection,
            read_table(self.connection, table, GIVEN.get(table, TableOptions())),
            CLOCK,
        )

    @contextmanager
    def reading(self) -> Iterator[None]:
        (version,) = self.connection.execute("pragma schema_version").fetchone()
        with self.ahead.of(self.database.file_id(), version):
            yield

    def here(self, table: str, limit: int, resume: str | None = None) -> list[RowBatch]:
        return batches(partial(self.reader(table).rows, limit=limit), resume)

    def beside(self, table: str, limit: int, resume: str | None = None) -> list[RowBatch]:
        with self.reading():
            return batches(partial(self.ahead.rows, self.reader(table), limit=limit), resume)

    def close(self) -> None:
        self.connection.close()
        self.database.close()


def batches(read: Callable[..., RowBatch | None], resume: str | None) -> list[RowBatch]:
    found = []
    while batch := read(resume):
        found.append(batch)
        resume = batch.resume
    return found


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    with closing(Source(tmp_path / "a b%#ü.db")) as made:
        yield made


def test_values_are_the_same_to_the_last_bit(source: Source, started: Started) -> None:
    for name, (made, rows) in EXACT.items():
        source.connection.execute(made)
        places = ", ".join("?" * len(rows[0]))
        stored = [r for r in source.connection.execute(f"pragma table_xinfo({name})") if not r[6]]
        names = ", ".join(str(row[1]) for row in stored)
        source.connection.executemany(f"insert into {name}({names}) values ({places})", rows)
        here = source.here(name, 3)
        assert [letter for batch in here for letter in batch.rejected] == []
        assert source.beside(name, 3) == here
    resume = source.here("composed", 3)[2].resume
    assert source.beside("composed", 3, resume) == source.here("composed", 3, resume)
    assert not source.ahead._unreadable
    assert len(started) == len(EXACT)  # all but the computed one, and one table twice


@pytest.mark.parametrize("case", MIXED)
def test_a_column_of_several_classes_is_read_here(
    source: Source, started: Started, case: str
) -> None:
    declared, fitting, other = MIXED[case]
    source.connection.execute(f"create table t(id integer primary key, {declared})")
    source.connection.executemany("insert into t(v) values (?)", [(v,) for v in fitting])
    place = "cast(? as text)" if case == "not UTF-8" else "?"
    source.connection.execute(f"insert into t(v) values ({place})", (other,))
    here = source.here("t", 3)
    assert [len(batch.rejected) for batch in here] == [0, 1]
    assert source.beside("t", 3) == here
    assert (source.ahead._unreadable, len(started)) == ({"t"}, 1)


def test_another_file_or_schema_is_not_read_beside(source: Source, started: Started) -> None:
    source.connection.execute("create table t(id integer primary key)")
    source.connection.executemany("insert into t values (?)", [(n,) for n in range(5)])
    here, (version,) = (
        source.here("t", 3),
        source.connection.execute("pragma schema_version").fetchone(),
    )
    for file, known in [((1, 2), version), (source.database.file_id(), version + 1)]:
        with source.ahead.of(file, known):
            assert batches(partial(source.ahead.rows, source.reader("t"), limit=3), None) == here
        assert source.ahead._unreadable == {"t"}
    assert len(started) == 2


def test_rows_come_in_the_order_of_the_rowid_whatever_index_covers_them(
    source: Source, started: Started
) -> None:
    source.connection.execute("create table t(v int, id integer primary key)")
    source.connection.execute("create index covering on t(v, id)")
    source.connection.executemany(
        "insert into t values (?, ?)", [(-n, 3 * n) for n in range(-9, 90)]
    )
    assert source.beside("t", 7) == source.here("t", 7)
    resume = source.here("t", 7)[3].resume
    assert source.beside("t", 7, resume) == source.here("t", 7, resume)
    assert (source.ahead._unreadable, len(started)) == (set(), 2)


def test_rows_in_another_order_are_read_here(
    source: Source, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.connection.execute("create table t(id integer primary key)")
    source.connection.executemany("insert into t values (?)", [(n,) for n in range(9)])
    backwards = " from t order by id desc"
    monkeypatch.setattr(SqliteRowReader, "stored", lambda *_: (backwards, []))
    assert source.beside("t", 3) == source.here("t", 3)
    assert (source.ahead._unreadable, len(started)) == ({"t"}, 1)


def test_rows_are_read_here_without_a_driver(
    source: Source, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.connection.execute("create table t(id integer primary key)")
    source.connection.execute("insert into t values (1)")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    source.ahead = ArrowRows(source.database.path)
    assert source.beside("t", 3) == source.here("t", 3)
    assert not started


@pytest.mark.parametrize(
    ("mode", "options"),
    [("destructive", {"method": "polling"}), ("temporal", {"buffered": True})],
)
def test_a_copy_is_right_while_others_write_and_when_the_process_dies(
    make_world: MakeWorld, started: Started, mode: str, options: dict[str, Any]
) -> None:
    world = make_world(mode=mode, batch_rows=50, **options)
    world.run(
        "create table t(id integer primary key, v text, updated_at text not null)",
        "create index t_updated on t(updated_at, id)",
    )
    # More than a pipe holds.
    add = f"insert into t values (?, hex(zeroblob(9000)), {NOW})"
    world.app.executemany(add, [(n,) for n in range(400)])

    def write(_table: str, rows: int, _of: int) -> None:
        world.run(
            f"update t set v = v || '{rows}', updated_at = {NOW} where id % 7 = 0",
            f"insert or replace into t values ({1000 + rows}, 'new', {NOW})",
        )
        if mode == "temporal":  # polling sees no deletes
            world.run(f"delete from t where id in ({rows - 1}, {rows + 1})")
        if rows == 150:
            started[-1].kill()

    world.htap.sync_now(on_progress=write)
    world.htap.sync_now()
    assert len(started) == 1
    world.assert_equal("t")


def test_a_copy_that_is_cut_off_leaves_no_process_and_goes_on(
    make_world: MakeWorld, started: Started
) -> None:
    world = make_world(batch_rows=50)
    world.run("create table t(id integer primary key, v text)")
    world.app.executemany("insert into t values (?, 'x')", [(n,) for n in range(400)])
    world.faults.arm(Step.COPY_BATCH, 3)
    with pytest.raises(Crash):
        world.htap.initial_sync("t")
    assert [process.poll() is not None for process in started] == [True]
    world.crash()
    report = world.htap.initial_sync("t")
    assert (report.resumed, report.rows, len(started)) == (True, 250, 2)
    world.assert_equal("t")


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_comparison_reads_rows_beside_only_of_the_state_that_it_holds(
    make_world: MakeWorld, started: Started, mode: str
) -> None:
    world = make_world(mode=mode, batch_rows=50)
    world.run("create table t(id integer primary key, v text)")
    world.app.executemany("insert into t values (?, 'x')", [(n,) for n in range(400)])
    world.htap.sync_now()
    started.clear()
    assert world.htap.verify().equal
    assert len(started) == 1  # for what follows the first rows
    engine = engine_of(world.htap)
    source, table = engine.source, engine.pipeline.table("t")
    with source.snapshot() as snapshot:
        expected = batches(lambda resume: snapshot.rows(table, resume, 399), None)
        world.run("delete from t where id = 399", "update t set v = 'y' where id > 300")
        assert batches(lambda resume: snapshot.rows(table, resume, 50), None)
        found = batches(lambda resume: snapshot.rows(table, resume, 50), None)
    assert sum(batch.rows.num_rows for batch in found) == 400
    told = [pa.concat_tables(batch.rows for batch in part) for part in (expected, found)]
    assert told[0].combine_chunks() == told[1].combine_chunks()
    assert world.htap.verify().equal
