"""How Rhei is taken out of a source again, as the page says it."""

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import psycopg

from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
SQLITE, TRIGGERS, LOGICAL, USER = re.findall(
    r"```sql\n(.*?)```", PAGE.split("## Taking Rhei out")[1], flags=re.DOTALL
)


def test_what_the_page_says_takes_rhei_out_of_sqlite(make_world: Callable[..., World]) -> None:
    world = make_world(mode="temporal")
    world.run("create table t(id integer primary key, v text)", "create index by_v on t(v)")
    before = world.app.execute("select type, name, sql from sqlite_schema").fetchall()
    world.htap.sync_now()
    world.htap.close()
    for (statement,) in world.app.execute(SQLITE).fetchall():
        world.run(statement)
    assert world.app.execute("select type, name, sql from sqlite_schema").fetchall() == before
    assert world.app.execute("pragma journal_mode = delete").fetchone() == ("delete",)
    world.run("insert into t values (1, 'x')")


def test_where_wal_cannot_be_had_the_mode_stays() -> None:
    """SQLite answers with the mode that there is, as for a database in memory."""
    with sqlite3.connect(":memory:") as memory:
        assert memory.execute("pragma journal_mode = wal").fetchone() == ("memory",)


def test_what_the_page_says_takes_rhei_out_of_postgres(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    left = (
        "select count(*) from pg_trigger where tgname like '\\_rhei\\_%'",
        "select count(*) from pg_namespace where nspname like '\\_rhei%'",
        "select count(*) from pg_publication where pubname like 'rhei\\_%'",
        "select count(*) from pg_replication_slots where slot_name like 'rhei\\_%'"
        " and database = current_database()",
    )
    for method in ("trigger", "logical"):
        world = make_postgres(capture={"method": method})
        world.run("drop table if exists t", "create table t(id int primary key, v int)")
        world.run("insert into t values (1, 1)")
        world.htap.sync_now()
        world.htap.close()
        with psycopg.connect(world.dsn, autocommit=True) as admin:
            assert any(admin.execute(query.encode()).fetchone() != (0,) for query in left)
            for statement in (TRIGGERS if method == "trigger" else LOGICAL).split(";\n"):
                if not statement.strip():
                    continue
                answer = admin.execute(statement.encode())
                printed = answer.fetchall() if answer.description else []
                for (text,) in printed:
                    if str(text).startswith("drop "):
                        admin.execute(str(text).encode())
            assert [admin.execute(query.encode()).fetchone() for query in left] == [(0,)] * 4
            admin.execute("insert into t values (2, 2)")


def test_what_the_page_says_takes_the_user_out_of_postgres(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres()
    database = psycopg.conninfo.conninfo_to_dict(world.dsn)["dbname"]
    with psycopg.connect(world.dsn, autocommit=True) as admin:
        for statement in (
            "create role leaving_app",
            "create role leaving login replication",
            f'grant create on database "{database}" to leaving',
            "grant leaving_app to leaving",
        ):
            admin.execute(statement.encode())
        try:
            for statement in re.sub(r"\brhei\b", "leaving", USER).split(";\n"):
                admin.execute(re.sub(r"\bshop\b", f'"{database}"', statement).encode())
            asked = b"select count(*) from pg_roles where rolname = 'leaving'"
            assert admin.execute(asked).fetchone() == (0,)
        finally:
            admin.execute(b"drop role if exists leaving")
            admin.execute(b"drop role leaving_app")
