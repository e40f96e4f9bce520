"""PostgreSQL by triggers: what applications do to tables, and what happens to the triggers."""

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from pydantic import SecretStr

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.cli.init import starter
from rhei_pipeline.errors import CaptureError, SourceBusyError
from rhei_pipeline.sources import acknowledged
from rhei_pipeline.testing.oracle import exact
from rhei_pipeline.wiring.source import unread, validate
from tests.support.fix_postgres import AnyServer, PostgresWorld, database
from tests.support.left_out import assert_left_out
from tests.support.parts import engine_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., PostgresWorld]

CREATE = "create table orders(id int primary key, status text, amount numeric(10, 2))"
ROWS = "insert into orders values (1, 'new', 1.5), (2, 'new', 2.5), (3, 'paid', 3.5)"
BOTH_MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])


@pytest.fixture
def make(make_postgres: MakeWorld) -> MakeWorld:
    """Make worlds that are captured by triggers."""

    def made(*statements: str, **options: Any) -> PostgresWorld:
        world = make_postgres(**{"capture": {"method": "trigger"}, **options})
        world.run(*statements)
        return world

    return made


@pytest.fixture(params=["destructive", "temporal"])
def world(request: pytest.FixtureRequest, make: MakeWorld) -> PostgresWorld:
    made = make(CREATE, ROWS, mode=request.param)
    made.htap.sync_now()
    return made


def synced(world: PostgresWorld, *tables: str) -> None:
    assert not world.htap.sync_now().errors
    world.assert_equal(*(tables or ("orders",)))


def log_of(world: PostgresWorld, table: str = "orders") -> str:
    found = world.app.execute("select %s::regclass::oid", (table,)).fetchone()
    assert found is not None
    return f"_rhei.log_{found[0]}"


def count(world: PostgresWorld, relation: str) -> int:
    found = world.app.execute(f"select count(*) from {relation}".encode()).fetchone()
    assert found is not None
    return int(found[0])


def test_every_kind_of_change(world: PostgresWorld) -> None:
    world.run(
        "update orders set status = 'sent' where id = 1",
        "insert into orders values (4, null, null)",
        "delete from orders where id = 2",
        "update orders set id = 30 where id = 3",
        "insert into orders values (4, 'again', 9) on conflict (id) do update set status = 'up'",
    )
    report = world.htap.sync_now()
    assert (report.inserted, report.updated, report.deleted) in {(2, 1, 2), (2, 2, 2)}
    world.assert_equal("orders")
    assert world.htap.sync_now().events == 0
    assert world.htap.verify().equal


def test_truncate_and_what_comes_before_and_behind_it(world: PostgresWorld) -> None:
    world.run(
        "insert into orders values (5, 'before', 1)",
        "begin",
        "truncate orders",
        "insert into orders values (1, 'behind', 1), (6, 'behind', 1)",
        "commit",
    )
    report = world.htap.sync_now()
    assert report.deleted >= 2
    world.assert_equal("orders")
    world.run("truncate orders")
    synced(world)


def test_savepoints_rollbacks_and_two_phases(world: PostgresWorld) -> None:
    world.run(
        "begin",
        "insert into orders values (7, 'kept', 1)",
        "savepoint undone",
        "update orders set status = 'undone'",
        "rollback to undone",
        "prepare transaction 'later'",
    )
    assert world.htap.sync_now().events == 0
    world.run("insert into orders values (8, 'meanwhile', 1)")
    synced(world)
    world.run("commit prepared 'later'")
    assert world.htap.sync_now().inserted == 1
    world.assert_equal("orders")


def test_keys_swap_their_rows(world: PostgresWorld) -> None:
    world.run(
        "begin",
        "update orders set id = -id",
        "update orders set id = case id when -1 then 2 when -2 then 1 else 3 end",
        "commit",
    )
    synced(world)
    world.run("update orders set id = id + 1000000")
    synced(world)


def test_what_the_applications_own_triggers_do_is_captured(make: MakeWorld) -> None:
    world = make(
        "create table t(id int primary key, v text, turns int default 0)",
        "create function again() returns trigger language plpgsql as $$ begin"
        " update t set turns = turns + 1 where id = new.id and turns < 3; return null; end $$",
        "create trigger zz after insert or update on t for each row execute function again()",
        "create function vanish() returns trigger language plpgsql as $$ begin"
        " delete from t where v = 'gone'; return null; end $$",
        "create trigger aa after insert on t for each statement execute function vanish()",
        mode="temporal",
    )
    world.htap.sync_now()
    world.run("insert into t values (1, 'a'), (2, 'gone'), (3, 'c')")
    synced(world, "t")
    assert [row["turns"] for row in world.versions("t", "id") if row["_rhei_valid_to"] is None] == [
        3,
        3,
    ]


@pytest.mark.parametrize(
    ("kind", "values", "changed"),
    [
        ("numeric", ("1.0", "2.50"), "update t set k = k::numeric(10, 3)"),
        ("char(4)", ("'a'", "'b'"), "update t set k = upper(k)"),
        ('text collate "C"', ("'a'", "'b'"), "update t set k = upper(k)"),
        ("mood", ("'sad'", "'glad'"), "update t set k = 'bad' where k = 'sad'"),
        ("code", ("'x'", "'y'"), "update t set k = k || 'z'"),
        ("uuid", ("gen_random_uuid()", "gen_random_uuid()"), "update t set k = gen_random_uuid()"),
        ("bytea", (r"'\x00'", r"'\xff'"), "update t set k = k || k"),
        ("interval", ("'24 hours'", "'3 days'"), "update t set k = '1 day' where k = '1 day'"),
        (
            "timestamptz",
            ("'2026-01-01'", "'infinity'"),
            "update t set k = '2026-01-02' where v = 1",
        ),
        ("int[]", ("'{1,2}'", "'{}'"), "update t set k = k || 3"),
    ],
)
@BOTH_MODES
def test_keys_of_every_kind(
    make: MakeWorld, kind: str, values: tuple[str, ...], changed: str, mode: str
) -> None:
    """Two spellings that the key's index calls equal are two keys of the mirror."""
    world = make(
        "create type mood as enum ('sad', 'bad', 'glad')",
        "create domain code as text check (value <> '')",
        f"create table t(k {kind} primary key, v int)",
        *(f"insert into t values ({value}, {v})" for v, value in enumerate(values)),
        mode=mode,
    )
    world.htap.sync_now()
    assert world.htap.verify().equal
    for statement in (changed, "update t set v = v + 1", "delete from t where v = 1"):
        world.run(statement)
        assert not world.htap.sync_now().errors
        assert world.htap.verify().equal, statement
        assert len(world.mirror_rows("t")) == count(world, "t")
    key = world.htap.query("select k from t where v = 2", hint="olap")["k"].to_pylist()[0]
    engine_of(world.htap).pipeline.dead_letters.read_again("t", [(key,)])
    world.htap.sync_now()
    assert world.htap.verify().equal


@pytest.mark.parametrize(
    "migration",
    [
        "alter table orders rename column id to number",
        "alter table orders drop column id cascade",
        "alter table orders alter column id type bigint",
        "alter table orders rename to commands",
        "alter table orders drop column status, drop column amount",
        "drop table _rhei.capture, _rhei.broken, _rhei.consumer",
        "drop schema _rhei cascade",
        "LOG",
    ],
)
def test_no_statement_of_an_application_fails_for_us(world: PostgresWorld, migration: str) -> None:
    if migration == "LOG":
        migration = f"drop table {log_of(world)}"
    world.run(migration)
    table = "commands" if "rename to" in migration else "orders"
    world.run(
        f"insert into {table} select from generate_series(1, 0)",
        f"delete from {table} where false",
        f"truncate {table}",
    )


@pytest.mark.long
def test_types_of_an_application_can_be_altered_and_dropped(make: MakeWorld) -> None:
    world = make(
        "create type mood as enum ('sad', 'glad')",
        "create domain code as text",
        "create type pair as (x int, at timestamp)",
        "create table t(k mood, c code, m mood[], p pair, primary key (k, c))",
        "insert into t values ('sad', 'a', '{sad,glad}', '(1,2026-01-02 03:04:05)')",
        mode="temporal",
    )
    world.htap.sync_now()
    world.run(
        "set datestyle = 'German'", "update t set p = '(2,05.04.2026 03:04:05)'", "reset datestyle"
    )
    assert not world.htap.sync_now().errors
    assert world.htap.verify().equal
    world.run(
        "alter table t alter k type text, alter c type text, drop column m, drop column p",
        "drop type pair, mood",
        "drop domain code",
        "insert into t values ('new', 'b')",
    )
    assert not world.htap.sync_now().errors
    assert world.htap.verify().equal


def test_writes_between_two_renames_are_found(world: PostgresWorld) -> None:
    """Afterwards the table looks as it did; only the triggers know that they met another one."""
    world.run(
        "alter table orders rename column id to number",
        "update orders set status = 'unseen' where number = 1",
        "alter table orders rename column number to id",
    )
    report = world.htap.sync_now()
    assert report.tables["orders"].copied_rows == 3
    world.assert_equal("orders")


@pytest.mark.parametrize("turned", ["disable trigger _rhei_update", "disable trigger all"])
def test_triggers_that_were_off_for_a_while_are_found(world: PostgresWorld, turned: str) -> None:
    world.run(
        f"alter table orders {turned}",
        "update orders set status = 'unseen' where id = 1",
        "alter table orders enable trigger all",
    )
    (finding,) = validate(world.settings)
    assert "triggers were disabled" in finding.what
    report = world.htap.sync_now()
    assert report.tables["orders"].copied_rows == 3
    world.assert_equal("orders")
    assert not validate(world.settings)


def test_keys_cannot_be_reported_to_a_log_that_is_gone(world: PostgresWorld) -> None:
    pipeline = engine_of(world.htap).pipeline
    world.run(f"drop table {log_of(world)}")
    pipeline._source.schema_version()
    with pytest.raises(CaptureError, match="its log table is gone"):
        pipeline.dead_letters.read_again("orders", [(1,)])
    synced(world)


def test_entries_that_were_deleted_are_missed(world: PostgresWorld) -> None:
    world.run("update orders set status = 'unseen' where id = 1", f"delete from {log_of(world)}")
    report = world.htap.sync_now()
    assert report.tables["orders"].copied_rows == 3
    world.assert_equal("orders")


def test_a_session_that_turns_other_triggers_off_is_captured(world: PostgresWorld) -> None:
    world.run(
        "set session_replication_role = replica",
        "update orders set status = 'copied'",
        "set session_replication_role = origin",
    )
    assert world.htap.sync_now().updated == 3
    world.assert_equal("orders")


def test_a_table_dropped_and_made_again_leaves_nothing_behind(world: PostgresWorld) -> None:
    former = log_of(world)
    world.run("drop table orders", CREATE, "insert into orders values (9, 'other', 1)")
    synced(world)
    remains = "pg_class where oid = to_regclass('{}')"
    assert count(world, remains.format(former)) == 0
    assert count(world, remains.format(log_of(world))) == 1
    assert count(world, "_rhei.capture") == count(world, "_rhei.consumer") == 1


def test_a_key_that_is_renamed(world: PostgresWorld) -> None:
    world.run("alter table orders rename column id to number")
    report = world.htap.sync_now()
    if world.mode == "destructive":
        world.assert_equal("orders")
    else:
        assert "its history has no 'number'" in str(report.errors["orders"])
        world.run("alter table orders rename column number to id", "delete from orders")
        synced(world)


def test_what_the_application_may_do_it_still_may(world: PostgresWorld, dsn: str) -> None:
    """Who may write a table need not know that it is captured, nor may it see the log."""
    world.run(
        "drop role if exists clerk",
        "create role clerk login",
        "grant select, insert, update, delete, truncate on orders to clerk",
    )
    with psycopg.connect(dsn, user="clerk", autocommit=True) as clerk:
        # A table of the clerk's own must not stand in for the catalogue's.
        clerk.execute("create temp table pg_attribute(attrelid oid)")
        clerk.execute("insert into orders values (4, 'clerk', 1)")
        clerk.execute("update orders set id = 5 where id = 4")
        clerk.execute("delete from orders where id = 1")
        world.run("grant usage on schema _rhei to clerk")  # somebody meant well
        relation = log_of(world).removeprefix("_rhei.log_")
        for intrusion in (
            f"select * from {log_of(world)}",
            "create temp table orders_too(id int);"
            " create trigger own after insert on orders_too for each statement"
            f" execute function _rhei.capture_{relation}()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                clerk.execute(intrusion.encode())
    synced(world)
    with psycopg.connect(dsn, user="clerk", autocommit=True) as clerk:
        clerk.execute("truncate orders")
    synced(world)
    world.run("drop owned by clerk", "drop role clerk")


def test_the_log_holds_no_more_than_is_needed(world: PostgresWorld) -> None:
    assert 0 < world.htap.sync_status().held_bytes["log"] < 1_000_000
    for _ in range(5):
        world.run("update orders set amount = amount + 1")
        logged = count(world, log_of(world))
        assert world.htap.sync_now().rows_pruned == logged - 1 > 0
        assert count(world, log_of(world)) == 1


@pytest.mark.parametrize("modes", [("destructive", "temporal"), ("temporal", "destructive")])
def test_two_mirrors_share_a_log(make: MakeWorld, modes: tuple[str, str]) -> None:
    first = make(
        CREATE, ROWS, mode=modes[0], tables=[{"name": "orders", "columns": ["id", "status"]}]
    )
    second = make(mode=modes[1], tables=[{"name": "orders", "columns": ["id", "amount"]}])

    def both() -> None:
        for one, columns in ((first, "id, status"), (second, "id, amount")):
            assert not one.htap.sync_now().errors
            found = one.app.execute(f"select {columns} from orders".encode()).fetchall()
            assert one.mirror_rows("orders") == frozenset(map(exact, found))
            assert one.htap.verify().equal

    both()
    both()
    first.run(
        "update orders set status = 'x', amount = 7 where id = 1", "delete from orders where id = 2"
    )
    reports = [one.htap.sync_now() for one in (first, second)]
    assert [report.tables["orders"].copied_rows for report in reports] == [0, 0]
    assert [(report.updated, report.deleted) for report in reports] == [(1, 1), (1, 1)]
    # The first one is away: its changes are kept for it, and it takes them up where it was.
    first.crash()
    for amount in range(3):
        second.run(f"update orders set amount = {amount}, status = '{amount}'")
        second.htap.sync_now()
    report = first.htap.sync_now()
    assert report.tables["orders"].copied_rows == 0
    assert report.updated >= 2
    assert first.htap.verify().equal
    # Each keeps the entry it noted, and of what both have nothing else is left.
    for _ in range(2):
        first.run("update orders set amount = amount + 1")
        for one in (first, second, first):
            one.htap.sync_now()
    assert count(first, log_of(first)) <= 2


def test_another_mirror_by_another_key_is_refused_by_name(make: MakeWorld) -> None:
    create = "create table t(a int primary key, b int not null unique)"
    first = make(create, "insert into t values (1, 2)")
    first.htap.sync_now()
    second = make(tables=[{"name": "t", "primary_key": ["b"]}])
    assert "another mirror captures it by another key" in str(second.htap.sync_now().errors["t"])
    first.run("insert into t values (3, 4)")
    synced(first, "t")


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        (("create table t(k int primary key) partition by list (k)",), "partitioned"),
        (
            ("create table p(k int primary key)", "create table t(primary key (k)) inherits (p)"),
            "inherited",
        ),
        (("create unlogged table t(k int primary key)",), "empties it after a crash"),
    ],
)
def test_a_table_whose_changes_would_go_by_unseen_is_refused(
    make: MakeWorld, statements: tuple[str, ...], reason: str
) -> None:
    world = make(*statements, "create table other(k int primary key)", tables=None)
    world.tables = [{"name": "t"}, {"name": "other"}]
    (finding,) = validate(world.settings)
    assert (finding.table, reason in finding.what) == ("t", True)
    world.tables.append({"name": "good"})
    assert_left_out(world, "t", reason)
    world.assert_equal("other")


def test_what_the_user_lacks_is_named_with_the_statement(make: MakeWorld, dsn: str) -> None:
    world = make(
        "drop role if exists poor",
        "create role poor login",
        CREATE,
        ROWS,
        "grant select on orders to poor",
        tables=[{"name": "orders"}],
    )
    poor = SecretStr(f"{dsn}&user=poor")
    settings = world.settings.model_copy(
        update={"source": world.settings.source.model_copy(update={"dsn": poor})}
    )
    found = {finding.what: finding for finding in validate(settings)}
    schema = found["the user may not create anything in the schema '_rhei'"]
    assert "create schema _rhei authorization" in schema.remedy
    assert found["the user does not own the table"].table == "orders"
    with HTAP(settings) as htap:
        assert "the source refuses" in str(htap.sync_now().errors["orders"])
    world.run("create schema _rhei authorization poor", "alter table orders owner to poor")
    assert not validate(settings)
    with HTAP(settings) as htap:
        assert htap.sync_now().inserted == 3
    world.run("drop owned by poor cascade", "drop role poor")


def test_a_server_that_is_too_old_is_named(
    make: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhei_pipeline.sources.postgres.versions.version", lambda _: 13)
    world = make(CREATE)
    with pytest.raises(CaptureError, match="older than PostgreSQL"):
        world.htap.sync_now()


def test_what_is_pending_is_known_without_the_mirror(world: PostgresWorld) -> None:
    mirror = engine_of(world.htap).mirror.mirror_id
    assert unread(world.settings, mirror) == 0
    world.run("update orders set amount = 0")
    assert unread(world.settings, mirror) == 3
    world.htap.sync_now()
    assert unread(world.settings, mirror) == 0
    assert unread(world.settings, "nobody") is None
    world.run("drop schema _rhei cascade")
    assert unread(world.settings, mirror) is None


def test_a_table_that_is_truncated_while_it_is_read_is_read_again(world: PostgresWorld) -> None:
    """The truncation is not in the snapshot, yet takes the rows that the snapshot should see."""
    world.run("update orders set amount = 0")
    table = engine_of(world.htap).pipeline.table("orders")
    after = engine_of(world.htap).mirror.ledger().watermarks["orders"].position
    with engine_of(world.htap).source.snapshot() as snapshot:
        world.run("truncate orders")
        with pytest.raises(SourceBusyError, match="rewritten while it was read"):
            list(snapshot.net_changes(table, after, 100))
    synced(world)


def test_a_long_transaction_holds_no_other_back(world: PostgresWorld, dsn: str) -> None:
    with psycopg.connect(dsn) as other:
        other.execute("update orders set status = 'long' where id = 1")
        world.run("update orders set status = 'short' where id = 2")
        assert world.htap.sync_now().updated == 1
        other.commit()
    synced(world)


def test_a_table_that_is_always_written_is_named_as_busy(
    make: MakeWorld, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhei_pipeline.sources.postgres.triggers.source._LOCK_ATTEMPTS", 1)
    monkeypatch.setattr("rhei_pipeline.sources.postgres.triggers.source._LOCK_TIMEOUT", "20ms")
    world = make(CREATE, ROWS)
    with psycopg.connect(dsn) as other:
        other.execute("update orders set status = 'long'")
        assert "has locked the table" in world.htap.sync_now().errors["orders"]
    synced(world)


def test_changes_wait_in_a_buffer(make: MakeWorld, tmp_path: Path) -> None:
    capture = {"method": "trigger", "buffer": {"kind": "rocksdb", "path": tmp_path / "cdc"}}
    world = make(CREATE, ROWS, mode="temporal", capture=capture)
    world.htap.sync_now()
    world.run("update orders set status = 'x'", "truncate orders", ROWS)
    synced(world)
    assert len(world.versions("orders")) == 9


def test_a_first_declaration_suits_a_server_whose_log_cannot_be_read(
    dsn: str, dating_dsn: str, tmp_path: Path
) -> None:
    for place in (dsn, dating_dsn):
        with psycopg.connect(place, autocommit=True) as connection:
            connection.execute(CREATE.encode())
            connection.execute(ROWS.encode())
    assert "capture: {method: logical}" in starter(dsn).text
    text = starter(dating_dsn).text
    assert "wal_level is 'replica'" in text
    declared = yaml.safe_load(text) | {
        "source": {"kind": "postgres", "dsn": dating_dsn},
        "registry": {"path": tmp_path / "registry.json"},
        "mirror": {"path": tmp_path / "mirror.duckdb"},
    }
    with HTAP(Settings(**declared)) as htap:
        assert htap.settings.capture_method == "trigger"
        assert htap.sync_now().inserted == 3


def test_a_mirror_with_nothing_to_do_says_daily_that_it_is_there(
    make: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make(mode="temporal")
    world.run("create table t(id int primary key)", "insert into t values (1)")
    world.htap.sync_now()

    def is_seen_after_a_sync() -> bool:
        world.run("update _rhei.consumer set seen_at = now() - interval '1 day'")
        world.htap.sync_now()
        found = world.app.execute(
            "select min(seen_at) > now() - interval '1 hour' from _rhei.consumer"
        ).fetchone()
        return found == (True,)

    assert not is_seen_after_a_sync()
    monkeypatch.setattr(acknowledged, "SAY_AGAIN_SECONDS", 0.0)
    assert is_seen_after_a_sync()


@pytest.fixture
def publisher(world: PostgresWorld, server: AnyServer) -> Iterator[psycopg.Connection]:
    """Make a database whose table `orders` fills that of a world, by a subscription."""
    slot = f"filling_{uuid.uuid4().hex}"
    for here in database(server):
        with psycopg.connect(here, autocommit=True) as connection:
            connection.execute(CREATE)
            connection.execute("create publication p for table orders")
            connection.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
            world.run(
                f"create subscription filling connection '{here}' publication p"
                f" with (create_slot = false, slot_name = '{slot}', copy_data = false)"
            )
            yield connection
            end_filling(world)


def end_filling(world: PostgresWorld) -> None:
    """Drop the subscription, if it is there; its slot is the publisher's."""
    mine = "select 1 from pg_subscription s join pg_database d on d.oid = s.subdbid"
    if world.app.execute(f"{mine} where d.datname = current_database()".encode()).fetchone():
        world.run(
            "alter subscription filling disable",
            "alter subscription filling set (slot_name = none)",
            "drop subscription filling",
        )


@pytest.mark.long
@pytest.mark.parametrize("is_restarted", [False, True])
def test_what_a_subscription_wrote_is_mirrored_once_it_is_gone(
    world: PostgresWorld, publisher: psycopg.Connection, *, is_restarted: bool
) -> None:
    assert "orders" in world.htap.sync_now().errors
    if is_restarted:
        world.crash()
    publisher.execute("insert into orders values (8, 'theirs', 9), (9, 'theirs', 9)")
    arrived = "select count(*) = 2 from orders where status = 'theirs'"
    while not (world.app.execute(arrived).fetchone() or (False,))[0]:
        time.sleep(0.01)
    end_filling(world)
    synced(world)
    assert world.htap.verify().equal
    world.run("update orders set amount = 10 where id = 9")
    report = world.htap.sync_now()
    assert (report.updated, report.inserted, report.deleted) == (1, 0, 0)
    world.assert_equal("orders")
