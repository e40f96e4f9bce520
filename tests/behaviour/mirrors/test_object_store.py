"""A mirror in an object store: exact while requests fail, and never written by two."""

import errno
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Self
from urllib.parse import unquote

import pyarrow as pa
import pytest
from deltalake import DeltaTable

import rhei_pipeline as rhei
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import (
    MirrorBusyError,
    MirrorDamagedError,
    MirrorError,
    MirrorUnreachableError,
)
from rhei_pipeline.mirrors.datafusion import local_files, object_store, repair, store_cache
from rhei_pipeline.mirrors.datafusion.delta_states import newest_state
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.datafusion.object_store import StoreAccess
from rhei_pipeline.mirrors.datafusion.reader import MirrorReader
from rhei_pipeline.mirrors.datafusion.storages import open_files
from rhei_pipeline.model import large_rows
from rhei_pipeline.model.changes import NetChanges, Position
from rhei_pipeline.model.progress import CopyProgress, Watermark
from rhei_pipeline.model.schema import Column, Table, TableSchema
from rhei_pipeline.testing import mirror_work
from rhei_pipeline.testing.oracle import arrow_rows
from tests.support.delta_readers import read_by_delta_rs
from tests.support.fix_object_store import Store
from tests.support.fix_world import World
from tests.support.model import source_rows
from tests.support.parts import manifest_of, store_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
TABLE = Table(TableSchema("t", (Column("k", pa.int64()), Column("v", pa.int64())), ("k",)))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def mirror(bucket: Store) -> Iterator[DataFusionMirror]:
    made = DataFusionMirror("parquet", bucket.url, access=bucket.access)
    with made.transaction() as transaction:
        transaction.begin_copy(TABLE, CopyProgress("t", Position(1, "p"), "shape"))
        transaction.adopt_copy(TABLE, NOW)
    yield made
    made.close()


def opened_again(
    bucket: Store, timeout_seconds: float = 30, retry_seconds: float = 60
) -> AbstractContextManager[DataFusionMirror]:
    """Open the mirror once more, with less patience."""
    access = replace(bucket.access, timeout_seconds=timeout_seconds, retry_seconds=retry_seconds)
    return closing(DataFusionMirror("parquet", bucket.url, access=access))


def merge(mirror: DataFusionMirror, order: int, **values: int) -> None:
    rows = pa.table({"k": [int(key[1:]) for key in values], "v": list(values.values())})
    nothing = TABLE.schema.arrow_key.empty_table()
    with mirror.transaction() as transaction:
        transaction.merge(TABLE, NetChanges(rows.cast(TABLE.schema.arrow), nothing))
        transaction.record(Watermark("t", Position(order, "p"), NOW))


def held(mirror: DataFusionMirror | MirrorReader) -> dict[int, int]:
    return {row["k"]: row["v"] for row in mirror.query("select * from t").to_pylist()}


@pytest.mark.parametrize("storage", ["parquet", "delta"])
def test_a_mirror_in_a_bucket_equals_its_source(
    bucket: Store, make_world: MakeWorld, storage: str
) -> None:
    world = make_world()
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    mirror = {
        "kind": "datafusion",
        "storage": storage,
        "path": bucket.url,
        "object_store": bucket.settings | bucket.keys,
    }
    settings = Settings(**{**world.settings.model_dump(), "mirror": mirror})
    assert "hush" not in repr(settings)
    for turn in range(3):
        world.run(f"insert into t values ({turn + 2}, 'b')", f"update t set v = '{turn}'")
        with HTAP(settings) as htap:
            htap.sync_now()
            found = arrow_rows(htap.query("select * from t", hint="olap"))
            assert found == source_rows(world.app, "t")
            assert htap.verify().equal
        if storage == "delta":
            published = DeltaTable(
                f"{bucket.url}/delta/main/t", storage_options=bucket.storage_options
            )
            assert arrow_rows(read_by_delta_rs(published)) == source_rows(world.app, "t")


@pytest.mark.long
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_two_mirrors_below_one_root_are_read_together_and_name_what_they_published(
    bucket: Store, make_world: MakeWorld
) -> None:
    declared = {}
    for name in ("shop", "bills"):
        world = make_world()
        world.run("create table t(id integer primary key, v text)")
        world.run(f"insert into t values (1, '{name}'), (2, 'b')")
        mirror = {
            "kind": "datafusion",
            "storage": "delta",
            "path": f"{bucket.url}/{name}",
            "object_store": bucket.settings | bucket.keys,
            "delta": {"interval_seconds": 0, "deletion_vectors": True},
        }
        declared[name] = Settings(**{**world.settings.model_dump(), "mirror": mirror})
        with HTAP(declared[name]) as htap:
            htap.sync_now()
            world.run("delete from t where id = 2")
            marks = {"t": htap.sync_now().watermark}
        with closing(open_files("parquet", f"{bucket.url}/{name}", bucket.access)) as files:
            state = newest_state(files)
        assert state is not None
        assert state.watermarks == marks
        (table,) = state.tables
        place = f"{bucket.url}/{name}/{table.folder}"
        shown = DeltaTable(place, table.version, storage_options=bucket.storage_options)
        assert read_by_delta_rs(shown).to_pylist() == [{"id": 1, "v": name}]
    with rhei.reader(declared) as reader:
        found = reader.query("select a.v as a, b.v as b from shop.t a join bills.t b using (id)")
    assert found.to_pylist() == [{"a": "shop", "b": "bills"}]


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_files_that_nobody_reads_any_more_go_by_one_request(
    mirror: DataFusionMirror, bucket: Store
) -> None:
    for turn in range(6):
        merge(mirror, turn + 2, **{f"k{key}": turn for key in range(turn + 1)})
    bucket.seen.clear()
    merge(mirror, 9, k1=9)
    # One for the manifest, and one for the files that it alone named.
    assert sum("?delete" in path for path in bucket.seen) == 2
    assert held(mirror)[1] == 9


def test_failing_requests_are_tried_again(mirror: DataFusionMirror, bucket: Store) -> None:
    bucket.failing = {"PUT": ["503", "", "503", "503"], "GET": ["503"], "DELETE": ["503"]}
    for turn in range(5):
        merge(mirror, turn + 2, k1=turn, k2=turn)
    bucket.failing = {"GET": ["503", "503"]}
    assert held(mirror) == {1: 4, 2: 4}
    assert mirror.ledger().watermarks["t"].position.order == 6


def test_slow_requests_are_given_up_and_made_anew(mirror: DataFusionMirror, bucket: Store) -> None:
    mirror.close()
    with opened_again(bucket, timeout_seconds=1) as hasty:
        bucket.failing = {"PUT": ["slow"]}
        merge(hasty, 2, k1=1)
        bucket.released.set()
        assert held(hasty) == {1: 1}


def test_a_manifest_that_arrived_without_an_answer_counts_once(
    mirror: DataFusionMirror, bucket: Store
) -> None:
    before = manifest_of(mirror).version
    for lost in range(6):
        bucket.failing = {"PUT": [""] * lost + ["lost"]}
        merge(mirror, lost + 2, k1=lost)
    assert manifest_of(mirror).version == before + 6
    assert held(mirror) == {1: 5}
    with MirrorReader(bucket.url, access=bucket.access) as reader:
        assert held(reader) == {1: 5}


def test_a_store_that_does_not_answer_is_named_and_nothing_is_lost(
    mirror: DataFusionMirror, bucket: Store
) -> None:
    merge(mirror, 2, k1=1)
    mirror.close()
    with opened_again(bucket, retry_seconds=2) as hasty:
        bucket.failing = {"PUT": ["503"] * 1000, "GET": ["503"] * 1000}
        with pytest.raises(MirrorUnreachableError, match="did not answer") as error:
            merge(hasty, 3, k1=2)
        assert "hush" not in str(error.value)
        bucket.failing = {}
        assert held(hasty) == {1: 1}
        merge(hasty, 3, k1=3)
        assert held(hasty) == {1: 3}


def test_a_commit_that_arrived_as_the_store_went_away_is_gone_on_from(
    mirror: DataFusionMirror, bucket: Store
) -> None:
    merge(mirror, 2, k1=1)
    mirror.close()
    away = list[str]()

    def last_served(method: str, path: str) -> str:
        is_last = not away and method == "PUT" and "manifests" in path
        fault = "unsaid" if is_last else "503" if away else ""
        away.extend([path] if is_last else [])
        return fault

    with opened_again(bucket, retry_seconds=0) as hasty:
        bucket.fault = last_served
        with pytest.raises(MirrorUnreachableError, match="did not answer"):
            merge(hasty, 3, k2=2)
        assert hasty.ledger().watermarks["t"].position.order == 2  # as far as anybody knows
        bucket.fault = None
        with pytest.raises(MirrorUnreachableError, match=r"has arrived whose answer.*try again"):
            merge(hasty, 3, k2=3)
        assert hasty.ledger().watermarks["t"].position.order == 3
        merge(hasty, 4, k3=3)
        assert held(hasty) == {1: 1, 2: 2, 3: 3}


def test_files_that_another_writer_has_written_keep_their_checksums(
    mirror: DataFusionMirror, bucket: Store
) -> None:
    with opened_again(bucket) as other:
        merge(mirror, 2, k1=1)
        with pytest.raises(MirrorBusyError):
            merge(other, 2, k1=2)
        merge(other, 3, k2=2)
        manifest = manifest_of(other)
        assert set(manifest.files) == set(store_of(other).files_of(manifest))


def test_of_two_writers_the_second_to_commit_is_told(
    mirror: DataFusionMirror, bucket: Store
) -> None:
    other = DataFusionMirror("parquet", bucket.url, access=bucket.access)
    merge(mirror, 2, k1=1)
    with pytest.raises(MirrorBusyError, match="written by another process"):
        merge(other, 2, k1=2)
    assert held(mirror) == {1: 1}
    merge(mirror, 3, k2=2)
    assert held(mirror) == {1: 1, 2: 2}
    assert held(other) == {1: 1}
    other.close()


def test_of_two_commits_at_once_the_later_is_told(mirror: DataFusionMirror, bucket: Store) -> None:
    other = DataFusionMirror("parquet", bucket.url, access=bucket.access)
    begun = list[str]()

    def overtaken(method: str, path: str) -> str:
        if not begun and method == "PUT" and "manifests" in path:
            begun.append(path)
            merge(mirror, 2, k1=1)
        return ""

    bucket.fault = overtaken
    with pytest.raises(MirrorBusyError, match="written by another process"):
        merge(other, 2, k1=2)
    bucket.fault = None
    assert begun
    merge(other, 3, k2=2)
    assert held(other) == {1: 1, 2: 2}
    other.close()
    with MirrorReader(bucket.url, access=bucket.access) as reader:
        assert held(reader) == {1: 1, 2: 2}


def test_a_machine_whose_clock_is_ahead_deletes_no_file_of_a_running_commit(
    mirror: DataFusionMirror, bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(datetime):
        """A clock that is two hours ahead."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            """Return its time."""
            return super().now(tz) + timedelta(hours=2)

    merge(mirror, 2, k1=1)
    monkeypatch.setattr(object_store, "datetime", Ahead, raising=False)
    with closing(open_files("parquet", bucket.url, bucket.access)) as files:
        assert files.abandoned("data") == set()
        monkeypatch.setattr(object_store, "ORPHAN_AGE", timedelta(seconds=-1))
        assert files.abandoned("data") == {*files.names("data")}
        assert files.abandoned("data")
        assert files.abandoned("nothing") == set()


@pytest.mark.parametrize("opened", [MirrorReader, DataFusionMirror])
def test_a_state_that_is_superseded_while_it_is_opened_is_no_damage(
    bucket: Store, mirror: DataFusionMirror, opened: type[MirrorReader | DataFusionMirror]
) -> None:
    merge(mirror, 2, k1=1)
    mirror.close()
    writer = DataFusionMirror("parquet", bucket.url, access=bucket.access, retained_manifests=1)
    merge(writer, 3, k1=2)
    left = [4, 5]

    def superseded(method: str, path: str) -> str:
        if method == "GET" and unquote(path).endswith(".json") and left:
            order = left.pop(0)
            merge(writer, order, k1=order)
        return ""

    bucket.fault = superseded
    named = {"storage": "parquet"} if opened is DataFusionMirror else {}
    with closing(opened(path=bucket.url, access=bucket.access, **named)) as found:  # type: ignore[arg-type]
        assert held(found) == {1: 5}
    assert not left
    writer.close()


@pytest.mark.long
def test_a_manifest_that_is_missing_for_a_moment_is_not_given_up(
    bucket: Store, mirror: DataFusionMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "PAUSE_SECONDS", 0.0)
    for order in (2, 3):
        merge(mirror, order, k1=order)
    mirror.close()
    newest = f"{manifest_of(mirror).version:012d}.json"
    for times, damaged in ((1, False), (2, True), (6, True)):
        missing = [newest] * times
        bucket.fault = lambda method, path, missing=missing: (
            "404"
            if method == "GET" and missing and missing[0] in unquote(path) and missing.pop()
            else ""
        )
        with opened_again(bucket) as again:
            assert not missing or times > 2
            if damaged:
                with pytest.raises(MirrorDamagedError, match=f"{newest}' is damaged"):
                    held(again)
                assert again.heal(TABLE) == ()
            assert held(again) == {1: 3}
            with closing(open_files("parquet", bucket.url, bucket.access)) as files:
                assert not files.names("set-aside")


def test_a_reader_elsewhere_keeps_its_state(mirror: DataFusionMirror, bucket: Store) -> None:
    merge(mirror, 2, k1=1)
    with MirrorReader(bucket.url, access=bucket.access) as reader:
        merge(mirror, 3, k1=2)
        mirror.maintain()
        assert held(reader) == {1: 1}
        reader.refresh()
        assert held(reader) == {1: 2}


def test_a_cache_without_room_is_named_and_nothing_is_lost(
    mirror: DataFusionMirror, bucket: Store
) -> None:
    merge(mirror, 2, k1=1)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_files.OpenedFile, "write", full)
        with pytest.raises(MirrorError, match="its local cache cannot be written"):
            merge(mirror, 3, k1=2)
    merge(mirror, 3, k1=3)  # there is room again
    assert held(mirror) == {1: 3}
    with opened_again(bucket) as again:
        assert held(again) == {1: 3}


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_what_a_killed_process_had_cached_is_removed_by_the_next_one(
    mirror: DataFusionMirror, bucket: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(mirror, 2, k1=1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(store_cache, "_YOUNG_SECONDS", -1)
    left = tmp_path / "rhei-store-left" / "data"
    left.mkdir(parents=True)
    (left / "rows.parquet").write_text("rows")
    (tmp_path / "rhei-of-others").mkdir()
    with opened_again(bucket) as first, opened_again(bucket) as second:
        assert not left.parent.exists()
        assert len(list(tmp_path.glob("rhei-store-*"))) == 2
        assert held(first) == held(second) == {1: 1}
    assert [place.name for place in tmp_path.glob("rhei-*")] == ["rhei-of-others"]


@pytest.mark.long
def test_a_large_file_is_put_in_parts_and_is_read_elsewhere(
    bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_PART_BYTES", 5 * 2**20)
    monkeypatch.setattr(large_rows, "LARGE_BYTES", 2**20)
    table = Table(TableSchema("b", (Column("k", pa.int64()), Column("v", pa.binary())), ("k",)))
    rows = pa.table({"k": [1], "v": [random.Random(1).randbytes(12 * 2**20)]})
    nothing = table.schema.arrow_key.empty_table()
    with closing(DataFusionMirror("parquet", bucket.url, access=bucket.access)) as mirror:
        with mirror.transaction() as transaction:
            transaction.begin_copy(table, CopyProgress("b", Position(1, "p"), "shape"))
            transaction.adopt_copy(table, NOW)
        with mirror.transaction() as transaction:
            transaction.merge(table, NetChanges(rows, nothing))
            bucket.failing["PUT"] = ["503"]
    parts = {path for path in bucket.seen if "partNumber" in path}
    assert len(parts) == 3
    with MirrorReader(bucket.url, access=bucket.access) as reader:
        assert reader.query("select * from b").equals(rows)


def test_a_bucket_that_is_not_there_is_named(bucket: Store) -> None:
    with pytest.raises((MirrorError, MirrorUnreachableError), match="://nowhere"):
        DataFusionMirror("parquet", f"{bucket.scheme}://nowhere/x", access=bucket.access)
    assert "hush" not in repr(StoreAccess(secrets=bucket.keys))


def test_no_state_names_a_file_that_did_not_arrive(bucket: Store) -> None:
    access = replace(bucket.access, retry_seconds=0)

    def refused(method: str, path: str) -> str:
        return "503" if method == "PUT" and "/data/" in unquote(path) else ""

    with closing(DataFusionMirror("parquet", bucket.url, access=access)) as mirror:
        mirror_work.copy(mirror, mirror_work.TABLE, mirror_work.rows(a=1.0))
        bucket.fault = refused
        with pytest.raises(MirrorUnreachableError, match="did not answer"):
            mirror_work.merge(mirror, mirror_work.rows(b=2.0), mirror_work.keys())
        assert mirror_work.held(mirror) == {"a": 1.0}
        bucket.fault = None
        mirror_work.merge(mirror, mirror_work.rows(c=3.0), mirror_work.keys())
    with closing(DataFusionMirror("parquet", bucket.url, access=access)) as mirror:
        assert mirror_work.held(mirror) == {"a": 1.0, "c": 3.0}
