"""What a declaration does not keep of the past is removed, and never answered from a hole."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pytest

import rhei_pipeline as rhei
from rhei_pipeline import Settings
from rhei_pipeline.capabilities import refuse_unless_expiring
from rhei_pipeline.errors import ChangesLostError, QueryError
from rhei_pipeline.mirrors.datafusion import retention
from rhei_pipeline.mirrors.datafusion.manifest_store import ManifestStore
from rhei_pipeline.mirrors.duckdb.feed import DuckDBFeeds
from rhei_pipeline.mirrors.duckdb.last_commit import LastCommit
from rhei_pipeline.query import time_travel
from rhei_pipeline.sync import removals
from rhei_pipeline.testing.faults import Crash
from rhei_pipeline.testing.stub_mirror import StubMirror
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.parts import engine_of
from tests.support.refusals import refused
from tests.support.refusals import rhei as command

MakeWorld = Callable[..., World]
STORAGES = (None, "memory", "ipc", "parquet", "delta")
NOW = datetime.now(UTC)
SHAPE = {"types": {"id": "int64", "v": "string"}, "primary_key": ["id"]}
NOTHING: dict[str, Any] = {}
LAST_TWO = {"name": "p", "mode": "temporal", "history": {"keep_versions": 2}}


def days_ago(days: int) -> datetime:
    return NOW - timedelta(days=days)


def versions(htap: rhei.HTAP, table: str = "p") -> list[tuple[Any, ...]]:
    sql = f"select id, v, _rhei_operation from {table} order by id, _rhei_valid_from"
    return [tuple(row.values()) for row in htap.query(sql, hint="olap").to_pylist()]


def changed(world: World | PostgresWorld) -> World | PostgresWorld:
    """One row with four versions, one that was deleted after two, and one that never changed."""
    world.run(
        "create table p(id integer primary key, v text)",
        "insert into p values (1, 'a'), (2, 'x'), (3, 'same')",
    )
    world.htap.sync_now()
    for value in "bcd":
        world.run(f"update p set v = '{value}' where id = 1")
        world.htap.sync_now()
    world.run("update p set v = 'y' where id = 2")
    world.htap.sync_now()
    world.run("delete from p where id = 2")
    world.htap.sync_now()
    return world


SHORTENED = [(1, "c", "U"), (1, "d", "U"), (2, "x", "I"), (2, "y", "D"), (3, "same", "I")]


class Behind(datetime):
    """A clock that was put back by 200 days."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        """Return its time."""
        return super().now(tz) - timedelta(days=200)


class Ahead(datetime):
    """A clock that is ahead by years."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        """Return its time."""
        return super().now(tz) + timedelta(days=5000)


@pytest.mark.parametrize("storage", [None, "ipc"])
def test_an_instant_whose_versions_go_while_it_is_asked_for_is_refused(
    tmp_path: Path, storage: str | None
) -> None:
    kind = {"kind": "datafusion", "storage": storage} if storage else {"kind": "duckdb"}
    settings = Settings(
        source={"kind": "log", "path": tmp_path / "log"},
        mirror={**kind, "path": tmp_path / "mirror"},
        registry={"path": tmp_path / "registry.json"},
        history={"keep_days": 400},
        tables=[{"name": "kept", "mode": "temporal", **SHAPE}],
    )
    with rhei.open(settings) as htap:
        htap.append("kept", aged())
        htap.sync_now()
        engine = engine_of(htap)
        table, instant = engine.pipeline.mirrored("kept"), days_ago(421)
        assert time_travel.as_of(table, instant, engine.mirror).num_rows == 3

        def remove(_cancel: Callable[[], None]) -> None:
            assert htap.maintain().expired

        with pytest.raises(QueryError, match="its history is kept since"):
            time_travel.as_of(table, instant, engine.mirror, remove)


@pytest.mark.parametrize("storage", STORAGES)
def test_versions_go_by_their_age_and_no_instant_before_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str | None
) -> None:
    kind = {"kind": "datafusion", "storage": storage} if storage else {"kind": "duckdb"}
    where = tmp_path / (storage or "mirror.duckdb")
    settings = Settings(
        source={"kind": "log", "path": tmp_path / "log"},
        mirror={**kind, "path": ":memory:" if storage == "memory" else where},
        registry={"path": tmp_path / "registry.json"},
        history={"keep_days": 400},
        tables=[
            {"name": name, "mode": "temporal", **SHAPE, **own}
            for name, own in (("kept", NOTHING), ("whole", {"history": NOTHING}))
        ],
    )
    with rhei.open(settings) as htap:
        for table in ("kept", "whole"):
            htap.append(table, aged())
        htap.sync_now()
        cut = days_ago(420)
        before = htap.as_of("kept", cut)
        with pytest.raises(QueryError, match="its history begins at"):
            htap.as_of("kept", days_ago(5000))
        with monkeypatch.context() as patched:  # one of the clocks may be ahead: the other tells
            patched.setattr(removals, "datetime", Behind)
            assert htap.maintain().expired == ()
            patched.setattr(removals, "datetime", Ahead)
            report = htap.maintain()
        assert [(f.table, f.versions, f.kept_since) for f in report.expired] == [("kept", 2, cut)]
        assert versions(htap, "kept") == [(1, "b", "U"), (1, "c", "U"), (3, "y", "I")]
        assert len(versions(htap, "whole")) == 5
        assert htap.as_of("kept", cut).sort_by("id") == before.sort_by("id")
        assert htap.maintain().expired == ()
    with rhei.open(settings) as htap:
        htap.sync_now()
        if storage == "memory":
            return
        told = htap.sync_status().tables
        assert (told["kept"].kept_since, told["whole"].kept_since) == (cut, None)
        assert htap.known_since("kept") == cut
        way = "give a later timestamp; what was before was removed, as 'history' declares"
        for ask in (
            lambda: htap.as_of("kept", cut - timedelta(microseconds=1)),
            lambda: htap.diff("kept", days_ago(421), days_ago(1)),
            lambda: htap.changes("kept", days_ago(421)),
        ):
            with refused(way, QueryError):
                ask()
        with pytest.raises(QueryError, match=r"its history is kept since .* ended before"):
            htap.snapshot("kept", {days_ago(430).date(): days_ago(430)})
        assert sorted(htap.as_of("whole", days_ago(421))["v"].to_pylist()) == ["b", "x", "y"]


def aged() -> pa.Table:
    """Events of the last 900 days."""
    told = [
        (1, "a", 900, True),
        (3, "y", 800, True),
        (1, "b", 500, True),
        (2, "x", 450, True),
        (2, None, 420, False),
        (1, "c", 300, True),
    ]
    ids, values, ages, live = zip(*told, strict=True)
    made = [days_ago(age) for age in ages]
    return pa.table({"id": ids, "v": values, "_rhei_changed_at": made, "_rhei_live": live})


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_of_each_row_the_newest_versions_stay(make_world: MakeWorld, storage: str | None) -> None:
    world = make_world(storage=storage, tables=[LAST_TWO, {"name": "q"}])
    world.run("create table q(id integer primary key)")
    changed(world)
    position = world.htap.changes("p").position
    early = str(world.htap.changes("p", world.htap.known_since("p")).position)
    world.run("update p set v = 'e' where id = 1")
    world.htap.sync_now()
    cut = world.versions("p", "id, _rhei_valid_from")[2]["_rhei_valid_to"]
    report = world.htap.maintain()
    assert (report.versions_removed, report.expired[0].kept_since) == (3, cut)
    assert versions(world.htap) == [(1, "d", "U"), (1, "e", "U"), *SHORTENED[2:]]
    assert world.htap.verify().equal
    assert world.htap.broken_histories("p").num_rows == 0
    # Who stands at the cut or later reads on; who stands before takes it all afresh.
    assert world.htap.changes("p", position).updated == 1
    assert early == str(position)
    world.crash()
    world.run("update p set v = 'f' where id = 1")
    assert world.htap.sync_now().updated == 1
    assert world.htap.as_of("p", datetime.now(UTC)).num_rows == 2
    assert world.htap.maintain().versions_removed == 1
    with pytest.raises(ChangesLostError, match="its history is kept since a later state"):
        world.htap.changes("p", position)
    assert world.htap.changes("p", position, on_lost="snapshot").snapshot
    # A table that is copied into a new history knows nothing of what was kept of the old one.
    world.htap.drop_table("p", discard_history=True)
    world.htap.sync_now()
    assert world.htap.sync_status().tables["p"].kept_since is None
    assert world.htap.maintain().expired == ()


def test_postgres_histories_are_shortened_too(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres(tables=[LAST_TWO])
    changed(world)
    assert world.htap.maintain().versions_removed == 2
    assert versions(world.htap) == SHORTENED
    assert world.htap.verify().equal


AT_FEED, AT_NOTE = (DuckDBFeeds, "keep"), (LastCommit, "note")
AT_FOLD, AT_COMMIT = (retention, "fold"), (ManifestStore, "commit")
AFTER = (ManifestStore, "collect")


@pytest.mark.parametrize(
    ("storage", "place", "is_done"),
    [
        (None, AT_FEED, False),
        (None, AT_NOTE, True),
        ("ipc", AT_FOLD, False),
        ("ipc", AT_COMMIT, False),
        ("ipc", AFTER, True),
    ],
)
def test_what_was_cut_off_is_done_as_a_whole_or_not_at_all(
    make_world: MakeWorld,
    monkeypatch: pytest.MonkeyPatch,
    storage: str | None,
    place: tuple[Any, str],
    *,
    is_done: bool,
) -> None:
    world = make_world(storage=storage, tables=[LAST_TWO])
    changed(world)
    begun = world.htap.known_since("p")
    with monkeypatch.context() as patched:
        patched.setattr(*place, dying)
        assert world.surviving(world.htap.maintain)
    assert len(versions(world.htap)) == (5 if is_done else 7)
    assert (world.htap.known_since("p") == begun) is not is_done
    assert (world.htap.sync_status().tables["p"].kept_since is None) is not is_done
    assert world.htap.maintain().versions_removed == (0 if is_done else 2)
    assert versions(world.htap) == SHORTENED
    assert world.htap.verify().equal


def dying(*_: Any, **__: Any) -> None:
    raise Crash


@pytest.mark.long
def test_a_column_that_left_and_a_new_name_keep_the_cut(make_world: MakeWorld) -> None:
    for storage in (None, "ipc"):
        world = make_world(storage=storage, tables=[LAST_TWO])
        changed(world)
        kept = world.htap.maintain().expired[0].kept_since
        world.run("alter table p add column more text", "update p set more = 'm'")
        world.htap.sync_now()
        world.run("alter table p drop column more")
        world.htap.sync_now()
        assert world.htap.sync_status().tables["p"].kept_since == kept
        with pytest.raises(QueryError, match="its history is kept since"):
            world.htap.as_of("p", kept - timedelta(seconds=1))


@pytest.mark.long
def test_what_cannot_be_shortened_is_refused_with_the_way_out(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    world = make_world(tables=[{"name": "p", "mode": "destructive", "history": {"keep_days": 3}}])
    with refused("give it 'mode: temporal', or leave its 'history' out"):
        _ = world.settings
    world.tables = [LAST_TWO]
    changed(world)
    table = engine_of(world.htap).pipeline.table("p")
    with refused("leave out 'history' in the declaration"):
        refuse_unless_expiring(StubMirror(), table)
    world.tables = [{"name": "p", "mode": "temporal"}]
    world.crash()
    assert world.htap.maintain().expired == ()
    assert len(versions(world.htap)) == 7
    world.crash()
    world.tables = [LAST_TWO]
    said = command(world.settings, tmp_path, "maintain")
    assert "p: 2 old versions were removed; its history is kept since" in said
    assert json.loads(command(world.settings, tmp_path, "maintain", "--json"))["expired"] == []
    shown = json.loads(command(world.settings, tmp_path, "status", "--json"))
    assert shown["tables"]["p"]["kept_since"] in said
    assert str(shown["tables"]["p"]["kept_since"])[:10] in command(
        world.settings, tmp_path, "status"
    )
