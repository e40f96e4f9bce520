"""Copies in ranges against ordinary ones, in other processes and stores, and at random."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.postgres_server import Server
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import SchemaError, SourceError
from rhei_pipeline.mirrors.datafusion.manifest_store import ManifestStore
from rhei_pipeline.protocols import Step
from rhei_pipeline.sync import copy_ranges as sharing
from rhei_pipeline.testing.faults import Crash, CrashAt
from rhei_pipeline.testing.oracle import arrow_rows
from rhei_pipeline.wiring.copy_ranges import copy_range
from tests.support.fix_object_store import Store
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.forked import Forked, output_of
from tests.support.masking import KEY
from tests.support.model import source_rows

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
ROWS, BATCH = 120, 4
EXAMPLES, SOAK_EXAMPLES = 8, 400


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "PART_BATCHES", 2)
    monkeypatch.setattr(sharing, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(sharing, "_LOOK_SECONDS", 0.01)
    monkeypatch.setenv("RHEI__MASKING__KEY", KEY)


KINDS = {
    "real": ("k real primary key", "?1 / 3.0 - 5"),
    "blob": ("k blob primary key", "cast(printf('%c%d', 200 - ?1, ?1) as blob)"),
    "mixed": ("k primary key", "iif(?1 % 3, iif(?1 % 2, 'x' || ?1, ?1 / 7.0), ?1)"),
    "nocase": ("k text collate nocase primary key", "char(65 + ?1 % 60) || ?1"),
    "nullable": ("k text primary key", "nullif('n' || ?1, 'n7')"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_every_kind_of_sqlite_are_in_one_range_each(
    make_world: MakeWorld, kind: str
) -> None:
    columns, value = KINDS[kind]
    types = {"types": {"k": "string"}} if kind == "mixed" else {}
    world = make_world(
        storage="parquet",
        batch_rows=BATCH,
        tables=[{"name": "t", "copy_ranges": 5, **types}, {"name": "u", **types}],
    )
    for name in "tu":
        world.run(f"create table {name}({columns}, v integer)")
        world.app.executemany(
            f"insert into {name} values ({value}, ?1)", [(n,) for n in range(ROWS)]
        )
    assert_alike(world, lambda: copy_range(world.settings, "t", 3))


POSTGRES_KINDS = {
    "number": ("id int primary key", "i * 7 % 401"),
    "text": ("id text primary key", "chr(65 + i % 50) || i || chr(228 + i % 9)"),
    "instant": ("id timestamptz primary key", "'2026-01-01'::timestamptz + i * interval '1h'"),
    "uuid": ("id uuid primary key", "md5(i::text)::uuid"),
    "numeric": ("id numeric primary key", "i / 3.0"),
    "pair": ("a int, id text, primary key (id, a)", "i % 3, chr(65 + i % 60) || 'x''\\' || i"),
}


@pytest.mark.parametrize("kind", POSTGRES_KINDS)
def test_keys_of_every_kind_of_postgres_are_in_one_range_each(
    make_postgres: Callable[..., PostgresWorld], kind: str
) -> None:
    columns, value = POSTGRES_KINDS[kind]
    tables = [{"name": "t", "copy_ranges": 5}, {"name": "u"}]
    world = make_postgres(storage="parquet", batch_rows=BATCH, tables=tables)
    for name in "tu":
        world.run(
            f"create table {name}({columns}, v int)",
            f"insert into {name} select {value}, i from generate_series(1, {ROWS}) i",
        )
    assert_alike(world, lambda: copy_range(world.settings, "t", 3))


@pytest.mark.long
def test_ranges_of_a_large_table_are_drawn_by_lot(
    make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhei_pipeline.sources.postgres.rows._FEW_ROWS", 1_000)
    monkeypatch.setattr("rhei_pipeline.sources.postgres.rows._DRAWN_KEYS", 500)
    monkeypatch.setattr(sharing, "PART_BATCHES", 10)
    tables = [{"name": "t", "copy_ranges": 4}]
    world = make_postgres(storage="parquet", batch_rows=2_000, tables=tables)
    world.run(
        "create table t(id int primary key, v text)",
        "insert into t select i * 7919 % 20011, 'some text to fill a page ' || i"
        " from generate_series(1, 20000) i",
        "analyze t",
    )
    rows: list[int] = []

    def helped() -> None:
        rows.extend(copy_range(world.settings, "t", number).rows for number in range(1, 5))

    world.faults.do_at(Step.RANGES_PLANNED, helped)
    world.htap.sync_now()
    assert sum(rows) == 20_000
    assert min(rows) > 2_000
    world.assert_equal("t")


@pytest.mark.long
def test_a_worker_does_not_read_a_standby(tmp_path: Path) -> None:
    """It has rows from before the copy's position where it lags behind, and no change tells."""
    polling = {"updated_at": "at", "deletes": "reconcile"}
    with TemporaryDirectory(prefix="rhei-postgres-") as directory:
        server = Server(Path(directory))
        worlds: dict[str, PostgresWorld] = {}
        try:
            for method, more in (("logical", {}), ("polling", {"polling": polling})):
                own = tmp_path / method
                own.mkdir()
                table, capture = f"of_{method}", {"method": method}
                tables = [{"name": table, "copy_ranges": 4, **more}]
                worlds[table] = PostgresWorld(
                    server.dsn(), own, tables, capture=capture, storage="parquet"
                )
                _begin_ranges(worlds[table], table)
            (Path(directory) / "standby.signal").write_text("")
            server.kill()
            for table, world in worlds.items():
                with pytest.raises(SourceError, match="give the primary server"):
                    copy_range(world.settings, table, 1)
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute("select pg_promote()")
            for table, world in worlds.items():
                assert copy_range(world.settings, table, 1).rows == ROWS // 4
        finally:
            for world in worlds.values():
                world.close()
            server.stop()


def _begin_ranges(world: PostgresWorld, table: str) -> None:
    """Have the writer die as it has planned the ranges of a table."""
    world.run(
        f"create table {table}(id int primary key, at timestamptz default now())",
        f"create index on {table}(at)",
        f"insert into {table} select i from generate_series(1, {ROWS}) i",
    )
    world.faults.arm(Step.RANGES_PLANNED)
    assert world.surviving(world.htap.sync_now)


def assert_alike(world: World | PostgresWorld, helped: Callable[[], object]) -> None:
    """The table `t`, copied in ranges, has what `u` has, which is copied as ever."""
    world.faults.do_at(Step.RANGES_PLANNED, helped)
    report = world.htap.sync_now()
    assert world.faults.seen.count(Step.RANGES_PLANNED) == 1
    copied = [(t.copied_rows, t.dead_letters, t.error) for t in report.tables.values()]
    assert copied[0] == copied[1]
    letters = world.htap.dead_letters().to_pylist()
    told = [
        {(x["key"], x["column_name"], x["reason"]) for x in letters if x["table_name"] == name}
        for name in "tu"
    ]
    assert told[0] == told[1]
    assert world.mirror_rows("t") == world.mirror_rows("u")
    found = world.htap.verify().tables
    assert found["t"].equal == found["u"].equal


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("key", ["plain", "masked"])
def test_masks_filters_and_rows_that_do_not_fit_are_as_in_any_copy(
    make_world: MakeWorld, mode: str, key: str
) -> None:
    masks = {"v": "partial:2", "w": "hash", **({"k": "hash"} if key == "masked" else {})}
    said = {"mask": masks, "where": "n <> 5", "columns": ["k", "v", "w", "n", "q"]}
    world = make_world(
        storage="parquet",
        batch_rows=BATCH,
        mode=mode,
        tables=[{"name": "t", "copy_ranges": 5, **said}, {"name": "u", **said}],
    )
    for name in "tu":
        world.run(
            f"create table {name}(k text primary key, v text, w text, n integer, q real, x text)"
        )
        world.app.executemany(
            f"insert into {name} values ('k' || ?1, 'v' || ?1, ?1 % 5, ?1 % 9,"
            " iif(?1 % 10 = 3, 'no number', ?1), 'left')",
            [(n,) for n in range(ROWS)],
        )
    texts: list[str] = []

    def helped() -> None:
        copy_range(world.settings, "t", 3)
        places = Path(world.settings.mirror.path).rglob("*.json")
        texts.extend(file.read_text() for file in places)

    world.faults.do_at(Step.RANGES_PLANNED, helped)
    world.htap.sync_now()
    assert len(texts) > 3, "manifests, a plan, and records"
    assert any("k7" in text for text in texts) is (key == "plain")
    for name in "tu":
        world.run(f"update {name} set q = 1 where n = 2", f"delete from {name} where n = 3")
    world.htap.sync_now()
    columns = "k, v, w, n, q"
    now = " where _rhei_valid_to is null" if mode == "temporal" else ""
    found = [
        arrow_rows(world.htap.query(f"select {columns} from {name}{now}", hint="olap"))
        for name in "tu"
    ]
    assert found[0] == found[1]
    assert len(found[0]) > ROWS // 2
    letters = world.htap.dead_letters().to_pylist()
    told = [
        {(x["key"], x["column_name"], x["reason"]) for x in letters if x["table_name"] == name}
        for name in "tu"
    ]
    assert told[0] == told[1] != set()


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_table_is_copied_again_in_ranges(make_world: MakeWorld, mode: str) -> None:
    tables = [{"name": "t", "copy_ranges": 4}]
    world = make_world(storage="parquet", batch_rows=BATCH, mode=mode, tables=tables)
    world.run("create table t(id integer primary key, v text)")
    world.app.executemany("insert into t values (?, 'old')", [(n,) for n in range(ROWS)])
    world.htap.sync_now()
    before = len(world.versions("t", "id")) if mode == "temporal" else 0
    world.run("update t set v = 'new' where id % 3 = 0", "delete from t where id = 7")
    world.faults.do_at(Step.RANGES_PLANNED, lambda: copy_range(world.settings, "t", 2))
    report = world.htap.initial_sync("t")
    assert world.faults.seen.count(Step.RANGES_PLANNED) == 2
    assert (report.updated, report.deleted) == (ROWS // 3, 1)
    world.assert_equal("t")
    assert world.htap.verify().equal
    if mode == "temporal":
        assert len(world.versions("t", "id")) == before + ROWS // 3


_WORKER = """
import sys
from rhei_pipeline import Settings
from rhei_pipeline.sync import copy_ranges as sharing
from rhei_pipeline.wiring.copy_ranges import copy_range
sharing.PART_BATCHES = 2
def told(step):
    print(step.value, flush=True)
    sys.stdin.readline()
number = int(sys.argv[2]) or None
report = copy_range(Settings.load(sys.argv[1]), "t", number, on_step=told)
print(report.rows, flush=True)
"""


def _declared(world: World) -> str:
    file = world.directory / "pipeline.yaml"
    file.write_text(
        f"source: {{path: {world.path}}}\nregistry: {{path: {world.directory}/registry.json}}\n"
        f"mirror: {{kind: datafusion, storage: ipc, path: {world.directory}/ipc}}\n"
        f"tables: [{{name: t, copy_ranges: 4}}]\nsync: {{batch_rows: {BATCH}}}\n"
    )
    return str(file)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_worker_that_is_killed_costs_its_part_alone(make_world: MakeWorld, steps: int) -> None:
    tables = [{"name": "t", "copy_ranges": 4}]
    world = make_world(storage="ipc", batch_rows=BATCH, tables=tables)
    world.run("create table t(id integer primary key, v text)")
    world.app.executemany("insert into t values (?, 'old')", [(n,) for n in range(ROWS)])
    world.faults.arm(Step.RANGES_PLANNED)
    assert world.surviving(world.htap.sync_now)
    with Forked(_WORKER, _declared(world), "2") as worker:
        seen = []
        for number in range(steps):
            if number:
                worker.stdin.write("on\n")
                worker.stdin.flush()
            seen.append(worker.stdout.readline().strip())
        worker.kill()
    recorded = 2 * BATCH * seen.count("range_recorded")
    world.run("update t set v = 'new' where id % 2 = 0", "delete from t where id = 40")
    again = copy_range(world.settings, "t", 2)
    assert again.rows in {30 - recorded, 29 - recorded}
    world.htap.sync_now()
    world.assert_equal("t")
    assert world.htap.verify().equal


def test_processes_share_a_copy_whose_writer_was_killed(make_world: MakeWorld) -> None:
    tables = [{"name": "t", "copy_ranges": 4}]
    world = make_world(storage="ipc", batch_rows=BATCH, tables=tables)
    world.run("create table t(id integer primary key, v text)")
    world.app.executemany("insert into t values (?, 'old')", [(n,) for n in range(ROWS)])
    declared = _declared(world)
    writer = (
        "import sys, rhei_pipeline as rhei\n"
        "from rhei_pipeline.sync import copy_ranges as sharing\n"
        "sharing.PART_BATCHES = 2\n"
        "def told(step):\n"
        "    print(step.value, flush=True)\n"
        "    step.value == 'range_recorded' and sys.stdin.readline()\n"
        "rhei.HTAP(rhei.Settings.load(sys.argv[1]), on_step=told).sync_now()\n"
    )
    with Forked(writer, declared) as process:
        while process.stdout.readline().strip() != "range_recorded":
            pass
        process.kill()
    said = output_of(_WORKER, declared, "0").split()
    assert said.count("range_recorded") >= 12
    assert 0 < int(said[-1]) < ROWS
    world.faults.seen.clear()
    world.htap.sync_now()
    assert Step.RANGE_RECORDED not in world.faults.seen
    world.assert_equal("t")


@pytest.mark.long
@pytest.mark.parametrize("bucket", ["s3", "gs"], indirect=True)
def test_ranges_are_shared_in_an_object_store(bucket: Store, make_world: MakeWorld) -> None:
    world = make_world(batch_rows=BATCH)
    world.run("create table t(id integer primary key, v text)")
    world.app.executemany("insert into t values (?, 'old')", [(n,) for n in range(ROWS)])
    mirror = {
        "kind": "datafusion",
        "storage": "parquet",
        "path": bucket.url,
        "object_store": bucket.settings | bucket.keys,
    }
    tables = [{"name": "t", "copy_ranges": 4}]
    declared = Settings(**{**world.settings.model_dump(), "mirror": mirror, "tables": tables})
    faults = CrashAt()
    others: list[int] = []

    def rival(step: Step) -> None:
        if step is Step.RANGE_WRITTEN and len(others) < 1:
            others.append(copy_range(declared, "t", 2).rows)

    faults.do_at(Step.RANGES_PLANNED, lambda: copy_range(declared, "t", 2, on_step=rival))
    faults.do_at(Step.RANGE_RECORDED, lambda: world.run("update t set v = 'new' where id % 2 = 0"))
    faults.arm(Step.RANGE_RECORDED, 3)
    with HTAP(declared, on_step=faults) as htap, pytest.raises(Crash):
        htap.sync_now()
    assert others == [30]
    with HTAP(declared) as htap:
        htap.sync_now()
        found = arrow_rows(htap.query("select * from t", hint="olap"))
        assert found == source_rows(world.app, "t")
        assert htap.verify().equal
        assert copy_range(declared, "t").of == 0


@pytest.mark.long
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_who_opens_a_mirror_in_a_store_beside_drops_no_plan_that_it_does_not_know(
    bucket: Store, make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(batch_rows=BATCH)
    world.run("create table t(id integer primary key, v text)")
    world.app.executemany("insert into t values (?, 'old')", [(n,) for n in range(ROWS)])
    place = {"path": bucket.url, "object_store": bucket.settings | bucket.keys}
    mirror = {"kind": "datafusion", "storage": "parquet", **place}
    own = {"mirror": mirror, "tables": [{"name": "t", "copy_ranges": 4}]}
    declared = Settings(**{**world.settings.model_dump(), **own})
    HTAP(declared).close()
    faults = CrashAt()
    faults.arm(Step.RANGES_PLANNED)
    newest = ManifestStore.newest_whole

    def planned_meanwhile(store: ManifestStore) -> object:
        found = newest(store)
        monkeypatch.setattr(ManifestStore, "newest_whole", newest)
        with HTAP(declared, on_step=faults) as holder, pytest.raises(Crash):
            holder.sync_now()
        return found

    monkeypatch.setattr(ManifestStore, "newest_whole", planned_meanwhile)
    HTAP(declared).close()
    assert copy_range(declared, "t", 2).rows == ROWS // 4
    with HTAP(declared) as htap:
        htap.sync_now()
        assert htap.verify().equal


@dataclass(frozen=True)
class Act:
    """What is done next: by whom, on which range, and where it is cut off."""

    who: str
    number: int
    step: Step | None
    occurrence: int


_STEPS = st.none() | st.sampled_from(
    [step for step in Step if "range" in step or "copy" in step or step is Step.PROMOTED]
)
_acts = st.lists(
    st.builds(
        Act,
        st.sampled_from(["worker", "worker", "helper", "writer", "write", "write", "again"]),
        st.integers(1, 4),
        _STEPS,
        st.integers(1, 4),
    ),
    min_size=2,
    max_size=12,
)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("most", [EXAMPLES, pytest.param(SOAK_EXAMPLES, marks=pytest.mark.soak)])
def test_whoever_works_and_dies_when_the_mirror_equals_the_source(mode: str, most: int) -> None:
    @settings(max_examples=most, deadline=None)
    @given(_acts, st.sampled_from(["ipc", "parquet"]))
    def plays(acts: Sequence[Act], storage: str) -> None:
        with TemporaryDirectory() as directory:
            tables = [{"name": "t", "copy_ranges": 4}]
            world = World(Path(directory), tables, mode, batch_rows=3, storage=storage)
            try:
                _play(world, acts)
            finally:
                world.close()

    plays()


def _play(world: World, acts: Sequence[Act]) -> None:
    world.run("create table t(id integer primary key, v text)")
    world.app.executemany("insert into t values (?, 'old')", [(n,) for n in range(40)])
    world.faults.arm(Step.RANGES_PLANNED)
    world.surviving(world.htap.sync_now)
    for turn, act in enumerate(acts):
        faults = CrashAt()
        if act.step is not None:
            faults.arm(act.step, act.occurrence)
            world.faults.arm(act.step, act.occurrence)
        if act.who == "write":
            _write(world, turn, act)
        elif act.who == "writer":
            world.surviving(world.htap.sync_now)
        elif act.who == "again":
            world.surviving(lambda: world.htap.initial_sync("t"))
        else:
            number = act.number if act.who == "worker" else None
            _work(world, number, faults)
        world.faults.disarm()
    world.htap.sync_now()
    world.assert_equal("t")
    assert world.htap.verify().equal
    world.crash()
    assert world.htap.verify().equal


def _write(world: World, turn: int, act: Act) -> None:
    n = act.number + 4 * act.occurrence
    world.run(
        f"update t set v = 'new{turn}' where id % 5 = {n % 5}",
        f"delete from t where id = {n * 3 % 40}",
        f"update or ignore t set id = id + {100 if n % 2 else -100} where id % 13 = {n % 13}",
        f"insert or ignore into t values ({n * 7 % 50}, 'added{turn}')",
    )


def _work(world: World, number: int | None, faults: CrashAt) -> None:
    with suppress(Crash):
        try:
            copy_range(world.settings, "t", number, on_step=faults)
        except SchemaError as error:
            assert "no copy of it in ranges is under way" in str(error)  # noqa: PT017
