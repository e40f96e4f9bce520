"""A table of PostgreSQL that is left out, or a server that is refused, and what then helps."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from rhei_pipeline.errors import (
    CaptureError,
    RheiError,
    SettingsError,
    SourceBusyError,
    SourceError,
    TableFailedError,
)
from rhei_pipeline.model.reports import Finding
from rhei_pipeline.sources.postgres.logical import reader as log_reader
from rhei_pipeline.sources.postgres.logical import source as logical_source
from rhei_pipeline.sources.postgres.logical import validate as logical_validate
from rhei_pipeline.wiring.source import validate
from tests.support.fix_postgres import CHOSEN, AnyServer, PostgresWorld, database, started
from tests.support.parts import engine_of
from tests.support.refusals import filled_in, refused

MakeWorld = Callable[..., PostgresWorld]
Follow = Callable[[PostgresWorld, tuple[str, ...]], None]


def sql(*statements: str) -> Follow:
    """Follow a way out in the source."""
    return lambda world, _told: world.run(*statements)


def declared(**entry: Any) -> Follow:
    """Follow a way out in the declaration of the table."""

    def declare(world: PostgresWorld, _told: tuple[str, ...]) -> None:
        world.crash()
        good, table = world.tables or [{}, {}]
        world.tables = [good, {"name": table["name"], **entry}]

    return declare


def left_out(world: PostgresWorld, _told: tuple[str, ...]) -> None:
    """Leave the table out of the declaration."""
    world.crash()
    world.tables = [{"name": "good"}]


def captured(method: str) -> Follow:
    """Capture by another method."""

    def capture(world: PostgresWorld, _told: tuple[str, ...]) -> None:
        world.crash()
        world.capture = {"method": method}
        world.tables = [{**each, "polling": {"updated_at": "id"}} for each in world.tables or ()]

    return capture


@dataclass(frozen=True)
class Walk:
    """A table that is left out.

    Attributes:
        way_out: What its error says to do.
        follow: Does that; the next sync then takes the table in.
        made: What makes the table `t`.
        method: How changes are captured.
        name: The table's name.
        entry: What else is declared of it.
        storage: The mirror's.
    """

    way_out: str
    follow: Follow
    made: tuple[str, ...]
    method: str = "logical"
    name: str = "t"
    entry: dict[str, Any] = field(default_factory=dict)
    storage: str | None = None

    @property
    def is_gone(self) -> bool:
        """Whether the table is no more to be mirrored."""
        return self.follow is left_out


MADE = ("create table t(id int primary key, code int not null unique, v text)",)
ROW = "insert into t values (1, 1, 'a')"
OF_CASE = "leave one of them out with 'columns', or rename it in the source"
IDENTITY = (
    "run 'alter table ... replica identity default' (by primary key), 'using index' (by another"
    " unique key) or 'full'"
)
KEYLESS = "add one, or name a unique key without nulls as 'primary_key'"
PARTITIONED = (
    "create table t(id int primary key, v text) partition by range (id)",
    "create table t_low partition of t for values from (0) to (100)",
    "insert into t values (1, 'a')",
)
UNLOGGED_PART = "run 'alter table {} set logged', or capture it by 'polling'"
CASES = (
    'create table t(id int primary key, "A" text, a text)',
    "insert into t values (1, 'a', 'b')",
)
OTHER_ENGINES = "leave it out with 'columns', or mirror to the storage 'parquet' at another path"
FITTING = "use timestamptz, timestamp, date, integer, bigint, double precision, numeric or text"

WALKS = {
    "own schema": Walk(
        "leave it out of 'tables'",
        left_out,
        ("create schema _rhei", "create table _rhei.note(id int primary key)"),
        name="_rhei.note",
    ),
    "view": Walk(
        "mirror the tables it is made from, or make it a logged table",
        left_out,
        ("create view t as select * from good",),
    ),
    "unlogged": Walk(
        "mirror the tables it is made from, or make it a logged table",
        sql("alter table t set logged"),
        ("create unlogged table t(id int primary key)", "insert into t values (1)"),
    ),
    "no key": Walk(
        KEYLESS,
        sql("alter table t add primary key (id)"),
        ("create table t(id int not null unique)", "insert into t values (1)"),
        "trigger",
    ),
    "key named": Walk(
        KEYLESS,
        declared(primary_key=["id"]),
        ("create table t(id int not null unique)", "insert into t values (1)"),
        "trigger",
    ),
    "identity default": Walk(
        IDENTITY,
        sql("alter table t replica identity default"),
        (*MADE, ROW, "alter table t replica identity nothing"),
    ),
    "identity full": Walk(
        IDENTITY,
        sql("alter table t replica identity full"),
        (*MADE, ROW, "alter table t replica identity nothing"),
    ),
    "identity by index": Walk(
        IDENTITY,
        sql("alter table t replica identity using index t_code_key"),
        (*MADE, ROW),
        entry={"primary_key": ["code"]},
    ),
    "identity of a part": Walk(
        "run 'alter table {} replica identity default' (by primary key), or 'full'",
        lambda world, told: world.run(f"alter table {told[0]} replica identity default"),
        (*PARTITIONED, "alter table t_low replica identity nothing"),
    ),
    "an unlogged part": Walk(
        UNLOGGED_PART,
        lambda world, told: world.run(f"alter table {told[0]} set logged"),
        (*PARTITIONED, "alter table t_low set unlogged"),
    ),
    "an unlogged part, polled": Walk(
        UNLOGGED_PART,
        captured("polling"),
        (*PARTITIONED, "alter table t_low set unlogged"),
    ),
    "partitioned": Walk(
        "capture it by 'logical' or 'polling'", captured("logical"), PARTITIONED, "trigger"
    ),
    "unlogged, by triggers": Walk(
        "make it a logged table",
        sql("alter table t set logged"),
        ("create unlogged table t(id int primary key)", "insert into t values (1)"),
        "trigger",
    ),
    "partitioned, polled": Walk(
        "capture it by 'logical' or 'polling'", captured("polling"), PARTITIONED, "trigger"
    ),
    "case renamed": Walk(OF_CASE, sql('alter table t rename column "A" to b'), CASES),
    "case left out": Walk(OF_CASE, declared(columns=["id", "a"]), CASES),
    "no such column": Walk(
        "did you mean {}?",
        declared(columns=["id", "code"]),
        (*MADE, ROW),
        entry={"columns": ["id", "cod"]},
    ),
    "no such table": Walk("did you mean {}?", left_out, (), name="goood"),
    "unfit timestamp": Walk(
        FITTING,
        declared(polling={"updated_at": "at"}),
        (
            "create table t(id int primary key, ok bool, at timestamptz default now())",
            "insert into t values (1)",
        ),
        "polling",
        entry={"polling": {"updated_at": "ok"}},
    ),
}


@pytest.mark.parametrize("case", WALKS)
def test_a_table_that_is_left_out_is_taken_in(make_postgres: MakeWorld, case: str) -> None:
    walk = WALKS[case]
    polled = {"polling": {"updated_at": "id"}} if walk.method == "polling" else {}
    world = make_postgres(
        capture={"method": walk.method},
        tables=[{"name": "good", **polled}, {"name": walk.name, **walk.entry}],
        storage=walk.storage,
    )
    world.run("create table good(id int primary key, v text)", "insert into good values (1, 'a')")
    world.run(*walk.made)
    told = filled_in(walk.way_out, world.htap.sync_now().errors[walk.name])
    world.assert_equal("good")
    walk.follow(world, told)
    world.run("insert into good values (2, 'b')")
    assert not world.htap.sync_now().errors
    names = ["good"] if walk.is_gone else ["good", "t"]
    assert sorted(world.htap.tables()) == names
    for name in names:
        columns = ", ".join(f'"{n}"' for n in world.htap.table_schemas()[name].schema.names)
        asked = f"select {columns} from {name} order by 1"
        found = world.htap.query(asked, hint="olap").to_pylist()
        assert [tuple(row.values()) for row in found] == world.app.execute(
            asked.encode()
        ).fetchall()
        assert found


def test_columns_of_a_delta_table_differ_by_more_than_case(make_postgres: MakeWorld) -> None:
    world = make_postgres(storage="delta", tables=[{"name": "t"}])
    world.run(*CASES)
    world.htap.sync_now()
    world.crash()
    world.run("insert into t values (2, 'c', 'd')")
    filled_in(OTHER_ENGINES, world.htap.sync_now().not_published)
    world.crash()
    world.storage = "parquet"
    assert world.htap.sync_now().inserted == 2
    world.crash()
    (world.directory / "registry.json").unlink()  # it is the other mirror's by now
    world.storage, world.tables = "delta", [{"name": "t", "columns": ["id", "a"]}]
    assert world.htap.sync_now().not_published is None
    world.run("insert into t values (3, 'c', 'd')")
    assert world.htap.sync_now().not_published is None


def test_another_mirrors_key_is_used_here_too(make_postgres: MakeWorld) -> None:
    first = make_postgres(capture={"method": "trigger"}, tables=[{"name": "t"}])
    first.run(*MADE, ROW)
    first.htap.sync_now()
    other = [{"name": "t", "primary_key": ["code"]}]
    second = make_postgres(capture={"method": "trigger"}, tables=other)
    with refused("use 'primary_key: [{}]' here too", RheiError) as met:
        raise engine_of(second.htap).pipeline.left_out.get("t") or _first_error(second)
    second.crash()
    second.tables = [{"name": "t", "primary_key": met.told[0].split(", ")}]
    second.run("update t set v = 'b'")
    for world in (first, second):
        assert not world.htap.sync_now().errors
        world.assert_equal("t")


def _first_error(world: PostgresWorld) -> Exception:
    try:
        world.htap.sync_now()
    except RheiError as error:
        return error
    return engine_of(world.htap).pipeline.left_out["t"]


def test_a_log_table_that_is_gone_is_made_again(make_postgres: MakeWorld) -> None:
    world = make_postgres(capture={"method": "trigger"}, tables=[{"name": "t"}])
    world.run(*MADE, ROW)
    world.htap.sync_now()
    found = world.app.execute(
        "select relname from pg_class where relname like 'log\\_%' and relkind = 'r'"
    ).fetchone()
    assert found is not None
    world.run(f"drop table _rhei.{found[0]} cascade")
    pipeline = engine_of(world.htap).pipeline
    pipeline._source.schema_version()
    way_out = (
        "sync again: the log table is created again, and the table is copied by its difference"
    )
    with refused(way_out, CaptureError):
        pipeline.dead_letters.read_again("t", [(1,)])
    world.run("update t set v = 'unlogged'")
    assert world.htap.sync_now().tables["t"].updated == 1
    world.assert_equal("t")


@pytest.mark.long
def test_a_server_too_old_for_triggers_is_read_by_its_log(
    make_postgres: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_postgres(capture={"method": "trigger"}, tables=[{"name": "t"}])
    world.run(*MADE, ROW)
    with monkeypatch.context() as old:
        old.setattr("rhei_pipeline.sources.postgres.versions.version", lambda _: 12)
        with refused("upgrade it to {} or a later one", SourceError) as met:
            world.htap.sync_now()
        old.setattr("rhei_pipeline.sources.postgres.versions.version", lambda _: int(met.told[0]))
        way_out = "upgrade it, or use 'capture: {method: logical}' or 'polling'"
        with refused(way_out, CaptureError):
            world.htap.sync_now()
    world.htap.sync_now()
    world.assert_equal("t")
    for method in ("logical", "polling"):
        captured(method)(world, ())
        world.run("insert into t select max(id) + 1, max(id) + 1, 'b' from t")
        world.htap.sync_now()
        world.assert_equal("t")
        forget(world)


def test_a_subscribed_table_is_polled_or_captured_where_it_is_published(
    make_postgres: MakeWorld, server: AnyServer
) -> None:
    world = make_postgres(capture={"method": "trigger"}, tables=[{"name": "good"}, {"name": "t"}])
    for here in database(server):
        publisher = make_postgres(dsn=here, capture={"method": "trigger"}, tables=[{"name": "t"}])
        publisher.run("create table t(id int primary key)", "create publication p for table t")
        publisher.run("select pg_create_logical_replication_slot('ways_sub', 'pgoutput')")
        world.run(
            "create table good(id int primary key)",
            "create table t(id int primary key)",
            f"create subscription ways connection '{here}' publication p"
            " with (create_slot = false, slot_name = 'ways_sub', enabled = false)",
        )
        try:
            way_out = "capture from the server that publishes it, or use 'logical' or 'polling'"
            filled_in(way_out, world.htap.sync_now().errors["t"])
            for key, method in enumerate(("polling", "logical")):
                captured(method)(world, ())
                world.run(f"insert into t values ({key})")
                assert not world.htap.sync_now().errors
                world.assert_equal("t")
            publisher.run("insert into t values (2)")
            assert not publisher.htap.sync_now().errors
            publisher.assert_equal("t")
        finally:
            world.run("alter subscription ways set (slot_name = none)", "drop subscription ways")
            publisher.close()


@pytest.mark.long
def test_a_slot_of_before_its_publication_is_dropped_and_made_again(
    make_installed: MakeWorld,
) -> None:
    """Only before version 18 a server cannot read past such rows."""
    world = make_installed(tables=[{"name": "t"}], capture={"publication": "shop"})
    world.run(*MADE, ROW, "create publication shop for table t")
    world.htap.sync_now()
    world.run("drop publication shop", "update t set v = 'unseen'")
    world.run("create publication shop for table t")
    way_out = (
        "run: select pg_drop_replication_slot('{}'); the next sync creates the slot again, and"
        " copies tables by their difference"
    )
    with refused(way_out, CaptureError) as met:
        world.htap.sync_now()
    world.crash()
    world.run(f"select pg_drop_replication_slot('{met.told[0]}')")
    assert world.htap.sync_now().tables["t"].updated == 1
    world.assert_equal("t")
    forget(world)


# What is in the way at the server


@contextmanager
def slot_in_use(world: PostgresWorld) -> Iterator[psycopg.Connection]:
    """Read from the mirror's slot, as another process would."""
    (slot,) = world.app.execute(
        "select slot_name from pg_replication_slots where database = current_database()"
    ).fetchone() or ("",)
    with psycopg.connect(world.dsn, replication="database", autocommit=True) as other:
        options = f"(proto_version '1', publication_names '{slot}')"
        sent = f"START_REPLICATION SLOT {slot} LOGICAL 0/0 {options}"
        result = other.pgconn.exec_(sent.encode())
        assert result.status == psycopg.pq.ExecStatus.COPY_BOTH, result.error_message
        try:
            yield other
        finally:
            other.pgconn.finish()


def test_another_reader_of_the_slot_is_stopped(
    make_postgres: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_postgres(tables=[{"name": "t"}])
    world.run(*MADE, ROW)
    world.htap.sync_now()
    world.run("update t set v = 'b'")
    with monkeypatch.context() as hasty, slot_in_use(world):
        hasty.setattr(log_reader, "_RELEASE_SECONDS", 0.2)
        with refused("stop the other process that reads from it", SourceBusyError):
            world.htap.sync_now()
    world.htap.sync_now()
    world.assert_equal("t")
    # One that ends meanwhile is waited for.
    world.run("update t set v = 'c'")
    with slot_in_use(world) as other:
        threading.Timer(0.5, other.pgconn.finish).start()
        world.htap.sync_now()
    world.assert_equal("t")


def test_an_old_transaction_is_ended_and_the_copy_goes_on(
    make_postgres: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logical_source, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(logical_validate, "_LONG_SECONDS", 0)
    world = make_postgres(tables=[{"name": "t"}])
    world.run(*MADE, ROW)
    with psycopg.connect(world.dsn) as open_one:
        open_one.execute("insert into t values (2, 2, 'b')")
        way_out = "wait until it ends, or end it; the copy is tried again"
        assert way_out in world.htap.sync_now().errors["t"]
        with refused(way_out, TableFailedError):
            world.htap.initial_sync("t")
        (found,) = [each for each in validate(world.settings) if "open for" in each.what]
        (statement,) = filled_in("end it in its application, or: {}", found.remedy)
        world.run(statement)
        with pytest.raises(psycopg.OperationalError):
            open_one.execute("select 1")
    world.htap.sync_now()
    world.assert_equal("t")
    with psycopg.connect(world.dsn) as open_one:
        open_one.execute("insert into t values (3, 3, 'c')")
        threading.Timer(0.3, open_one.commit).start()
        monkeypatch.setattr(logical_source, "SETTLE_SECONDS", 60.0)
        world.htap.initial_sync("t")
    world.htap.sync_now()
    world.assert_equal("t")


def test_a_prepared_transaction_that_holds_up_a_copy_is_named_and_ended(
    make_postgres: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logical_source, "WRITERS_SECONDS", 0.1)
    monkeypatch.setattr(logical_validate, "_LONG_SECONDS", 0)
    world = make_postgres(tables=[{"name": "t"}])
    world.run(*MADE, ROW)
    world.htap.sync_now()
    world.run("begin", "insert into t values (2, 2, 'b')", "prepare transaction 'it''s two'")
    with refused("wait until it ends, or end it; the copy is tried again", TableFailedError):
        world.htap.initial_sync("t")
    (found,) = [each for each in validate(world.settings) if "open for" in each.what]
    assert found.what.startswith("prepared transaction 'it''s two'")
    world.run(*filled_in("end it in its application, or: {}", found.remedy))
    world.htap.initial_sync("t")
    world.assert_equal("t")


def forget(world: PostgresWorld) -> None:
    """Drop what the source keeps for this mirror."""
    source: Any = engine_of(world.htap).source
    source.forget_mirror()


def remedies(world: PostgresWorld) -> list[Finding]:
    return validate(world.settings)


@pytest.mark.long
def test_a_server_without_a_log_of_rows_is_configured(make_worlds: Any) -> None:
    settings = {"wal_level": "replica", "max_replication_slots": "0", "max_wal_senders": "0"}
    settings["max_slot_wal_keep_size"] = "-1"
    with started(CHOSEN, settings) as server:
        world = make_worlds(server.dsn())(tables=[{"name": "t"}])
        world.run(*MADE, ROW)
        way_out = (
            "run: alter system set wal_level = 'logical', and restart the server; or use"
            " 'capture: {method: trigger}'"
        )
        with refused(way_out, CaptureError):
            world.htap.sync_now()
        world.capture = {"method": "trigger"}
        world.htap.sync_now()
        world.assert_equal("t")
        world.crash()
        world.capture = {}
        named = {found.remedy for found in remedies(world)}
        level = "alter system set wal_level = 'logical'; then restart the server"
        slots = "alter system set max_replication_slots = ...; then restart the server"
        bound = "alter system set max_slot_wal_keep_size = ...; then select pg_reload_conf()"
        assert named == {level, slots, bound}
        world.run(bound.partition(";")[0].replace("...", "'2GB'"), "select pg_reload_conf()")
        assert {found.remedy for found in remedies(world)} == {level, slots}
        world.run(level.partition(";")[0], slots.partition(";")[0].replace("...", "4"))
        world.run("alter system set max_wal_senders = 4")
        world.app.close()
        server.kill()
        world.app = psycopg.connect(world.dsn, autocommit=True)
        assert remedies(world) == []
        world.run("insert into t values (2, 2, 'b')")
        world.htap.sync_now()
        world.assert_equal("t")
        _slot_in_danger(world)


def _slot_in_danger(world: PostgresWorld) -> None:
    """Then the same server keeps little of its log, and at last too little."""
    world.run("alter system set max_slot_wal_keep_size = '64MB'", "select pg_reload_conf()")
    world.run("insert into t values (3, 3, 'c')", "checkpoint")
    way_out = "sync now, or raise max_slot_wal_keep_size"
    (found,) = remedies(world)
    filled_in(way_out, found.remedy)
    world.htap.sync_now()
    world.assert_equal("t")
    world.run("alter system set max_slot_wal_keep_size = '2GB'", "select pg_reload_conf()")
    assert remedies(world) == []
    world.crash()
    world.run("alter system set max_slot_wal_keep_size = '1MB'", "select pg_reload_conf()")
    for _ in range(4):
        world.run(
            "update t set v = repeat(md5(random()::text), 100000)",
            "select pg_switch_wal()",
            "checkpoint",
        )
    world.run("update t set v = 'lost' where id = 1")
    (lost,) = [each for each in remedies(world) if "is lost" in each.what]
    filled_in("rhei sync copies every table again by its difference; history is kept", lost.remedy)
    world.htap.sync_now()
    world.assert_equal("t")
    assert not [each for each in remedies(world) if "is lost" in each.what]


def test_triggers_that_were_disabled_are_made_again(make_postgres: MakeWorld) -> None:
    world = make_postgres(capture={"method": "trigger"}, tables=[{"name": "t"}])
    world.run(*MADE, ROW)
    world.htap.sync_now()
    world.run("alter table t disable trigger all", "update t set v = 'unseen'")
    (found,) = remedies(world)
    way_out = "rhei sync creates them again, and copies the table by its difference"
    assert found.remedy == way_out
    world.htap.sync_now()
    world.assert_equal("t")
    assert remedies(world) == []


def test_a_polled_table_gets_its_index_and_its_clock(make_postgres: MakeWorld) -> None:
    entry: dict[str, Any] = {"name": "t", "polling": {"updated_at": "at"}}
    world = make_postgres(capture={"method": "polling"}, tables=[entry])
    world.run(
        "create table t(id int primary key, v text, at timestamptz not null)",
        "insert into t values (1, 'a', now())",
    )
    named = {found.remedy for found in remedies(world)}
    clock = "set it by a default and a trigger with the database's clock; then 'clock: database'"
    assert clock in named
    (index,) = named - {clock}
    filled_in("create index on {} ({})", index)
    world.run(
        index,
        "alter table t alter at set default clock_timestamp()",
        "create function stamp() returns trigger language plpgsql as"
        " $$begin new.at = clock_timestamp(); return new; end$$",
        "create trigger stamp before insert or update on t for each row execute function stamp()",
    )
    world.crash()
    world.tables = [{"name": "t", "polling": {"updated_at": "at", "clock": "database"}}]
    assert remedies(world) == []
    world.htap.sync_now()
    world.run("insert into t(id, v) values (2, 'b')", "update t set v = 'c' where id = 1")
    world.htap.sync_now()
    world.assert_equal("t")


@pytest.mark.long
def test_a_publication_is_made_and_made_whole_by_the_statement_that_is_shown(
    make_postgres: MakeWorld,
) -> None:
    world = make_postgres(tables=[{"name": "t"}], capture={"publication": "shop"})
    world.run(*MADE, ROW)
    for number, (broken, way_out) in enumerate(
        (
            ("select 1", "create publication {} for table {} with ({})"),
            ("alter publication shop set (publish = 'insert')", "alter publication {} set ({})"),
            (
                "alter publication shop set table t where (id > 100)",
                "alter publication {} drop table {}; {}",
            ),
            ("alter publication shop drop table t", "alter publication {} add table {}"),
        ),
        start=2,
    ):
        world.run(broken)
        (found,) = remedies(world)
        filled_in(way_out, found.remedy)
        world.crash()
        world.run(*found.remedy.split("; "), f"insert into t values ({number}, {number}, 'b')")
        assert remedies(world) == []
        world.htap.sync_now()
        world.assert_equal("t")
    forget(world)


def test_a_direct_way_leads_to_the_same_database(
    make_postgres: MakeWorld, server: AnyServer
) -> None:
    for other in database(server):
        world = make_postgres(source={"direct_dsn": other}, tables=[{"name": "t"}])
        world.run(*MADE, ROW)
        with refused("set it to the server and database behind the pooler", SettingsError):
            world.htap.sync_now()
        world.source = {"direct_dsn": world.dsn}
        world.htap.sync_now()
        world.assert_equal("t")
