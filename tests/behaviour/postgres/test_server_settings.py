"""What an administrator set for every session changes nothing of what is mirrored."""

import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.support.fix_postgres import PostgresWorld

MakePostgres = Callable[..., PostgresWorld]
#: The table's name, and that of its column of texts, have a backslash.
TABLE, TEXT = "odd\\name", "a\\b"
TEXTS = ["a\\b", "\\N", "N", "", "it's", 'say "x"', "a\nb\tc", "\\x41", "\\\\", "null", "é☃"]
ESCAPES = "standard_conforming_strings = off"
#: What each session of the application's, and not of ours, is asked to undo.
OWN = {
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "lock_timeout": "0",
}
SETTINGS = [
    ESCAPES,
    *(
        pytest.param(setting, marks=pytest.mark.long)
        for setting in (
            "lock_timeout = '20ms'",
            "array_nulls = off",
            "transform_null_equals = on",
            "quote_all_identifiers = on",
            "default_transaction_isolation = serializable",
            "default_transaction_read_only = on",
            "plan_cache_mode = force_generic_plan",
            "work_mem = '64kB'",
        )
    ),
]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("method", ["logical", "trigger", "polling"])
def test_texts_and_nulls_are_mirrored_as_they_are(
    make_postgres: MakePostgres, method: str, setting: str
) -> None:
    declared: dict[str, Any] = {"name": TABLE}
    if method == "polling":
        declared["polling"] = {"clock": "database", "deletes": "disabled"}
    world = make_postgres(capture={"method": method}, tables=[declared], mode="temporal")
    name = world.app.info.dbname
    with psycopg.connect(world.dsn, autocommit=True) as admin:
        admin.execute(f'alter database "{name}" set {setting}'.encode())
    with psycopg.connect(world.dsn, autocommit=True) as app:
        _write_and_compare(world, app, setting)


def _write_and_compare(
    world: PostgresWorld, app: "psycopg.Connection[tuple[Any, ...]]", setting: str
) -> None:
    for name, value in OWN.items():
        app.execute("select set_config(%s, %s, false)", (name, value))
    app.execute(
        f'create table "{TABLE}" (k text, n int, "{TEXT}" text, arr text[], b bytea,'
        " updated_at timestamptz not null default clock_timestamp(), primary key (k, n))".encode()
    )
    insert = f'insert into "{TABLE}" (k, n, "{TEXT}", arr, b) values (%s, %s, %s, %s, %s)'
    for n, text in enumerate(TEXTS):
        app.execute(insert.encode(), (text, n, text, [text, None], text.encode()))
    app.execute(insert.encode(), ("nothing", 99, None, None, None))
    assert not world.htap.sync_now().errors
    update = f'update "{TABLE}" set "{TEXT}" = %s, arr = %s, updated_at = clock_timestamp()'
    for n, text in enumerate(TEXTS):
        app.execute(f"{update} where n = {n}".encode(), (None if n % 3 else 2 * text, [None, text]))
    app.execute(insert.encode(), ("x\\y", 100, "z\\", [], b"\\"))
    assert not world.htap.sync_now().errors
    of_table = f'from "{TABLE}"'
    rows = app.execute(f'select k, n, "{TEXT}", arr::text, b {of_table} order by n'.encode())
    now = f'select k, n, "{TEXT}", arr, b {of_table} where _rhei_valid_to is null order by n'
    found = world.htap.query(now, hint="olap").to_pylist()
    assert [tuple(row.values()) for row in found] == rows.fetchall()
    before = f'select k, "{TEXT}" as text {of_table} where _rhei_valid_to is not null order by n'
    ended = world.htap.query(before, hint="olap").to_pylist()
    assert ended == [{"k": text, "text": text} for text in TEXTS]
    assert world.htap.dead_letters().num_rows == 0
    assert world.htap.verify().equal


@pytest.mark.parametrize("method", ["logical", "trigger", "polling"])
def test_no_session_of_ours_is_ended_because_it_waits(
    make_postgres: MakePostgres, method: str
) -> None:
    """One that is ended as a sync begins to use it would have that sync fail."""
    world = make_postgres(capture={"method": method}, tables=[{"name": "t"}])
    world.run("create table t (id int primary key)", "insert into t values (1)")
    world.run(f"alter database \"{world.app.info.dbname}\" set idle_session_timeout = '50ms'")
    world.htap.sync_now()
    ours = (
        "select pid from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    open_ = set(world.app.execute(ours.encode()).fetchall())
    assert open_
    time.sleep(0.3)
    assert open_ <= set(world.app.execute(ours.encode()).fetchall())
