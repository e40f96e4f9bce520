"""Columns whose text is more than text: UUIDs and JSON, in every mirror and by every capture."""

import json
import re
from collections.abc import Callable
from typing import Any

import duckdb
import pytest

from rhei_pipeline.errors import QueryError
from rhei_pipeline.wiring.kept_texts import validate_texts
from tests.support.fix_postgres import PostgresWorld
from tests.support.refusals import rhei

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., PostgresWorld]

#: Some of them have the bit set that makes a signed number negative.
IDS = [f"{n}0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11" for n in "0a79f38b"]
#: What a JSON parser may stumble over, or write otherwise than it was.
JSONS = [
    '{"a": {"b": [1, null, "ž"]}, "n": 1.10}',
    "123456789012345678901234567890.000000000000000000010",
    '"\\\\ud800 \\ud83d\\ude00 \\u00e9"',
    '[{"a":1,  "a":2}, 1e400, -0]',
    "null",
    "[" * 1500 + "]" * 1500,
]


def _kept(world: PostgresWorld, table: str = "t") -> dict[str, str]:
    """Return the types that DuckDB has, read beside the pipeline."""
    world.crash()
    with duckdb.connect(world.directory / "mirror.duckdb", read_only=True) as connection:
        return dict(
            connection.execute(
                "select column_name, data_type from duckdb_columns() where table_name = ?", [table]
            ).fetchall()
        )


def _texts(world: PostgresWorld) -> list[tuple[Any, ...]]:
    """Return the source's rows as PostgreSQL writes them."""
    return world.app.execute(
        "select id::text, owner::text, j::text, b::text from t order by t.id"
    ).fetchall()


def _mirrored(world: PostgresWorld) -> list[tuple[Any, ...]]:
    return sorted(
        tuple(row[name] for name in ("id", "owner", "j", "b")) for row in world.present("t")
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("capture", "mode", "storage"),
    [
        ({}, "temporal", None),
        ({"method": "trigger"}, "destructive", None),
        ({"method": "polling"}, "temporal", None),
        ({"method": "trigger"}, "temporal", "parquet"),
        ({"buffer": True}, "destructive", None),
    ],
)
def test_uuids_and_json_are_the_same_by_every_way(
    make_postgres: MakeWorld, capture: dict[str, Any], mode: str, storage: str | None
) -> None:
    tables = [{"name": "t", "polling": {"deletes": "reconcile"}}]
    world = make_postgres(mode=mode, storage=storage, capture=dict(capture), tables=tables)
    if world.capture.pop("buffer", False):
        world.capture["buffer"] = {"kind": "rocksdb", "path": world.directory / "cdc"}
    world.run(
        "create table t(id uuid primary key, owner uuid, j json, b jsonb,"
        " updated_at timestamptz not null default clock_timestamp())"
    )
    now = "updated_at = clock_timestamp()"
    rows = list(zip(IDS, JSONS, strict=False))
    insert = "insert into t(id, owner, j, b) values (%s, %s, %s, %s::text::jsonb)"
    for id_, text in rows[:3]:
        world.app.execute(insert, (id_, IDS[0], text, text))
    world.htap.sync_now()
    for id_, text in rows[3:]:
        world.app.execute(insert, (id_, None, text, text.replace("1e400", "1e40")))
    world.run(f"update t set j = '[1]', owner = id, {now} where id = '{IDS[0]}'")
    world.run(f"delete from t where id = '{IDS[1]}'")
    world.run(f"update t set id = '{IDS[7]}', {now} where id = '{IDS[2]}'")
    world.htap.sync_now()
    assert _mirrored(world) == _texts(world)
    assert len(_texts(world)) == len(JSONS) - 1
    world.htap.initial_sync("t")
    assert _mirrored(world) == _texts(world)
    assert world.htap.verify().equal
    assert world.htap.dead_letters().num_rows == 0
    if storage is None:
        inner = "select b->>'$.n' as n, json_extract_string(j, '$[0]') as first from t"
        found = world.htap.query(f"{inner} where id = '{IDS[0].upper()}'", hint="olap").to_pylist()
        assert found[0]["first"] == "1" if mode == "destructive" else len(found) == 2  # versions
        assert _kept(world) | {"id": "UUID", "owner": "UUID", "j": "JSON", "b": "JSON"} == _kept(
            world
        )


#: Who answers; `duckdb` is the mirror where it is one of DuckDB, and else the source.
ROUTED = [
    (f"select count(*), owner from t where owner = '{IDS[1].upper()}' group by owner", "olap"),
    (f"select count(*) from t where owner <> '{IDS[1]}' or owner is null", "olap"),
    (f"select count(distinct owner) from t where owner in ('{IDS[1]}', '{IDS[2]}')", "olap"),
    ("select owner, count(*) from t group by owner order by owner", "olap"),
    ("select a.id from t a join t b on a.id = b.id order by a.id desc", "olap"),
    ("select count(*) from t a join t b on a.id = b.owner", "olap"),
    ("select coalesce(owner, id), owner::text || 'x', count(*) from t group by 1, 2", "olap"),
    ("select a.b, a.id from t a join t c on a.id = c.owner", "olap"),
    ("select count(*) from t where owner = '{a0eebc999c0b4ef8bb6d6bb9bd380a01}'", "oltp"),
    ("select count(*) from t where owner::text like 'a0%'", "olap"),
    (f"select count(*) from t where owner = '{IDS[1]}'::uuid", "olap"),
    ("select mood, count(*) from t group by mood", "olap"),
    ("select count(distinct mood), count(*) from t where mood in ('sad', 'fine')", "olap"),
    ("select count(*) from t where mood <> 'fine' or mood is null", "olap"),
    ("select count(*) from t a join t c on a.mood = c.mood", "olap"),
    ("select mood::text || '!', count(*) from t group by 1", "olap"),
    ("select count(*) from t where mood > 'sad'", "oltp"),
    ("select mood, count(*) from t group by mood order by mood", "oltp"),
    ("select max(mood), min(mood) from t", "oltp"),
    ("select max(id::text), min(mood::text) from t", "oltp"),
    ("select coalesce(mood, 'sad'), count(*) from t group by 1", "oltp"),
    ("select count(*) from t where b->>'n' = '1.10'", "duckdb"),
    ("select count(*) from t where b @> '{}'", "duckdb"),
    ("select count(*) from t where b = '{}'", "oltp"),
    ("select sum((b->>'n')::numeric) from t", "oltp"),
]


@pytest.mark.parametrize("storage", [None, "ipc"])
def test_what_is_asked_of_them_is_answered_alike(
    make_postgres: MakeWorld, storage: str | None
) -> None:
    world = make_postgres(storage=storage)
    world.run(
        "create type mood as enum ('sad', 'fine', 'glad')",
        "create type other as enum ('sad', 'fine', 'glad')",
        "create table t(id uuid primary key, owner uuid, b jsonb, mood mood, what other)",
    )
    for place, id_ in enumerate(IDS):
        owner = [None, IDS[1], IDS[2]][place % 3]
        mood = ["glad", "sad", None, "fine"][place % 4]
        values = (id_, owner, f'{{"n": 1.1{place % 2}}}', mood, mood)
        world.app.execute("insert into t values (%s, %s, %s, %s, %s)", values)
    world.htap.sync_now()
    for sql, engine in ROUTED:
        route = world.htap.explain_route(sql)
        mirror = "olap" if storage is None else "oltp"
        assert route.engine == (mirror if engine == "duckdb" else engine), (sql, route)
        answers = [world.htap.query(sql, hint=hint) for hint in ("auto", "oltp")]
        assert answers[0].schema == answers[1].schema, sql
        in_order = list if " order by " in sql else sorted
        first, second = (in_order(map(repr, answer.to_pylist())) for answer in answers)
        assert first == second, sql
    for refused in ("mood = 'gald'", "mood = what", "lower(mood) = 'sad'", "mood like 's%'"):
        with pytest.raises(QueryError):
            world.htap.query(f"select count(*) from t where {refused}")


@pytest.mark.long
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_mirror_from_before_keeps_text_until_it_is_copied(
    make_postgres: MakeWorld, mode: str
) -> None:
    world = make_postgres(mode=mode)
    world.run(
        "create table t(id uuid primary key, b jsonb, was text)",
        f"insert into t values ('{IDS[0]}', '1', 'not yet one'), ('{IDS[1]}', '2', '{IDS[1]}')",
    )
    world.htap.sync_now()
    _as_before(world)
    world.run(
        "update t set b = '3'",
        f"insert into t values ('{IDS[2]}', '{{}}', null)",
        "update t set was = null where was like 'not%'",
    )
    world.htap.sync_now()
    assert world.htap.verify().equal
    assert _kept(world) | {"id": "VARCHAR", "b": "VARCHAR"} == _kept(world)
    world.run(
        "alter table t alter column was set data type uuid using was::uuid",
    )
    is_temporal = mode == "temporal"
    versions = world.htap.query("select * from t order by id, b", hint="olap")
    world.htap.sync_now()
    assert world.htap.query("select * from t order by id, b", hint="olap").equals(versions)
    assert world.htap.verify().equal
    kept = _kept(world)
    assert (kept["id"], kept["b"]) == ("UUID", "JSON")
    # What is no UUID is in the history for ever.
    assert kept["was"] == ("VARCHAR" if is_temporal else "UUID")
    world.run("alter table t alter column b set data type text using 'no JSON'")
    world.htap.sync_now()
    assert world.htap.verify().equal
    assert {row["b"] for row in world.present("t")} == {"no JSON"}
    assert _kept(world)["b"] == "VARCHAR"


def _as_before(world: PostgresWorld) -> None:
    """Leave mirror and registry as version 0.1 wrote them."""
    world.crash()
    with duckdb.connect(world.directory / "mirror.duckdb") as connection:
        for name in ("id", "b"):
            connection.execute(f"alter table public.t alter column {name} set data type varchar")
    path = world.directory / "registry.json"
    form = json.loads(path.read_text())
    for column in form["tables"]["t"]["schema"]["columns"]:
        column.pop("logical", None)
    path.write_text(json.dumps(form))


@pytest.mark.long
def test_what_is_kept_as_text_is_named_until_it_is_copied_or_declared(
    make_postgres: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_postgres(mode="temporal")
    world.run(
        "create table t(id uuid primary key, b jsonb, v text)",
        f"insert into t values ('{IDS[0]}', '1', 'x')",
    )
    world.htap.sync_now()
    _as_before(world)
    (found,) = validate_texts(world.settings)
    assert (found.severity, found.table) == ("note", "t")
    assert found.what.startswith("id, b ")
    command = re.search("'rhei (copy --table t)'", found.remedy)
    assert command is not None
    monkeypatch.setenv("RHEI__SOURCE__DSN", world.dsn)
    rhei(world.settings, world.directory, *command[1].split())
    assert validate_texts(world.settings) == []
    assert (_kept(world)["id"], _kept(world)["b"]) == ("UUID", "JSON")
    # One that stays text is declared as such.
    world.run("alter table t alter column v set data type uuid using id")
    world.htap.sync_now()
    world.crash()
    (found,) = validate_texts(world.settings)
    declared = re.search("'types: {(.*): (.*)}'", found.remedy)
    assert declared is not None
    world.tables = [{"name": "t", "types": {declared[1]: declared[2]}}]
    assert validate_texts(world.settings) == []
    world.htap.sync_now()
    assert world.htap.verify().equal


def test_the_declaration_says_what_is_text_and_what_is_more(make_postgres: MakeWorld) -> None:
    types = {"id": "text", "b": "string", "note": "json", "ref": "uuid"}
    world = make_postgres(
        tables=[{"name": "t", "types": types}, {"name": "plain", "as_text": True}]
    )
    world.run(
        "create table plain(id uuid primary key, n int)",
        f"insert into plain values ('{IDS[0]}', 1)",
        "create table t(id uuid primary key, b jsonb, note text, ref text, j json)",
        f"insert into t values ('{IDS[0]}', '1', '{{\"a\": 1}}', '{IDS[1]}', '\"\\ud800\"')",
        f"insert into t values ('{IDS[1]}', '1', '{{a}}', '{IDS[1].upper()}', '1')",
        f"insert into t values ('{IDS[2]}', '1', null, null, null)",
    )
    world.htap.sync_now()
    letters = world.htap.dead_letters().to_pylist()
    assert {(json.loads(row["key"])["id"], row["column_name"]) for row in letters} == {
        (IDS[0], "j"),
        (IDS[1], "note"),
        (IDS[1], "ref"),
    }
    assert {row["id"] for row in world.present("t")} == {IDS[2]}
    world.run(f"update t set note = '[]', ref = '{IDS[3]}', j = null")
    world.htap.sync_now()
    assert world.htap.verify().equal
    kept = _kept(world)
    assert kept == {"id": "VARCHAR", "b": "VARCHAR", "note": "JSON", "ref": "UUID", "j": "JSON"}
    assert _kept(world, "plain") == {"id": "VARCHAR", "n": "INTEGER"}
