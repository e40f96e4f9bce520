"""Verify in bounded memory, part by part, on a budget."""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner, Result

from rhei_pipeline.changes.scd2 import supersede
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import SchemaError, SettingsError
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.model.changes import CHANGED_AT, LIVE, SEQUENCE, Position, event_schema
from rhei_pipeline.model.coverage import CheckedPart, Coverage
from rhei_pipeline.model.progress import CopyProgress
from rhei_pipeline.model.reports import TableVerification
from rhei_pipeline.model.schema import Column, Table, TableSchema
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.protocols import Step
from rhei_pipeline.sync.verify_parts import VerifyBudget, within_budget
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.parts import connection_of, engine_of

PART_ROWS, PARTS = 200_000, 16
LOGS = ("_rhei_log_t", "_rhei_log_n")


@pytest.mark.long
def test_a_comparison_in_duckdb_holds_no_rows_that_it_has_compared(tmp_path: Path) -> None:
    """Nor does its transaction: what is staged or registered in one, DuckDB keeps until its end."""
    table = Table(TableSchema("t", (Column("k", pa.int64()), Column("v", pa.int64())), ("k",)))
    progress = CopyProgress("t", Position(1, ""), "")
    held: list[int] = []

    def parts() -> Iterator[pa.Table]:
        for first in range(0, PARTS * PART_ROWS, PART_ROWS):
            held.append(held_by(mirror))
            numbers = pa.array(range(first, first + PART_ROWS), pa.int64())
            # Nothing that DuckDB could keep in a few bytes.
            yield pa.table({"k": numbers, "v": pc.multiply(numbers, 0x1E3779B97F4A7C15)})

    with closing(DuckDBMirror(tmp_path / "mirror.duckdb")) as mirror:
        with mirror.transaction() as transaction:
            transaction.begin_copy(table, progress)
            for part in parts():
                transaction.append_copy(table, part, progress)
            transaction.adopt_copy(table, datetime.now(UTC))
        held.clear()
        with mirror.transaction(trial=True) as transaction:
            assert transaction.compare(table, parts()).equal
    assert max(held[2:]) < PARTS * part.nbytes / 2


def held_by(mirror: DuckDBMirror) -> int:
    """Return the bytes that Arrow and this mirror's engine hold."""
    asked = "select sum(memory_usage_bytes)::bigint from duckdb_memory()"
    with connection_of(mirror).cursor() as cursor:
        (engine,) = cursor.execute(asked).fetchone()
    held: int = pa.total_allocated_bytes() + engine
    return held


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


def spoil(world: World, *statements: str, logs: Sequence[str] = LOGS) -> None:
    """Change rows of the source, and let no trigger have seen it."""
    world.run("begin")
    ends = [world.app.execute(f"select max(seq) from {log}").fetchone()[0] for log in logs]
    world.run(*statements)
    for log, end in zip(logs, ends, strict=True):
        world.run(f"delete from {log} where seq > {end or 0}")
    world.run("commit")


@pytest.mark.parametrize(("storage", "mode"), [(None, "temporal"), ("ipc", "destructive")])
def test_parts_add_up_to_all_rows_and_go_on_where_the_last_call_ended(
    make_world: Callable[..., World], storage: str | None, mode: str
) -> None:
    world = make_world(storage=storage, mode=mode, prune=False)
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


def test_a_pace_is_kept_and_a_table_in_another_order_is_one_part(world: World) -> None:
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
    for wrong in ({"max_rows": 0}, {"rows_per_second": 0}, {"sample": math.nan}):
        with pytest.raises(SettingsError, match="give a number above 0"):
            world.htap.verify(**wrong)
    with pytest.raises(SettingsError, match="rows_per_second is inf"):
        world.htap.verify(rows_per_second=math.inf)
    with pytest.raises(SettingsError, match="alone, without rows_per_second and max_rows"):
        world.htap.verify(sample=0.1, max_rows=5)
    assert world.htap.verify(sample=0.1).equal


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


@pytest.mark.parametrize(("storage", "mode"), [("ipc", "temporal"), (None, "destructive")])
def test_a_range_is_repaired_and_the_rest_left_as_it_is(
    make_world: Callable[..., World], storage: str | None, mode: str
) -> None:
    world = make_world(storage=storage, mode=mode, prune=False)
    filled(world)
    spoil(
        world,
        "delete from t where id in (41, 99)",
        "update t set v = 'other' where id = 7",
        "insert into t values (0, 'new'), (200, 'new')",
        "update n set v = 'other' where a = 'b' and b = 40",
    )
    tried = world.htap.repair("t", first=0, last={"id": 50}, dry_run=True)
    assert (tried.inserted, tried.updated, tried.deleted) == (1, 1, 1)
    assert [part.first for part in tried.ranges] == ['{"id": 0}', '{"id": 7}', '{"id": 41}']
    before = world.htap.verify()
    assert (before.tables["t"].missing, before.tables["t"].extra) == (2, 2)

    # A key that is changed between what is found and what is applied is right by then.
    world.faults.do_at(Step.ACKNOWLEDGED, lambda: world.run("insert into t values (300, 'x')"))
    world.faults.do_at(Step.APPLIED, lambda: world.run("update t set v = 'late' where id = 7"))
    done = world.htap.repair("t", first=0, last=50)
    assert (done.inserted, done.updated, done.deleted, done.dry_run) == (1, 0, 1, False)
    left = world.htap.verify("t").tables["t"]
    assert (left.missing, left.extra, left.different) == (1, 1, 0)
    one = world.htap.repair("n", key=("b", 40))
    assert (one.inserted, one.updated, one.deleted) == (0, 1, 0)
    assert world.htap.verify("n").equal
    world.htap.repair("t", key="99")
    world.htap.repair("t", first=100)
    report = world.htap.verify()
    assert report.equal
    if mode == "temporal":
        kept = world.htap.query(
            "select v, _rhei_operation from t where id in (7, 99) order by id, _rhei_valid_from",
            hint="olap",
        ).to_pylist()
        assert [row["v"] for row in kept] == ["v7", "late", "v99"]
        assert kept[-1]["_rhei_operation"] == "D"


def test_keys_that_are_none_and_ranges_without_an_order_are_refused(world: World) -> None:
    world.run(
        "create table t (id text collate nocase primary key, v)", "insert into t values ('b', 1)"
    )
    world.htap.sync_now()
    for bad in ({"v": 1}, ("a", "b")):
        with pytest.raises(SchemaError, match="give id, in the form that 'rhei verify' shows"):
            world.htap.repair("t", key=bad)
    with pytest.raises(SchemaError, match="give one of them"):
        world.htap.repair("t", key="b", last="c")
    with pytest.raises(SchemaError, match="repair the whole table, or one key after the other"):
        world.htap.repair("t", first="a")
    assert world.htap.repair("t", key={"id": "b"}).updated == 0
    assert world.htap.repair("t", dry_run=True).dry_run  # all keys need no order
    world.run("create table n (id integer primary key, v)", "insert into n values (1, 'x')")
    world.htap.sync_now()
    nowhere: list[Any] = [0.5, 2**70, {"id": {"hex": 1}}]  # none is cut to a key that there is
    for key in nowhere:
        with pytest.raises(SchemaError, match="this is no key of it"):
            world.htap.repair("n", key=key)
    with pytest.raises(SchemaError, match="give the smaller key first"):
        world.htap.repair("n", first=10, last=9)
    assert world.htap.repair("n", first=9, last="9").deleted == 0


def test_what_a_whole_table_lacks_is_said_in_whatever_order_its_keys_are(
    make_world: Callable[..., World],
) -> None:
    """However few rows are read at once."""
    world = make_world(prune=False, batch_rows=1)
    world.run(
        "create table t (id text collate nocase primary key, v)",
        "create table n (id integer primary key, v)",
        "insert into t values ('b', 1), ('C', 1), ('a', 1), ('D', 1)",
        "insert into n values (1, 1), (2, 1), (3, 1)",
    )
    world.htap.sync_now()
    spoil(
        world,
        "delete from t where id = 'd'",
        "update t set v = 2 where id = 'c'",
        "insert into t values ('e', 1)",
        "update n set v = 2 where id = 2",
    )
    tried = world.htap.repair("t", dry_run=True)
    assert (tried.inserted, tried.updated, tried.deleted) == (1, 1, 1)
    done = world.htap.repair("n", first=1, last=3)
    assert (done.inserted, done.updated, done.deleted) == (0, 1, 0)


def test_a_part_knows_the_letters_of_rows_that_the_last_one_has_read(
    make_world: Callable[..., World],
) -> None:
    """The mirror keeps the last good version of a row with which a part ended."""
    world = make_world()
    world.run(
        "create table t (id integer primary key, n integer)",
        "insert into t values (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6)",
    )
    world.htap.sync_now()
    world.run("update t set n = 'no number' where id = 3")
    world.htap.sync_now()
    found = [world.htap.verify("t", max_rows=3).tables["t"] for _ in range(2)]
    assert [(part.rows, part.extra, part.missing) for part in found] == [(3, 0, 0), (3, 0, 0)]
    assert [part.dead_letters for part in found] == [1, 0]
    assert found[-1].coverage is not None
    assert found[-1].coverage.complete


def test_rows_without_a_key_are_counted_alike_in_parts_and_as_a_whole(
    make_world: Callable[..., World],
) -> None:
    world = make_world(tables=[{"name": "nk"}])
    world.run(
        "create table nk (a text, b int, v int, primary key (a, b))",
        "insert into nk values ('x', 1, 1), ('y', 2, 'none'), ('z', 3, 3)",
        "insert into nk values (null, 3, 1), (null, 3, 2), ('z', null, 1)",
    )
    world.htap.sync_now()
    counted = world.htap.query("select count(*) as n from nk", hint="oltp")
    in_source = counted["n"][0].as_py()
    whole = world.htap.verify("nk").tables["nk"]
    paced = world.htap.verify("nk", rows_per_second=1e9).tables["nk"]
    assert (whole.rows, whole.dead_letters) == (in_source, 4)
    assert (paced.rows, paced.dead_letters) == (in_source, 4)
    # The first part has the three rows that no key finds, too; a part ends with a row that fits.
    parts = [world.htap.verify("nk", max_rows=1).tables["nk"] for _ in range(2)]
    assert [(part.rows, part.dead_letters) for part in parts] == [(4, 3), (2, 1)]
    assert parts[-1].coverage is not None
    assert (parts[-1].coverage.rows, parts[-1].coverage.complete) == (in_source, True)


def test_rows_without_a_key_hide_no_others_from_a_sample(make_world: Callable[..., World]) -> None:
    world = make_world(prune=False, tables=[{"name": "nk"}])
    world.run(
        "create table nk (a text, b int, primary key (a, b))",
        "insert into nk values ('x', 1), ('y', 2), (null, 3), (null, 3), (null, 4)",
    )
    world.htap.sync_now()
    spoil(world, "delete from nk where a = 'x'", logs=("_rhei_log_nk",))
    found = world.htap.verify("nk", sample=1.0).tables["nk"]
    assert (found.extra, found.missing, found.dead_letters, found.equal) == (1, 0, 3, False)


def test_the_other_zero_is_another_value(make_world: Callable[..., World]) -> None:
    world = make_world(prune=False)
    world.run("create table t(id integer primary key, v real)", "insert into t values (1, 0.0)")
    world.htap.sync_now()
    world.crash()
    with duckdb.connect(world.directory / "mirror.duckdb") as mirror:
        mirror.execute("delete from t")  # DuckDB takes them for one in an update
        mirror.execute("insert into t values (1, '-0.0'::double)")
    assert world.htap.verify("t").tables["t"].different == 1


def test_a_sample_says_what_it_would_have_seen(make_world: Callable[..., World]) -> None:
    world = make_world(prune=False)
    filled(world)
    spoil(world, "update t set v = 'other' where id < 11", "delete from t where id > 97")
    found = world.htap.verify("t", sample=1.0).tables["t"]
    assert (found.rows, found.different, found.extra, found.equal) == (97, 10, 3, False)
    drawn = [world.htap.verify("t", sample=0.5).tables["t"] for _ in range(8)]
    assert len({found.samples["different"] for found in drawn}) > 1
    assert all(0 < found.rows < 97 and found.extra == 3 for found in drawn)
    assert not any(found.samples["extra"] for found in drawn), "who was not drawn is not named"
    sample = drawn[0].sample
    assert sample is not None
    assert (sample.source_rows, sample.mirror_rows) == (97, 100)
    assert sample.chances[1] == 0.5
    assert sample.chance(3) == 1 - 0.5**3


def test_the_command_repairs_the_keys_that_verify_names(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    world = make_world(prune=False)
    filled(world)
    spoil(world, "update n set v = 'other' where a = 'b'", "delete from t where id = 5")
    world.crash()
    config = tmp_path / "pipeline.yaml"
    config.write_text(world.settings.model_dump_json(exclude_none=True))

    def rhei(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--config", str(config)])

    seen = rhei("verify", "--max-rows", "1000")
    assert seen.exit_code == 1
    ranges = re.findall(r"n: 2 keys differ, from (\{.*?\}) to (\{.*?\})", seen.output)
    assert len(ranges) == 17
    first, last = ranges[0][0], ranges[-1][1]
    assert 't: a key differs: {"id": 5}' in seen.output
    assert "t: compared to its end, the oldest part at 20" in seen.output
    for bad in (["--key", "{5"], ["--from", "[", "--to", "9"]):
        assert 'is no JSON, such as {"id": 5}' in rhei("repair", "t", *bad).output
    assert json.loads(rhei("repair", "n", "--dry-run", "--json").stdout)["updated"] == 34
    assert rhei("verify", "--table", "n").exit_code == 1
    done = rhei("repair", "n", "--from", first, "--to", last, "--json")
    assert json.loads(done.stdout)["updated"] == 34
    assert json.loads(rhei("repair", "t", "--key", "5", "--json").stdout)["deleted"] == 1
    sampled = rhei("verify", "--sample", "50%")
    assert sampled.exit_code == 0
    assert "1: 50.0%, 10: 99.9%" in sampled.output
    for share in ("some", "0", "-1%", "200%", "nan"):
        wrong = rhei("verify", "--sample", share)
        assert (wrong.exit_code, "is no share, such as 1% or 0.01" in wrong.output) == (2, True)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["verify", "--rows-per-second", "0"], "'--rows-per-second' has to be above 0"),
        (["verify", "--rows-per-second", "nan"], "'--rows-per-second' has to be above 0"),
        (["verify", "--max-rows", "0"], "--max-rows"),
        (
            ["verify", "--sample", "1%", "--max-rows", "9"],
            "give '--sample', or '--rows-per-second' and",
        ),
        (["repair", "t", "--key", "1", "--from", "1"], "give '--key', or '--from' and '--to'"),
        (["repair", "t", "--key", "1", "--to", "1"], "give '--key', or '--from' and '--to'"),
    ],
)
def test_what_a_comparison_cannot_be_asked_for_is_wrong_usage(asked: list[str], told: str) -> None:
    done = CliRunner().invoke(app, asked, env={"COLUMNS": "200"})
    assert (done.exit_code, told in done.output) == (2, True)


@pytest.mark.long
@pytest.mark.parametrize(("method", "storage"), [("logical", None), ("trigger", "parquet")])
def test_postgres_is_compared_and_repaired_in_ranges_where_its_order_is_that_of_bytes(
    make_postgres: Callable[..., PostgresWorld], method: str, storage: str | None
) -> None:
    world = make_postgres(capture={"method": method}, storage=storage, mode="temporal")
    world.run(
        'create table c (id text collate "C", n bigint, v text, primary key (id, n))',
        "create table u (id uuid primary key, v text)",
        "create table l (id char(2) primary key, v text)",
        "insert into c select chr(64 + i % 40), i, 'v' from generate_series(1, 90) i",
        "insert into u select md5(i::text)::uuid, 'v' from generate_series(1, 90) i",
        "insert into l select chr(64 + i), 'v' from generate_series(1, 60) i",
    )
    world.htap.sync_now()
    rows = {"c": 40, "u": 40, "l": 60}
    found = world.htap.verify(max_rows=40).tables
    assert {name: part.rows for name, part in found.items()} == rows
    assert {name: part.equal for name, part in found.items()} == dict.fromkeys(rows, True)
    # The mirror is spoilt: nobody else writes into it.
    pipeline = engine_of(world.htap).pipeline
    with engine_of(world.htap).mirror.transaction() as transaction:
        for name in rows:
            table = pipeline.table(name)
            keys = transaction.present_keys(table).slice(0, 1)
            events = gone(table, transaction.present_rows(table, keys))
            versions = supersede(events, *transaction.open_versions(table, events), table.schema)
            transaction.supersede(table, versions)
    whole = world.htap.verify().tables
    assert [part.missing for part in whole.values()] == [1, 1, 1]
    for name in ("c", "u"):
        lost = json.loads(whole[name].ranges[0].first)
        assert world.htap.repair(name, first=lost, last=lost).inserted == 1
    with pytest.raises(SchemaError, match="one key after the other"):
        world.htap.repair("l", first="A")
    lost = json.loads(whole["l"].samples["missing"][0])
    assert world.htap.repair("l", key=lost).inserted == 1
    assert world.htap.verify().equal
    assert world.htap.verify(sample=0.5).equal


def gone(table: Table, rows: pa.Table) -> pa.Table:
    """Return events that say that these rows are no more."""
    own = {
        SEQUENCE: pa.array([0] * rows.num_rows, pa.int64()),
        CHANGED_AT: pa.array([datetime.now(UTC)] * rows.num_rows, INSTANT),
        LIVE: pa.array([False] * rows.num_rows),
    }
    given = {**own, **{name: rows[name] for name in rows.column_names}}
    schema = event_schema(table.schema)
    return pa.table([given[field.name] for field in schema], schema=schema)
