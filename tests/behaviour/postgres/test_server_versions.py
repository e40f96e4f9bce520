"""Servers from version 13 on: statements ask for what each of them has, and for no more."""

import re
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings

from rhei_pipeline.errors import CaptureError, SourceError
from rhei_pipeline.sources.postgres import copy as postgres_copy
from rhei_pipeline.wiring.engine import unseen_events
from rhei_pipeline.wiring.source import validate
from tests.behaviour.crashes.test_postgres_histories import TRIGGERS, by_log, play
from tests.support.fix_postgres import PostgresWorld
from tests.support.parts import engine_of
from tests.support.postgres_histories import calm, triggers_stormy

#: The catalogues and views that we read, and their columns that version 13 did not have, with the
#: version that brought them. Source: postgresql.org/docs/13 to /docs/18, chapter "System Catalogs".
ADDED = {
    "pg_aggregate": {},
    "pg_am": {},
    "pg_amop": {},
    "pg_attribute": {"attcompression": 14},
    "pg_cast": {},
    "pg_class": {"relallfrozen": 18},
    "pg_collation": {"collicurules": 16, "colllocale": 17},
    "pg_constraint": {"confdelsetcols": 15, "conenforced": 18, "conperiod": 18},
    "pg_database": {
        "datlocprovider": 15,
        "datcollversion": 15,
        "daticurules": 16,
        "datlocale": 17,
        "dathasloginevt": 17,
    },
    "pg_db_role_setting": {},
    "pg_depend": {},
    "pg_enum": {},
    "pg_extension": {},
    "pg_index": {"indnullsnotdistinct": 15},
    "pg_inherits": {"inhdetachpending": 14},
    "pg_namespace": {},
    "pg_opclass": {},
    "pg_operator": {},
    "pg_prepared_xacts": {},
    "pg_proc": {"prosqlbody": 14},
    "pg_publication": {"pubgencols": 18},
    "pg_publication_namespace": {"oid": 15, "pnpubid": 15, "pnnspid": 15},
    "pg_publication_rel": {"prqual": 15, "prattrs": 15},
    "pg_publication_tables": {"attnames": 15, "rowfilter": 15},
    "pg_range": {"rngmultitypid": 14},
    "pg_replication_slots": {
        "two_phase": 14,
        "conflicting": 16,
        "invalidation_reason": 17,
        "inactive_since": 17,
        "failover": 17,
        "synced": 17,
        "two_phase_at": 18,
    },
    "pg_roles": {},
    "pg_stat_activity": {"query_id": 14},
    "pg_subscription_rel": {},
    "pg_trigger": {},
    "pg_type": {"typsubscript": 14},
}
#: Columns that version 13 had, and the version that has them no more.
DROPPED = {"datlastsysoid": 15, "attcacheoff": 18, "colliculocale": 17, "daticulocale": 17}
#: Functions of later versions, and settings of publications, that statements of ours could name.
LATER = {
    "pg_log_standby_snapshot": 16,
    "pg_split_walfile_name": 16,
    "pg_input_is_valid": 16,
    "pg_sync_replication_slots": 17,
    "pg_get_wal_replay_pause_state": 14,
    "date_bin": 14,
    "unistr": 14,
    "regexp_like": 15,
    "any_value": 16,
    "transaction_timeout": 17,
    "publish_generated_columns": 18,
    "or replace trigger": 14,
    "nulls not distinct": 15,
    "merge into": 15,
}
_READ = re.compile(r"(?:from|join)\s+(?:pg_catalog\.)?(pg_[a-z_]+)\b(?!\s*\()")
_WORD = re.compile(r"[a-z_][a-z0-9_]*")
_CREATE = (
    "create type mood as enum ('a', 'b')",
    "create table parts(id int, n int, primary key (id, n)) partition by list (n)",
    "create table parts_1 partition of parts default",
    'create table t(id int primary key, m mood, v text collate "C",'
    " updated_at timestamptz not null default now())",
    "create index on t(updated_at, id)",
    "insert into t select g, 'a', 'v' from generate_series(1, 20) g",
)
_CAPTURES = ("logical", "trigger", "polling")


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record every statement of ours, as the server gets it."""
    seen: list[str] = []

    def record(query: Any) -> None:
        seen.append((query.decode() if isinstance(query, bytes) else str(query)).lower())

    execute, copy_out = psycopg.Cursor.execute, postgres_copy.copy_out

    def executed(self: Any, query: Any, *args: Any, **more: Any) -> Any:
        record(query)
        return execute(self, query, *args, **more)

    def copied(connection: Any, statement: bytes) -> Any:
        record(statement)
        return copy_out(connection, statement)

    monkeypatch.setattr(psycopg.Cursor, "execute", executed)
    for module in ("copy", "row_texts"):
        monkeypatch.setattr(f"rhei_pipeline.sources.postgres.{module}.copy_out", copied)
    return seen


def _all_of_it(make: Callable[..., PostgresWorld], method: str) -> None:
    """Have each part of a way to capture ask the server: first, again, lost, altered, gone."""
    names = [{"name": name} for name in ("t", "parts")]
    if method == "polling":
        names = [{"name": "t", "polling": {"clock": "database", "deletes": "reconcile"}}]  # type: ignore[dict-item]
    if method == "trigger":
        names = names[:1]
    world = make(capture={"method": method}, mode="temporal", tables=names)
    world.run("drop table if exists t, parts", "drop type if exists mood", *_CREATE)
    validate(world.settings)
    world.htap.sync_now()
    world.run("update t set m = 'b', updated_at = now() where id = 1", "truncate parts")
    world.htap.sync_now()
    world.run("alter table t add w int default 5", "insert into t values (50, 'a', 'x')")
    world.htap.sync_now()
    world.run("delete from t where id = 2")
    world.htap.repair("t")
    assert world.htap.verify().equal
    world.htap.sync_status()
    assert unseen_events(world.settings) is not None
    if method == "logical":
        (name,) = world.app.execute("select pubname from pg_publication").fetchone() or ("",)
        world.run(f"drop publication {name}", "insert into t values (51, 'a', 'x')")
        assert unseen_events(world.settings) != 0
        world.htap.sync_now()
    assert world.htap.verify().equal
    validate(world.settings)
    world.htap.query("select count(*) from t", hint="olap")
    if method != "polling":
        world.htap.query("select count(*) from t", hint="oltp")
        world.htap.execute("delete from t where id = 3")
    engine_of(world.htap).source.forget_mirror()  # type: ignore[attr-defined]
    world.close()


def _newer(statement: str, version: int) -> set[str]:
    """Return the words of a statement that a version does not know."""
    words = set(_WORD.findall(statement))
    columns = {
        column: since
        for catalogue, added in ADDED.items()
        if catalogue in words
        for column, since in added.items()
        if column != "oid"
    }
    unknown = {column for column, since in columns.items() if column in words and version < since}
    unknown |= {column for column, until in DROPPED.items() if column in words and version >= until}
    return unknown | {
        name for name, since in LATER.items() if name in statement and version < since
    }


@pytest.mark.long
@pytest.mark.parametrize("version", [13, 14, 16, 17])
def test_statements_name_only_what_the_version_has(
    version: int,
    make_postgres: Callable[..., PostgresWorld],
    statements: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A newer server answers what an older one is asked, so it stands for those not to be had."""
    monkeypatch.setattr("rhei_pipeline.sources.postgres.versions.version", lambda _: version)
    # What came after 14 tells of slots and publications alone.
    for method in _CAPTURES if version <= 14 else _CAPTURES[:1]:
        if method == "trigger" and version < 14:
            with pytest.raises(CaptureError, match="older than PostgreSQL 14"):
                make_postgres(capture={"method": method}).htap.sync_now()
            continue
        _all_of_it(make_postgres, method)
    assert len(statements) > 150
    assert {text: _newer(text, version) for text in statements if _newer(text, version)} == {}
    asked = {name for text in statements for name in _READ.findall(text)}
    assert "pg_replication_slots" in asked
    with make_postgres().app as application:
        assert asked & _catalogues(application) <= set(ADDED)


def _catalogues(connection: psycopg.Connection[Any]) -> set[str]:
    rows = connection.execute(
        "select relname from pg_class where relnamespace = 'pg_catalog'::regnamespace"
    )
    return {name for (name,) in rows}


def _holds(connection: psycopg.Connection[Any]) -> None:
    """Hold the table of columns against a server of some version."""
    version = connection.info.server_version // 10_000
    rows = connection.execute(
        "select c.relname, a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid"
        " where c.relnamespace = 'pg_catalog'::regnamespace and c.relname = any(%s)",
        (list(ADDED),),
    )
    have = set(rows.fetchall())
    added = {(name, c): since for name, columns in ADDED.items() for c, since in columns.items()}
    assert {column for column, since in added.items() if since <= version} <= have
    assert not {column for column, since in added.items() if since > version} & have
    names = {column for _, column in have}
    assert {column for column, until in DROPPED.items() if until <= version}.isdisjoint(names)


def test_the_table_of_columns_holds_on_the_newest_server(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        _holds(connection)


def test_the_table_of_columns_holds_on_an_installed_server(installed_dsn: str) -> None:
    with psycopg.connect(installed_dsn) as connection:
        _holds(connection)


def test_a_server_older_than_all_we_know_is_refused_by_name(
    make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhei_pipeline.sources.postgres.versions.version", lambda _: 12)
    with pytest.raises(SourceError, match=r"PostgreSQL 12 \(upgrade it to 13"):
        make_postgres().htap.sync_now()


@pytest.mark.long
@pytest.mark.parametrize("method", _CAPTURES)
def test_an_installed_server_is_captured_by_each_way(
    method: str, make_installed: Callable[..., PostgresWorld]
) -> None:
    _all_of_it(make_installed, method)


@pytest.mark.long
@settings(max_examples=2)
@given(actions=calm)
def test_a_history_of_an_installed_server_is_exact_from_its_log(
    installed_dsn: str, actions: list[Any]
) -> None:
    play(installed_dsn, actions, "temporal", 2, by_log(streaming=True), dated=True)


@pytest.mark.long
@settings(max_examples=2)
@given(actions=triggers_stormy)
def test_a_history_of_an_installed_server_is_exact_from_triggers(
    installed_dsn: str, actions: list[Any]
) -> None:
    play(installed_dsn, actions, "temporal", 2, TRIGGERS)
