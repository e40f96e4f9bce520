"""Large segments are published in parts, of which a change writes few again."""

import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.mirrors.datafusion import delta_parts
from rhei_pipeline.testing.oracle import Row, exact
from tests.support.damage import damage
from tests.support.delta_readers import read_by_delta_rs
from tests.support.fix_world import World
from tests.support.forked import run
from tests.support.model import source_rows

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
BOTH_MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])
#: Of a part, so that few rows have several; the last one ends within a byte of a bitmap.
SMALL, ROWS = 128, 1_003


@pytest.fixture(autouse=True)
def parts_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_parts, "PART_ROWS", SMALL)


def settings(world: World) -> Settings:
    mirror = {
        "kind": "datafusion",
        "storage": "delta",
        "path": world.directory / "m",
        "delta": {"interval_seconds": 0},
    }
    return Settings(**{**world.settings.model_dump(), "mirror": mirror})


def folder(world: World) -> Path:
    return world.directory / "m" / "delta" / "main" / "t"


def files(world: World) -> dict[str, int]:
    """Return the files that the newest version names, and when each was written."""
    named = DeltaTable(folder(world)).file_uris()
    return {Path(uri).name: (folder(world) / Path(uri).name).stat().st_mtime_ns for uri in named}


def many(world: World) -> World:
    world.run(
        "create table t(id integer primary key, v int, note text)",
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < "
        f"{ROWS}) insert into t select i, i % 7, 'note ' || i from n",
    )
    return world


def bag(found: pa.Table) -> Counter[Row]:
    """Return each row as often as it is there."""
    names = sorted(found.column_names)
    return Counter(exact(row[name] for name in names) for row in found.to_pylist())


def assert_read_alike(world: World, htap: HTAP) -> None:
    """Both readers find the mirror's rows, each as often, and the present ones are the source's."""
    whole = htap.query("select * from t", hint="olap")
    by_delta_rs = read_by_delta_rs(DeltaTable(folder(world)))
    by_polars = pl.read_delta(str(folder(world))).to_arrow().cast(by_delta_rs.schema)
    assert bag(by_delta_rs) == bag(by_polars) == bag(whole)
    if "_rhei_valid_to" in by_delta_rs.column_names:
        by_delta_rs = by_delta_rs.filter(by_delta_rs["_rhei_valid_to"].is_null())
    names = ", ".join(sorted(world.columns("t")))
    source = world.app.execute(f"select {names} from t")
    assert bag(by_delta_rs.select(world.columns("t"))) == Counter(map(exact, source))


def change(world: World, drawn: random.Random, turn: int) -> None:
    """Change rows at random, near each other, or all of some parts."""
    low = drawn.randrange(ROWS)
    high = low + drawn.choice([0, 3, SMALL, 3 * SMALL])
    world.run(
        drawn.choice(
            [
                f"update t set v = -{turn} where id % 90 = {turn}",
                f"update t set v = -{turn} where id between {low} and {high}",
                f"delete from t where id between {low} and {high}",
                f"delete from t where id % 110 = {turn}",
                f"insert or replace into t(id, v) select id + 7, v from t where id between {low}"
                f" and {high}",
            ]
        )
    )


@pytest.mark.long
@BOTH_MODES
@pytest.mark.parametrize("seed", range(2))
def test_two_readers_see_what_the_mirror_holds_after_changes_of_any_kind(
    make_world: MakeWorld, mode: str, seed: int
) -> None:
    world, drawn = many(make_world(mode=mode)), random.Random(seed)
    htap = HTAP(settings(world))
    for turn in range(9):
        for _ in range(drawn.randrange(1, 4)):
            change(world, drawn, turn)
        if turn == 4:
            world.run("alter table t add column w int default 4", "update t set w = 5 where id < 9")
        if drawn.random() < 0.2:
            htap.close()
            htap = HTAP(settings(world))
        htap.sync_now()
        if drawn.random() < 0.15:
            htap.maintain()
        assert_read_alike(world, htap)
    assert htap.verify().equal
    htap.close()


@pytest.mark.long
@BOTH_MODES
def test_a_change_writes_the_parts_again_that_hold_its_rows(
    make_world: MakeWorld, mode: str
) -> None:
    world = many(make_world(mode=mode))
    with HTAP(settings(world)) as htap:
        htap.sync_now()
        world.run("delete from t where id = 1000")
        htap.sync_now()
        first = files(world)
        for turn in range(9):  # so many that a history's ends are merged
            world.run(f"update t set v = -1 where id between {70 + turn} and {90 + turn}")
            htap.sync_now()
        after = files(world)
        assert_read_alike(world, htap)
    assert len(first) == -(-ROWS // SMALL)
    kept = [name for name, written in first.items() if after.get(name) == written]
    assert len(kept) == len(first) - 1


def test_a_part_of_which_nothing_is_left_has_no_file(make_world: MakeWorld) -> None:
    world = many(make_world())
    with HTAP(settings(world)) as htap:
        htap.sync_now()
        world.run(f"delete from t where id between {SMALL + 1} and {3 * SMALL}")
        htap.sync_now()
        assert len(files(world)) == -(-ROWS // SMALL) - 2
        assert_read_alike(world, htap)


@BOTH_MODES
def test_tables_that_were_published_without_parts_go_on_with_them_and_back(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    world, counts = many(make_world(mode=mode)), []
    for turn, rows in enumerate([10**6, SMALL, 10**6]):
        monkeypatch.setattr(delta_parts, "PART_ROWS", rows)
        world.run(f"update t set v = 9 where id % 300 = {turn}")
        with HTAP(settings(world)) as htap:
            htap.sync_now()
            world.run(f"delete from t where id % 300 = {turn + 100}")
            htap.sync_now()
            assert_read_alike(world, htap)
        counts.append(len(files(world)))
    assert counts[1] > max(counts[0], counts[2]) + ROWS // SMALL // 2


@BOTH_MODES
def test_other_parts_are_published_while_the_source_is_quiet(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    world, counts = many(make_world(mode=mode)), []
    with HTAP(settings(world)) as htap:
        htap.sync_now()
        world.run("delete from t where id = 1000", "update t set v = 9 where id = 5")
        htap.sync_now()
    for rows in (10**6, SMALL):
        monkeypatch.setattr(delta_parts, "PART_ROWS", rows)
        with HTAP(settings(world)) as htap:
            assert htap.sync_now().not_published is None
            assert_read_alike(world, htap)
        counts.append(len(files(world)))
    assert counts[0] < ROWS // SMALL < counts[1]


_SYNC_AND_DIE = """
import json, os, signal, sys
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.mirrors.datafusion import delta_parts
from rhei_pipeline.mirrors.datafusion.delta_shown import ShownFile

def put_and_die(self, store, place, put=ShownFile.put, left=[int(sys.argv[2])]):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return put(self, store, place)

delta_parts.PART_ROWS, ShownFile.put = int(sys.argv[3]), put_and_die
with HTAP(Settings(**json.loads(sys.argv[1]))) as htap:
    htap.sync_now()
"""


@pytest.mark.long
@BOTH_MODES
def test_a_process_killed_between_two_parts(make_world: MakeWorld, mode: str) -> None:
    world = many(make_world(mode=mode))
    declared = settings(world)
    with HTAP(declared) as htap:
        htap.sync_now()
    before = bag(read_by_delta_rs(DeltaTable(folder(world))))
    for parts in (0, 3):
        world.run(f"update t set v = -{parts + 1} where id % 50 = {parts}")
        died = run(_SYNC_AND_DIE, declared.model_dump_json(), str(parts), str(SMALL))
        assert died.returncode == -signal.SIGKILL
        assert bag(read_by_delta_rs(DeltaTable(folder(world)))) == before
    with HTAP(declared) as htap:
        htap.sync_now()
        assert_read_alike(world, htap)
        assert htap.verify().equal
        named = files(world)
        there = {file.name for file in folder(world).glob("*.parquet")}
    assert there >= named.keys()


@BOTH_MODES
def test_a_part_that_is_damaged_is_written_again(make_world: MakeWorld, mode: str) -> None:
    world = many(make_world(mode=mode))
    with HTAP(settings(world)) as htap:
        htap.sync_now()
        world.run("update t set v = 8 where id % 200 = 1")
        htap.sync_now()
        parts = [file for file in folder(world).glob("*.parquet") if file.stat().st_nlink == 1]
        damaged = min(part for part in parts if part.name in files(world))
        assert damage(damaged, "flip quarter")
        report = htap.repair("t")
        assert [found.file for found in report.damaged] == [f"delta/main/t/{damaged.name}"]
        assert_read_alike(world, htap)
    assert len(source_rows(world.app, "t")) == ROWS
