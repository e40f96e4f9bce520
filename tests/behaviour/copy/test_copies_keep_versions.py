"""What copies or repairs a history first gets every version that the source tells of."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rhei_pipeline.protocols import Step
from rhei_pipeline.testing.faults import Crash
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.parts import engine_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
MakePostgres = Callable[..., PostgresWorld]
MIRRORS = pytest.mark.parametrize("storage", [None, "parquet"])


def _repair(world: World | PostgresWorld) -> None:
    world.htap.repair("t")


def _copy(world: World | PostgresWorld) -> None:
    world.htap.initial_sync("t")


def _copy_all(world: World | PostgresWorld) -> None:
    world.htap.initial_sync_all()


def _reopen_and_repair(world: World | PostgresWorld) -> None:
    world.crash()
    world.htap.repair("t")


WAYS = pytest.mark.parametrize("way", [_repair, _copy, _copy_all, _reopen_and_repair])


def _told(world: World | PostgresWorld) -> list[tuple[int, int, str]]:
    versions = world.versions("t", "id, _rhei_valid_from, _rhei_valid_to nulls last")
    return [(v["id"], v["a"], v["_rhei_operation"]) for v in versions]


def _write(world: World | PostgresWorld) -> None:
    for value in (2, 3, 4):
        world.run(f"update t set a = {value} where id = 1")
    world.run("insert into t values (9, 90)", "delete from t where id = 9")


ALL_TOLD = [(1, 1, "I"), (1, 2, "U"), (1, 3, "U"), (1, 4, "U"), (9, 90, "D")]


@MIRRORS
@WAYS
@pytest.mark.parametrize("buffered", [False, True])
def test_pending_versions_of_sqlite_survive(
    make_world: MakeWorld, storage: str | None, way: Callable[[World], None], *, buffered: bool
) -> None:
    world = make_world(mode="temporal", storage=storage, buffered=buffered)
    world.run("create table t(id integer primary key, a integer)", "insert into t values (1, 1)")
    world.htap.sync_now()
    _write(world)
    way(world)
    assert _told(world) == ALL_TOLD
    assert world.htap.sync_now().events == 0
    assert world.htap.verify().equal


@pytest.mark.parametrize("way", [_repair, _reopen_and_repair])
@pytest.mark.parametrize("method", ["logical", "trigger"])
@MIRRORS
def test_pending_versions_of_postgres_survive(
    make_postgres: MakePostgres,
    storage: str | None,
    way: Callable[[PostgresWorld], None],
    method: str,
) -> None:
    world = make_postgres(mode="temporal", storage=storage, capture={"method": method})
    world.run("create table t(id int primary key, a int)", "insert into t values (1, 1)")
    world.htap.sync_now()
    _write(world)
    way(world)
    assert _told(world) == ALL_TOLD
    assert world.htap.verify().equal


@MIRRORS
@pytest.mark.parametrize("step", [Step.COPY_BEGUN, Step.COPY_COMPLETE])
def test_what_is_written_while_a_healthy_table_is_repaired_is_kept_version_by_version(
    make_world: MakeWorld, storage: str | None, step: Step
) -> None:
    world = make_world(mode="temporal", storage=storage)
    world.run("create table t(id integer primary key, a integer)", "insert into t values (1, 1)")
    world.htap.sync_now()
    world.faults.do_at(step, lambda: _write(world))
    report = world.htap.repair("t")
    assert _told(world) == ALL_TOLD
    assert (report.inserted, report.updated, report.deleted) == (1, 3, 1)
    assert world.htap.verify().equal


@pytest.mark.long
@pytest.mark.parametrize("method", ["logical", "trigger"])
def test_the_same_beside_a_writer_on_postgres(make_postgres: MakePostgres, method: str) -> None:
    world = make_postgres(mode="temporal", capture={"method": method})
    world.run("create table t(id int primary key, a int)", "insert into t values (1, 1)")
    world.htap.sync_now()
    world.faults.do_at(Step.COPY_BEGUN, lambda: _write(world))
    world.htap.repair("t")
    assert _told(world) == ALL_TOLD
    assert world.htap.verify().equal


@MIRRORS
@pytest.mark.parametrize("step", [Step.COPY_BEGUN, Step.COPY_COMPLETE, Step.PROMOTED])
def test_a_repair_that_was_cut_off_loses_no_version_either(
    make_world: MakeWorld, storage: str | None, step: Step
) -> None:
    world = make_world(mode="temporal", storage=storage)
    world.run("create table t(id integer primary key, a integer)", "insert into t values (1, 1)")
    world.htap.sync_now()
    world.faults.arm(step)
    with pytest.raises(Crash):
        world.htap.repair("t")
    world.crash()
    _write(world)
    world.htap.sync_now()
    assert _told(world) == ALL_TOLD
    assert world.htap.verify().equal


@MIRRORS
def test_versions_written_while_a_changed_table_is_copied_are_kept(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = make_world(mode="temporal", storage=storage)
    world.run("create table t(id integer primary key, a integer)", "insert into t values (1, 1)")
    world.htap.sync_now()
    world.run(
        "alter table t add column c text default 'x'",
        "alter table t add column n integer",
        "alter table t drop column n",
    )
    world.faults.do_at(Step.COPY_BEGUN, lambda: _write_wide(world))
    world.htap.sync_now()
    assert [told for told in _told(world) if told[0] == 1][-3:] == ALL_TOLD[1:4]
    assert (9, 90, "D") in _told(world)
    assert world.htap.verify().equal


def _write_wide(world: World) -> None:
    for value in (2, 3, 4):
        world.run(f"update t set a = {value} where id = 1")
    world.run("insert into t values (9, 90, 'y')", "delete from t where id = 9")


@MIRRORS
@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize(
    ("old", "new"),
    # The key: behind a buffer the table is left out, since its past does not have it.
    [("a", "value"), ("id", "ident")],
)
def test_a_renamed_column_takes_no_pending_version_along(
    make_world: MakeWorld, storage: str | None, old: str, new: str, *, buffered: bool
) -> None:
    world = make_world(mode="temporal", storage=storage, buffered=buffered)
    world.run("create table t(id integer primary key, a integer)", "insert into t values (1, 1)")
    world.htap.sync_now()
    _write(world)
    world.run(f"alter table t rename column {old} to {new}")
    world.htap.sync_now()
    mirror = engine_of(world.htap).mirror
    names = [name if buffered or name != old else new for name in ("id", "a")]
    chosen = f"{', '.join(names)}, _rhei_operation as o"
    told = mirror.query(f"select {chosen} from t where {names[1]} is not null")
    assert {tuple(row.values()) for row in told.to_pylist()} >= set(ALL_TOLD)


MIGRATIONS = pytest.mark.parametrize(
    "migration",
    [
        "alter table t rename column b to c",
        "alter table t add column c text",
        "alter table t drop column b",
    ],
)
CUT_OFF = pytest.mark.parametrize("step", [Step.COPY_BEGUN, Step.COPY_COMPLETE])


def _migrate_after_a_copy_was_cut_off(
    world: World | PostgresWorld, step: Step, migration: str
) -> None:
    world.run("create table t(id int primary key, a int, b text)")
    world.run("insert into t values (1, 1, 'b')")
    world.htap.sync_now()
    world.faults.arm(step)
    with pytest.raises(Crash):
        world.htap.initial_sync("t")
    world.crash()
    world.run("update t set a = 2", "update t set a = 3", migration, "update t set a = 4")
    world.htap.sync_now()
    assert list(dict.fromkeys(value for _, value, _ in _told(world))) == [1, 2, 3, 4]
    assert world.htap.verify().equal


@MIRRORS
@MIGRATIONS
@CUT_OFF
@pytest.mark.parametrize("buffered", [False, True])
def test_a_migration_that_overtakes_a_copy_takes_no_version_along(
    make_world: MakeWorld, storage: str | None, step: Step, migration: str, *, buffered: bool
) -> None:
    world = make_world(mode="temporal", storage=storage, buffered=buffered)
    _migrate_after_a_copy_was_cut_off(world, step, migration)


@pytest.mark.long
@MIGRATIONS
@CUT_OFF
@pytest.mark.parametrize("method", ["logical", "trigger"])
def test_nor_does_it_on_postgres(
    make_postgres: MakePostgres, step: Step, migration: str, method: str
) -> None:
    world = make_postgres(mode="temporal", capture={"method": method})
    _migrate_after_a_copy_was_cut_off(world, step, migration)


@pytest.mark.long
@pytest.mark.parametrize("method", ["logical", "trigger"])
def test_a_second_migration_after_a_crash_does_not_read_the_buffer_in_a_shape_it_has_not(
    make_postgres: MakePostgres, tmp_path: Path, method: str
) -> None:
    capture = {"method": method, "buffer": {"path": tmp_path / "cdc"}}
    world = make_postgres(mode="temporal", capture=capture)
    world.run("create table t(id int primary key, a int, b text)")
    world.run("insert into t values (1, 1, 'b')")
    world.htap.sync_now()
    world.run("update t set a = 2", "alter table t drop column b")
    world.faults.arm(Step.ACKNOWLEDGED, 2)
    with pytest.raises(Crash):
        world.htap.sync_now()
    world.crash()
    world.run("update t set a = 3", "alter table t add column c text")
    assert not world.htap.sync_now().errors
    assert world.htap.verify().equal


@pytest.mark.long
@pytest.mark.parametrize("step", [Step.ACKNOWLEDGED, Step.COPY_BEGUN])
def test_versions_written_beside_a_migration_are_kept_by_the_log_of_postgres(
    make_postgres: MakePostgres, step: Step
) -> None:
    world = make_postgres(mode="temporal", capture={"method": "logical"})
    world.run("create table t(id int primary key, a int, b int)", "insert into t values (1, 1)")
    world.htap.sync_now()
    # Two changes at once are copied.
    world.run("update t set a = 2", "alter table t drop column b, add column c text default 'c'")
    world.faults.do_at(step, lambda: world.run("update t set a = 3", "update t set a = 4"))
    world.htap.sync_now()
    world.htap.sync_now()
    values = [value for _, value, _ in _told(world)]
    assert [value for place, value in enumerate(values) if value not in values[:place]] == [
        1,
        2,
        3,
        4,
    ]


def _spoil(world: World | PostgresWorld, unfit: str) -> None:
    """Change a row twice: first to what fits, then to what does not."""
    world.run("update t set a = 2 where id = 1", f"update t set a = {unfit} where id = 1")


def _assert_last_good(world: World | PostgresWorld) -> None:
    """The history has what fitted, once; what does not fit is named until it does."""
    assert _told(world) == [(1, 1, "I"), (1, 2, "U"), (2, 5, "I")]
    assert world.htap.dead_letters("t").num_rows == 1
    world.run("update t set a = 3 where id = 1")
    world.htap.sync_now()
    assert _told(world) == [(1, 1, "I"), (1, 2, "U"), (1, 3, "U"), (2, 5, "I")]
    assert world.htap.dead_letters("t").num_rows == 0
    assert world.htap.verify().equal


@MIRRORS
@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("way", [_copy, _repair])
@pytest.mark.parametrize("step", [None, Step.COPY_BEGUN, Step.COPY_COMPLETE])
def test_a_row_that_fits_no_longer_keeps_its_last_good_version(
    make_world: MakeWorld,
    storage: str | None,
    way: Callable[[World], None],
    step: Step | None,
    *,
    buffered: bool,
) -> None:
    world = make_world(mode="temporal", storage=storage, buffered=buffered)
    world.run(
        "create table t(id integer primary key, a integer)", "insert into t values (1, 1), (2, 5)"
    )
    world.htap.sync_now()
    if step is None:
        _spoil(world, "'no number'")
    else:
        world.faults.do_at(step, lambda: _spoil(world, "'no number'"))
    way(world)
    _assert_last_good(world)


@pytest.mark.long
@MIRRORS
@pytest.mark.parametrize("method", ["logical", "trigger"])
@pytest.mark.parametrize("step", [None, Step.COPY_BEGUN])
def test_a_row_of_postgres_that_fits_no_longer_keeps_its_last_good_version(
    make_postgres: MakePostgres, storage: str | None, method: str, step: Step | None
) -> None:
    world = make_postgres(mode="temporal", storage=storage, capture={"method": method})
    world.run(
        "create table t(id int primary key, a numeric(6, 0))", "insert into t values (1, 1), (2, 5)"
    )
    world.htap.sync_now()
    if step is None:
        _spoil(world, "'NaN'")
    else:
        world.faults.do_at(step, lambda: _spoil(world, "'NaN'"))
    world.htap.repair("t")
    _assert_last_good(world)
