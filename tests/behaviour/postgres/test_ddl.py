"""DDL that changes PostgreSQL's rows without telling any log: each capture, mode and mirror."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from rhei_pipeline.cli.init import starter
from rhei_pipeline.protocols import Step
from rhei_pipeline.wiring.source import validate
from tests.support.fix_postgres import PostgresWorld
from tests.support.left_out import assert_left_out

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., PostgresWorld]
LOGICAL: dict[str, Any] = {"method": "logical"}
TRIGGER: dict[str, Any] = {"method": "trigger"}
POLLING: dict[str, Any] = {"method": "polling"}
#: The path is given once the world has a directory.
BUFFERED: dict[str, Any] = {"method": "logical", "buffer": {"kind": "rocksdb"}}
POLLED = {"updated_at": "at", "deletes": "reconcile"}

CASES = pytest.mark.parametrize(
    ("capture", "mode", "storage"),
    [
        pytest.param(capture, mode, storage, id=f"{'-'.join(map(str, capture.values()))}-{mode}")
        for capture, mode, storage in [
            (LOGICAL, "destructive", None),
            (LOGICAL, "temporal", "parquet"),
            ({**LOGICAL, "streaming": True}, "temporal", None),
            (TRIGGER, "destructive", "parquet"),
            (TRIGGER, "temporal", None),
            (POLLING, "destructive", None),
            (POLLING, "temporal", "parquet"),
            (BUFFERED, "destructive", "parquet"),
            (BUFFERED, "temporal", None),
            ({**BUFFERED, **TRIGGER}, "temporal", None),
        ]
    ],
)


def made(
    make: MakeWorld, capture: dict[str, Any], mode: str, storage: str | None, *names: str
) -> PostgresWorld:
    polling = {"polling": POLLED} if capture["method"] == "polling" else {}
    tables = [{"name": name, **polling} for name in names or ("t",)]
    world = make(capture=capture, mode=mode, storage=storage, tables=tables)
    if "buffer" in capture:
        buffer = {**capture["buffer"], "path": world.directory / "buffer"}
        world.capture = {**capture, "buffer": buffer}
    return world


def synced(world: PostgresWorld, *tables: str) -> None:
    report = world.htap.sync_now()
    assert not report.errors
    world.assert_equal(*(tables or ("t",)))


STAMPED = "at timestamptz not null default now()"
IN_PARTS = (
    f"create table t(id int primary key, v int, {STAMPED}) partition by range (id)",
    "create table low partition of t for values from (0) to (10)",
    "insert into t values (1, 1), (2, 2)",
)


@CASES
def test_rows_that_ddl_alone_changes_are_read_again(
    make_postgres: MakeWorld, capture: dict[str, Any], mode: str, storage: str | None
) -> None:
    world = made(make_postgres, capture, mode, storage)
    # Older servers log no generated columns, and give them no new expression.
    is_new = world.app.info.server_version >= 180_000
    generated = "g int generated always as (id * 2) stored, " if is_new else ""
    world.run(
        "create type mood as enum ('sad', 'ok')",
        "create domain feeling as mood",
        "create type pair as (a int, b mood)",
        "create table t(id int primary key, cents int, m feeling, u text, p pair[],"
        f" {generated}{STAMPED})",
        "insert into t values (1, 5, 'sad', 'x', array[(1, 'sad')::pair]), (2, 6, 'ok', 'y', null)",
    )
    synced(world)
    for statements in (
        ["alter table t alter cents type int using cents * 100"],
        ["alter type mood rename value 'sad' to 'unhappy'"],
        ["alter table t drop column u", "alter table t add column u text default 'fresh'"],
        ["alter table t alter u type varchar(5) using upper(u)"],
        ["alter type pair add attribute c int cascade"],
        ["alter table t alter g set expression as (id * 3)"] if is_new else [],
    ):
        world.run(*statements)
        synced(world)
    world.crash()
    world.run("alter table t alter cents type int using cents + 1")
    synced(world)
    assert world.htap.verify().equal


@CASES
def test_what_rewrites_a_table_and_leaves_its_rows_is_told_apart(
    make_postgres: MakeWorld, capture: dict[str, Any], mode: str, storage: str | None
) -> None:
    world = made(make_postgres, capture, mode, storage)
    world.run(f"create table t(id int primary key, v text, {STAMPED})", "insert into t values (1)")
    synced(world)
    world.run("vacuum full t", "cluster t using t_pkey", "analyze t", "create index on t(v)")
    assert world.htap.sync_now().tables["t"].copied_rows == 0


@CASES
def test_a_migration_beside_pending_changes_keeps_their_versions(
    make_postgres: MakeWorld, capture: dict[str, Any], mode: str, storage: str | None
) -> None:
    world = made(make_postgres, capture, mode, storage)
    world.run(
        f"create table t(id int primary key, v int, {STAMPED})", "insert into t values (1, 1)"
    )
    synced(world)
    world.crash()
    world.run(
        "update t set v = 2, at = now()",
        "update t set v = 3, at = now()",
        "insert into t values (2, 20)",
        "delete from t where id = 2",
        "alter table t alter v type int using v * 10",
    )
    synced(world)
    if mode == "temporal" and capture["method"] != "polling":
        found = [
            (row["id"], row["v"], row["_rhei_operation"])
            for row in world.versions("t", "id, _rhei_valid_from")
        ]
        assert found == [(1, 1, "I"), (1, 2, "U"), (1, 3, "U"), (1, 30, "U"), (2, 20, "D")]


@CASES
@pytest.mark.parametrize("reopened", [False, True])
def test_a_table_that_is_dropped_keeps_its_last_state_and_is_named(
    make_postgres: MakeWorld,
    capture: dict[str, Any],
    mode: str,
    storage: str | None,
    *,
    reopened: bool,
) -> None:
    world = made(make_postgres, capture, mode, storage, "t", "other")
    for name in ("t", "other"):
        world.run(
            f"create table {name}(id int primary key, v int, {STAMPED})",
            f"insert into {name} values (1, 1), (2, 2)",
        )
    synced(world, "t", "other")
    if reopened:
        world.crash()
    world.run(
        "update t set v = 5, at = now() where id = 1",
        "delete from t where id = 2",
        "drop table t",
        "insert into other values (3, 3)",
    )
    report = world.htap.sync_now()
    assert "no such table in the source (create it there, or start again" in str(report.errors["t"])
    world.assert_equal("other")
    if mode == "temporal" and capture["method"] != "polling":
        ended = [
            (row["id"], row["v"], row["_rhei_operation"])
            for row in world.versions("t", "id, _rhei_valid_from")
        ]
        assert ended == [(1, 1, "I"), (1, 5, "U"), (2, 2, "D")]
    elif capture["method"] == "logical":
        assert [row["v"] for row in world.versions("t", "id")] == [5]
    else:
        assert [row["id"] for row in world.versions("t", "id")] == [1, 2]
    world.run(
        f"create table t(id int primary key, v int, {STAMPED})", "insert into t values (7, 7)"
    )
    synced(world, "t", "other")


@CASES
@pytest.mark.parametrize("reopened", [False, True])
def test_a_table_made_again_or_swapped_is_followed_by_its_name(
    make_postgres: MakeWorld,
    capture: dict[str, Any],
    mode: str,
    storage: str | None,
    *,
    reopened: bool,
) -> None:
    world = made(make_postgres, capture, mode, storage, "a", "b")
    for place, name in enumerate(("a", "b")):
        world.run(
            f"create table {name}(id int primary key, v int, {STAMPED})",
            f"insert into {name} values (1, {place}), ({place + 2}, 9)",
        )
    synced(world, "a", "b")
    if reopened:
        world.crash()
    world.run(
        "update a set v = 10, at = now() where id = 1",
        "delete from b where id = 3",
        "alter table a rename to c",
        "alter table b rename to a",
        "alter table c rename to b",
    )
    synced(world, "a", "b")
    if mode == "temporal" and capture["method"] != "polling":
        first = [row["v"] for row in world.versions("a") if row["id"] == 1]
        assert first == [0, 10, 1]
        assert [row["_rhei_operation"] for row in world.versions("b") if row["id"] == 3] == ["D"]
    if reopened:
        world.crash()
    world.run(
        "update a set v = 11, at = now() where id = 1",
        "drop table a",
        f"create table a(id int primary key, v int, {STAMPED})",
        "insert into a values (1, 12), (5, 5)",
    )
    synced(world, "a", "b")
    if mode == "temporal" and capture["method"] != "polling":
        assert [row["v"] for row in world.versions("a") if row["id"] == 1] == [0, 10, 1, 11, 12]
    world.run("update a set v = v + 1, at = now()", "update b set v = v + 1, at = now()")
    synced(world, "a", "b")
    assert world.htap.verify().equal


def test_a_name_of_the_catalogue_that_changed_is_found_by_verify_and_healed_by_repair(
    make_postgres: MakeWorld,
) -> None:
    world = made(make_postgres, LOGICAL, "temporal", None)
    world.run(
        f"create table t(id int primary key, about regclass, {STAMPED})",
        "insert into t values (1, 'pg_class')",
        "create table named(id int)",
        "insert into t values (2, 'named')",
    )
    world.htap.sync_now()
    world.run("alter table named rename to renamed")
    world.htap.sync_now()
    assert world.htap.verify().tables["t"].different == 1
    assert world.htap.repair("t").updated == 1
    assert world.htap.verify().equal


@pytest.mark.long
@CASES
def test_schemas_that_are_swapped_are_followed_by_their_names(
    make_postgres: MakeWorld, capture: dict[str, Any], mode: str, storage: str | None
) -> None:
    """As a migration does that fills one schema beside another: no table's own entry changes."""
    names = ("one.t", "two.t")
    world = made(make_postgres, capture, mode, storage, *names)
    for place, name in enumerate(names):
        world.run(
            f"create schema {name.removesuffix('.t')}",
            f"create table {name}(id int primary key, v int, {STAMPED})",
            f"insert into {name} values (1, {place}), ({place + 2}, 9)",
        )
    synced(world, *names)
    for is_reopened in (False, True):
        world.run("update one.t set v = v + 10, at = now()", "delete from two.t where id > 1")
        if is_reopened:
            world.crash()
        world.run(
            "alter schema one rename to aside",
            "alter schema two rename to one",
            "alter schema aside rename to two",
        )
        synced(world, *names)
        world.run("update one.t set v = v + 10, at = now()", "insert into two.t values (7, 7)")
        synced(world, *names)


@pytest.mark.long
def test_partitions_that_come_and_go_are_seen(make_postgres: MakeWorld) -> None:
    for capture, mode, storage in (
        (LOGICAL, "temporal", None),
        (POLLING, "destructive", "parquet"),
    ):
        world = made(make_postgres, capture, mode, storage)
        world.run(
            "drop table if exists t, low, high",
            f"create table t(id int primary key, v int, {STAMPED}) partition by range (id)",
            "create table low partition of t for values from (0) to (10)",
            f"create table high(id int primary key, v int, {STAMPED})",
            "insert into t values (1, 1), (2, 2)",
            "insert into high values (11, 11), (12, 12)",
        )
        synced(world)
        for statement in (
            "alter table t attach partition high for values from (10) to (20)",
            "truncate high",
            "insert into t values (13, 13)",
            "alter table t detach partition low",
        ):
            world.run(statement)
            synced(world)
        world.crash()
        world.run(
            "delete from low", "alter table t attach partition low for values from (0) to (10)"
        )
        synced(world)


@pytest.mark.parametrize(
    ("capture", "mode", "storage"),
    [
        (LOGICAL, "destructive", None),
        ({**LOGICAL, "streaming": True}, "temporal", None),
        (BUFFERED, "destructive", "parquet"),
    ],
)
def test_a_partition_that_the_server_stops_to_log_leaves_its_table_out(
    make_postgres: MakeWorld, capture: dict[str, Any], mode: str, storage: str | None
) -> None:
    """The server refuses that of a published table, and lets it be done to a part of one."""
    world = made(make_postgres, capture, mode, storage, "t", "other")
    world.run(f"create table other(id int primary key, v int, {STAMPED})", *IN_PARTS)
    synced(world, "t", "other")
    world.run("alter table low set unlogged", "insert into other values (1, 1)")
    for key in (3, 4):
        world.run(f"insert into t values ({key}, {key})", "update t set v = v + 1, at = now()")
        report = world.htap.sync_now()
        assert report.errors["t"].startswith(
            "table 't': the server does not log its partition public.low"
        )
        world.assert_equal("other")
    world.run("alter table low set logged", "delete from t where id = 3")
    synced(world, "t", "other")


def test_a_partition_that_the_server_does_not_log_is_polled(make_postgres: MakeWorld) -> None:
    world = made(make_postgres, POLLING, "destructive", None)
    world.run(*IN_PARTS)
    synced(world)
    world.run("alter table low set unlogged", "update t set v = v + 1, at = now()")
    synced(world)


@pytest.mark.parametrize("capture", [LOGICAL, TRIGGER, POLLING], ids=lambda c: c["method"])
def test_a_table_that_others_inherit_from_is_named_and_its_heirs_flow(
    make_postgres: MakeWorld, capture: dict[str, Any]
) -> None:
    world = made(make_postgres, capture, "destructive", None, "t", "other")
    world.run(
        f"create table t(id int primary key, v int, {STAMPED})",
        f"create table other(id int primary key, v int, {STAMPED})",
        "insert into t values (1, 1)",
    )
    synced(world, "t", "other")
    world.run("create table heir(primary key (id)) inherits (t)", "insert into heir values (2, 2)")
    world.run("insert into other values (1, 1)")
    assert "tables inherit from it" in str(world.htap.sync_now().errors["t"])
    world.assert_equal("other")
    if capture is not TRIGGER:
        world.crash()
        world.tables = [{**table, "name": "heir"} for table in (world.tables or [])[:1]]
        synced(world, "heir")
    world.crash()
    world.run("alter table heir no inherit t")
    world.tables = made(make_postgres, capture, "destructive", None, "t", "heir").tables
    synced(world, "t", "heir")


@pytest.mark.long
def test_a_publication_that_was_altered_is_mended_and_what_it_left_out_is_read(
    make_postgres: MakeWorld,
) -> None:
    for mode in ("destructive", "temporal"):
        world = made(make_postgres, LOGICAL, mode, None)
        world.run(
            "drop table if exists t",
            "create table t(id int primary key, v int, w int)",
            "insert into t values (1, 1, 1), (2, 2, 2)",
        )
        synced(world)
        (name,) = world.app.execute(
            "select pubname from pg_publication p join pg_publication_rel r on r.prpubid = p.oid"
        ).fetchone() or ("",)
        for place, statement in enumerate(
            (
                "alter publication {} set (publish = 'insert')",
                "alter publication {} set table t where (id > 100)",
                "alter publication {} set table t (id, v)",
                "alter publication {} drop table t",
                "drop publication {}",
                "drop publication {0}; create publication {0} for all tables",
            ),
            start=10,
        ):
            for part in statement.split("; "):
                world.run(part.format(name))
            world.run(f"update t set v = {place}, w = {place}", f"delete from t where id = {place}")
            world.run(f"insert into t values ({place + 1}, 0, 0)")
            synced(world)
            world.run(f"update t set v = {place + 50}")
            synced(world)
        world.crash()
        world.htap.close()


@pytest.fixture
def guarded(make_postgres: MakeWorld, dsn: str) -> Iterator[Callable[..., PostgresWorld]]:
    """Make sources of a user whom policies concern; drop the user at the end."""
    opened: list[tuple[PostgresWorld, str]] = []

    def make(capture: dict[str, Any]) -> PostgresWorld:
        world = made(make_postgres, capture, "destructive", None)
        role = f"half_{capture['method']}"
        opened.append((world, role))
        world.run(
            f"drop role if exists {role}",
            f"create role {role} login replication",
            f"create table t(id int primary key, v int, {STAMPED})",
            "insert into t values (1, 1), (2, 2)",
            f"alter table t owner to {role}",
            f"grant create on database {world.app.info.dbname} to {role}",
            f"grant pg_monitor to {role}",
        )
        world.dsn = f"{dsn}&user={role}"
        return world

    yield make
    for world, role in opened:
        world.crash()
        world.run(f"drop owned by {role} cascade")


HALF_HIDDEN = (
    "alter table t enable row level security",
    "alter table t force row level security",
    "create policy half on t using (id = 1)",
)


@pytest.mark.parametrize("capture", [LOGICAL, TRIGGER, POLLING], ids=lambda c: c["method"])
def test_row_security_that_hides_rows_is_named_until_the_user_bypasses_it(
    guarded: Callable[..., PostgresWorld], capture: dict[str, Any]
) -> None:
    world = guarded(capture)
    synced(world)
    world.run(*HALF_HIDDEN, "insert into t values (3, 3)")
    assert "row security hides rows" in str(world.htap.sync_now().errors["t"])
    (finding,) = [found for found in validate(world.settings) if found.table == "t"]
    assert "row security hides rows" in finding.what
    assert "bypassrls" in finding.remedy
    world.run(f"alter role half_{capture['method']} bypassrls")
    synced(world)


@pytest.mark.parametrize("capture", [TRIGGER, POLLING], ids=lambda c: c["method"])
def test_rows_that_row_security_hides_for_a_moment_are_not_taken_for_deleted_ones(
    guarded: Callable[..., PostgresWorld], capture: dict[str, Any]
) -> None:
    world = guarded(capture)
    synced(world)
    world.run("update t set v = v + 1, at = clock_timestamp()")
    world.faults.do_at(Step.SNAPSHOT, partial(world.run, *HALF_HIDDEN))
    assert "row security hides rows" in str(world.htap.sync_now().errors["t"])
    world.run("alter table t disable row level security")
    synced(world)


@pytest.mark.long
def test_what_capture_keeps_in_the_source_is_no_table_to_mirror(
    make_postgres: MakeWorld, dsn: str
) -> None:
    first = make_postgres(capture=TRIGGER, tables=[{"name": "t"}])
    first.run("create table t(id int primary key)", "insert into t values (1)")
    first.htap.sync_now()
    for capture in (LOGICAL, TRIGGER):
        world = make_postgres(capture=capture, tables=None)
        assert list(world.htap.sync_now().tables) == ["t"]
        assert world.htap.sync_now().events == 0
    assert "_rhei" not in starter(dsn).text
    names = ("good", "_rhei.capture")
    world = make_postgres(capture=LOGICAL, tables=[{"name": name} for name in names])
    assert_left_out(world, "_rhei.capture", "holds capture's own tables")


@pytest.mark.long
def test_the_log_of_a_dropped_table_waits_for_every_history(make_postgres: MakeWorld) -> None:
    first = made(make_postgres, TRIGGER, "temporal", None, "t", "u")
    second = made(make_postgres, TRIGGER, "temporal", None, "t", "u")
    first.run(
        f"create table t(id int primary key, v int, {STAMPED})",
        f"create table u(id int primary key, v int, {STAMPED})",
        "insert into t values (1, 1)",
    )
    synced(first, "t")
    synced(second, "t")
    first.run(
        "update t set v = 2",
        "drop table t",
        f"create table t(id int primary key, v int, {STAMPED})",
        "insert into t values (1, 3)",
    )
    synced(first, "t")
    first.run("alter table u add column w int")  # capture of another table is made again
    synced(first, "t", "u")
    synced(second, "t", "u")
    for world in (first, second):
        assert [row["v"] for row in world.versions("t")] == [1, 2, 3]
    second.run("alter table u drop column w")
    synced(first, "u")
    synced(second, "u")
    left = first.app.execute("select count(*) from _rhei.capture").fetchone()
    assert left == (2,)
