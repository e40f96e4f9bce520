"""Removed rows of published Delta tables are left out by vectors, and files stay as they are."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, Schema
from deltalake.exceptions import DeltaProtocolError

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.mirrors.datafusion.deletion_vectors import Bits, none_gone, remove
from rhei_pipeline.mirrors.datafusion.delta import DeltaTables
from rhei_pipeline.mirrors.datafusion.delta_log import NamedFile
from rhei_pipeline.mirrors.datafusion.delta_target import DeltaTarget, Note
from rhei_pipeline.mirrors.datafusion.delta_vectors import DeltaVector, vector_file
from rhei_pipeline.mirrors.datafusion.local_files import LocalFiles
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.testing import mirror_work
from rhei_pipeline.testing.oracle import arrow_rows
from tests.support.delta_readers import read_by_delta_rs
from tests.support.fix_world import World
from tests.support.model import source_rows

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
BOTH_MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])
ROWS = 12_000


def settings(world: World, *, vectors: bool = True) -> Settings:
    mirror = {
        "kind": "datafusion",
        "storage": "delta",
        "path": world.directory / "m",
        "delta": {"interval_seconds": 0, "deletion_vectors": vectors},
    }
    return Settings(**{**world.settings.model_dump(), "mirror": mirror})


def folder(world: World) -> Path:
    return world.directory / "m" / "delta" / "main" / "t"


def files(world: World) -> dict[str, int]:
    """Return the table's files of rows, and when each was written."""
    return {file.name: file.stat().st_mtime_ns for file in folder(world).glob("*.parquet")}


def many(world: World) -> World:
    world.run(
        "create table t(id integer primary key, v int)",
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < "
        f"{ROWS}) insert into t select i, i % 7 from n",
    )
    return world


def now_valid(found: pa.Table) -> pa.Table:
    if "_rhei_valid_to" in found.column_names:
        found = found.filter(found["_rhei_valid_to"].is_null())
    return found.select(["id", "v"])


def assert_read_alike(world: World, htap: HTAP) -> None:
    expected = source_rows(world.app, "t")
    whole = arrow_rows(htap.query("select * from t", hint="olap"))
    by_delta_rs = read_by_delta_rs(DeltaTable(folder(world)))
    by_polars = pl.read_delta(str(folder(world))).to_arrow()
    for found in (by_delta_rs, by_polars.cast(by_delta_rs.schema)):
        assert arrow_rows(now_valid(found)) == expected
        assert arrow_rows(found) == whole


@pytest.mark.long
@BOTH_MODES
def test_files_stay_and_two_readers_see_what_the_source_holds(
    make_world: MakeWorld, mode: str
) -> None:
    world = many(make_world(mode=mode))
    with HTAP(settings(world)) as htap:
        htap.sync_now()
        before = files(world)
        for turn in range(10):  # so many that ends are merged
            world.run(
                f"update t set v = -{turn} where id % 900 = {turn}",
                f"delete from t where id % 1100 = {turn}",
            )
            htap.sync_now()
            if turn in {0, 9}:
                assert_read_alike(world, htap)
        after = files(world)
        large = max(folder(world).glob("*.parquet"), key=lambda f: pq.read_metadata(f).num_rows)
        assert before.items() <= after.items()
        assert large.name in before
        assert large.name in {Path(uri).name for uri in DeltaTable(folder(world)).file_uris()}


def test_a_reader_that_knows_no_vectors_refuses(world: World) -> None:
    many(world)
    with HTAP(settings(world)) as htap:
        htap.sync_now()
        with pytest.raises(DeltaProtocolError, match="deletionVectors"):
            DeltaTable(folder(world)).to_pyarrow_dataset()


@pytest.mark.long
@BOTH_MODES
def test_with_and_without_vectors_by_turns(make_world: MakeWorld, mode: str) -> None:
    world = many(make_world(mode=mode))
    for turn, vectors in enumerate([False, True, False]):
        world.run(f"delete from t where id % 1000 = {turn}")
        with HTAP(settings(world, vectors=vectors)) as htap:
            htap.sync_now()
            world.run(f"update t set v = 9 where id % 1100 = {turn}")
            htap.sync_now()
            assert_read_alike(world, htap)
        features = DeltaTable(folder(world)).protocol().reader_features or []
        assert ("deletionVectors" in features) is vectors
        asked = DeltaTable(folder(world)).metadata().configuration
        assert ("delta.enableDeletionVectors" in asked) is vectors
    assert now_valid(DeltaTable(folder(world)).to_pyarrow_table()).num_rows == len(
        source_rows(world.app, "t")
    )


@BOTH_MODES
def test_vectors_are_asked_for_while_the_source_is_quiet(make_world: MakeWorld, mode: str) -> None:
    world = many(make_world(mode=mode))
    for vectors in (False, True, False, True):
        with HTAP(settings(world, vectors=vectors)) as htap:
            assert htap.sync_now().not_published is None
            assert_read_alike(world, htap)
        features = DeltaTable(folder(world)).protocol().reader_features or []
        assert ("deletionVectors" in features) is vectors


def drawn_bits(kind: str, rows: int) -> Bits:
    """Return rows to remove: some, many, all but one, or whole containers of a bitmap."""
    drawn, bits = np.random.default_rng(rows), none_gone(rows)
    chosen = {
        "one": np.array([rows - 1]),
        "few": drawn.choice(rows, rows // 50, replace=False),
        "a full list": np.arange(4096),
        "one more than a list": np.arange(4097),
        "most": drawn.choice(rows, rows - 1, replace=False),
        "the second container": np.arange(65_536, min(rows, 131_072)),
    }[kind]
    remove(bits, chosen)
    return bits


@pytest.mark.long
def test_vectors_of_any_density_are_read_as_they_were_written(tmp_path: Path) -> None:
    table, kinds = tmp_path / "t", ["one", "few", "a full list", "one more than a list", "most"]
    rows = [
        (kind, number) for kind in [*kinds, "the second container"] for number in (70_000, 140_001)
    ]
    bitmaps = [drawn_bits(kind, number) for kind, number in rows]
    content, vectors = vector_file(bitmaps)
    place_of_all = LocalFiles(tmp_path)
    place_of_all.put(f"t/{vectors[0].file}", content)
    named, expected = {}, set()
    for place, ((_, number), bits, vector) in enumerate(zip(rows, bitmaps, vectors, strict=True)):
        ids = pa.array(np.arange(number) + place * 1_000_000)
        pq.write_table(pa.table({"id": ids}), table / f"{place}.parquet")
        size = (table / f"{place}.parquet").stat().st_size
        named[f"{place}.parquet"] = NamedFile(f"{place}.parquet", size, number, vector)
        kept = ~np.unpackbits(bits, count=number, bitorder="little").astype(bool)
        expected |= set(ids.filter(pa.array(kept)).to_pylist())
        assert DeltaVector.read(vector.described()) == vector
    target = DeltaTarget(place_of_all, "t")
    schema = Schema.from_arrow(pa.schema([("id", pa.int64())]))
    target.commit(named, schema, Note({}, "test", 1), {}, vectors=True)
    place_of_all.close()
    found = read_by_delta_rs(DeltaTable(table))["id"].to_pylist()
    assert set(found) == expected
    assert len(found) == len(expected)
    assert set(pl.read_delta(str(table))["id"].to_list()) == expected


@pytest.mark.parametrize("vectors", [False, True])
def test_a_table_goes_on_to_ask_readers_for_what_its_earlier_versions_need(
    tmp_path: Path, *, vectors: bool
) -> None:
    files = LocalFiles(tmp_path)
    shapes = [
        pa.schema({"id": pa.int64(), "at": pa.timestamp("us")}),
        pa.schema({"id": pa.int64()}),
    ]
    for number, shape in enumerate(shapes):
        target, schema = DeltaTarget(files, "t"), Schema.from_arrow(shape)
        target.commit({}, schema, Note({}, "test", number), {}, vectors=vectors)
    files.close()
    asked = DeltaTable(tmp_path / "t").protocol().reader_features
    assert asked is not None
    assert {*asked} == {"timestampNtz"} | ({"deletionVectors"} if vectors else set())


def test_a_table_that_an_earlier_version_published_is_taken_over(world: World) -> None:
    many(world)
    with HTAP(settings(world, vectors=False)) as htap:
        htap.sync_now()
    log = folder(world) / "_delta_log" / f"{0:020}.json"
    told = [json.loads(line) for line in log.read_text().splitlines()]
    for action in told:
        if "add" in action:
            del action["add"]["tags"]
    log.write_text("\n".join(map(json.dumps, told)))
    before = files(world)
    world.run("delete from t where id < 3")
    with HTAP(settings(world)) as htap:
        htap.sync_now()
        assert_read_alike(world, htap)
    assert {
        file.name: file.stat().st_mtime_ns for file in folder(world).glob("*.parquet")
    } == before


@pytest.mark.parametrize("vectors", [True, False])
def test_a_file_that_is_named_again_is_deleted_by_no_retention(
    tmp_path: Path, *, vectors: bool
) -> None:
    delta = DeltaTables(0, retention_hours=0, deletion_vectors=vectors)
    left = "abcdefgh"
    with closing(DataFusionMirror("delta", tmp_path / "m", delta=delta)) as mirror:
        mirror_work.copy(mirror, mirror_work.TABLE, mirror_work.rows(**dict.fromkeys(left, 1.0)))
        while len(left) > len("efgh"):
            merged, left = left[0], left[1:]
            mirror_work.merge(mirror, mirror_work.rows(), mirror_work.keys(merged))
            assert mirror.not_published is None
            found = read_by_delta_rs(DeltaTable(tmp_path / "m" / "delta" / "main" / "t"))
            assert sorted(found["k"].to_pylist()) == [*left]
