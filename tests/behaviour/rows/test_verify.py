"""Verify in bounded memory, part by part, on a budget."""

import ctypes
import gc
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from rhei_pipeline.errors import SettingsError
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.coverage import CheckedPart, Coverage
from rhei_pipeline.model.progress import CopyProgress
from rhei_pipeline.model.reports import TableVerification
from rhei_pipeline.model.schema import Column, Table, TableSchema
from rhei_pipeline.sync.verify_parts import VerifyBudget, within_budget
from tests.support.fix_world import World

PART_ROWS, PARTS = 300_000, 14
LOGS = ("_rhei_log_t", "_rhei_log_n")


def test_a_comparison_in_duckdb_holds_no_rows_that_it_has_compared(tmp_path: Path) -> None:
    """Nor does its transaction: what is staged or registered in one, DuckDB keeps until its end."""
    table = Table(TableSchema("t", (Column("k", pa.int64()), Column("v", pa.int64())), ("k",)))
    progress = CopyProgress("t", Position(1, ""), "")
    held: list[int] = []

    def parts() -> Iterator[pa.Table]:
        for first in range(0, PARTS * PART_ROWS, PART_ROWS):
            held.append(resident())
            numbers = pa.array(range(first, first + PART_ROWS), pa.int64())
            yield pa.table({"k": numbers, "v": numbers})

    with closing(DuckDBMirror(tmp_path / "mirror.duckdb")) as mirror:
        with mirror.transaction() as transaction:
            transaction.begin_copy(table, progress)
            for part in parts():
                transaction.append_copy(table, part, progress)
            transaction.adopt_copy(table, datetime.now(UTC))
        held.clear()
        with mirror.transaction(trial=True) as transaction:
            assert transaction.compare(table, parts()).equal
    compared = (PARTS - 3) * part.nbytes
    assert held[-1] - held[2] < compared / 2


def resident() -> int:
    """Return the bytes that this process holds in memory of its own, and not free for later."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    told = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    assert told is not None
    return int(told[1]) * 1024


def filled(world: World, rows: int = 100) -> None:
    world.run(
        "create table t (id integer primary key, v text)",
        "create table n (a text, b integer, v text, primary key (a, b))",
        "with recursive r(i) as (select 1 union all select i + 1 from r where i < 100)"
        " insert into t select i, 'v' || i from r",
        "insert into n select char(97 + id % 3), id, v from t",
    )
    world.htap.sync_now()
    world.run("update t set v = 'changed' where id = 1", "update n set v = 'changed' where b = 1")
    world.htap.sync_now()


def spoil(world: World, *statements: str) -> None:
    """Change rows of the source, and let no trigger have seen it."""
    world.run("begin")
    ends = [world.app.execute(f"select max(seq) from {log}").fetchone()[0] for log in LOGS]
    world.run(*statements)
    for log, end in zip(LOGS, ends, strict=True):
        world.run(f"delete from {log} where seq > {end}")
    world.run("commit")


@pytest.mark.parametrize(("storage", "mode"), [(None, "temporal"), ("ipc", "destructive")])
def test_parts_add_up_to_all_rows_and_go_on_where_the_last_call_ended(
    tmp_path: Path, storage: str | None, mode: str
) -> None:
    world = World(tmp_path, storage=storage, mode=mode, prune=False)
    filled(world)
    spoil(
        world,
        "delete from t where id in (41, 99)",
        "update t set v = 'other' where id = 7",
        "insert into t values (0, 'new'), (200, 'new')",
        "delete from n where a = 'b' and b = 40",
    )
    whole = world.htap.verify()
    seen, rows = [], 0
    for number in range(4):
        found = world.htap.verify(max_rows=30)
        seen.append(found)
        rows += found.tables["t"].rows
        coverage = found.tables["t"].coverage
        assert coverage is not None
        assert coverage.rows == rows
        assert coverage.complete == (number == 3)
        assert (coverage.oldest_checked_at is None) == (number < 3)
        world.crash()  # what was compared is remembered
        world.run(f"update t set v = 'later' where id = {50 + number}")
    for name in ("t", "n"):
        for kind in ("missing", "extra", "different", "broken_history"):
            added = sum(getattr(found.tables[name], kind) for found in seen)
            assert added == getattr(whole.tables[name], kind), (name, kind)
    assert [found.equal for found in seen] == [False, False, True, False]
    assert whole.tables["t"].missing == 2
    assert whole.tables["t"].extra == 2
    ranges = [part.first for found in seen for part in found.tables["t"].ranges]
    assert ranges == [part.first for part in whole.tables["t"].ranges]
    again = world.htap.verify("t", max_rows=30).tables["t"].coverage
    assert again is not None
    assert (again.through, again.complete) == ('{"id": 29}', False)
    assert again.oldest_checked_at is not None


def test_a_pace_is_kept_and_a_table_in_another_order_is_one_part(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(
        "create table t (id text collate nocase primary key, v)",
        "insert into t values ('b', 'x'), ('A', 'y'), ('c', 'z')",
    )
    found = world.htap.verify(max_rows=1, rows_per_second=1_000).tables["t"]
    assert (found.rows, found.coverage and found.coverage.complete) == (3, True)
    world.run("create table u (id integer primary key)")
    world.run(
        "with recursive r(i) as (select 1 union all select i + 1 from r where i < 2500)"
        " insert into u select i from r"
    )
    world.htap.verify()
    report = world.htap.verify("u", rows_per_second=2_000, max_rows=2_000)
    assert report.tables["u"].rows == 2_000
    whole = world.htap.verify("u", rows_per_second=20_000)
    assert whole.tables["u"].rows == 500
    with pytest.raises(SettingsError, match="give a number above 0"):
        world.htap.verify(max_rows=0)


def test_the_pace_leaves_the_source_alone_between_parts() -> None:
    budget = VerifyBudget(rows_per_second=1_000)
    assert (budget.part_rows(0), budget.part_rows(9_000)) == (5_000, 5_000)
    assert budget.pause_seconds(5_000, 1.5) == 3.5
    assert budget.pause_seconds(5_000, 9.0) == 0.0
    pauses: list[float] = []
    rounds = iter([False, False, True])

    def compare(rows: int) -> TableVerification:
        at, complete = datetime.now(UTC), next(rounds)
        part = CheckedPart(None if complete else "{}", at, rows)
        return TableVerification("t", rows, 0, 0, 0, 0, {}, coverage=Coverage(("k",), (part,)))

    assert within_budget(budget, compare, pauses.append).rows == 15_000
    assert len(pauses) == 2
    assert all(4.0 < pause <= 5.0 for pause in pauses)
