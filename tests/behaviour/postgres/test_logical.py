"""PostgreSQL's own log, end to end: what applications do to tables, and what happens to slots."""

import gc
import json
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from pydantic import SecretStr

from examples.postgres_server import SETTINGS, Server
from rhei_pipeline.errors import QueryError, SourceError
from rhei_pipeline.protocols import Step
from rhei_pipeline.sources.postgres.connection import Connection
from rhei_pipeline.sources.postgres.copy import copy_out_values
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.identity import SourceCatalog
from rhei_pipeline.sources.postgres.logical import snapshot
from rhei_pipeline.sources.postgres.logical.publication import Publication
from rhei_pipeline.wiring.engine import bridge
from rhei_pipeline.wiring.source import validate
from tests.support.fix_postgres import PostgresWorld, drop_slots
from tests.support.left_out import assert_left_out
from tests.support.parts import engine_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., PostgresWorld]
BOTH_MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])

CREATE = "create table orders(id int primary key, status text, amount numeric(10, 2))"
ROWS = "insert into orders values (1, 'new', 1.5), (2, 'new', 2.5), (3, 'paid', 3.5)"


@pytest.fixture(params=["destructive", "temporal"])
def world(request: pytest.FixtureRequest, make_postgres: MakeWorld) -> PostgresWorld:
    made = make_postgres(mode=request.param, capture={"streaming": request.param == "temporal"})
    made.run(CREATE, ROWS)
    made.htap.sync_now()
    return made


def synced(world: PostgresWorld, *tables: str) -> None:
    report = world.htap.sync_now()
    assert not report.errors
    world.assert_equal(*(tables or ("orders",)))


def test_the_first_sync_copies(world: PostgresWorld) -> None:
    world.assert_equal("orders")
    assert world.htap.sync_now().events == 0
    assert world.htap.verify().equal


def test_every_kind_of_change(world: PostgresWorld) -> None:
    world.run(
        "update orders set status = 'sent' where id = 1",
        "insert into orders values (4, null, null)",
        "delete from orders where id = 2",
        "update orders set id = 30 where id = 3",
        "insert into orders values (4, 'again', 9) on conflict (id) do update set status = 'up'",
    )
    report = world.htap.sync_now()
    assert report.events == 5
    assert (report.inserted, report.updated, report.deleted) in {(2, 1, 2), (2, 2, 2)}
    world.assert_equal("orders")


def test_truncate_and_what_comes_behind_it(world: PostgresWorld) -> None:
    world.run("create table lines(id int primary key)", "insert into lines values (1), (2)")
    world.htap.register_table("lines")
    world.htap.sync_now()
    world.run(
        "insert into orders values (5, 'before', 1)",
        "truncate orders, lines",
        "insert into orders values (6, 'after', 1), (1, 'back', 2)",
        "insert into lines values (2)",
    )
    synced(world, "orders", "lines")


def test_savepoints_and_rollbacks(world: PostgresWorld) -> None:
    world.run(
        "begin",
        "insert into orders values (10, 'kept', 1)",
        "savepoint a",
        "insert into orders values (11, 'dropped', 1)",
        "rollback to a",
        "update orders set status = 'kept' where id = 1",
        "commit",
        "begin",
        "delete from orders",
        "rollback",
    )
    synced(world)


def test_two_phase_commit(world: PostgresWorld) -> None:
    world.run("begin", "insert into orders values (10, 'prepared', 1)", "prepare transaction 'p'")
    world.htap.sync_now()
    assert world.mirror_rows("orders") == world.source_rows("orders")
    world.run("commit prepared 'p'")
    synced(world)


def test_unchanged_toast_values_are_kept(world: PostgresWorld) -> None:
    world.run(
        "create table docs(id int primary key, title text, body text)",
        "alter table docs alter body set storage external",
        "insert into docs select i, 'title', repeat('body ' || i, 2000)"
        " from generate_series(1, 5) i",
    )
    world.htap.register_table("docs")
    world.htap.sync_now()
    world.run(
        "update docs set title = 'new'",
        "update docs set id = id + 100 where id < 3",
        "insert into docs values (50, 'late', repeat('late', 4000))",
        "update docs set title = 'later' where id = 50",
        "update docs set body = 'short' where id = 4",
        "alter table docs replica identity full",
        "update docs set title = 'full' where id = 5",
    )
    synced(world, "docs")
    assert world.htap.dead_letters().num_rows == 0
    assert world.htap.verify("docs").equal


#: Values that are stored out of line: one that the mirror can hold, and one that it cannot.
LONG = "(select array_agg(i) from generate_series(1, 3000) i)"
NESTED = "(select array_agg(array[i]) from generate_series(1, 3000) i)"


@BOTH_MODES
@pytest.mark.parametrize("buffered", [False, True])
def test_a_value_is_not_taken_from_a_row_that_was_passed_over(
    make_postgres: MakeWorld, tmp_path: Path, mode: str, *, buffered: bool
) -> None:
    """It came with a state that did not fit; in the mirror it stands as it was before that."""
    buffer = {"buffer": {"path": tmp_path / "cdc"}} if buffered else {}
    world = make_postgres(
        mode=mode,
        capture={"method": "logical", **buffer},
        tables=[{"name": "t", "types": {"v": "int32[]"}}],
    )
    world.run(
        "create table t(id int primary key, v int[], w numeric(6, 2))",
        "alter table t alter v set storage external",
        "insert into t select i, '{1}', 1 from generate_series(1, 4) i",
    )
    # Also where it is the copy that is brought up.
    late = (f"update t set v = {NESTED} where id = 4", "update t set w = 2 where id = 4")
    world.faults.do_at(Step.COPY_COMPLETE, lambda: world.run(*late))
    world.htap.sync_now()
    assert world.htap.dead_letters()["key"].to_pylist() == ['{"id": 4}']
    assert {row["w"] for row in world.present("t")} == {1}
    world.run("delete from t where id = 4")
    steps = [
        ("1 v", f"update t set v = {NESTED} where id = 1"),
        ("1 v", "update t set w = 2 where id = 1"),
        (
            "1 v 1 w",
            f"update t set v = {NESTED} where id = 1",
            "update t set w = 'NaN' where id = 1",
        ),
        ("1 v", "update t set w = 2 where id = 1"),
        # In one batch; where another column did not fit; behind a row that never did; by its key.
        ("1 v 2 v", f"update t set v = {NESTED} where id = 2", "update t set w = 3 where id = 2"),
        ("1 v 2 v 3 w", f"update t set v = {LONG}, w = 'NaN' where id = 3"),
        ("1 v 2 v 3 v", "update t set w = 4 where id = 3"),
        (
            "1 v 2 v 3 v 5 v",
            f"insert into t values (5, {LONG}, 'NaN')",
            "update t set w = 5 where id = 5",
        ),
        ("1 v 3 v 5 v 6 v", "update t set id = 6 where id = 2"),
    ]
    for expected, *statements in steps:
        world.run(*statements)
        world.htap.sync_now()
        found = world.htap.dead_letters().to_pylist()
        names = sorted(f"{json.loads(one['key'])['id']} {one['column_name']}" for one in found)
        assert " ".join(names) == expected
    shown = {(row["id"], len(row["v"]), row["w"]) for row in world.present("t")}
    assert shown == {(1, 1, 1), (3, 1, 1)}
    world.htap.repair("t")
    assert {json.loads(key)["id"] for key in world.htap.dead_letters()["key"].to_pylist()} == {1, 6}
    world.run("update t set w = 7", "update t set v = '{2}'")
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    world.assert_equal("t")
    assert world.htap.verify().equal


@pytest.mark.parametrize("identity", ["default", "full"])
@BOTH_MODES
def test_a_key_changes_alone_and_leaves_a_toast_value_alone(
    make_postgres: MakeWorld, mode: str, identity: str
) -> None:
    world = make_postgres(mode=mode, batch_rows=2)
    world.run(
        "create table docs(id int primary key, title text, body text)",
        "alter table docs alter body set storage external",
        f"alter table docs replica identity {identity}",
        "insert into docs select i, null, repeat('body ' || i, 2000) from generate_series(1, 3) i",
    )
    world.htap.sync_now()
    for change in ("where id = 1", "where id = 2", "where id = 102", ""):
        world.run(f"update docs set id = id + 100 {change}")
        synced(world, "docs")
        assert world.htap.left_out == {}


@BOTH_MODES
def test_values_that_were_sent_before_are_found_in_a_buffer(
    make_postgres: MakeWorld, tmp_path: Path, mode: str
) -> None:
    buffer = {"path": tmp_path / "cdc"}
    world = make_postgres(mode=mode, capture={"method": "logical", "buffer": buffer})
    world.run(
        "create table docs(id int primary key, title text, body text)",
        "alter table docs alter body set storage external",
        "insert into docs values (1, 'a', repeat('first ', 2000))",
    )
    world.htap.sync_now()
    world.crash()
    for statement in (
        "insert into docs values (2, 'b', repeat('second ', 2000))",
        "update docs set title = 'c'",
        "update docs set body = repeat('third ', 2000) where id = 1",
        "update docs set title = 'd'",
    ):
        world.run(statement)
        assert bridge(world.settings)
    synced(world, "docs")
    assert world.htap.dead_letters().num_rows == 0
    assert world.htap.verify("docs").equal


LOST_IDENTITY = {
    "nothing": ("alter table t replica identity nothing", "alter table t replica identity default"),
    "no key": ("alter table t drop constraint t_pkey", "alter table t add primary key (id)"),
    "deferrable": (
        "alter table t drop constraint t_pkey, add primary key (id) deferrable",
        "alter table t drop constraint t_pkey, add primary key (id)",
    ),
    "a partition": (
        "alter table part replica identity nothing",
        "alter table part replica identity default",
    ),
}


@pytest.mark.parametrize("lost", LOST_IDENTITY)
def test_a_table_that_lost_its_identity_can_be_updated_from_the_next_cycle_on(
    make_postgres: MakeWorld, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_postgres(mode="temporal", tables=[{"name": "t"}, {"name": "good"}])
    world.run(
        "create table good(id int primary key, v int)",
        "create table t(id int constraint t_pkey primary key, v int)"
        + (" partition by range (id)" if lost == "a partition" else ""),
    )
    if lost == "a partition":
        world.run("create table part partition of t for values from (0) to (10)")
    world.run("insert into t values (1, 1), (2, 2)", "insert into good values (1, 1)")
    world.htap.sync_now()
    losing, mending = LOST_IDENTITY[lost]
    world.run(losing)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        world.run("update t set v = 3 where id = 1")
    world.run("update good set v = 2")
    world.htap.sync_now()
    assert "without the versions of that time" in caplog.text
    world.run("update t set v = 3 where id = 1", "delete from t where id = 2")
    world.assert_equal("good")
    world.run(mending)
    synced(world, "t", "good")


def test_the_event_trigger_of_the_docs_leaves_no_moment_without_updates(
    make_postgres: MakeWorld,
) -> None:
    page = Path("docs/postgres.md").read_text()
    statements = next(block for block in page.split("```sql\n") if "event_trigger" in block)
    world = make_postgres(tables=[{"name": "t"}])
    world.run("create table t(id int constraint t_pkey primary key, v int)")
    world.run("insert into t values (1, 1)")
    world.htap.sync_now()
    world.run(statements.split("```")[0])
    world.run("alter table t drop constraint t_pkey", "update t set v = 2")
    assert world.htap.sync_now().errors
    world.run("alter table t add primary key (id)")
    synced(world, "t")


@pytest.mark.parametrize("identity", ["default", "full"])
def test_changes_come_under_every_replica_identity(world: PostgresWorld, identity: str) -> None:
    world.run(f"alter table orders replica identity {identity}")
    world.run(
        "update orders set status = 'x'",
        "update orders set id = id + 1000",
        "delete from orders where id = 1002",
    )
    synced(world)


@BOTH_MODES
@pytest.mark.parametrize("identity", ["default", "full"])
def test_any_part_of_a_key_changes_alone(
    make_postgres: MakeWorld, mode: str, identity: str
) -> None:
    world = make_postgres(mode=mode, capture={"method": "logical"})
    world.run(
        "create table t(a int, b int, c int, v int, primary key (a, b, c))",
        f"alter table t replica identity {identity}",
        "insert into t values (1, 1, 1, 0), (2, 2, 2, 0), (3, 3, 3, 0), (4, 4, 4, 0)",
    )
    world.htap.sync_now()
    for column in "abc":
        world.run(f"update t set {column} = {column} + 10")
        report = world.htap.sync_now()
        assert (report.inserted, report.deleted) == (4, 4)
        world.assert_equal("t")


def test_identity_by_another_unique_key(make_postgres: MakeWorld) -> None:
    world = make_postgres(tables=[{"name": "t", "primary_key": ["code"]}, {"name": "good"}])
    world.run(
        "create table t(id int primary key, code text not null, v int)",
        "create unique index t_code on t(code)",
    )
    assert_left_out(world, "t", "replica identity")
    world.run(
        "alter table t replica identity using index t_code",
        "insert into t values (1, 'a', 1), (2, 'b', 2)",
    )
    world.htap.sync_now()
    world.run("update t set code = 'c' where id = 1", "delete from t where id = 2")
    synced(world, "t")


def test_what_was_logged_by_another_key_meanwhile_is_said_to_be_missing(
    make_postgres: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_postgres(mode="temporal", tables=[{"name": "t"}])
    world.run(
        "create table t(id int primary key, code text not null, v int)",
        "create unique index t_code on t(code)",
        "insert into t values (1, 'a', 1), (2, 'b', 2)",
    )
    world.htap.sync_now()
    world.run(
        "alter table t replica identity using index t_code", "update t set v = 3 where id = 1"
    )
    assert "t" in world.htap.sync_now().errors
    world.run("alter table t replica identity default", "update t set v = 4 where id = 1")
    for _ in range(2):
        world.htap.sync_now()
    assert {row["v"] for row in world.versions("t") if row["id"] == 1} == {1, 4}
    told = [line for line in caplog.messages if "without the versions of that time" in line]
    assert len(told) == 1
    synced(world, "t")


@BOTH_MODES
def test_schemas_partitions_and_quoted_names(make_postgres: MakeWorld, mode: str) -> None:
    world = make_postgres(mode=mode)
    world.run(
        'create schema "Sales Dept"',
        'create table "Sales Dept"."Order.Items"("Key" int primary key, "select" text)',
        "create table parts(id int, day date, v int, primary key (id, day))"
        " partition by range (day)",
        "create table parts_a partition of parts for values from ('2026-01-01') to ('2026-02-01')",
        "create table parts_b partition of parts for values from ('2026-02-01') to ('2026-03-01')",
        "insert into parts values (1, '2026-01-05', 1), (2, '2026-02-05', 2)",
    )
    world.htap.sync_now()
    world.run(
        """insert into "Sales Dept"."Order.Items" values (1, 'a'), (2, 'it''s "q"')""",
        "update parts set day = '2026-02-20' where id = 1",
        "insert into parts values (3, '2026-01-31', 3)",
    )
    assert world.htap.tables() == ["Sales Dept.Order.Items", "parts"]
    world.htap.sync_now()
    assert world.htap.verify().equal
    world.assert_equal("parts")
    found = world.htap.query('select "select" from "Sales Dept"."Order.Items"', hint="olap")
    assert sorted(found["select"].to_pylist()) == ["a", 'it\'s "q"']


def test_columns_come_go_and_change(world: PostgresWorld) -> None:
    world.run(
        "update orders set status = 'before' where id = 1",
        "alter table orders add column note text default 'given'",
        "update orders set note = 'set' where id = 2",
    )
    synced(world)
    world.run("alter table orders rename column note to remark", "update orders set remark = 'r'")
    world.htap.sync_now()
    assert world.htap.verify().equal
    world.run("alter table orders drop column remark", "delete from orders where id = 1")
    world.htap.sync_now()
    assert world.htap.verify().equal
    world.run("alter table orders alter column id type bigint", "update orders set amount = 7")
    world.htap.sync_now()
    assert world.htap.verify().equal


def test_columns_are_added_and_dropped_by_call(world: PostgresWorld) -> None:
    world.htap.add_column("orders", "extra", pa.int32())
    world.run("update orders set extra = 5")
    synced(world)
    world.htap.drop_column("orders", "extra")
    world.htap.sync_now()
    assert world.htap.verify().equal


def test_a_table_dropped_and_made_again(world: PostgresWorld) -> None:
    world.run("drop table orders", CREATE, "insert into orders values (9, 'other', 1)")
    world.htap.sync_now()
    synced(world)


def test_a_slot_that_is_gone_leads_to_a_copy_by_difference(world: PostgresWorld) -> None:
    world.crash()  # a slot that is read cannot be dropped
    drop_slots(world.app, world.app.info.dbname)
    world.run("update orders set status = 'unseen' where id = 1", "delete from orders where id = 2")
    report = world.htap.sync_now()
    assert report.tables["orders"].copied_rows == 2
    assert (report.updated, report.deleted) == (1, 1)
    world.assert_equal("orders")
    world.run("insert into orders values (4, 'seen', 1)")
    synced(world)
    if world.mode == "temporal":
        assert len(world.versions("orders")) == 5


def test_the_slots_bytes_are_told(world: PostgresWorld) -> None:
    before = world.htap.sync_status().held_bytes["slot"]
    world.run("insert into orders select i, repeat('x', 1000) from generate_series(10, 2000) i")
    assert world.htap.sync_status().held_bytes["slot"] > before + 2_000_000


def test_the_slot_moves_on_and_idle_tables_do_not_hold_it(world: PostgresWorld) -> None:
    world.run("create table idle(id int primary key)")
    world.htap.register_table("idle")
    world.htap.sync_now()
    world.run("update orders set status = 'x'")
    world.htap.sync_now()
    behind = world.app.execute(
        "select pg_current_wal_flush_lsn() - confirmed_flush_lsn from pg_replication_slots"
        " where database = current_database()"
    ).fetchone()
    assert behind is not None
    assert behind[0] < 100_000


def test_the_slot_moves_on_though_only_others_write(
    make_postgres: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a server would keep all of its log for tables in which nothing happens."""
    monkeypatch.setattr(snapshot, "RETAINED_BYTES", 100_000)
    world = make_postgres(tables=[{"name": "orders"}])
    world.run(CREATE, ROWS, "create table others(v text)")
    world.htap.sync_now()
    world.run("insert into others select repeat('x', 1000) from generate_series(1, 1000)")
    world.htap.sync_now()
    behind = world.app.execute(
        "select pg_current_wal_flush_lsn() - confirmed_flush_lsn from pg_replication_slots"
        " where database = current_database() and not temporary"
    ).fetchall()
    assert all(found < 100_000 for (found,) in behind), behind
    assert behind


def test_a_server_killed_and_restarted(make_postgres: MakeWorld, server: Server) -> None:
    world = make_postgres(mode="temporal")
    world.run(CREATE, ROWS)
    world.htap.sync_now()
    world.run("update orders set status = 'x'")
    world.app.close()
    server.kill()
    world.app = psycopg.connect(world.dsn, autocommit=True)
    world.run("insert into orders values (4, 'after', 1)")
    world.htap.sync_now()  # on connections of its own making: those that were kept have ended
    synced(world)
    assert world.htap.query("select count(*) as n from orders")["n"].to_pylist() == [4]


def test_a_transaction_commits_where_the_log_ended_when_it_was_read(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that it wrote is before that place, and its commit is just behind it."""
    monkeypatch.setattr(snapshot, "RETAINED_BYTES", -1)  # each cycle records where it ended
    flushed = "select pg_logical_emit_message(true, 'all before is on the disk', '')"
    for key in (10, 11):
        with psycopg.connect(world.dsn) as writer:
            writer.execute("insert into orders values (%s, 'late', 1)", (key,))
            world.run(flushed)
            assert world.htap.sync_now().events == 0
        if key == 11:
            world.faults.arm(Step.COMMITTED)
        assert world.surviving(world.htap.sync_now) is (key == 11)
        world.assert_equal("orders")
    # The slot stands where the last commit begins, and the mirror behind it.
    report = world.htap.sync_now()
    assert (report.events, report.tables["orders"].copied_rows) == (0, 0)


def test_as_of_is_the_commits_instant(make_postgres: MakeWorld) -> None:
    world = make_postgres(mode="temporal")
    world.run(CREATE, ROWS)
    world.htap.sync_now()
    between: list[datetime] = []
    for status in ("a", "b"):
        found = world.app.execute("select clock_timestamp()").fetchone()
        assert found is not None
        between.append(found[0].astimezone(UTC))
        world.run(
            "begin", "select pg_sleep(0.02)", f"update orders set status = '{status}'", "commit"
        )
    world.htap.sync_now()
    statuses = [set(world.htap.as_of("orders", at)["status"].to_pylist()) for at in between]
    assert statuses == [{"new", "paid"}, {"a"}]
    assert set(world.htap.as_of("orders", datetime.now(UTC))["status"].to_pylist()) == {"b"}


def test_the_door_refuses_what_does_not_belong_there(make_postgres: MakeWorld) -> None:
    world = make_postgres()
    world.run(CREATE)
    with pytest.raises(QueryError, match="only reads"):
        world.htap.query("insert into orders values (9, 'no', 1)")
    with pytest.raises(QueryError, match="execute_batch"):
        world.htap.execute("begin")


def test_writes_through_the_door(world: PostgresWorld) -> None:
    assert world.htap.execute("update orders set status = %s where id < %s", ("door", 3)) == 2
    with pytest.raises(QueryError):
        world.htap.execute_batch(
            [("delete from orders", ()), ("insert into orders values ('x', 'y', 1)", ())]
        )
    found = world.htap.query("select id, amount, status from orders order by id", hint="oltp")
    assert found["status"].to_pylist() == ["door", "door", "paid"]
    assert str(found.schema.field("amount").type) == "decimal128(10, 2)"
    synced(world)


def test_a_server_that_cannot_be_reached_and_a_wrong_database(make_postgres: MakeWorld) -> None:
    world = make_postgres()
    world.dsn = world.dsn.replace("/test_", "/missing_")
    with pytest.raises(SourceError, match="refuses the connection"):
        world.htap.sync_now()


def test_a_long_transaction_holds_no_other_back(world: PostgresWorld) -> None:
    with psycopg.connect(world.dsn) as slow:
        slow.execute("insert into orders values (100, 'slow', 1)")
        world.run("insert into orders values (101, 'fast', 1)")
        synced(world)
        slow.commit()
    synced(world)


def test_no_loss_and_no_doubles_under_concurrent_writers(make_postgres: MakeWorld) -> None:
    world = make_postgres(mode="temporal")
    world.run("create table facts(id bigserial primary key, writer int, n int)")
    world.htap.sync_now()
    stop = threading.Event()

    def write(writer: int) -> None:
        with psycopg.connect(world.dsn) as connection:
            for n in range(120):
                for _ in range(1 + n % 5):
                    connection.execute("insert into facts(writer, n) values (%s, %s)", (writer, n))
                connection.execute("select pg_sleep(%s)", (0.003 * (n % 4),))
                if n % 20 == 19:
                    connection.rollback()
                connection.commit()

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        world.htap.sync_now()
    stop.set()
    synced(world, "facts")
    assert world.htap.verify().equal
    assert len(world.versions("facts")) == len(world.source_rows("facts"))


@pytest.mark.long
def test_a_copy_while_writers_run_has_no_false_versions(make_postgres: MakeWorld) -> None:
    world = make_postgres(mode="temporal", batch_rows=200)
    world.run(
        "create table facts(id int primary key, n int)",
        "insert into facts select i, 0 from generate_series(1, 2000) i",
    )
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(world.dsn, autocommit=True) as connection:
            n = 0
            while not stop.is_set():
                n += 1
                connection.execute("update facts set n = n + 1 where id = %s", (n % 2000 + 1,))
                connection.execute("delete from facts where id = %s", (n % 1999 + 1,))
                connection.execute(
                    "insert into facts values (%s, 7) on conflict do nothing", (n % 1999 + 1,)
                )

    thread = threading.Thread(target=write)
    thread.start()
    try:
        world.htap.sync_now()
        for _ in range(3):
            assert world.htap.verify().equal
    finally:
        stop.set()
        thread.join()
    synced(world, "facts")


def test_the_doctor_names_each_obstacle_and_its_cure(make_postgres: MakeWorld) -> None:
    world = make_postgres(tables=[{"name": "orders"}, {"name": "vague"}])
    world.run(CREATE, "create table vague(id int primary key)")
    assert validate(world.settings) == []
    world.run(
        "alter table vague replica identity nothing",
        "drop role if exists poor",
        "create role poor login",
        "grant select on orders to poor",
    )
    poor = world.settings.model_copy(
        update={
            "source": world.settings.source.model_copy(
                update={"dsn": SecretStr(world.dsn.replace("postgres:@", "poor@"))}
            )
        }
    )
    found = {finding.what: finding for finding in validate(poor)}
    assert "alter role" in found["the user may not use replication slots"].remedy
    assert "grant create" in found["the user may not create a publication"].remedy
    (vague,) = [finding for finding in found.values() if finding.table == "vague"]
    assert "replica identity" in vague.remedy


@pytest.mark.long
def test_a_slot_the_server_gave_up_is_named_and_survived(
    make_postgres: MakeWorld, server: Server
) -> None:
    world = make_postgres(mode="temporal")
    world.run(CREATE, ROWS)
    world.htap.sync_now()
    world.run("alter system set max_slot_wal_keep_size = '1MB'", "select pg_reload_conf()")
    try:
        for _ in range(4):
            world.run(
                "insert into orders select i, repeat('x', 900), 1"
                " from generate_series(1000, 20000) i on conflict (id) do update"
                " set status = repeat('y', 900)",
                "select pg_switch_wal()",
                "checkpoint",
            )
        assert any("is lost" in finding.what for finding in validate(world.settings))
        world.run("delete from orders where id = 1")
        report = world.htap.sync_now()
        assert report.tables["orders"].copied_rows > 0
        synced(world)
        assert len([v for v in world.versions("orders") if v["id"] == 1]) == 1
        assert not any("is lost" in finding.what for finding in validate(world.settings))
    finally:
        kept = SETTINGS["max_slot_wal_keep_size"]  # other tests are given this server, too
        world.run(f"alter system set max_slot_wal_keep_size = '{kept}'", "select pg_reload_conf()")


def test_a_quiet_server_whose_log_ends_with_a_page_is_read(
    make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next record is then placed behind a page's header, to where nothing is written yet."""
    monkeypatch.setattr("rhei_pipeline.sources.postgres.logical.source.SETTLE_SECONDS", 2.0)
    world = make_postgres(capture={"method": "logical"}, tables=[{"name": "t"}])
    world.run("create table t(id int primary key, v int)", "insert into t values (1, 1)")
    world.htap.sync_now()
    world.run("update t set v = 2")
    with psycopg.connect(world.dsn, autocommit=True) as other:
        fill_a_page_of_the_log(other)
        source: Any = engine_of(world.htap).source
        with source._row_view():  # what a sync asks before it may come to move the log on
            pass
        assert not world.htap.sync_now().errors
    world.assert_equal("t")


def fill_a_page_of_the_log(connection: psycopg.Connection[Any]) -> None:
    """Write messages until the last one ends exactly with a page, of 8192 bytes."""

    def left() -> int:
        """Return how much of the page is free; a new one begins with a header of 24 bytes."""
        found = connection.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchone()
        assert found
        return -int(found[0]) % 8192

    message = "select pg_logical_emit_message(false, '', repeat('a', %s))"
    for besides in (56, 48, 64, 40, 72) * 4:  # what a record takes besides its text
        if left() > 400:
            size = left() - besides
            connection.execute(
                "select pg_logical_emit_message(false, '', repeat('a', %s))", (size,)
            )
        if left() == 8192 - 24:
            return
        connection.execute(message, (600,))
    raise AssertionError("no message ended with its page")


def test_a_table_without_changes_holds_no_log_that_another_has_left(
    make_postgres: MakeWorld,
) -> None:
    world = make_postgres(capture={"method": "logical"}, tables=[{"name": "t"}, {"name": "quiet"}])
    world.run("create table t (id int primary key)", "create table quiet (id int primary key)")
    world.htap.sync_now()
    begun = engine_of(world.htap).mirror.ledger().watermarks["quiet"].position.order
    world.run("insert into t values (1)")
    report = world.htap.sync_now()
    marks = engine_of(world.htap).mirror.ledger().watermarks
    assert marks["quiet"].position.order == marks["t"].position.order > begun
    assert report.tables["quiet"].watermark == report.tables["t"].watermark


class Explained(Connection):
    """A connection that adds up how many rows of the catalogue its statements look at."""

    looked_at = 0.0

    def execute(self, query: Any, params: Any = None, **_: Any) -> Any:
        plan = b"explain (analyze, format json) " + query
        found = psycopg.Connection.execute(self, plan, params).fetchone()
        self.looked_at += looked_at(found[0][0]["Plan"]) if found else 0
        return psycopg.Connection.execute(self, query, params)


def looked_at(plan: dict[str, Any]) -> float:
    """Return how many rows a plan's scans have looked at."""
    own = plan.get("Actual Rows", 0) + plan.get("Rows Removed by Filter", 0)
    own *= plan.get("Actual Loops", 0) if "Relation Name" in plan else 0
    return float(own) + sum(map(looked_at, plan.get("Plans", ())))


def test_a_cycle_looks_at_each_row_of_the_catalogue_a_few_times_however_many_tables_there_are(
    make_postgres: MakeWorld,
) -> None:
    world, names = make_postgres(), [f"t{number}" for number in range(200)]
    world.run(
        *(f"create table {name}(id int primary key, v int unique)" for name in names),
        f"create publication looked_at for table {', '.join(names)}"
        " with (publish_via_partition_root = true)",
    )
    with Explained.connect(world.dsn) as connection:
        publication = Publication(lambda: connection, "looked_at")
        catalogue = SourceCatalog(lambda *_: publication.look())
        for name in names:
            catalogue.follow(name)
        catalogue.version(connection)
        assert len(publication.members()) == len(names)
        rows = "select (select count(*) from pg_class) + (select count(*) from pg_index)"
        (count,) = psycopg.Connection.execute(connection, rows).fetchone() or (0,)
        assert connection.looked_at < 20 * count


def test_values_of_the_log_are_views_only_where_they_are_large(dsn: str) -> None:
    """Python's collector looks at each view, and then at all objects that there are."""
    sizes = [0, 1, 1_000, 2**16, 2**16 + 1, 2**20]
    query = f"select decode(repeat('ab', n), 'hex') from unnest(array{sizes}) n"
    with closing(PostgresDatabase(dsn).connect()) as connection:
        found = list(copy_out_values(connection, query.encode()))
        assert [bytes(value) for value in found] == [b"\xab" * size for size in sizes]
        assert [gc.is_tracked(value) for value in found] == [size > 2**16 for size in sizes]
