"""A damaged file of a mirror: what its readers, its writer, maintenance and repair do about it."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

import obstore
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import MirrorDamagedError, MirrorError, MirrorUnreachableError
from rhei_pipeline.mirrors.datafusion import repair
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.datafusion.reader import MirrorReader
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.model.changes import NetChanges, Position
from rhei_pipeline.model.progress import CopyProgress
from rhei_pipeline.model.schema import Column, Table, TableSchema
from tests.support.damage import damage
from tests.support.delta_readers import read_by_delta_rs
from tests.support.fix_object_store import Store
from tests.support.fix_world import World
from tests.support.forked import output_of
from tests.support.parts import engine_of, manifest_of, objects_of, store_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
COLUMNS = (Column("k", pa.int64()), Column("v", pa.int64()))
TABLE = Table(TableSchema("t", COLUMNS, ("k",)))
OTHER = Table(TableSchema("u", COLUMNS, ("k",)))
NOTHING = TABLE.schema.arrow_key.empty_table()
STORAGES = ("ipc", "parquet", "delta")


def rows(*keys: int) -> pa.Table:
    return pa.table({"k": keys, "v": keys}).cast(TABLE.schema.arrow)


def adopt(mirror: DataFusionMirror, table: Table, *keys: int) -> None:
    progress = CopyProgress(table.name, Position(1, "p"), "shape", complete=True)
    with mirror.transaction() as transaction:
        transaction.begin_copy(table, progress)
        transaction.append_copy(table, rows(*keys), progress)
        transaction.adopt_copy(table, NOW)


def merge(mirror: DataFusionMirror, table: Table, *keys: int) -> None:
    with mirror.transaction() as transaction:
        transaction.merge(table, NetChanges(rows(*keys), NOTHING))


def held(mirror: DataFusionMirror | MirrorReader, table: str = "t") -> list[int]:
    found: list[int] = mirror.query(f"select k from {table} order by k")["k"].to_pylist()
    return found


@pytest.fixture(params=STORAGES)
def mirror(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DataFusionMirror]:
    made = DataFusionMirror(request.param, tmp_path / "m")
    adopt(made, TABLE, 1, 2, 3)
    adopt(made, OTHER, 7)
    yield made
    made.close()


def file_of(mirror: DataFusionMirror, table: Table, suffix: str = "") -> Path:
    [stored] = [t for t in manifest_of(mirror).tables.values() if t.relation == table.name]
    names = store_of(mirror).table_files(stored)
    [name] = [n for n in names if n.endswith(suffix or store_of(mirror).form.suffix)]
    return Path(mirror.path) / name


def test_one_tables_damage_is_its_own(mirror: DataFusionMirror) -> None:
    file = file_of(mirror, TABLE)
    damage(file, "flip half")
    with pytest.raises(MirrorDamagedError, match=file.name) as caught:
        held(mirror)
    assert caught.value.table == "t"
    assert "rhei repair t'" in str(caught.value)
    assert held(mirror, "u") == [7]
    merge(mirror, OTHER, 8)
    assert held(mirror, "u") == [7, 8]
    with pytest.raises(MirrorDamagedError, match=file.name):
        mirror.query("select * from u join t on u.k = t.k")
    with pytest.raises(MirrorDamagedError, match=file.name):
        mirror.query("explain select * from t")
    with MirrorReader(mirror.path) as reader:
        assert held(reader, "u") == [7, 8]
        with pytest.raises(MirrorDamagedError, match=file.name):
            held(reader)


def test_a_file_put_back_is_believed_again(mirror: DataFusionMirror) -> None:
    file = file_of(mirror, TABLE)
    content = file.read_bytes()
    damage(file, "cut half")
    with pytest.raises(MirrorDamagedError, match=r"has .* bytes"):
        held(mirror)
    with pytest.raises(MirrorDamagedError, match=file.name):
        merge(mirror, TABLE, 4)
    file.write_bytes(content)
    assert held(mirror) == [1, 2, 3]
    merge(mirror, TABLE, 4)
    assert held(mirror) == [1, 2, 3, 4]


def test_a_damaged_index_never_makes_a_double(mirror: DataFusionMirror) -> None:
    damage(file_of(mirror, TABLE, ".index"), "cut half")
    with pytest.raises(MirrorDamagedError, match=r"\.index"):
        merge(mirror, TABLE, 1)
    assert held(mirror) == [1, 2, 3]
    [healed] = mirror.heal(TABLE)
    assert healed.file.endswith(".index")
    merge(mirror, TABLE, 1, 4)
    assert held(mirror) == [1, 2, 3, 4]


def test_maintenance_reads_every_file_and_folds_the_other_tables(mirror: DataFusionMirror) -> None:
    for key in (10, 11):
        merge(mirror, OTHER, key)
    file = file_of(mirror, TABLE)
    damage(file, "flip most")
    report = mirror.maintain()
    assert report.done
    assert file.name in report.damaged[0]
    assert len(list(manifest_of(mirror).tables['"u"'].segments)) == 1
    assert held(mirror, "u") == [7, 10, 11]


def test_what_is_set_aside_is_kept(mirror: DataFusionMirror) -> None:
    file = file_of(mirror, TABLE)
    damage(file, "flip half")
    content = file.read_bytes()
    [healed] = mirror.heal(TABLE)
    assert healed.file == f"data/{file.name}"
    assert (Path(mirror.path) / "set-aside" / f"data-{file.name}").read_bytes() == content
    assert held(mirror) == []
    assert mirror.heal(TABLE) == ()
    for key in range(20, 26):
        merge(mirror, OTHER, key)
    assert (Path(mirror.path) / "set-aside" / f"data-{file.name}").exists()


_MAPPED = """
import sys
from pathlib import Path
from rhei_pipeline.errors import MirrorDamagedError, MirrorUnreachableError
from rhei_pipeline.model.changes import NetChanges
from rhei_pipeline.mirrors.datafusion import repair
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
sys.path.insert(0, ".")
from tests.behaviour.mirrors.test_damaged_files import *
mirror = DataFusionMirror("ipc", sys.argv[1])
adopt(mirror, TABLE, *range(20_000))
adopt(mirror, OTHER, 7)
mirror.close()
mirror = DataFusionMirror("ipc", sys.argv[1])
merge(mirror, TABLE, 5)
assert len(held(mirror)) == 20_000
for file in Path(sys.argv[1], "data").iterdir():
    with file.open("r+b") as opened:
        opened.truncate(64)
for work in (lambda: held(mirror), lambda: merge(mirror, TABLE, 6), lambda: mirror.maintain()):
    try:
        print(work())
    except MirrorDamagedError as error:
        print("named", error.file)
"""


def test_a_file_cut_off_while_it_is_mapped_does_not_end_the_process(tmp_path: Path) -> None:
    found = output_of(_MAPPED, str(tmp_path / "m"))
    assert found.count("named") == 2
    assert "2 damaged files)" in found


# Manifests


def test_a_damaged_manifest_is_never_passed_over(mirror: DataFusionMirror) -> None:
    merge(mirror, TABLE, 4)
    mirror.close()
    newest = max((Path(mirror.path) / "manifests").iterdir())
    damage(newest, "flip half")
    content = newest.read_bytes()
    with pytest.raises(MirrorDamagedError, match=newest.name):
        MirrorReader(mirror.path)
    again = DataFusionMirror(mirror.storage, mirror.path)
    for work in (again.ledger, again.maintain, again.dead_letters, lambda: held(again)):
        with pytest.raises(MirrorDamagedError, match=newest.name):
            work()
    [healed] = again.heal(TABLE)
    assert "returns to its state" in healed.outcome
    assert held(again) == [1, 2, 3]
    merge(again, TABLE, 4)
    again.close()
    assert not newest.exists()
    kept = Path(mirror.path) / "set-aside" / f"manifests-{newest.name}"
    assert kept.read_bytes() == content
    with MirrorReader(mirror.path) as reader:
        assert held(reader) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("of", "by"),
    [
        (rb'"rows": 3', rb'"rows": 2'),
        (rb'"format": \d', rb'"format": 2'),
        (rb', "crc32": "\w+"', rb""),
    ],
    ids=["another number", "an earlier format", "no checksum"],
)
def test_a_manifest_that_can_be_read_is_believed_by_its_checksum_alone(
    mirror: DataFusionMirror, of: bytes, by: bytes
) -> None:
    mirror.close()
    newest = max((Path(mirror.path) / "manifests").iterdir())
    content = newest.read_bytes()
    damaged = re.sub(of, by, content)
    assert damaged != content
    assert json.loads(damaged)
    newest.write_bytes(damaged)
    with pytest.raises(MirrorDamagedError, match=newest.name):
        MirrorReader(mirror.path)


def test_of_several_damaged_manifests_the_newest_is_named(mirror: DataFusionMirror) -> None:
    """It is the one to be put back: one before it would lose what was committed since."""
    merge(mirror, TABLE, 4)
    mirror.close()
    *_, former, newest = sorted((Path(mirror.path) / "manifests").iterdir())
    content = newest.read_bytes()
    for file in (former, newest):
        damage(file, "flip half")
    with pytest.raises(MirrorDamagedError, match=newest.name):
        MirrorReader(mirror.path)
    newest.write_bytes(content)
    with MirrorReader(mirror.path) as reader:
        assert held(reader) == [1, 2, 3, 4]


def test_a_missing_manifest_is_noticed(mirror: DataFusionMirror) -> None:
    merge(mirror, TABLE, 4)
    mirror.close()
    newest = max((Path(mirror.path) / "manifests").iterdir())
    newest.unlink()
    with pytest.raises(MirrorDamagedError, match=newest.name):
        MirrorReader(mirror.path)
    again = DataFusionMirror(mirror.storage, mirror.path)
    with pytest.raises(MirrorDamagedError, match="is missing"):
        held(again)
    assert again.heal(TABLE)
    assert held(again) == [1, 2, 3]
    again.close()
    # Who has read the one that was lost takes no other for it.
    assert max((Path(mirror.path) / "manifests").iterdir()).name > newest.name


# Object stores


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def remote(bucket: Store) -> Iterator[DataFusionMirror]:
    made = DataFusionMirror("parquet", bucket.url, access=bucket.access)
    adopt(made, TABLE, 1, 2, 3)
    adopt(made, OTHER, 7)
    made.close()
    again = DataFusionMirror("parquet", bucket.url, access=bucket.access)
    yield again
    again.close()


@pytest.mark.parametrize("kind", ["flip half", "cut off", "remove"])
@pytest.mark.parametrize("suffix", [".parquet", ".index"])
def test_a_damaged_object_is_named_and_left_out(
    remote: DataFusionMirror, suffix: str, kind: str
) -> None:
    store = objects_of(remote)
    [stored] = [t for t in manifest_of(remote).tables.values() if t.relation == "t"]
    [name] = [n for n in store_of(remote).table_files(stored) if n.endswith(suffix)]
    content = bytearray(bytes(obstore.get(store, name).bytes()))
    content[len(content) // 2] ^= 4
    content = content[: -1 if kind == "cut off" else None]
    obstore.put(store, name, bytes(content))
    if kind == "remove":
        obstore.delete(store, name)
    work = (lambda: held(remote)) if suffix == ".parquet" else (lambda: merge(remote, TABLE, 1))
    with pytest.raises(MirrorDamagedError, match=name):
        work()
    assert held(remote, "u") == [7]
    [healed] = remote.heal(TABLE)
    assert healed.file == name
    merge(remote, TABLE, 1, 2, 3)
    assert held(remote) == [1, 2, 3]
    if kind != "remove":
        aside = obstore.get(store, f"set-aside/{name.replace('/', '-')}")
        assert bytes(aside.bytes()) == content


@pytest.mark.parametrize("suffix", [".parquet", ".index"])
@pytest.mark.parametrize("times", [1, repair.LOOKS - 1])
def test_what_a_store_has_lost_for_a_moment_is_not_set_aside(
    remote: DataFusionMirror, bucket: Store, suffix: str, times: int
) -> None:
    left = dict[str, int]()

    def fault(_method: str, path: str) -> str:
        name = unquote(path).partition("?")[0]
        if not name.endswith(suffix) or left.setdefault(name, times) == 0:
            return ""
        left[name] -= 1
        return "404"

    bucket.fault = fault
    assert remote.heal(TABLE) == ()
    assert left
    assert not any(left.values())
    bucket.fault = None
    assert held(remote) == [1, 2, 3]
    assert not remote._files.names("set-aside")


def test_a_store_is_asked_again_once_for_all_that_it_has_lost(
    remote: DataFusionMirror, bucket: Store
) -> None:
    """A pause for each of a thousand files would make a repair last for half an hour."""
    for key in range(4, 7):
        merge(remote, TABLE, key)
    asked = list[str]()

    def fault(_method: str, path: str) -> str:
        name = unquote(path).partition("?")[0]
        if not name.endswith(".parquet") or "set-aside" in name:
            return ""
        if asked[-1:] != [name]:  # one look may be of two requests
            asked.append(name)
        return "404"

    bucket.fault = fault
    remote.heal(TABLE)
    lost = set(asked)
    assert len(lost) > 2
    # The last of one look may be the first of the next.
    assert len(asked) > repair.LOOKS * (len(lost) - 1)


@pytest.mark.parametrize("suffix", [".parquet", ".index"])
def test_an_object_that_is_damaged_while_a_copy_of_it_is_kept_is_found(
    remote: DataFusionMirror, suffix: str
) -> None:
    merge(remote, TABLE, 4)
    store, files = objects_of(remote), manifest_of(remote).files
    [stored] = [t for t in manifest_of(remote).tables.values() if t.relation == "t"]
    name = f"data/{stored.segments[-1].name}{suffix}"
    assert name in files
    obstore.put(store, name, bytes(files[name].size))
    with remote.transaction(trial=True) as transaction, pytest.raises(MirrorDamagedError):
        list(transaction.compare(TABLE, [rows(1, 2, 3, 4)]).missing)
    [healed] = remote.heal(TABLE)
    assert healed.file == name
    merge(remote, TABLE, 1, 2, 3, 4)
    assert held(remote) == [1, 2, 3, 4]


@pytest.mark.parametrize(("method", "way"), [("HEAD", "404"), ("GET", "404"), ("GET", "cut")])
def test_a_delta_table_of_which_a_store_says_nothing_for_a_moment_keeps_its_versions(
    bucket: Store, method: str, way: str
) -> None:
    access = replace(bucket.access, retry_seconds=0)
    with closing(DataFusionMirror("delta", bucket.url, access=access)) as mirror:
        adopt(mirror, TABLE, 1, 2, 3)
        merge(mirror, TABLE, 4)
        mirror.publish()
        before = mirror._files.names("delta")
    with closing(DataFusionMirror("delta", bucket.url, access=access)) as mirror:
        assert held(mirror) == [1, 2, 3, 4]
        failing = [way]

        def fault(asked: str, path: str) -> str:
            is_delta = asked == method and "/delta/" in unquote(path)
            return failing.pop() if failing and is_delta else ""

        bucket.fault = fault
        try:
            assert mirror.heal(TABLE) == ()
        except (
            MirrorError,
            MirrorUnreachableError,
        ) as error:  # a listing that is missing: no bucket
            assert re.search(r"store did not answer|its bucket.* is gone", str(error))  # noqa: PT017
        assert not failing
        assert mirror._files.names("delta").items() >= before.items()


def test_a_manifest_deleted_from_a_bucket_is_noticed(
    remote: DataFusionMirror, bucket: Store
) -> None:
    merge(remote, TABLE, 4)
    store = objects_of(remote)
    newest = max(remote._files.names("manifests"))
    remote.close()
    obstore.delete(store, newest)
    again = DataFusionMirror("parquet", bucket.url, access=bucket.access)
    with pytest.raises(MirrorDamagedError, match=newest):
        held(again)
    assert again.heal(TABLE)
    assert held(again) == [1, 2, 3]
    again.close()


# A whole pipeline


@pytest.mark.parametrize("kind", ["flip half", "remove"])
@pytest.mark.parametrize("suffix", [".parquet", ".bin"])
def test_a_delta_table_that_is_damaged_is_made_anew(
    make_world: MakeWorld, kind: str, suffix: str
) -> None:
    delta = {"deletion_vectors": True}
    world = make_world(storage="delta", mode="temporal", delta=delta)
    world.run("create table t(id integer primary key, v)")
    world.run(*(f"insert into t values ({key}, {key})" for key in range(1, 10)))
    world.htap.sync_now()
    world.run("delete from t where id > 8")
    world.htap.sync_now()
    world.crash()
    folder = world.directory / "delta" / "delta" / "main" / "t"
    newest = max(folder.glob(f"*{suffix}"), key=lambda file: file.stat().st_mtime_ns)
    damage(newest, kind)
    report = world.htap.repair("t")
    assert [found.file for found in report.damaged] == [f"delta/main/t/{newest.name}"]
    assert read_by_delta_rs(DeltaTable(folder)).num_rows == 9
    world.assert_equal("t")


def test_repair_says_which_history_was_lost(make_world: MakeWorld) -> None:
    world = make_world(storage="parquet", mode="temporal")
    world.run("create table t(id integer primary key, v)", "create table u(id integer primary key)")
    world.run(*(f"insert into t values ({key}, {key})" for key in range(1, 10)))
    world.htap.sync_now()
    mirror = engine_of(world.htap).mirror
    assert isinstance(mirror, DataFusionMirror)
    file = file_of(mirror, Table(TableSchema("t", (), ())))
    world.run("update t set v = 5 where id = 1")
    world.htap.sync_now()
    world.crash()
    damage(file, "flip half")
    report = world.htap.verify()
    assert not report.equal
    assert file.name in (report.tables["t"].damage or "")
    assert report.tables["u"].equal
    config = world.directory / "pipeline.yaml"
    config.write_text(world.settings.model_dump_json())
    world.crash()
    shown = CliRunner().invoke(app, ["repair", "t", "--config", str(config)])
    assert shown.exit_code == 0, shown.output
    assert file.name in shown.output
    assert "versions it held are lost" in shown.output
    world.assert_equal("t", "u")
    assert world.htap.verify().equal
    assert sorted(row["v"] for row in world.versions("t")) == [2, 3, 4, 5, 5, 6, 7, 8, 9]


def _is_met_by_queries_only(file: Path, whole: bytes, number: int) -> bool:
    """Damage a block; tell whether the file opens, and a query then meets the damage."""
    content = bytearray(whole)
    content[12_288 + number * 262_144 + 1000] ^= 1
    file.write_bytes(content)
    try:
        mirror = DuckDBMirror(file)
    except MirrorDamagedError:
        return False
    try:
        mirror.query("select * from t")
    except MirrorDamagedError:
        return True
    finally:
        mirror.close()
    return False


@pytest.mark.long
def test_a_damaged_duckdb_block_is_named_by_every_command(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal")
    world.run("create table t(id integer primary key, v text)")
    world.run(
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < 60000)"
        " insert into t select i, 'some text ' || i || hex(randomblob(8)) from n"
    )
    world.htap.sync_now()
    world.crash()
    file = world.directory / "mirror.duckdb"
    whole = file.read_bytes()
    assert any(_is_met_by_queries_only(file, whole, n) for n in range(len(whole) // 262_144))
    world.run("update t set v = 'changed' where id < 50000")
    for work in (lambda: world.htap.sync_now(), lambda: world.versions("t")):  # noqa: PLW0108
        with pytest.raises(MirrorDamagedError, match=r"mirror.duckdb' is damaged") as caught:
            work()
        assert "Corrupt database file" in str(caught.value)
        world.crash()
    file.rename(world.directory / "away.duckdb")
    Path(f"{file}.wal").unlink(missing_ok=True)
    world.htap.sync_now()
    world.assert_equal("t")
    assert world.htap.verify().equal


def test_a_duckdb_log_that_is_lost_is_named_and_sync_brings_the_mirror_up(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    world.run("create table t(id integer primary key, v)", "insert into t values (1, 1)")
    world.htap.sync_now()
    world.crash()
    file = world.directory / "mirror.duckdb"
    older = file.read_bytes()
    world.run("update t set v = 2")
    world.htap.sync_now()
    world.crash()
    file.write_bytes(older)  # as it was at the last checkpoint
    with pytest.raises(MirrorDamagedError, match=r"mirror.duckdb.wal' is missing"):
        world.htap.query("select * from t", hint="olap")
    world.htap.sync_now()
    world.assert_equal("t")
