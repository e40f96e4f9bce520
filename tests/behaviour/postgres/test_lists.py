"""Arrays that are declared as such: lists in DuckDB, text everywhere else."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import duckdb
import pytest

from tests.support.fix_postgres import PostgresWorld

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., PostgresWorld]

AN_ID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
TYPES = {
    "tags": "string[]",
    "small": "int16[]",
    "mid": "int32[]",
    "big": "int64[]",
    "flags": "boolean[]",
    "ids": "uuid[]",
    "grid": "int32[][]",
    "words": "text[][]",
}
NATIVE = {
    "tags": "VARCHAR[]",
    "small": "SMALLINT[]",
    "mid": "INTEGER[]",
    "big": "BIGINT[]",
    "flags": "BOOLEAN[]",
    "ids": "UUID[]",
    "grid": "INTEGER[][]",
    "words": "VARCHAR[][]",
}
#: What is quoted in an array's text, and what is not.
AWKWARD = ["a", None, "null", 'q"\\', "", " x", "{y},", "ž\n\v"]
#: Rows of arrays, in the order of the columns above.
ROWS: list[list[Any]] = [
    [AWKWARD, [-(2**15)], [1, None], [], [True], [AN_ID], [[1, 2], [3, None]], [["a"]]],
    [[], [], [], [2**63 - 1, -(2**63)], [None, False], [None, AN_ID], [], [[None, 'q"\\, x']]],
    [["plain", "nul"], [None], None, None, None, None, [[-1]], [["", "null"], ["b", "c d"]]],
    [None] * 8,
]


def _put(world: PostgresWorld, key: int, row: list[Any]) -> None:
    world.app.execute(
        "insert into t(id, tags, small, mid, big, flags, ids, grid, words) values"
        " (%s, %s, %s::int2[], %s::int4[], %s::int8[], %s::bool[], %s::uuid[], %s::int4[],"
        " %s::text[])"
        " on conflict (id) do update set tags = excluded.tags, small = excluded.small,"
        " mid = excluded.mid, big = excluded.big, flags = excluded.flags, ids = excluded.ids,"
        " grid = excluded.grid, words = excluded.words,"
        " updated_at = clock_timestamp()",
        (key, *row),
    )


def _present(world: PostgresWorld) -> list[list[Any]]:
    """Return the mirror's rows by key, with UUIDs as texts."""
    rows = sorted(world.present("t"), key=lambda row: row["id"])
    return [[row[name] for name in TYPES] for row in rows]


def _make(make_postgres: MakeWorld, types: dict[str, str] | None, **options: Any) -> PostgresWorld:
    table = {"name": "t", "polling": {"deletes": "reconcile"}, "types": types}
    world = make_postgres(tables=[table], **options)
    world.run(
        "create table t(id int primary key, tags text[], small int2[], mid int4[], big int8[],"
        " flags bool[], ids uuid[], grid int4[], words text[],"
        " updated_at timestamptz not null default clock_timestamp())"
    )
    return world


def _kinds(world: PostgresWorld) -> dict[str, str]:
    world.crash()
    with duckdb.connect(world.directory / "mirror.duckdb", read_only=True) as connection:
        found = connection.execute(
            "select column_name, data_type from duckdb_columns() where table_name = 't'"
        ).fetchall()
    return {name: kind for name, kind in found if name in TYPES}


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "mode"),
    [("logical", "temporal"), ("trigger", "destructive"), ("polling", "temporal")],
)
def test_lists_are_the_same_by_every_way(make_postgres: MakeWorld, method: str, mode: str) -> None:
    world = _make(make_postgres, TYPES, mode=mode, capture={"method": method})
    for key, row in enumerate(ROWS):
        _put(world, key, row)
    world.htap.sync_now()
    for key, row in enumerate(ROWS[::-1]):
        _put(world, key, row)
        _put(world, 4 + key, row)
    world.run("delete from t where id = 7")
    world.htap.sync_now()
    expected = [*ROWS[::-1], *ROWS[:0:-1]]
    assert _present(world) == expected
    assert world.htap.verify().equal
    changed = world.htap.sync_now()
    assert (changed.inserted, changed.updated) == (0, 0)
    world.htap.initial_sync("t")
    assert _present(world) == expected
    # Left to the pipeline, an answer is what the source would give.
    if method != "polling":  # whose source is not asked
        names = ", ".join(f"a.{name}" for name in TYPES)
        sql = f"select a.id, {names} from t a join t b on a.id = b.id order by 1"
        texts = ", ".join(f"{name}::text" for name in TYPES)
        told = world.app.execute(f"select id, {texts} from t order by id".encode()).fetchall()
        assert world.htap.explain_route(sql).engine == "olap"
        for hint in ("auto", "oltp"):
            answer = world.htap.query(sql, hint=hint).to_pylist()
            assert [tuple(row.values()) for row in answer] == told
        counted = "select count(tags), count(*) from t"
        assert world.htap.explain_route(counted).engine == "olap"
    found = world.htap.query("select id from t where list_contains(tags, 'nul')", hint="olap")
    assert set(found["id"].to_pylist()) >= {1, 5}
    if mode == "temporal":
        now = world.htap.changes("t")
        shown = world.htap.as_of("t", datetime.now(UTC)).sort_by("id").to_pylist()
        assert [[row[name] for name in TYPES] for row in shown] == expected
        told = now.rows
        assert '{a,NULL,"null","q\\"\\\\",""," x","{y},","ž\n\v"}' in told["tags"].to_pylist()
    assert _kinds(world) == NATIVE


def test_what_is_no_plain_array_is_a_dead_letter(make_postgres: MakeWorld) -> None:
    world = _make(make_postgres, TYPES)
    assert world.tables is not None
    world.tables.append({"name": "keyed", "types": {"k": "int32[]", "v": "int32[]"}})
    world.run(
        "create table keyed(k int[] primary key, v int[])",
        "insert into keyed values ('{1,2}', '{3}'), ('{}', null)",
        "insert into t(id, mid) values (1, '{{1,2},{3,4}}'), (2, '[0:1]={1,2}'), (3, '{1}')",
        "insert into t(id, tags) values (4, array[array['a']])",
        "insert into t(id, grid) values (5, '{1,2}'), (6, '{{{1}}}'), (7, '[0:0][1:1]={{1}}')",
    )
    world.htap.sync_now()
    letters = world.htap.dead_letters()
    assert sorted(letters["key"].to_pylist()) == [f'{{"id": {key}}}' for key in (1, 2, 4, 5, 6, 7)]
    world.run(
        "update t set mid = '{5}', tags = null, grid = '{{1}}'",
        "update keyed set v = '{4}' where k = '{1,2}'",
        "delete from keyed where k = '{}'",
    )
    world.htap.sync_now()
    assert world.htap.verify().equal
    # Rows are found by the key's text.
    assert world.present("keyed") == [{"k": "{1,2}", "v": [4]}]


@pytest.mark.long
@pytest.mark.parametrize("mode", ["temporal", "destructive"])
def test_text_becomes_lists_and_back_with_its_history(make_postgres: MakeWorld, mode: str) -> None:
    world = _make(make_postgres, None, mode=mode)
    for key, row in enumerate(ROWS):
        _put(world, key, row)
    world.htap.sync_now()
    _put(world, 2, ROWS[0])
    world.htap.sync_now()
    as_text = world.htap.query("select * from t order by id, tags", hint="olap")
    assert world.tables is not None
    for types, kinds in ((TYPES, NATIVE), (None, dict.fromkeys(TYPES, "VARCHAR"))):
        world.crash()
        world.tables[0]["types"] = types
        world.htap.sync_now()
        assert world.htap.verify().equal
        if types is None:
            now = world.htap.query("select * from t order by id, tags", hint="olap")
            assert now.equals(as_text)
        else:
            assert _present(world) == [ROWS[0], ROWS[1], ROWS[0], ROWS[3]]
        assert _kinds(world) == kinds
    form = json.loads((world.directory / "registry.json").read_text())
    assert not any("logical" in one for one in form["tables"]["t"]["schema"]["columns"])
