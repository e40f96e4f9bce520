"""Masked columns: what the source has of them is written nowhere else, whatever happens."""

import json
import logging
import re
import stat
from collections.abc import Callable
from typing import Any

import adbc_driver_flightsql.dbapi as flight_sql
import pytest
from adbc_driver_manager.dbapi import DatabaseError

import rhei_pipeline as rhei
from rhei_pipeline import QuerySettings
from rhei_pipeline.errors import QueryError, SchemaDriftError, SchemaError
from rhei_pipeline.protocols import Step
from rhei_pipeline.query.service import QueryService
from rhei_pipeline.server.flight.server import FlightSqlServer
from rhei_pipeline.wiring.engine import bridge
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.masking import KEY, hashed, holding, masked, partial

MakeWorld = Callable[..., World]
MakePostgres = Callable[..., PostgresWorld]

MASKS: dict[str, str | None] = {
    "email": "hash",
    "phone": "partial:3",
    "note": "redact",
    "born": None,  # as YAML reads a bare null
    "nick": "truncate:2",
    "diary": "tests.support.masking:shouted",
}
EXPECTED: dict[str, Callable[[Any], Any]] = {
    "email": hashed,
    "phone": partial(3),
    "note": lambda value: None if value is None else "***",
    "born": lambda _value: None,
    "nick": lambda value: None if value is None else value[:2],
    "diary": lambda value: None if value is None else f"{len(value)} characters",
}
KEYED = {"id": "hash", **MASKS}
COLUMNS = (
    "id {key} primary key, email text, phone text, note text, born integer, nick text,"
    " diary text, seen text, changed timestamp"
)
NAMES = ("id", "email", "phone", "note", "born", "nick", "diary", "seen")
#: Begins every text that is to be seen nowhere; `seen` is not masked, and shows what is searched.
SECRET, SEEN = "Geheim", "Sichtbar"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHEI__MASKING__KEY", KEY)


def person(number: int, key: str) -> str:
    """Write a row of `people`."""
    values = [
        f"'{key}{number}'",
        f"'{SECRET}.{number}@example.org'",
        f"'{SECRET}-0170-{number:06d}'",
        f"'{SECRET} note {number}'",
        f"{19000000 + number}",
        f"'{number:02d}{SECRET}'",
        f"'{SECRET} diary {number}'",
        f"'{SEEN}{number}'",
        "current_timestamp",
    ]
    return f"({', '.join(values)})"


def write(world: World | PostgresWorld, round_: int, key: str = SECRET) -> None:
    """Write as an application does: every kind of change, keys that change, and nulls."""
    first = 10 * round_
    world.run(
        f"insert into people values {', '.join(person(first + n, key) for n in range(6))}",
        f"update people set email = '{SECRET}.new{round_}@example.org', changed ="
        f" current_timestamp where nick = '{first + 1:02d}{SECRET}'",
        "update people set phone = null, changed = current_timestamp"
        f" where born = {19000002 + first}",
        f"delete from people where born = {19000003 + first}",
    )


def expected(world: World | PostgresWorld, masks: dict[str, str | None]) -> list[tuple[Any, ...]]:
    """Return the source's rows as the mirror is to have them."""
    found = world.app.execute(f"select {', '.join(NAMES)} from people").fetchall()
    key = {"id": hashed} if "id" in masks else {}
    return masked((dict(zip(NAMES, row, strict=True)) for row in found), {**EXPECTED, **key})


def shown(world: World | PostgresWorld) -> list[tuple[Any, ...]]:
    """Return the mirror's present rows."""
    rows = world.htap.query("select * from people", hint="olap").to_pylist()
    present = [row for row in rows if row.get("_rhei_valid_to") is None]
    return masked(({name: row[name] for name in NAMES} for row in present), {})


WAYS: dict[str, dict[str, Any]] = {
    "triggers, buffered, destructive, duckdb": {"buffered": True},
    "triggers, temporal, files": {"mode": "temporal", "storage": "ipc"},
    "triggers, buffered, temporal, duckdb": {"buffered": True, "mode": "temporal"},
    "polling, destructive, files": {"method": "polling", "storage": "ipc"},
}


@pytest.mark.parametrize("way", WAYS)
def test_no_file_of_a_mirror_of_sqlite_has_a_masked_value(
    way: str, make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows come by a copy that is cut off, by changes, as dead letters, and come back."""
    caplog.set_level(logging.DEBUG)
    is_polled = "polling" in way
    masks, key = (MASKS, "Key") if is_polled else (KEYED, SECRET)
    table: dict[str, Any] = {"name": "people", "mask": masks}
    if is_polled:
        table["polling"] = {"updated_at": "changed", "deletes": "reconcile"}
    world = make_world(tables=[table], batch_rows=2, **WAYS[way])
    world.run(f"create table people({COLUMNS.format(key='text')})")
    write(world, 0, key)
    world.faults.arm(Step.COPY_BATCH, 2)
    assert world.surviving(world.htap.sync_now)
    assert holding(world.directory, SECRET) == []
    world.htap.sync_now()
    assert shown(world) == expected(world, masks)
    write(world, 1, key)
    stamp = "changed = current_timestamp"
    world.run(
        # It does not fit its type, and its key is masked in the dead letter as it is in the row.
        f"update people set born = '{SECRET}born', {stamp} where seen = '{SEEN}14'",
        f"update people set id = '{key}-other', {stamp} where seen = '{SEEN}15'",
    )
    world.htap.sync_now()
    [letter] = world.htap.dead_letters().to_pylist()
    assert json.loads(letter["key"]) == {"id": f"{key}14" if is_polled else hashed(f"{key}14")}
    found = world.htap.verify().tables["people"]
    assert (found.missing, found.extra, found.different, found.dead_letters) == (0, 0, 0, 1)
    assert holding(world.directory, SECRET) == []
    world.run(f"update people set born = 14, {stamp} where seen = '{SEEN}14'")
    world.htap.replay_dead_letters()
    assert world.htap.dead_letters().num_rows == 0
    assert shown(world) == expected(world, masks)
    assert world.htap.verify().equal
    assert holding(world.directory, SECRET) == []
    assert holding(world.directory, KEY) == []
    assert not {SECRET, KEY} & set(re.findall(f"{SECRET}|{KEY}", caplog.text))
    assert KEY not in repr(world.settings) + world.settings.model_dump_json()
    assert not world.buffered or stat.S_IMODE(world.buffer.stat().st_mode) == 0o700
    parts = {file[:3] for file in holding(world.directory, SEEN)}
    assert parts >= ({"cdc"} if world.buffered else set()), "nothing would be found here"
    assert parts - {"cdc"}, "nor here"


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_buffer_that_is_filled_without_the_mirror_has_no_masked_value(
    make_world: MakeWorld, mode: str
) -> None:
    """Nor a value of a row that the mirror is not to have."""
    table = {"name": "t", "mask": {"email": "hash"}, "where": "n < 10"}
    world = make_world(tables=[table], mode=mode, buffered=True)
    world.run("create table t(id integer primary key, email text, n integer, seen text)")
    world.htap.sync_now()
    world.crash()
    world.run(
        f"insert into t values (1, '{SECRET}1', 1, '{SEEN}1')",
        f"insert into t values (2, 'none', 11, '{SECRET}2')",
    )
    assert bridge(world.settings) > 0
    assert holding(world.directory, SECRET) == []
    assert {file[:3] for file in holding(world.directory, SEEN)} == {"cdc"}
    world.htap.sync_now()
    assert [row["email"] for row in world.present("t")] == [hashed(f"{SECRET}1")]


def test_the_key_of_a_polled_table_is_not_masked(make_world: MakeWorld) -> None:
    polling = {"updated_at": "at"}
    table: dict[str, Any] = {"name": "t", "mask": {"id": "hash"}, "polling": polling}
    world = make_world(tables=[table], method="polling")
    world.run(
        "create table t(id integer primary key, at timestamp)",
        "insert into t values (1, current_timestamp)",
    )
    assert "capture changes by triggers" in world.htap.sync_now().errors["t"]
    world.crash()
    world.method = "trigger"
    world.htap.sync_now()
    assert [row["id"] for row in world.present("t")] == [hashed(1)]


def test_a_dead_letter_of_a_masked_key_is_read_again_by_that_key(make_world: MakeWorld) -> None:
    """Nothing tells of the row but the dead letter, whose key the source does not have."""
    world = make_world(tables=[{"name": "t", "mask": {"id": "hash"}}])
    world.run(
        "create table t(id text primary key, n integer) without rowid",
        f"insert into t values ('{SECRET}', 'no number'), ('other', 2)",
    )
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 1
    world.run("drop trigger if exists _rhei_t_update", f"update t set n = 1 where id = '{SECRET}'")
    world.htap.replay_dead_letters()
    assert world.htap.dead_letters().num_rows == 0
    found = world.htap.query("select id from t where n = 1", hint="olap")
    assert found["id"].to_pylist() == [hashed(SECRET)]


def test_a_row_without_a_key_is_named_by_masked_parts_and_forgotten_by_them(
    make_world: MakeWorld,
) -> None:
    world = make_world(tables=[{"name": "t", "mask": {"a": "hash"}}])
    world.run("create table t(a text, b integer, primary key (a, b))")
    world.htap.sync_now()
    world.run(f"insert into t values ('{SECRET}', null), ('{SECRET}', 1)")
    world.htap.sync_now()
    [letter] = world.htap.dead_letters().to_pylist()
    assert json.loads(letter["key"]) == {"a": hashed(SECRET), "b": None}
    world.run("delete from t where b is null")
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    assert shown_keys(world) == [(hashed(SECRET), 1)]


def shown_keys(world: World) -> list[tuple[Any, ...]]:
    return [(row["a"], row["b"]) for row in world.present("t")]


def test_what_fits_again_within_a_batch_leaves_no_letter_of_a_masked_key(
    make_world: MakeWorld,
) -> None:
    world = make_world(tables=[{"name": "t", "mask": {"id": "hash"}}], mode="temporal")
    world.run(
        "create table t(id text primary key, n integer)", f"insert into t values ('{SECRET}', 1)"
    )
    world.htap.sync_now()
    world.run("update t set n = 'no number'", "update t set n = 2")
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    assert [row["n"] for row in world.present("t")] == [2]


@pytest.mark.parametrize("mask", [{}, {"n": "null"}, {"n": "hash"}, {"id": "hash"}])
def test_types_are_proposed_for_what_the_source_has(
    mask: dict[str, str], make_world: MakeWorld
) -> None:
    """Not for what the mask makes of it; none for rows that no key names."""
    world = make_world(tables=[{"name": "t", "mask": mask}])
    world.run(
        "create table t(id text primary key, n integer)",
        "insert into t values ('a', 'no number'), ('b', 2), (null, 3)",
    )
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 2
    proposed = [(found.column, found.type) for found in world.htap.propose_types()]
    assert proposed == ([] if "id" in mask else [("n", "string")])


@pytest.mark.parametrize(("method", "mode"), [("logical", "temporal"), ("trigger", "destructive")])
def test_no_file_of_a_mirror_of_postgres_has_a_masked_value(
    method: str, mode: str, make_postgres: MakePostgres
) -> None:
    """A TOAST value that is left alone is completed from what is masked already."""
    world = make_postgres(
        tables=[{"name": "people", "mask": KEYED}],
        mode=mode,
        capture={"method": method},
        storage="ipc" if mode == "temporal" else None,
    )
    world.run(
        f"create table people({COLUMNS.format(key='text')})",
        "alter table people alter column diary set storage external",
    )
    write(world, 0)
    world.run(f"update people set diary = repeat('{SECRET}', 2000) where seen = '{SEEN}4'")
    world.htap.sync_now()
    write(world, 1)
    world.run(
        f"update people set nick = 'xy{SECRET}' where seen = '{SEEN}4'",
        f"update people set id = '{SECRET}-other' where seen = '{SEEN}5'",
    )
    assert world.htap.sync_now().errors == {}
    assert shown(world) == expected(world, KEYED)
    assert world.htap.verify().equal
    assert holding(world.directory, SEEN)
    assert holding(world.directory, SECRET) == []


def test_equal_values_are_equal_in_every_table_and_type(make_world: MakeWorld) -> None:
    world = make_world(
        tables=[
            {"name": "people", "mask": {"id": "hash"}},
            {"name": "orders", "mask": {"person": "hash"}, "mode": "temporal"},
        ]
    )
    world.run(
        "create table people(id integer primary key, name text)",
        "create table orders(id integer primary key, person text)",
        "insert into people values (1, 'a'), (2, 'b')",
        "insert into orders values (7, '1'), (8, '1'), (9, '2'), (10, null)",
    )
    world.htap.sync_now()
    joined = world.htap.query(
        "select name, count(*) as n from people join orders on person = people.id group by 1"
        " order by 1",
        hint="olap",
    )
    assert joined.to_pylist() == [{"name": "a", "n": 2}, {"name": "b", "n": 1}]
    before = world.htap.query("select person from orders order by id", hint="olap")
    assert before["person"].to_pylist() == [hashed(1), hashed(1), hashed(2), None]


def test_a_changed_mask_leaves_nothing_of_a_plain_table_behind(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the last good version of a row that cannot be mirrored now."""
    world = make_world()
    world.run(
        "create table t(id integer primary key, email text, n integer)",
        f"insert into t values (1, '{SECRET}1', 1), (2, '{SECRET}2', 2)",
    )
    world.htap.sync_now()
    world.run("update t set n = 'no number' where id = 2")
    world.htap.sync_now()
    assert len(world.present("t")) == 2
    world.run(f"update t set email = '{SECRET}pending' where id = 1")
    world.crash()
    world.tables = [{"name": "t", "mask": {"email": "hash"}, "schema_changes": "quarantine"}]
    with pytest.raises(QueryError):
        world.htap.query("select email from t", hint="olap")
    world.htap.sync_now()
    assert world.present("t") == [{"id": 1, "email": hashed(f"{SECRET}pending"), "n": 1}]
    world.crash()
    monkeypatch.setenv("RHEI__MASKING__KEY", "another key of the tests")
    world.run("update t set n = 2 where id = 2")
    world.htap.sync_now()
    emails = {row["email"] for row in world.present("t")}
    assert len(emails) == 2
    assert not emails & {hashed(f"{SECRET}pending"), hashed(f"{SECRET}2")}
    assert world.htap.verify().equal


def test_a_history_is_not_masked_later_and_is_begun_again_if_asked(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal", buffered=True)
    world.run(
        "create table t(id integer primary key, email text)",
        "create table u(id integer primary key)",
    )
    world.run(f"insert into t values (1, '{SECRET}1')")
    world.htap.sync_now()
    world.crash()
    world.run(f"update t set email = '{SECRET}pending'", "insert into u values (1)")
    world.tables = [{"name": "t", "mask": {"email": "hash"}}, {"name": "u"}]
    report = world.htap.sync_now()
    assert "the mask of column 'email' was changed" in report.errors["t"]
    assert report.tables["u"].inserted == 1
    with pytest.raises(SchemaDriftError, match="put the mask back"):
        world.htap.initial_sync("t")
    kept = world.htap.query("select email from t", hint="olap")["email"].to_pylist()
    assert kept == [f"{SECRET}1"]
    world.crash()
    world.tables = [{"name": "t"}, {"name": "u"}]  # the mask is put back
    world.htap.sync_now()
    kept = world.htap.query("select email from t", hint="olap")["email"].to_pylist()
    assert kept == [f"{SECRET}1", f"{SECRET}pending"]
    world.crash()
    world.tables = [{"name": "t", "mask": {"email": "hash"}}, {"name": "u"}]
    world.htap.drop_table("t", discard_history=True)
    assert world.htap.sync_now().errors == {}
    kept = world.htap.query("select email from t", hint="olap")["email"].to_pylist()
    assert kept == [hashed(f"{SECRET}pending")]


def _not_implemented(*_: object) -> None:
    raise QueryError("not implemented")


def test_auto_never_shows_what_is_masked(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tables=[{"name": "people", "mask": {"email": "hash"}}, {"name": "plain"}])
    world.run(
        "create table people(id integer primary key, email text)",
        "create table plain(id integer primary key, v text)",
        "create view everyone as select email from people",
        f"insert into people values (1, '{SECRET}')",
        "insert into plain values (1, 'x')",
    )
    world.htap.sync_now()
    ask = world.htap.query
    for sql in (
        "select * from people",
        "select email from people where id = 1",
        "select v, (select email from people) as email from plain",
    ):
        answer = ask(sql)
        assert answer.schema.metadata[b"rhei.engine"] == b"olap"
        assert answer["email"].to_pylist() == [hashed(SECRET)]
        assert world.htap.explain_route(sql).engine == "olap"
    assert ask("select v from plain where id = 1").schema.metadata[b"rhei.engine"] == b"oltp"
    for sql in (
        f"select count(*) from people where email = '{SECRET}'",
        f"select id from people where email like '{SECRET}%'",
        "select email from everyone",
        "with p as (select email from people) select upper(email) from p",
        "select printf('%s', email) from people",
        "explain select email from people",
        "values ((select email from people))",
        "select printf('%s', email) from main.people",
        "with people as (select 1) select printf('%s', email) from main.people",
        "with a as (with people as (select 1) select * from people) select printf('%s', email)"
        " from people, a",
        "with a as (with everyone as (select 1) select * from everyone) select email"
        " from everyone, a",
        f"select printf('%s', (1, '{SECRET}') in people) from plain",
        "/* select 1 */ explain select email from people",
        "-- pragma\nselect email from everyone",
    ):
        with pytest.raises(QueryError, match="mask"):
            ask(sql)
    for sql in (
        "with people as (select v from plain) select printf('%s', v) as v from people",
        "with v as (select v from w), w as (select v from main.plain) select printf('%s', v) as v"
        " from v",
    ):
        assert ask(sql).to_pylist() == [{"v": "x"}]
    with monkeypatch.context() as patch:
        # Of what its engine does not run, the next plan is made without asking it.
        patch.setattr(QueryService, "_from_mirror", _not_implemented)
        for _ in range(2):
            with pytest.raises(QueryError, match="mask"):
                ask("select id, email from people")
    server = FlightSqlServer(world.htap)
    with flight_sql.connect(f"grpc://127.0.0.1:{server.port}", autocommit=True) as connection:
        for sql in ("select email from everyone", "select upper(email) from people"):
            with connection.cursor() as cursor, pytest.raises(DatabaseError, match="mask"):
                cursor.execute(sql)
    server.shutdown()
    assert ask(f"select id from people where email = '{SECRET}'", hint="oltp").num_rows == 1
    assert ask(f"select id from people where email = '{hashed(SECRET)}'", hint="olap").num_rows == 1
    world.crash()
    monkeypatch.setenv("RHEI__QUERIES__MASKED", "source")
    for sql in ("select email, count(*) as n from people group by email", "select * from people"):
        answer = world.htap.query(sql)
        assert answer.schema.metadata[b"rhei.engine"] == b"oltp"
        assert answer["email"].to_pylist() == [SECRET]


def test_auto_never_takes_one_name_of_postgres_for_another(make_postgres: MakePostgres) -> None:
    """A view's name may be a mirrored table's but for its case, or a CTE's inside of that CTE."""
    world = make_postgres(
        tables=[
            {"name": "people", "mask": {"email": "hash"}},
            {"name": "plain"},
            {"name": "hr.staff", "mask": {"email": "hash"}},
        ],
        capture={"method": "trigger"},
    )
    world.run(
        "create table people(id int primary key, email text)",
        "create table plain(id int primary key, v text)",
        "create schema hr",
        "create table hr.staff(id int primary key, email text)",
        f"insert into people values (1, '{SECRET}')",
        f"insert into hr.staff values (1, '{SECRET}')",
        "insert into plain values (1, 'x')",
        'create view "Plain" as select id, email as v from people',
    )
    world.htap.sync_now()
    for sql in (
        'select v collate "C" from "Plain"',
        'with people as (select * from people) select email collate "C" from people',
        'with "Plain" as (select * from "Plain") select v collate "C" from "Plain"',
        'with plain as (select 1) select v collate "C" from "Plain"',
        "select 1 from plain where (1, v) in (table people)",
        'select email collate "C" from hr.staff',
        'with staff as (select 1) select email collate "C" from hr.staff',
    ):
        with pytest.raises(QueryError, match="masked or filtered"):
            world.htap.query(sql)
    for sql in (
        'select v collate "C" as v from PUBLIC.Plain',
        "with recursive people as (select v from plain union select v from people)"
        ' select v collate "C" as v from people',
    ):
        assert world.htap.query(sql).to_pylist() == [{"v": "x"}]


def test_no_function_of_users_shows_what_is_masked_unless_it_is_named(
    make_postgres: MakePostgres,
) -> None:
    tables = [{"name": "people", "mask": {"email": "hash"}}, {"name": "plain"}]
    world = make_postgres(tables=tables, capture={"method": "trigger"})
    reads = "stable language sql as 'select email from people'"
    world.run(
        "create table people(id int primary key, email text)",
        "create table plain(id int primary key, v text)",
        f"insert into people values (1, '{SECRET}')",
        "insert into plain values (1, 'x')",
        f"create function leak(plain) returns text {reads}",
        f"create function cbrt(text) returns text {reads}",
        f"create function leaks(text, text) returns text {reads}",
        "create operator <#> (leftarg = text, rightarg = text, function = leaks)",
    )
    world.htap.sync_now()
    for sql in (
        "select p.leak from plain p",
        "select cbrt(v) from plain",
        "select v <#> v from plain",
        "select leak(p) from plain p",
    ):
        for hint in ("auto", "oltp"):
            with pytest.raises(QueryError, match="masked or filtered"):
                world.htap.query(sql, hint=hint)
    assert world.htap.query('select v collate "C" as v from plain').to_pylist() == [{"v": "x"}]
    world.crash()
    named = world.settings.model_copy(update={"queries": QuerySettings(functions=["leak"])})
    with rhei.open(named) as htap:
        assert htap.query("select p.leak from plain p", hint="oltp").num_rows == 1


def test_a_mask_of_run_time_restricts_functions_as_long_as_it_is_there(
    make_postgres: MakePostgres,
) -> None:
    world = make_postgres(tables=[{"name": "plain"}], capture={"method": "trigger"})
    world.run(
        "create table people(id int primary key, email text)",
        "create table plain(id int primary key)",
        f"insert into people values (1, '{SECRET}')",
        "insert into plain values (1)",
        "create function leak(plain) returns text stable language sql"
        " as 'select email from people'",
    )
    world.htap.sync_now()
    sql = "select leak(p) from plain p"
    assert world.htap.query(sql, hint="oltp").num_rows == 1
    with pytest.raises(SchemaError, match="did you mean 'email'"):
        world.htap.register_table("people", mask={"mail": "hash"})
    assert world.htap.query(sql, hint="oltp").num_rows == 1
    world.htap.register_table("people", mask={"email": "hash"})
    for _ in range(2):
        with pytest.raises(QueryError, match="masked or filtered"):
            world.htap.query(sql, hint="oltp")
        world.crash()  # what was registered is remembered
    world.htap.unregister_table("people")
    assert world.htap.query(sql, hint="oltp").num_rows == 1


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ({"mail": "hash"}, "did you mean 'email'"),
        ({"id": "redact"}, "use 'hash'"),
        ({"id": "truncate:2"}, "use 'hash'"),
        ({"n": "partial:2"}, "use 'hash' or 'redact'"),
        ({"email": "tests.support.masking:nowhere"}, "correct the function"),
        ({"email": "tests.support.masking:quoting"}, "correct the function"),
        ({"email": "tests.support.masking:hashed"}, "return a value for each value"),
        ({"email": "tests.support.masking:measured"}, "return values of one type"),
    ],
)
def test_a_mask_that_does_not_suit_leaves_its_table_out(
    mask: dict[str, str], said: str, make_world: MakeWorld
) -> None:
    world = make_world(tables=[{"name": "t", "mask": mask}, {"name": "u"}])
    world.run(
        "create table t(id integer primary key, email text, n integer)",
        "create table u(id integer primary key)",
        f"insert into t values (1, '{SECRET}', 5)",
        "insert into u values (1)",
    )
    report = world.htap.sync_now()
    assert said in report.errors["t"]
    assert SECRET not in report.errors["t"]
    assert report.tables["u"].inserted == 1
    world.crash()
    world.tables = [{"name": "t", "mask": {"email": "hash", "n": "redact"}}, {"name": "u"}]
    assert world.htap.sync_now().errors == {}
    assert world.present("t") == [{"id": 1, "email": hashed(SECRET), "n": "***"}]
