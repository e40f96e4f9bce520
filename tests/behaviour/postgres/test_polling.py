"""Polling PostgreSQL: nothing is written to the server, nothing is lost where proved."""

import logging
import re
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rhei_pipeline.errors import QueryError, SourceBusyError
from rhei_pipeline.mirrors.duckdb.transaction import DuckDBTransaction
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.polling import Clock, Horizon, PollOptions
from rhei_pipeline.model.reports import Severity
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import Step
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.polling.source import PostgresPollingSource
from rhei_pipeline.wiring.engine import bridge, unseen_events
from rhei_pipeline.wiring.source import validate
from tests.support.fix_postgres import PostgresWorld
from tests.support.left_out import assert_left_out
from tests.support.parts import connection_of, engine_of

pytestmark = pytest.mark.turns

Make = Callable[..., PostgresWorld]

UNBUFFERED_STEPS = sorted(
    step
    for step in Step
    if step not in {Step.BUFFERING, Step.BRIDGED, Step.BRIDGE_ACKNOWLEDGED} and "range" not in step
)


@pytest.fixture
def make(make_postgres: Make) -> Make:
    """Make a world whose table `t(id, v, updated_at, deleted_at)` is polled."""

    def made(
        kind: str = "timestamptz", *, mode: str = "destructive", **polling: Any
    ) -> PostgresWorld:
        table = {"name": "t", "polling": {"clock": "database", **polling}}
        world = make_postgres(
            capture={"method": "polling"}, mode=mode, tables=[table], batch_rows=3
        )
        world.run(
            "drop table if exists t",
            f"create table t(id int primary key, v text, updated_at {kind}, deleted_at text)",
            "create index t_updated on t(updated_at, id)",
        )
        return world

    return made


def put(world: PostgresWorld, key: int, value: str, stamp: str = "now()") -> None:
    world.run(
        f"insert into t values ({key}, '{value}', {stamp}) on conflict (id) do update"
        " set v = excluded.v, updated_at = excluded.updated_at, deleted_at = excluded.deleted_at"
    )


def mirrored(world: PostgresWorld) -> dict[int, str]:
    found = world.htap.query("select id, v from t", hint="olap").to_pylist()
    return {row["id"]: row["v"] for row in found}


def test_what_is_written_arrives(make: Make) -> None:
    world = make()
    put(world, 1, "a")
    put(world, 2, "a")
    assert world.htap.sync_now().inserted == 2
    put(world, 2, "b")
    put(world, 3, "c")
    report = world.htap.sync_now()
    assert (report.events, report.inserted, report.updated) == (2, 1, 1)
    assert world.htap.sync_now().events == 0
    assert mirrored(world) == {1: "a", 2: "b", 3: "c"}
    assert world.htap.verify().equal
    assert world.htap.sync_status().tables["t"].proof == "proved"


KINDS = {
    "timestamptz": ("timestamptz", "now() - interval '{n} milliseconds'"),
    "timestamp": ("timestamp", "now() - interval '{n} milliseconds'"),
    "date": ("date", "current_date"),
    "seconds": ("bigint", "extract(epoch from now())::bigint"),
    "seconds in int": ("int", "floor(extract(epoch from now()))::int"),
    "milliseconds": ("bigint", "(extract(epoch from now()) * 1000)::bigint - {n}"),
    "microseconds": ("bigint", "(extract(epoch from now()) * 1000000)::bigint - {n}"),
    "double": ("double precision", "extract(epoch from now())::float8 - {n} / 1000.0"),
    "numeric": ("numeric", "extract(epoch from now()) - {n} / 1000.0"),
    "text": ("text", "(now() - interval '{n} milliseconds')::text"),
    "iso text": (
        "text",
        "to_char(now() - interval '{n} milliseconds', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')",
    ),
}


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("timestamptz", "destructive"),
        *zip(KINDS, ("temporal", "temporal", "destructive") * 4, strict=False),
    ],
)
def test_timestamps_of_every_kind(make: Make, kind: str, mode: str) -> None:
    declared, stamp = KINDS[kind]
    world = make(declared, mode=mode)
    for key in range(7):
        put(world, key, "a", stamp.format(n=key // 4))
    world.htap.sync_now()
    assert world.htap.sync_status().tables["t"].doubt is None
    for key in range(4, 11):
        put(world, key, "b", stamp.format(n=0))
    report = world.htap.sync_now()
    assert (report.events, report.inserted, report.updated) == (7, 4, 3)
    put(world, 4, "c", stamp.format(n=0))
    assert world.htap.sync_now().events == 1
    assert world.htap.verify().equal
    if kind != "numeric":  # text in the mirror
        world.assert_equal("t")
    if mode == "temporal":
        now = datetime.now(UTC).timestamp()
        ages = [now - version["_rhei_valid_from"].timestamp() for version in world.versions("t")]
        assert -1 < min(ages) <= max(ages) < 86_400 + 60


def test_a_transaction_that_began_long_before_the_poll_is_seen(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So much is read again anyway: else it would have to be open for longer than that.
    monkeypatch.setattr("rhei_pipeline.sources.postgres.polling.horizon._SHOWN_SECONDS", 0)
    world = make()
    put(world, 9, "a")
    world.htap.sync_now()
    with psycopg.connect(world.dsn) as other:
        other.execute("insert into t values (1, 'late', now())")
        time.sleep(0.01)
        for key in range(10, 14):
            put(world, key, "b")
            assert world.htap.sync_now().events == 1
        naive = world.app.execute("select max(updated_at) from t").fetchone()
        other.commit()
    assert naive is not None
    missed = world.app.execute("select count(*) from t where updated_at > %s", naive).fetchone()
    assert missed == (0,)
    assert world.htap.sync_now().events == 1
    world.assert_equal("t")


@pytest.mark.long
def test_a_prepared_transaction_is_seen_though_only_its_preparation_is_dated(make: Make) -> None:
    world = make()
    put(world, 9, "a")
    world.htap.sync_now()
    with psycopg.connect(world.dsn, autocommit=True) as other:
        other.execute("begin")
        other.execute("insert into t values (1, 'late', now())")
        time.sleep(1.2)
        other.execute("prepare transaction 'late'")
        for key in range(10, 13):
            put(world, key, "b")
            world.htap.sync_now()
            if key == 11:
                world.crash()
        other.execute("commit prepared 'late'")
    assert world.htap.sync_now().inserted == 1
    world.assert_equal("t")


def test_one_that_was_prepared_before_the_first_copy_is_seen(make: Make) -> None:
    world = make()
    with psycopg.connect(world.dsn, autocommit=True) as other:
        put(world, 9, "a")
        other.execute("begin")
        other.execute("insert into t values (1, 'late', '2020-01-01')")
        other.execute("prepare transaction 'early'")
        world.htap.sync_now()
        put(world, 10, "b")
        world.htap.sync_now()
        world.crash()
        other.execute("commit prepared 'early'")
    assert world.htap.sync_now().inserted == 1
    world.assert_equal("t")


def test_a_savepoints_rows_are_seen_with_their_transaction(make: Make) -> None:
    world = make()
    world.htap.sync_now()
    with psycopg.connect(world.dsn) as other:
        other.execute("insert into t values (1, 'a', now())")
        other.execute("savepoint s")
        other.execute("insert into t values (2, 'a', now())")
        other.execute("release s")
        put(world, 3, "b")
        assert world.htap.sync_now().events == 1
        other.commit()
    assert world.htap.sync_now().events == 2
    world.assert_equal("t")


def test_a_partial_mirror_need_not_hold_the_timestamp(make_postgres: Make) -> None:
    tables = [{"name": "public.t", "columns": ["id", "v"], "polling": {"updated_at": "Changed At"}}]
    world = make_postgres(capture={"method": "polling"}, tables=tables)
    world.run('create table t(id int primary key, v text, w text, "Changed At" timestamptz)')
    world.run("insert into t values (1, 'a', 'w', now())")
    world.htap.sync_now()
    world.run("update t set v = 'b', \"Changed At\" = now()")
    assert world.htap.sync_now().updated == 1
    assert world.htap.query("select * from t").to_pylist() == [{"id": 1, "v": "b"}]


def test_a_row_is_deleted_softly_by_a_flag(make: Make) -> None:
    world = make(mode="temporal", deletes="soft_delete:deleted_at")
    world.run("alter table t alter deleted_at type boolean using deleted_at::boolean")
    put(world, 1, "a")
    put(world, 2, "b")
    world.htap.sync_now()
    for value, expected in (("true", [2]), ("false", [1, 2]), ("true", [2]), ("null", [1, 2])):
        world.run(f"update t set deleted_at = {value}, updated_at = now() where id = 1")
        world.htap.sync_now()
        alive = world.htap.query("select id from t where _rhei_valid_to is null order by id")
        assert alive["id"].to_pylist() == expected
        assert world.htap.verify().equal


def horizon(world: PostgresWorld) -> Horizon:
    mark = engine_of(world.htap).mirror.ledger().watermarks["t"]
    found = Horizon.read(mark.position.proof, "updated_at")
    assert found is not None
    return found


def test_reconciliation_keeps_to_its_interval(make: Make) -> None:
    world = make(deletes="reconcile", reconcile_seconds=3600)
    for key in range(3):
        put(world, key, "a")
    world.htap.sync_now()
    world.run("delete from t where id = 0")
    put(world, 5, "b")
    assert world.htap.sync_now().deleted == 0
    assert world.faults.seen.count(Step.AUDITED) == 1
    world.run("delete from t where id = 5")  # the newest one: that shows at once
    assert world.htap.sync_now().deleted == 2


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize(("key", "former"), [("id, v", False), ("id, v", True), ("n", False)])
def test_another_key_is_followed_though_the_newest_row_is_known_by_the_old_one(
    make: Make, monkeypatch: pytest.MonkeyPatch, mode: str, key: str, *, former: bool
) -> None:
    world = make(mode=mode)
    world.run("alter table t alter id type text, add n int generated always as identity")
    for number in range(3):
        world.run(f"insert into t values ('k{number}', 'v{number}', now())")
    text = Horizon.text
    if former:  # its version had no such field
        monkeypatch.setattr(Horizon, "text", lambda found: text(found).replace(',"kinds":[25]', ""))
    world.htap.sync_now()
    monkeypatch.undo()
    assert horizon(world).kinds == (None if former else (25,))
    world.run("alter table t drop constraint t_pkey", f"alter table t add primary key ({key})")
    world.run("insert into t values ('k9', 'v9', now())", "delete from t where id = 'k1'")
    assert not world.htap.sync_now().errors
    world.htap.repair("t")  # deletes are not looked for otherwise
    assert world.htap.verify().equal


def test_an_application_that_may_not_see_others_is_unproved(make: Make, dsn: str) -> None:
    world = make(reconcile_seconds=0)
    put(world, 1, "a")
    world.run(
        "do $$ begin create role poor login; exception when duplicate_object then null; end $$",
        "grant select on t to poor",
    )
    admin = world.dsn
    world.dsn = re.sub(r"postgres@|postgres:@|//postgres", "//poor", admin).replace("////", "//")
    world.htap.sync_now()
    assert "pg_read_all_stats" in str(world.htap.sync_status().tables["t"].doubt)
    put(world, 2, "late", "'2020-01-01'")
    assert world.htap.sync_now().inserted == 1  # by the audit, which is due now
    world.crash()
    world.run("grant pg_read_all_stats to poor")
    put(world, 3, "late", "'2020-01-01'")
    assert world.htap.sync_now().inserted == 1  # what went by under the doubt is found once more
    assert horizon(world).doubted is False
    assert world.htap.sync_status().tables["t"].doubt is None
    world.run("revoke pg_read_all_stats from poor")
    world.crash()
    world.dsn = admin


@pytest.mark.parametrize(
    ("kind", "stamp", "doubt"),
    [
        ("timestamptz", "now() + interval '1 hour'", "ahead of the database's clock"),
        ("timestamptz", "'infinity'", "ahead of the database's clock"),
        ("text", "'last Tuesday'", "unknown or several forms"),
        ("bigint", "7", "unknown or several forms"),
        ("text", "to_char(now(), 'YYYY-MM-DD HH24:MI:SS')", None),
    ],
)
def test_a_stamp_that_cannot_be_the_databases_own_is_named(
    make: Make, kind: str, stamp: str, doubt: str | None
) -> None:
    world = make(kind, mode="temporal")
    put(world, 1, "odd", stamp)
    world.htap.sync_now()
    found = world.htap.sync_status().tables["t"].doubt
    assert (doubt is None and found is None) or str(doubt) in str(found)
    put(world, 2, "later", stamp)
    assert world.htap.sync_now().inserted == 1
    assert world.htap.sync_now().events == 0
    assert world.htap.verify().equal


def test_versions_counted_upwards_are_followed_though_unproved(make: Make) -> None:
    world = make("bigint", reconcile_seconds=3600)
    put(world, 1, "a", "5")
    world.htap.sync_now()
    put(world, 2, "b", "6")
    put(world, 3, "c", "7")
    assert world.htap.sync_now().events == 2
    assert world.htap.sync_status().tables["t"].proof == "unproved"


def test_an_applications_clock_that_lags_is_followed_though_unproved(make: Make) -> None:
    world = make(clock="application", reconcile_seconds=3600)
    put(world, 1, "a", "now() - interval '1 hour'")
    world.htap.sync_now()
    put(world, 2, "b", "now() - interval '1 hour'")
    assert world.htap.sync_now().events == 1
    assert mirrored(world) == {1: "a", 2: "b"}


def test_local_time_that_goes_back_in_autumn_is_unproved(make: Make) -> None:
    world = make("timestamp")
    name = world.app.info.dbname
    world.run(f"alter database {name} set timezone = 'America/New_York'")
    world.app.close()
    world.app = psycopg.connect(world.dsn, autocommit=True)
    put(world, 1, "a")
    world.htap.sync_now()
    assert "goes back in autumn" in str(world.htap.sync_status().tables["t"].doubt)
    world.run(f"alter database {name} set timezone = 'Asia/Kolkata'")
    world.app.close()
    world.app = psycopg.connect(world.dsn, autocommit=True)
    world.crash()
    world.run("delete from t")
    put(world, 2, "b")
    world.htap.sync_now()
    put(world, 3, "c")
    assert world.htap.sync_now().inserted == 1
    assert world.htap.sync_status().tables["t"].doubt is None


@pytest.mark.parametrize("deletes", ["disabled", "reconcile"])
def test_an_older_state_put_back_is_found(make: Make, deletes: str) -> None:
    world = make(deletes=deletes)
    put(world, 1, "a")
    put(world, 2, "a")
    world.htap.sync_now()
    world.run("create table backup as select * from t")
    put(world, 2, "later")
    put(world, 3, "later")
    world.htap.sync_now()
    world.run("truncate t", "insert into t select * from backup")
    put(world, 4, "after")
    world.htap.sync_now()
    world.assert_equal("t")


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        ({"xid": lambda at: at + 1_000_000}, "older state"),
        ({"clock": lambda at: at + 10_000_000}, "clock went back"),
        ({"origin": lambda at: at.replace(":00000001:", ":00000002:")}, "promoted"),
        ({"origin": lambda at: "1" + at}, "another one"),
    ],
)
def test_signs_of_another_server_are_seen(
    make: Make, change: dict[str, Callable[[Any], Any]], sign: str, caplog: Any
) -> None:
    world = make()
    put(world, 1, "a")
    world.htap.sync_now()
    found = horizon(world)
    ((name, changed),) = change.items()
    proof = replace(found, **{name: changed(getattr(found, name))}).text()
    with engine_of(world.htap).mirror.transaction() as transaction:
        assert isinstance(transaction, DuckDBTransaction)
        connection_of(transaction).execute("update _rhei_watermark set proof = ?", [proof])
    world.crash()
    put(world, 2, "b", "'2020-01-01'")
    assert [world.htap.sync_status().tables["t"].lag_events for _ in range(3)] == [None] * 3
    world.htap.sync_now()
    assert mirrored(world) == {1: "a", 2: "b"}
    assert caplog.text.count(sign) == 1


def test_a_table_made_again_is_found(make: Make) -> None:
    world = make()
    put(world, 1, "a")
    world.htap.sync_now()
    world.run(
        "create table other(like t including all)",
        "insert into other values (1, 'a', '2020-01-01'), (5, 'e', '2020-01-01')",
        "drop table t",
        "alter table other rename to t",
    )
    world.htap.sync_now()
    world.assert_equal("t")


@pytest.mark.parametrize("partitioned", [False, True])
def test_a_table_that_is_truncated_while_it_is_read_is_read_again(
    make: Make, *, partitioned: bool
) -> None:
    """The truncation is not in the snapshot, yet takes the rows that the snapshot should see."""
    world = make(deletes="reconcile", reconcile_seconds=0)
    if partitioned:
        world.run(
            "drop table t",
            "create table t(id int primary key, v text, updated_at timestamptz, deleted_at text)"
            " partition by range (id)",
            "create table t_all partition of t default",
            "create index on t(updated_at, id)",
        )
    put(world, 1, "a")
    world.htap.sync_now()
    table = engine_of(world.htap).pipeline.table("t")
    with engine_of(world.htap).source.snapshot() as snapshot:
        world.run("truncate t")
        with pytest.raises(SourceBusyError, match="rewritten while it was read"):
            snapshot.head(table)
    world.htap.sync_now()
    world.assert_equal("t")
    assert mirrored(world) == {}


@pytest.mark.parametrize("names", [["t"], ["t", "u"]])
def test_rows_that_a_rewritten_table_hides_are_not_passed_over(
    make_postgres: Make, names: list[str]
) -> None:
    """A mirror without rows misses none where the table looks empty; two are asked together."""
    declared = [{"name": name, "polling": {"clock": "database"}} for name in names]
    world = make_postgres(capture={"method": "polling"}, tables=declared)
    for name in names:
        columns = "id int primary key, v text, updated_at timestamptz, deleted_at text"
        world.run(f"create table {name}({columns})")
    world.htap.sync_now()
    source, followed = engine_of(world.htap).source, engine_of(world.htap).pipeline.tables
    with source.snapshot() as snapshot:
        positions = {name: snapshot.head(table) for name, table in followed.items()}
    put(world, 1, "a")
    with source.snapshot() as snapshot:
        world.run("alter table t add column rewritten float default random()")
        for name, table in followed.items():
            with (
                nullcontext() if name == "u" else pytest.raises(SourceBusyError, match="rewritten")
            ):
                snapshot.proves(table, positions[name])
                assert snapshot.pending(table, positions[name]) == 0
    world.htap.sync_now()
    world.assert_equal("t")


def test_rows_that_one_rewritten_partition_hides_are_not_passed_over(make_postgres: Make) -> None:
    """The other partition still shows the newest row, so that the table looks read to its end."""
    declared = [{"name": "t", "polling": {"clock": "database"}}]
    world = make_postgres(capture={"method": "polling"}, tables=declared)
    world.run(
        "create table t(id int primary key, v text, updated_at timestamptz, deleted_at text)"
        " partition by range (id)",
        "create table t_low partition of t for values from (0) to (5)",
        "create table t_high partition of t default",
        "create index on t(updated_at, id)",
    )
    put(world, 1, "a")
    put(world, 9, "a")
    world.htap.sync_now()
    table, source = engine_of(world.htap).pipeline.table("t"), engine_of(world.htap).source
    with source.snapshot() as snapshot:
        position = snapshot.head(table)
    put(world, 1, "b")
    put(world, 9, "b")
    with source.snapshot() as snapshot:
        world.run(
            "alter table t detach partition t_low",
            "alter table t_low add column rewritten float default random()",
            "alter table t_low drop column rewritten",
            "alter table t attach partition t_low for values from (0) to (5)",
        )
        assert snapshot.pending(table, position) == 1
        with pytest.raises(SourceBusyError, match="rewritten"):
            snapshot.head(table)
    world.htap.sync_now()
    world.assert_equal("t")


def test_nothing_is_created_in_the_source(make: Make) -> None:
    world = make(deletes="reconcile", reconcile_seconds=0)
    put(world, 1, "a")
    before = world.app.execute("select count(*), max(oid) from pg_class").fetchone()
    world.htap.sync_now()
    world.htap.verify()
    assert world.app.execute("select count(*), max(oid) from pg_class").fetchone() == before
    assert world.app.execute("select count(*) from pg_publication").fetchone() == (0,)
    source = engine_of(world.htap).source
    assert isinstance(source, PostgresPollingSource)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        connection_of(source).execute("delete from public.t")
    with pytest.raises(QueryError, match="source is read-only"):
        world.htap.execute("delete from t")


@pytest.fixture
def statements(make: Make, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record what the source's connection runs."""
    seen: list[str] = []
    execute = psycopg.Cursor.execute

    def recorded(self: Any, query: Any, *args: Any, **more: Any) -> Any:
        seen.append(query.decode() if isinstance(query, bytes) else str(query))
        return execute(self, query, *args, **more)

    monkeypatch.setattr(psycopg.Cursor, "execute", recorded)
    return seen


def test_an_idle_poll_does_not_look_at_tables(make: Make, statements: list[str]) -> None:
    world = make(deletes="reconcile", reconcile_seconds=0)
    put(world, 1, "a")
    world.htap.sync_now()
    world.htap.sync_now()
    statements.clear()
    world.htap.sync_now()
    assert 5 < len(statements) < 20
    assert not [text for text in statements if 'from "public"."t"' in text]


@pytest.mark.long
def test_a_poll_begins_where_the_last_one_ended_though_nothing_was_found(
    make: Make, statements: list[str]
) -> None:
    """Traffic of other tables does not make a bulk of rows be looked at again and again."""
    world = make()
    world.run("create table other(id int)")
    world.run("insert into t select g, 'a', now() from generate_series(1, 100) g")
    world.htap.sync_now()
    time.sleep(1.1)
    world.run("insert into other values (1)")
    world.htap.sync_now()
    source = engine_of(world.htap).source
    assert isinstance(source, PostgresPollingSource)
    low = source._memory.windows["t"].low
    behind = "select count(*) from t where updated_at >= to_timestamp(%s / 1e6)"
    assert world.app.execute(behind, (low,)).fetchone() == (0,)
    put(world, 3, "b")
    assert world.htap.sync_now().updated == 1


def test_a_missing_index_is_named_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    world = make()
    put(world, 1, "a")
    with caplog.at_level(logging.WARNING):
        world.htap.sync_now()
        assert "no index begins with" not in caplog.text
        world.crash()
        world.run("drop index t_updated")
        world.htap.sync_now()
        world.htap.sync_now()
    assert caplog.text.count('create index on "public"."t" ("updated_at", "id")') == 1


@pytest.mark.parametrize(
    ("polling", "message"),
    [
        ({"updated_at": "updatedat"}, r"'polling.updated_at' names column 'updatedat'.*did"),
        ({"updated_at": "flag"}, "cannot hold timestamps"),
        ({"deletes": "soft_delete:gone"}, "'polling.deletes' names column 'gone'"),
    ],
)
def test_columns_that_cannot_be_polled_by_are_named(
    make: Make, polling: dict[str, str], message: str
) -> None:
    world = make(**polling)
    world.run("alter table t add column flag boolean")
    world.tables = [*(world.tables or ()), {"name": "good"}]
    assert_left_out(world, "t", message)


def test_touched_keys_of_every_kind_are_read_again(make_postgres: Make) -> None:
    tables = [{"name": "u", "polling": {"clock": "database"}}]
    world = make_postgres(capture={"method": "polling"}, tables=tables)
    world.run(
        "create table u(a uuid, b smallint, c text, updated_at timestamptz, primary key (a, b))",
        "insert into u values ('00000000-0000-0000-0000-000000000001', 1, 'x', '2020-01-01')",
    )
    world.htap.sync_now()
    world.run("update u set c = 'it''s \\ silent'")
    present = ("00000000-0000-0000-0000-000000000001", 1)
    gone = ("00000000-0000-0000-0000-000000000002", 7)
    engine_of(world.htap).pipeline.dead_letters.read_again("u", [present, gone])
    report = world.htap.sync_now()
    assert (report.events, report.updated) == (2, 1)
    found = world.htap.query("select c from u", hint="olap")
    assert found["c"].to_pylist() == ["it's \\ silent"]


def test_a_misfit_is_a_dead_letter_until_it_is_mended(make_postgres: Make) -> None:
    tables = [{"name": "u", "types": {"n": "int64"}, "polling": {"clock": "database"}}]
    world = make_postgres(capture={"method": "polling"}, tables=tables)
    world.run("create table u(id int primary key, n text, updated_at timestamptz)")
    world.run("insert into u values (1, '5', now())")
    world.htap.sync_now()
    world.run("update u set n = 'five', updated_at = now()")
    assert world.htap.sync_now().dead_letters == 1
    assert world.htap.query("select n from u").to_pylist() == [{"n": 5}]
    world.run("update u set n = '6'")
    world.htap.replay_dead_letters()
    assert world.htap.query("select n from u").to_pylist() == [{"n": 6}]
    assert world.htap.dead_letters().num_rows == 0


def test_what_is_pending_is_known_without_the_mirror(make: Make) -> None:
    world = make()
    assert unseen_events(world.settings) is None
    with psycopg.connect(world.dsn) as other:
        other.execute("select now()")  # its rows stay within the window that is looked at
        put(world, 1, "a")
        world.htap.sync_now()
        assert unseen_events(world.settings) == 0
        put(world, 2, "b")
        put(world, 3, "c")
        assert unseen_events(world.settings) == world.htap.sync_status().lag_events == 2


@pytest.mark.long
def test_nothing_is_pending_behind_more_transactions_than_a_position_names(make: Make) -> None:
    world = make()
    with psycopg.connect(world.dsn) as other:
        other.execute("select now()")
        for key in range(70):
            put(world, key, "a")
        world.htap.sync_now()
        assert horizon(world).writers is None
        world.run("create table other(id int)")
        assert unseen_events(world.settings) == 0
        world.crash()
        put(world, 70, "b")
        assert world.htap.sync_now().inserted == 1
        assert world.htap.sync_now().events == 0


def test_versions_are_dated_between_two_looks(make: Make) -> None:
    world = make(mode="temporal")
    world.htap.sync_now()
    put(world, 1, "a")
    world.htap.sync_now()
    (stamp,) = world.app.execute("select updated_at from t").fetchone() or ()
    with psycopg.connect(world.dsn) as other:
        other.execute("insert into t values (2, 'late', now())")
        put(world, 3, "b")
        world.htap.sync_now()
        seen = datetime.now(UTC)
        other.commit()
    world.htap.sync_now()
    found = {version["v"]: version["_rhei_valid_from"] for version in world.versions("t")}
    assert found["a"] == stamp
    assert found["late"] > seen


def test_columns_that_change_are_followed(make: Make) -> None:
    world = make(mode="temporal")
    put(world, 1, "a")
    world.htap.sync_now()
    world.run("alter table t add column w int generated always as (id * 2) stored")
    put(world, 2, "b")
    world.htap.sync_now()
    world.assert_equal("t")
    world.run("drop index t_updated", "alter table t drop column updated_at")
    assert "updated_at" in world.htap.sync_now().errors["t"]


def test_partitions_and_other_schemas_are_polled(make_postgres: Make) -> None:
    world = make_postgres(capture={"method": "polling"}, tables=[{"name": "sales.parts"}])
    world.run(
        "create schema if not exists sales",
        "create table sales.parts(id int primary key, updated_at timestamptz)"
        " partition by range (id)",
        "create table sales.parts_1 partition of sales.parts for values from (0) to (5)",
        "create table sales.parts_2 partition of sales.parts default",
        "insert into sales.parts select g, now() from generate_series(1, 9) g",
    )
    world.htap.sync_now()
    world.run("update sales.parts set updated_at = now() where id in (3, 7)")
    assert world.htap.sync_now().updated == 2
    world.assert_equal("sales.parts")
    assert world.htap.verify().equal


def test_a_connection_that_the_server_ends_is_made_anew(make: Make) -> None:
    world = make()
    put(world, 1, "a")
    world.htap.sync_now()
    world.run(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = 'rhei' and datname = current_database()"
    )
    put(world, 2, "b")
    for _ in range(3):
        try:
            world.htap.sync_now()
        except Exception:  # noqa: BLE001, S112  (it may meet the ended connection once)
            continue
    world.assert_equal("t")


def test_lag_is_the_time_since_a_change_could_be_seen(make: Make) -> None:
    world = make()
    world.htap.sync_now()
    with psycopg.connect(world.dsn) as other:
        other.execute("insert into t values (1, 'a', now() - interval '1 hour')")
        put(world, 2, "b")
        world.htap.sync_now()
        other.commit()
    assert world.htap.sync_status().lag_seconds < 60


@pytest.mark.long
def test_nothing_is_lost_beside_a_busy_writer(make: Make) -> None:
    world = make(mode="temporal")
    world.htap.sync_now()
    done = threading.Event()

    def write() -> None:
        with psycopg.connect(world.dsn, autocommit=True) as connection:
            for turn in range(300):
                connection.execute(
                    "insert into t values (%s, %s, now()) on conflict (id) do update"
                    " set v = excluded.v, updated_at = excluded.updated_at",
                    (turn * 37 % 101, str(turn)),
                )
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        world.htap.sync_now()
    writer.join()
    world.htap.sync_now()
    world.assert_equal("t")


def test_a_session_that_hides_its_transactions_makes_a_doubt_that_ends_with_a_comparison(
    make: Make,
) -> None:
    world = make(reconcile_seconds=0)
    put(world, 1, "a")
    world.htap.sync_now()
    assert horizon(world).doubted is False
    with psycopg.connect(world.dsn) as other:
        other.execute("set track_activities = off")
        other.execute("insert into t values (2, 'hidden', now() - interval '1 hour')")
        put(world, 3, "b")
        world.htap.sync_now()
        assert "track_activities" in str(world.htap.sync_status().tables["t"].doubt)
        other.commit()
    put(world, 4, "c")
    world.htap.sync_now()
    world.assert_equal("t")


def test_what_polling_needs_is_examined(make: Make) -> None:
    world = make(clock="application")
    put(world, 1, "a")
    found = {finding.what: finding for finding in validate(world.settings)}
    (doubt,) = found
    assert "application's clock" in doubt
    world.run("drop index t_updated")
    findings = validate(world.settings)
    assert 'create index on "public"."t" ("updated_at", "id")' in [f.remedy for f in findings]
    world.run("alter table t drop column updated_at")
    (missing,) = validate(world.settings)
    assert (missing.severity, missing.table) == (Severity.ERROR, "t")
    assert "does not have" in missing.what


def test_a_long_transaction_is_named(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhei_pipeline.sources.postgres.polling.horizon.LONG_SECONDS", 0)
    world = make()
    with psycopg.connect(world.dsn) as other:
        other.execute("select 1")
        named = f"process {other.info.backend_pid} has held a transaction open"
        for key in range(3):
            put(world, key, "a")
            world.htap.sync_now()
    assert caplog.text.count(named) == 1


def test_a_buffer_holds_what_is_polled(make: Make, tmp_path: Path) -> None:
    world = make(mode="temporal")
    world.capture = {"method": "polling", "buffer": {"path": tmp_path / "cdc"}}
    put(world, 1, "a")
    world.htap.sync_now()
    with psycopg.connect(world.dsn) as other:
        other.execute("insert into t values (2, 'late', now())")
        put(world, 3, "b")
        world.crash()
        assert bridge(world.settings) == 1
        other.commit()
    assert bridge(world.settings) == 1
    world.htap.sync_now()
    world.assert_equal("t")


@pytest.mark.long
def test_a_read_that_is_left_in_its_middle_spoils_nothing(make: Make) -> None:
    world = make()
    world.run("insert into t select g, repeat('x', 1000), now() from generate_series(1, 5000) g")
    database = PostgresDatabase(world.dsn, read_only=True)
    source = PostgresPollingSource(database, {"t": PollOptions(clock=Clock.DATABASE)})
    table = Table(source.describe("t"))
    nowhere = Position(0, "")
    held = []
    with pytest.raises(KeyError), source.snapshot() as snapshot:
        held.append(snapshot.changes(table, nowhere, 10))
        next(held[0])
        raise KeyError
    with source.snapshot() as snapshot:
        assert sum(batch.count for batch in snapshot.changes(table, nowhere, 10)) == 5000
    source.close()
    database.close()
