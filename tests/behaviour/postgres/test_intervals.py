"""Intervals: such in DuckDB, and text everywhere else, with months, days and time kept apart."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.refusals import rhei

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., PostgresWorld]

#: As PostgreSQL takes them: parts of either sign, beside each other, and the ends of their ranges.
TAKEN = ["1 year 2 mons 3 days 04:05:06.789", "1 mon", "30 days", "720:00:00", "0", "-0.000001 s"]
TAKEN += ["-1 year 2 mons -3 days 04:00:00.5", "1 day -24:00:00", "178956970 years 7 mons"]
TAKEN += ["-178956970 years -8 mons -2147483648 days", "2562047:47:16.854775", "-00:01:00"]
#: What no interval of Arrow holds.
REFUSED = ["infinity", "-infinity", "2562047:47:16.854776", "9999999:00:00"]
_EXPECTED = "select id, v::text as v, k::text as k from t order by id"


def _make(make_postgres: MakeWorld, **options: Any) -> PostgresWorld:
    polling = {"deletes": "reconcile", "reconcile_seconds": 0}
    table = {"name": "t", "polling": polling, **options.pop("table", {})}
    world = make_postgres(tables=[table], **options)
    world.run(
        "create table t(id int primary key, v interval, k interval(0),"
        " updated_at timestamptz not null default clock_timestamp())"
    )
    return world


def _put(world: PostgresWorld, key: int, value: str | None) -> None:
    world.app.execute(
        "insert into t(id, v, k) values (%s, %s, '1 day') on conflict (id) do update"
        " set v = excluded.v, updated_at = clock_timestamp()",
        (key, value),
    )


def _told(world: PostgresWorld) -> list[tuple[Any, ...]]:
    """Return the source's rows as PostgreSQL writes them, in a session that is not ours."""
    world.app.execute("set intervalstyle = 'iso_8601'")
    return world.app.execute(_EXPECTED).fetchall()


def _parts(world: PostgresWorld) -> list[tuple[Any, ...]]:
    """Return months, days and microseconds as the source computes them."""
    return world.app.execute(
        "select id, extract(year from v)::bigint * 12 + extract(month from v)::bigint,"
        " extract(day from v)::bigint, extract(hour from v)::bigint * 3600000000"
        " + extract(minute from v)::bigint * 60000000 + extract(microsecond from v)::bigint"
        " from t order by id"
    ).fetchall()


_HELD = (
    "select id, datepart('year', v)::bigint * 12 + datepart('month', v), datepart('day', v),"
    " datepart('hour', v)::bigint * 3600000000 + datepart('minute', v)::bigint * 60000000"
    " + datepart('microsecond', v) from t {0} order by id"
)


def _held(world: PostgresWorld, where: str = "") -> list[tuple[Any, ...]]:
    """Return the same of the mirror, read beside the pipeline."""
    world.crash()
    with duckdb.connect(world.directory / "mirror.duckdb", read_only=True) as connection:
        connection.execute("use public")
        assert connection.sql("select v, k from t").types == ["INTERVAL", "INTERVAL"]
        return connection.execute(_HELD.format(where)).fetchall()


@pytest.mark.long
@pytest.mark.parametrize(
    ("capture", "mode"),
    [
        ({"method": "logical"}, "temporal"),
        ({"method": "trigger"}, "destructive"),
        ({"method": "polling"}, "temporal"),
        ({"buffer": True}, "temporal"),
    ],
)
def test_intervals_are_the_same_by_every_way(
    make_postgres: MakeWorld, capture: dict[str, Any], mode: str
) -> None:
    world = _make(make_postgres, mode=mode, capture=dict(capture))
    if world.capture.pop("buffer", False):
        world.capture["buffer"] = {"kind": "rocksdb", "path": world.directory / "cdc"}
    for key, value in enumerate(TAKEN):
        _put(world, key, value)
    world.htap.sync_now()
    for key, moved in enumerate([None, *TAKEN]):
        _put(world, key, moved)
    world.run("delete from t where id = 3")
    world.htap.sync_now()
    assert world.htap.verify().equal
    changed = world.htap.sync_now()
    assert (changed.inserted, changed.updated) == (0, 0)
    world.htap.initial_sync("t")
    # A month is no 30 days, nor are those 720 hours.
    for style in ("30 days", "720:00:00", "1 mon"):
        _put(world, 4, style)
        assert world.htap.sync_now().updated == 1
    if mode == "temporal":
        told = world.htap.changes("t").rows
        assert told.schema.field("v").type == pa.string()
        assert set(told["v"].to_pylist()) == {row[1] for row in _told(world)}
        shown = world.htap.as_of("t", datetime.now(UTC)).sort_by("id")
        assert shown.num_rows == len(_told(world))
    assert world.htap.verify().equal
    if capture.get("method") != "polling":  # whose source is not asked
        sql = "select a.id, a.v, a.k from t a join t b on a.id = b.id order by a.id"
        assert world.htap.explain_route(sql).engine == "olap"
        assert [tuple(row.values()) for row in world.htap.query(sql).to_pylist()] == _told(world)
    where = "where _rhei_valid_to is null" if mode == "temporal" else ""
    assert _held(world, where) == _parts(world)


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_what_no_interval_holds_is_a_dead_letter_unless_it_is_declared_as_text(
    make_postgres: MakeWorld, storage: str | None
) -> None:
    world = _make(make_postgres, storage=storage)
    for key, value in enumerate([*REFUSED, "1 day"]):
        _put(world, key, value)
    world.htap.sync_now()
    letters = world.htap.dead_letters()
    assert sorted(letters["key"].to_pylist()) == [f'{{"id": {key}}}' for key in range(4)]
    assert world.tables is not None
    world.crash()
    world.tables[0]["types"] = {"v": "text"}
    world.htap.sync_now()
    world.htap.initial_sync("t")
    assert world.htap.dead_letters().num_rows == 0
    found = sorted((row["id"], row["v"]) for row in world.present("t"))
    assert found == [row[:2] for row in _told(world)]


def test_an_interval_in_the_key_is_text_whatever_it_is(make_postgres: MakeWorld) -> None:
    world = make_postgres(tables=[{"name": "keyed"}])
    keys = ("infinity", "1 mon", "9999999:00:00")
    world.run(
        "create table keyed(k interval primary key, v int)",
        *(f"insert into keyed values ('{key}', 1)" for key in keys),
    )
    world.htap.sync_now()
    world.run("update keyed set v = 2", "delete from keyed where k = '1 mon'")
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    assert sorted(row["k"] for row in world.present("keyed")) == ["PT9999999H", "infinity"]
    assert world.htap.verify().equal


@pytest.mark.long
@pytest.mark.parametrize("mode", ["temporal", "destructive"])
def test_text_becomes_intervals_and_back_with_its_history(
    make_postgres: MakeWorld, mode: str
) -> None:
    world = _make(make_postgres, mode=mode, table={"as_text": True})
    for key, value in enumerate([*TAKEN, None]):
        _put(world, key, value)
    world.htap.sync_now()
    _put(world, 2, TAKEN[0])
    world.htap.sync_now()
    columns = "id, v, k" + (", _rhei_valid_from" if mode == "temporal" else "")
    asked = f"select {columns} from t order by id, 3"
    as_text = world.htap.query(asked, hint="olap")
    assert world.tables is not None
    for is_text in (False, True):
        world.crash()
        world.tables[0]["as_text"] = is_text
        world.htap.sync_now()
        world.htap.initial_sync("t")
        assert world.htap.verify().equal
        if is_text:
            assert world.htap.query(asked, hint="olap").equals(as_text)
        else:
            assert _held(world, "where _rhei_valid_to is null" * (mode == "temporal")) == _parts(
                world
            )


def test_intervals_of_a_mirror_are_written_to_files_as_text(
    make_postgres: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = _make(make_postgres)
    _put(world, 1, TAKEN[0])
    world.htap.sync_now()
    added = world.htap.query("select v + v as v from t", hint="olap")
    assert added["v"].to_pylist() == [(28, 6, 29413578000000)]
    world.crash()
    monkeypatch.setenv("RHEI__SOURCE__DSN", world.dsn)
    file = world.directory / "answer.parquet"
    asked = ("query", "select v from t", "--hint", "olap")
    rhei(world.settings, world.directory, *asked, "--output", str(file))
    assert parquet.read_table(file)["v"].to_pylist() == ["P1Y2M3DT4H5M6.789S"]


def test_intervals_are_declared_for_texts_of_sqlite(make_world: Callable[..., World]) -> None:
    world = make_world(tables=[{"name": "t", "types": {"v": "interval"}}])
    world.run(
        "create table t(id integer primary key, v text)",
        "insert into t values (1, 'P1M'), (2, 'P30D'), (3, '1 month'), (4, 'PT60M'), (5, null)",
    )
    world.htap.sync_now()
    assert sorted(map(json.loads, world.htap.dead_letters()["key"].to_pylist()), key=str) == [
        {"id": 3},
        {"id": 4},
    ]
    found = world.htap.query("select id from t where v > interval 29 days", hint="olap")
    assert sorted(found["id"].to_pylist()) == [1, 2]
