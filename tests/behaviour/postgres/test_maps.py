"""Maps of texts that are declared as such: `MAP` in DuckDB, text everywhere else."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.support.fix_postgres import PostgresWorld

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., PostgresWorld]
Labels = dict[str, str | None] | None

#: What is escaped in the text, and what looks as if it parted pairs, keys or values.
AWKWARD: Labels = {
    "": "",
    "=>NULL": "NULL",
    'q"': '\\"',
    "\\": "\\\\",
    ", ": '", "',
    "ž\n\v": None,
    '"=>"': "=>",
}
ROWS: list[Labels] = [{"color": "red", "size": None}, {}, None, AWKWARD]


def _make(make_postgres: MakeWorld, types: dict[str, str] | None, **options: Any) -> PostgresWorld:
    table = {"name": "t", "polling": {"deletes": "reconcile"}, "types": types}
    world = make_postgres(tables=[table], **options)
    world.run(
        "create extension hstore",
        "create table t(id int primary key, labels hstore,"
        " updated_at timestamptz not null default clock_timestamp())",
    )
    return world


def _put(world: PostgresWorld, key: int, labels: Labels) -> None:
    names, values = (None, None) if labels is None else (list(labels), list(labels.values()))
    world.app.execute(
        "insert into t(id, labels) values (%s, hstore(%s::text[], %s::text[]))"
        " on conflict (id) do update set labels = excluded.labels, updated_at = clock_timestamp()",
        (key, names, values),
    )


def _told(world: PostgresWorld) -> list[tuple[int, str | None]]:
    """Return what the source says of its maps, as text."""
    return world.app.execute("select id, labels::text from t order by id").fetchall()


def _present(world: PostgresWorld) -> list[Labels]:
    rows = sorted(world.present("t"), key=lambda row: row["id"])
    return [None if row["labels"] is None else dict(row["labels"]) for row in rows]


def _kind(world: PostgresWorld) -> str:
    world.crash()
    with duckdb.connect(world.directory / "mirror.duckdb", read_only=True) as connection:
        return str(
            connection.execute("select typeof(labels) from public.t limit 1").fetchall()[0][0]
        )


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "mode"),
    [("logical", "temporal"), ("trigger", "destructive"), ("polling", "temporal")],
)
def test_maps_are_the_same_by_every_way(
    make_postgres: MakeWorld, tmp_path: Path, method: str, mode: str
) -> None:
    buffer = (
        {} if method == "polling" else {"buffer": {"kind": "rocksdb", "path": tmp_path / "cdc"}}
    )
    capture = {"method": method, **buffer}
    world = _make(make_postgres, {"labels": "map"}, mode=mode, capture=capture)
    for key, labels in enumerate(ROWS):
        _put(world, key, labels)
    world.htap.sync_now()
    for key, labels in enumerate(ROWS[::-1]):
        _put(world, key, labels)
        _put(world, 4 + key, labels)
    world.run("delete from t where id = 7")
    world.htap.sync_now()
    expected = [*ROWS[::-1], *ROWS[:0:-1]]
    assert _present(world) == expected
    assert world.htap.verify().equal
    changed = world.htap.sync_now()
    assert (changed.inserted, changed.updated) == (0, 0)
    world.htap.initial_sync("t")
    assert _present(world) == expected
    sql = "select id, map_keys(labels) as k from t where labels['color'] = 'red' and id = 3"
    assert world.htap.query(sql, hint="olap").to_pylist() == [{"id": 3, "k": ["size", "color"]}]
    if method != "polling":  # whose source is not asked
        sql = "select a.id, a.labels from t a join t b using (id) order by 1"
        assert world.htap.explain_route(sql).engine == "olap"
        answer = world.htap.query(sql)
        assert [tuple(row.values()) for row in answer.to_pylist()] == _told(world)
    if mode == "temporal":
        now = world.htap.as_of("t", datetime.now(UTC)).sort_by("id").to_pylist()
        shown = [row["labels"] for row in now]
        assert [None if labels is None else dict(labels) for labels in shown] == expected
        rows = world.htap.changes("t").rows
        assert {text for _, text in _told(world)} == set(rows["labels"].to_pylist())
    assert _kind(world) == "MAP(VARCHAR, VARCHAR)"


@pytest.mark.long
@pytest.mark.parametrize("mode", ["temporal", "destructive"])
def test_text_becomes_a_map_and_back_with_its_history(make_postgres: MakeWorld, mode: str) -> None:
    world = _make(make_postgres, None, mode=mode)
    for key, labels in enumerate(ROWS):
        _put(world, key, labels)
    world.htap.sync_now()
    _put(world, 2, AWKWARD)
    world.htap.sync_now()
    as_text = world.htap.query("select * from t order by id, labels", hint="olap")
    assert world.tables is not None
    for types, kind in (({"labels": "map"}, "MAP(VARCHAR, VARCHAR)"), (None, "VARCHAR")):
        world.crash()
        world.tables[0]["types"] = types
        world.htap.sync_now()
        assert world.htap.verify().equal
        if types is None:
            now = world.htap.query("select * from t order by id, labels", hint="olap")
            assert now.equals(as_text)
        else:
            assert _present(world) == [ROWS[0], ROWS[1], AWKWARD, AWKWARD]
        assert _kind(world) == kind


def test_what_is_no_map_is_a_dead_letter(make_postgres: MakeWorld) -> None:
    world = make_postgres(tables=[{"name": "t", "types": {"id": "map", "labels": "map"}}])
    world.run(
        "create table t(id text primary key, labels text)",
        """insert into t values ('"k"=>"1"', '"a"=>"1", "a"=>"2"'), ('""=>NULL', '"a"=>1'),
        ('"a"=>"b"', '"a"=>"1", "b"=>NULL'), ('a', '"b"=>NULL, "a"=>"1"')""",
    )
    world.htap.sync_now()
    letters = world.htap.dead_letters()
    assert len(letters) == 3
    world.run("""update t set labels = '"n"=>NULL'""", "delete from t where id = 'a'")
    world.htap.sync_now()
    assert world.htap.verify().equal
    assert len(world.present("t")) == 3


def test_a_history_that_is_not_what_its_column_became_is_text(make_postgres: MakeWorld) -> None:
    world = make_postgres(tables=[{"name": "t"}], mode="temporal")
    world.run("create table t(id int primary key, labels uuid)")
    world.run("insert into t values (1, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11')")
    world.htap.sync_now()
    world.run("alter table t alter labels type jsonb using to_jsonb(labels)")
    world.htap.sync_now()
    assert not world.htap.sync_status().tables["t"].error
    assert world.htap.verify().equal
    assert _kind(world) == "VARCHAR"
