"""A mirror in files: who may write, what readers see, what is kept and what is collected."""

import random
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from rhei_pipeline.errors import MirrorBusyError, MirrorError, QueryError, SchemaDriftError
from rhei_pipeline.mirrors.datafusion.digests import KeyHashes
from rhei_pipeline.mirrors.datafusion.local_files import LocalFiles
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.datafusion.reader import MirrorReader
from rhei_pipeline.mirrors.datafusion.write_buffer import Found, WriteBuffer
from rhei_pipeline.model.changes import Counts, NetChanges, Position
from rhei_pipeline.model.progress import CopyProgress, Watermark
from rhei_pipeline.model.schema import Column, Mode, Table, TableSchema
from tests.support.fix_world import World
from tests.support.forked import Forked
from tests.support.model import instant_between
from tests.support.parts import manifest_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
STORAGES = ("ipc", "parquet", "delta")
TABLE = Table(TableSchema("t", (Column("k", pa.int64()), Column("v", pa.int64())), ("k",)))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOTHING = TABLE.schema.arrow_key.empty_table()


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def mirror(storage: str, tmp_path: Path) -> Iterator[DataFusionMirror]:
    made = DataFusionMirror(storage, tmp_path / "m")
    adopt(made, TABLE, TABLE.schema.arrow.empty_table())
    yield made
    made.close()


def adopt(mirror: DataFusionMirror, table: Table, rows: pa.Table) -> int | None:
    progress = CopyProgress(table.name, Position(1, "p"), "shape", complete=True)
    with mirror.transaction() as transaction:
        transaction.begin_copy(table, progress)
        transaction.append_copy(table, rows, progress)
        return transaction.adopt_copy(table, NOW)


def rows(values: dict[int, int]) -> pa.Table:
    made = pa.table({"k": list(values), "v": list(values.values())})
    return made.cast(TABLE.schema.arrow)


def merge(mirror: DataFusionMirror, values: dict[int, int], *gone: int) -> Counts:
    with mirror.transaction() as transaction:
        tombstones = pa.table({"k": pa.array(gone, pa.int64())})
        return transaction.merge(TABLE, NetChanges(rows(values), tombstones))


def held(mirror: DataFusionMirror | MirrorReader) -> dict[int, int]:
    found = mirror.query("select k, v from t").to_pylist()
    assert len({row["k"] for row in found}) == len(found)
    return {row["k"]: row["v"] for row in found}


def data_files(directory: Path) -> set[str]:
    return {file.name for file in (directory / "data").glob("*")}


def test_random_changes_are_folded_and_nothing_is_lost(mirror: DataFusionMirror) -> None:
    drawn, model = random.Random(5), dict[int, int]()
    for turn in range(60):
        changed = {drawn.randrange(400): drawn.randrange(3) for _ in range(40)}
        gone = {drawn.randrange(400) for _ in range(10)} - changed.keys()
        expected = Counts(
            sum(key not in model for key in changed),
            sum(key in model and model[key] != value for key, value in changed.items()),
            sum(key in model for key in gone),
        )
        assert merge(mirror, changed, *gone) == expected
        model |= changed
        model = {key: value for key, value in model.items() if key not in gone}
        if turn % 20 == 10:
            mirror.maintain()
        if turn % 5 == 0:
            assert held(mirror) == model
    assert held(mirror) == model
    assert mirror.count(TABLE) == len(model)
    with mirror.transaction() as transaction:
        assert transaction.compare(TABLE, [rows(model)]).equal


def test_segments_stay_few_and_maintenance_leaves_one(mirror: DataFusionMirror) -> None:
    for turn in range(100):
        merge(mirror, dict.fromkeys(range(turn * 10, turn * 10 + 20), turn))
    assert len(manifest_of(mirror).segments) < 24
    before = held(mirror)
    report = mirror.maintain()
    assert report.done
    assert report.files_after == 1
    assert held(mirror) == before
    assert mirror.maintain().rows_written == 0


def test_maintenance_is_bounded_and_says_so(mirror: DataFusionMirror) -> None:
    other = Table(TableSchema("u", TABLE.schema.columns, ("k",)))
    adopt(mirror, other, rows({1: 1}))
    for turn in range(2):
        merge(mirror, {turn: turn})
        with mirror.transaction() as transaction:
            transaction.merge(other, NetChanges(rows({turn + 5: 1}), NOTHING))
    assert not mirror.maintain(max_rows=1).done
    assert mirror.maintain(max_rows=1).done


def test_every_row_deleted_leaves_a_table_without_rows(mirror: DataFusionMirror) -> None:
    merge(mirror, {1: 1, 2: 2})
    assert merge(mirror, {}, 1, 2).deleted == 2
    assert mirror.query("select * from t").schema == TABLE.schema.arrow
    assert mirror.count(TABLE) == 0


def test_a_second_writer_is_told_and_the_first_one_goes_on(
    mirror: DataFusionMirror, storage: str
) -> None:
    with pytest.raises(MirrorBusyError, match="already open in this process"):
        DataFusionMirror(storage, mirror.path, lock_timeout_seconds=0)
    assert merge(mirror, {1: 1}).inserted == 1


def test_another_storage_is_refused(mirror: DataFusionMirror, storage: str) -> None:
    mirror.close()
    other = "ipc" if storage == "parquet" else "parquet"
    with pytest.raises(MirrorError, match=f"created with storage '{storage}'"):
        DataFusionMirror(other, mirror.path)


def test_a_reader_keeps_its_state_while_the_mirror_goes_on(mirror: DataFusionMirror) -> None:
    merge(mirror, dict.fromkeys(range(50), 0))
    with MirrorReader(mirror.path) as reader:
        for turn in range(20):
            merge(mirror, dict.fromkeys(range(50), turn + 1))
            mirror.maintain()
        assert set(held(reader).values()) == {0}
        reader.refresh()
        assert set(held(reader).values()) == {20}
    assert set(held(mirror).values()) == {20}


_READ = """
import sys
from rhei_pipeline.mirrors.datafusion.reader import MirrorReader
with MirrorReader(sys.argv[1]) as reader:
    print("open", flush=True)
    sys.stdin.readline()
    print(sorted(set(reader.query("select v from t")["v"].to_pylist())), flush=True)
    sys.stdin.readline()
"""


def test_another_process_reads_one_state_and_leaves_nothing_when_killed(
    mirror: DataFusionMirror,
) -> None:
    merge(mirror, dict.fromkeys(range(50), 0))
    with Forked(_READ, mirror.path) as process:
        assert process.stdout.readline() == "open\n"
        for turn in range(10):
            merge(mirror, dict.fromkeys(range(50), turn + 1))
            mirror.maintain()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "[0]\n"
        process.kill()
    merge(mirror, {1: 100})
    assert not list((Path(mirror.path) / "pins").iterdir())
    assert len(list((Path(mirror.path) / "manifests").iterdir())) == 3


def test_earlier_states_can_be_read_as_long_as_they_are_kept(mirror: DataFusionMirror) -> None:
    for turn in range(6):
        merge(mirror, {1: turn})
    with MirrorReader(mirror.path) as newest:
        versions = newest.versions()
        assert len(versions) == 3
    seen = []
    for version in versions:
        with MirrorReader(mirror.path, version) as reader:
            seen.append(held(reader)[1])
    assert seen == [3, 4, 5]
    with pytest.raises(MirrorError, match="does not hold version 1"):
        MirrorReader(mirror.path, 1)


def test_a_state_that_goes_before_a_reader_holds_it_is_followed_by_the_next(
    mirror: DataFusionMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(mirror, {1: 0})
    pin, pinned = LocalFiles.pin, list[int]()

    def pin_late(files: LocalFiles, version: int) -> AbstractContextManager[bool]:
        pinned.append(version)
        for turn in range(1, 4 if len(pinned) == 1 else 1):
            merge(mirror, {1: turn})
        return pin(files, version)

    monkeypatch.setattr(LocalFiles, "pin", pin_late)
    with MirrorReader(mirror.path) as reader:
        assert held(reader) == {1: 3}
        assert pinned == [pinned[0], reader.version]
    with pytest.raises(MirrorError, match=f"does not hold version {pinned[0]}"):
        MirrorReader(mirror.path, pinned[0])


def test_orphans_are_collected_and_live_files_never(mirror: DataFusionMirror, storage: str) -> None:
    merge(mirror, {1: 1, 2: 2})
    merge(mirror, {1: 3})
    live = data_files(Path(mirror.path))
    with pytest.raises(RuntimeError), mirror.transaction() as transaction:
        transaction.merge(TABLE, NetChanges(rows({5: 5}), NOTHING))
        transaction.prepare_commit()
        raise RuntimeError
    assert data_files(Path(mirror.path)) == live
    assert merge(mirror, {1: 3}).total == 0
    mirror.close()
    (Path(mirror.path) / "data" / f"{uuid.uuid4().hex}.arrow").write_bytes(b"x")
    again = DataFusionMirror(storage, mirror.path)
    assert data_files(Path(mirror.path)) == live
    assert held(again) == {1: 3, 2: 2}
    again.close()


def test_a_reader_of_nothing_and_a_damaged_manifest_are_named(tmp_path: Path) -> None:
    with pytest.raises(MirrorError, match="there is no mirror"):
        MirrorReader(tmp_path)
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "000000000001.json").write_bytes(b"{")
    with pytest.raises(MirrorError, match="damaged"):
        DataFusionMirror("ipc", tmp_path)


def test_every_type_is_kept_bit_for_bit(storage: str, tmp_path: Path) -> None:
    values = {
        "k": (pa.int64(), [-(2**63), 2**63 - 1]),
        "i16": (pa.int16(), [-(2**15), None]),
        "i32": (pa.int32(), [2**31 - 1, None]),
        "f32": (pa.float32(), [-0.0, None]),
        "f64": (pa.float64(), [float("inf"), 5e-324]),
        "s": (pa.string(), ["a\0é'\"$1?", ""]),
        "b": (pa.binary(), [b"\x00\xff", None]),
        "o": (pa.bool_(), [True, None]),
        "d": (pa.date32(), [date(1, 1, 1), date(9999, 12, 31)]),
        "t": (pa.time64("us"), [time(23, 59, 59, 999999), None]),
        "ts": (pa.timestamp("us"), [datetime(1, 1, 1), None]),  # noqa: DTZ001
        "tz": (pa.timestamp("us", tz="UTC"), [datetime(9999, 12, 31, tzinfo=UTC), None]),
        "n": (pa.decimal128(38, 10), [Decimal("-1234567890123456789012345678.0123456789"), None]),
        "n5": (pa.decimal128(5, 2), [Decimal("999.99"), None]),
    }
    schema = TableSchema("t", tuple(Column(n, kind) for n, (kind, _) in values.items()), ("k",))
    given = pa.table({n: pa.array(own, kind) for n, (kind, own) in values.items()})
    mirror = DataFusionMirror(storage, tmp_path / "m")
    adopt(mirror, Table(schema), given)
    assert mirror.query("select * from t order by k").equals(given)
    with mirror.transaction() as transaction:
        assert transaction.merge(Table(schema), NetChanges(given, NOTHING)).total == 0
        assert transaction.compare(Table(schema), [given]).equal
        found = transaction.present_rows(Table(schema), given.select(["k"]))
    assert found.sort_by("k").equals(given)
    for name in schema.names[1:]:
        value = given[name][0].as_py()
        query = f'select k from t where "{name}" = $1'
        assert mirror.query(query, [value])["k"].to_pylist() == [-(2**63)], name
    mirror.close()


def test_a_temporal_table_takes_new_columns_and_wider_types_without_a_row_rewritten(
    storage: str, tmp_path: Path
) -> None:
    mirror = DataFusionMirror(storage, tmp_path / "m")
    old = Table(
        TableSchema("t", (Column("k", pa.int32()), Column("v", pa.int32())), ("k",)), Mode.TEMPORAL
    )
    given = pa.table({"k": [1, 2], "v": [10, None]}).cast(old.schema.arrow)
    assert adopt(mirror, old, given) == 2
    files = {name for name in data_files(tmp_path / "m") if name.endswith((".arrow", ".parquet"))}
    wide = (Column("k", pa.int32()), Column("v", pa.int64()), Column("w", pa.string()))
    new = Table(TableSchema("t", wide, ("k",)), Mode.TEMPORAL)
    same = pa.table({"k": [1, 2], "v": [10, None], "w": [None, None]}).cast(new.schema.arrow)
    assert adopt(mirror, new, same) is None
    assert files <= data_files(tmp_path / "m")
    with mirror.transaction() as transaction:
        assert list(transaction.copy_differences(new, 10))[0:] == []
    found = mirror.query("select k, v, w from t order by k")
    assert found.equals(same)
    narrow = Table(
        TableSchema("t", (Column("k", pa.int32()), Column("v", pa.date32())), ("k",)),
        Mode.TEMPORAL,
    )
    with pytest.raises(SchemaDriftError, match="its history does not fit"):
        adopt(mirror, narrow, narrow.schema.arrow.empty_table())
    mirror.close()


def test_namespaces_are_schemas_and_public_need_not_be_named(tmp_path: Path) -> None:
    mirror = DataFusionMirror("ipc", tmp_path / "m")
    for name, namespace in (("public.Orders", "public"), ("shop.orders", "shop")):
        table = Table(TableSchema(name, TABLE.schema.columns, ("k",), namespace))
        adopt(mirror, table, rows({1: len(namespace)}))
    assert mirror.query("select v from shop.orders")["v"].to_pylist() == [4]
    assert mirror.query("select v from orders")["v"].to_pylist() == [6]
    assert mirror.query('select v from public."Orders"')["v"].to_pylist() == [6]
    assert mirror.query("select v from Orders")["v"].to_pylist() == [6]
    mirror.close()


@pytest.mark.parametrize(
    "sql",
    [
        "create external table x stored as csv location 'pyproject.toml'",
        "explain analyze insert into t values (1, 1)",
        "explain",
        "create view x as select 1",
        "select * into x from t",
        "select * from read_parquet('x.parquet')",
        "select * from information_schema.tables",
        "update t set v = 1",
        "insert into t values (1, 1)",
        "select * from _rhei_segments.x",
        'select * from "_RHEI_SEGMENTS".x',
        "reset threads",
        "prepare p as select 1",
        "merge into t using t u on t.k = u.k when matched then delete",
        "truncate table t",
        "copy (select 1) to 'x.parquet'",
        "with x as (insert into t values (1, 1) returning *) select * from x",
    ],
)
def test_what_does_not_read_is_refused(mirror: DataFusionMirror, sql: str) -> None:
    with pytest.raises(QueryError):
        mirror.query(sql)
    assert held(mirror) == {}


def test_a_plan_can_be_asked_for(mirror: DataFusionMirror) -> None:
    assert mirror.query("explain select v from t where k = ?", [1]).num_rows


def test_a_closed_mirror_says_so(mirror: DataFusionMirror) -> None:
    mirror.close()
    with pytest.raises(MirrorError, match="is closed"):
        mirror.query("select 1")


def test_a_trial_leaves_nothing(mirror: DataFusionMirror) -> None:
    before = data_files(Path(mirror.path))
    with mirror.transaction(trial=True) as transaction:
        transaction.merge(TABLE, NetChanges(rows({1: 1}), NOTHING))
        transaction.record(Watermark("t", Position(9, "p"), NOW))
        assert transaction.count(TABLE) == 1
    assert held(mirror) == {}
    assert "t" not in mirror.ledger().watermarks
    assert data_files(Path(mirror.path)) == before


def test_snapshots_of_days_are_kept_and_written_anew(make_world: MakeWorld, storage: str) -> None:
    world = make_world(mode="temporal", storage=storage)
    world.run("create table t(id integer primary key, v int)", "insert into t values (1, 1)")
    world.htap.sync_now()
    early = instant_between()
    world.run("insert into t values (2, 2)")
    world.htap.sync_now()
    late = datetime.now(UTC)
    for _ in range(2):
        written = world.htap.snapshot("t", {date(2000, 1, 1): early, date(2001, 1, 1): late})
        assert written == {date(2000, 1, 1): 1, date(2001, 1, 1): 2}
    sql = "select snapshot_date, id from snapshot.t order by snapshot_date, id"
    found = world.htap.query(sql, hint="olap")
    assert found.to_pylist() == [
        {"snapshot_date": date(2000, 1, 1), "id": 1},
        {"snapshot_date": date(2001, 1, 1), "id": 1},
        {"snapshot_date": date(2001, 1, 1), "id": 2},
    ]
    assert world.htap.maintain().done
    assert world.htap.verify().equal


@pytest.mark.long
@pytest.mark.parametrize("storage", ["parquet", "delta"])
def test_a_look_back_leaves_out_the_files_of_other_times(
    make_world: MakeWorld, storage: str
) -> None:
    world = make_world(mode="temporal", storage=storage)
    world.run("create table t(k integer primary key, v int)")
    world.app.executemany("insert into t values (?, 0)", ((key,) for key in range(500)))
    world.htap.sync_now()
    instants = []
    for _ in range(24):
        world.run("update t set v = v + 1")
        world.htap.sync_now()
        instants.append(instant_between())
    at = instants[10]
    assert set(world.htap.as_of("t", at)["v"].to_pylist()) == {11}
    since, until = f"_rhei_valid_from <= '{at.isoformat()}'", f"_rhei_valid_to > '{at.isoformat()}'"
    condition = f"{since} and (_rhei_valid_to is null or {until})"
    sql = f"explain analyze select * from t where {condition}"
    plan = world.htap.query(sql, hint="olap")["plan"][0].as_py()
    opened = re.findall(r"row_groups_pruned_statistics=\d total → (\d) matched", plan)
    assert opened.count("1") == 1  # of those that folding has made of 24 states
    assert len(opened) > 3


def test_rows_that_come_and_keys_that_go_are_searched_for_once(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(storage="memory", tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, v text)")
    world.run("insert into t values (1, 'a'), (2, 'b'), (3, 'c')")
    world.htap.sync_now()
    searched: list[int] = []
    find = WriteBuffer.find

    def noted(buffer: WriteBuffer, sought: KeyHashes) -> Found:
        searched.append(len(sought.words))
        return find(buffer, sought)

    monkeypatch.setattr(WriteBuffer, "find", noted)
    world.run("delete from t where id = 1", "update t set v = v where id = 2")
    world.run("update t set v = 'd' where id = 3", "insert into t values (4, 'e')")
    report = world.htap.sync_now()
    assert (report.inserted, report.updated, report.deleted) == (1, 1, 1)
    assert searched == [4]
    world.assert_equal("t")
