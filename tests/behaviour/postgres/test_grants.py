"""A user who may do what the documentation grants, and no more; and what is named as missing."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from rhei_pipeline.errors import CaptureError
from rhei_pipeline.model.reports import Finding, Severity
from rhei_pipeline.wiring.postgres import of_postgres
from rhei_pipeline.wiring.source import open_database, validate
from tests.support.fix_postgres import PostgresWorld, drop_slots
from tests.support.parts import engine_of

_PAGE = Path(__file__).parents[3] / "docs" / "postgres-servers.md"
_BLOCK = re.compile(r"<!-- grants: (\w+) -->\n```sql\n(.*?)```", re.DOTALL)
_WAYS = dict(_BLOCK.findall(_PAGE.read_text()))
_NAMES = ("orders", "sales.invoices")
_SOURCE = (
    "create role app",
    "create schema sales authorization app",
    *(
        f"create table {name}(id int primary key, v text,"
        " updated_at timestamptz not null default now())"
        for name in _NAMES
    ),
    "create index on orders(updated_at, id)",
    "create index on sales.invoices(updated_at, id)",
    "alter table orders owner to app",
    "alter table sales.invoices owner to app",
    *(f"insert into {name} values (1, 'a'), (2, 'b')" for name in _NAMES),
)


@pytest.fixture
def world(make_postgres: Callable[..., PostgresWorld]) -> Iterator[PostgresWorld]:
    """Make a source whose tables another role owns; drop the roles at the end."""
    made = make_postgres()
    made.run("drop role if exists rhei, app, rds_replication", *_SOURCE)
    yield made
    made.crash()
    drop_slots(made.app, made.app.info.dbname)
    made.run("drop schema if exists _rhei cascade")
    for role in ("rhei", "app"):
        made.run(f"drop owned by {role} cascade", f"drop role {role}")
    made.run("drop role if exists rds_replication")


def _granted(way: str, dsn: str) -> list[str]:
    database = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    text = str(_WAYS[way]).replace("database shop", f"database {database}")
    return [statement.strip() for statement in text.split(";") if statement.strip()]


def _as_rhei(world: PostgresWorld, way: str) -> None:
    """Connect as the user of the documentation from now on."""
    world.source = {"dsn": f"{world.dsn}&user=rhei"}
    world.capture = {"method": "logical"} if way == "publication" else {"method": way}
    if way == "publication":
        world.capture["publication"] = "shop"
    world.tables = [{"name": name} for name in _NAMES]
    if way == "polling":
        world.tables = [{"name": name, "polling": {"clock": "database"}} for name in _NAMES]


def _errors(world: PostgresWorld) -> list[Finding]:
    return [found for found in validate(world.settings) if found.severity is Severity.ERROR]


def _works(world: PostgresWorld) -> None:
    """Mirror, follow, compare: as the user who was granted just so much."""
    assert set(world.htap.sync_now().tables) == set(_NAMES)
    for name in _NAMES:
        world.run(f"insert into {name} values (3, 'c')", f"update {name} set v = 'x' where id = 1")
    world.run("update orders set updated_at = now()")
    report = world.htap.sync_now()
    assert not report.errors
    world.run("update sales.invoices set updated_at = now()")
    world.htap.sync_now()
    world.assert_equal(*_NAMES)
    assert world.htap.verify().equal


@pytest.mark.long
@pytest.mark.parametrize("way", sorted(_WAYS))
def test_the_documented_grants_are_enough_and_each_one_is_named_where_it_lacks(
    way: str, world: PostgresWorld
) -> None:
    statements = _granted(way, world.dsn)
    _as_rhei(world, way)
    world.run(statements[0])  # the user, and nothing more
    ran = []
    while found := [*_errors(world), *_doubts(world, way)]:
        ran.append(found[0].remedy)
        assert len(ran) < 10, ran
        world.run(found[0].remedy)
    assert len(ran) >= len(statements) - 1, ran
    assert validate(world.settings) == []
    _works(world)


@pytest.mark.parametrize("way", sorted(_WAYS))
def test_exactly_the_documented_grants_are_enough(way: str, world: PostgresWorld) -> None:
    _as_rhei(world, way)
    world.run(*_granted(way, world.dsn))
    assert validate(world.settings) == []
    role: Any = world.app.execute(
        "select rolsuper, rolcreatedb, rolcreaterole, rolbypassrls from pg_roles"
        " where rolname = 'rhei'"
    ).fetchone()
    assert role == (False, False, False, False)
    _works(world)


@pytest.mark.long
def test_what_another_user_keeps_for_triggers_is_shared_by_a_grant(world: PostgresWorld) -> None:
    _as_rhei(world, "trigger")
    world.run(*_granted("trigger", world.dsn))
    world.htap.sync_now()
    world.crash()
    world.run("drop role if exists second", "create role second login", "grant app to second")
    world.source = {"dsn": f"{world.dsn}&user=second"}
    world.directory = world.directory / "second"
    world.directory.mkdir()
    try:
        for _ in range(3):
            found = _errors(world)
            if found:
                world.run(found[0].remedy)
        assert _errors(world) == []
        _works(world)
        world.crash()
    finally:
        world.run("drop owned by second cascade", "drop role second")


#: What an administrator may have set for a role, each of which changes what a session reads.
_ODD = {
    "search_path": "nowhere",
    "datestyle": "German",
    "intervalstyle": "sql_standard",
    "timezone": "Asia/Tokyo",
    "extra_float_digits": "-5",
    "bytea_output": "escape",
    "default_transaction_read_only": "on",
    "client_encoding": "LATIN1",
    "statement_timeout": "1min",
}


@pytest.mark.parametrize("way", ["logical", "trigger", "polling"])
def test_what_is_set_for_the_role_changes_nothing_that_is_mirrored(
    way: str, world: PostgresWorld
) -> None:
    world.run(*_granted(way, world.dsn))
    world.run(*(f"alter role rhei set {name} = '{value}'" for name, value in _ODD.items()))
    world.run(
        "alter table orders add m timestamptz default '2024-03-31 23:30:00+00', add f float8"
        " default 0.1234567890123456, add b bytea default '\\x00ff', add d date"
        " default '2024-02-01', add i interval default '1 day 02:03:04'"
    )
    _as_rhei(world, way)
    world.htap.sync_now()
    world.run("insert into orders values (3, 'é☃')", "update orders set updated_at = now()")
    world.htap.sync_now()
    columns = "id, v, updated_at, m, f, b, d, i"
    asked = f"select {columns} from public.orders order by id"
    found = world.htap.query(asked.replace("public.", ""), hint="olap")
    with psycopg.connect(world.dsn) as plain:  # as written by the one form that is promised
        plain.execute("set timezone = 'UTC'")
        plain.execute("set intervalstyle = 'iso_8601'")
        rows = plain.execute(asked.replace(" i ", " i::text ").encode()).fetchall()
    # The mirror holds an interval as one; the source's answers have the promised text.
    length = pa.MonthDayNano([0, 1, (2 * 3_600 + 3 * 60 + 4) * 10**9])
    assert {row[-1] for row in rows} == {"P1DT2H3M4S"}
    assert [tuple(row.values()) for row in found.to_pylist()] == [(*r[:-1], length) for r in rows]
    if way != "polling":
        told = [{**row, "i": "P1DT2H3M4S"} for row in found.to_pylist()]
        assert world.htap.query(asked, hint="oltp").to_pylist() == told
        assert world.htap.execute("delete from public.orders where id = 1") == 1


def _doubts(world: PostgresWorld, way: str) -> list[Finding]:
    if way != "polling" or _errors(world):
        return []
    return [found for found in validate(world.settings) if found.remedy.startswith("grant")]


def test_a_role_that_lends_replication_is_asked_for_where_there_is_one(
    world: PostgresWorld,
) -> None:
    """As managed services have it; here the role lends nothing, so only the naming is held."""
    _as_rhei(world, "logical")
    world.run("create role rhei login", "create role rds_replication")
    named = {found.remedy for found in _errors(world)}
    assert 'grant rds_replication to "rhei"' in named
    world.run('grant rds_replication to "rhei"')
    assert not [found for found in _errors(world) if "replication" in found.what]


@pytest.mark.long
def test_a_publication_that_others_keep_is_never_touched(world: PostgresWorld) -> None:
    _as_rhei(world, "publication")
    world.run(*_granted("publication", world.dsn))
    world.htap.sync_now()
    world.run("alter publication shop set table orders where (id > 100), sales.invoices")
    world.run("insert into orders values (7, 'unseen')")
    errors = world.htap.sync_now().errors
    assert set(errors) == {"orders"}
    (named,) = _errors(world)
    assert named.table == "orders"
    world.run(named.remedy)
    world.htap.sync_now()
    world.assert_equal(*_NAMES)
    # Of all tables, or of schemas: whoever keeps it may choose.
    world.run("drop publication shop", "create publication shop for all tables")
    try:
        world.htap.sync_now()
    except CaptureError as error:  # before 18 the log of that moment cannot be read
        found = re.search(r"run: (select pg_drop_replication_slot\('\w+'\))", str(error))
        assert found is not None
        world.crash()
        world.run(found[1])
    world.run("insert into orders values (8, 'seen')")
    world.htap.sync_now()
    world.assert_equal(*_NAMES)
    engine_of(world.htap).source.forget_mirror()  # type: ignore[attr-defined]
    assert world.app.execute("select pubname from pg_publication").fetchall() == [("shop",)]


@pytest.mark.long
@pytest.mark.parametrize("way", sorted(_WAYS))
def test_a_schema_whose_functions_may_run_as_our_user_is_named(
    way: str, world: PostgresWorld
) -> None:
    world.run("drop role if exists somebody", "create role somebody")
    world.run("create schema tools", "grant create on schema public, tools to public")
    _as_rhei(world, way)
    world.run(*_granted(way, world.dsn))
    assert validate(world.settings) == []  # neither is on our path
    world.run("create extension citext schema tools", "grant create on schema tools to somebody")
    assert validate(world.settings) == []  # without a right to use it, nothing in it is found
    world.run("grant usage on schema tools to public")
    [found] = validate(world.settings)
    assert (found.severity, "'tools'" in found.what) == (Severity.WARNING, True)
    assert found.remedy == 'revoke create on schema "tools" from "somebody", public'
    # What is warned of: it matches better than the server's own, which takes other types.
    world.run(
        "create function tools.pg_has_role(text, text) returns boolean language sql as"
        " $$select nullif(current_user, 'rhei') is not null$$",
    )
    asked = "select pg_has_role('rhei'::text, 'usage'::text)"
    database = of_postgres(open_database(world.settings))
    with closing(database), closing(database.connect()) as session:
        assert session.execute(asked).fetchall() == [(False,)]
    world.run("drop function tools.pg_has_role", found.remedy)
    assert validate(world.settings) == []
    _works(world)
    world.run("revoke create on schema public, tools from somebody", "drop role somebody")
