"""What a newer version stored is refused by name, and left alone.

What an older version stored is in test_states_of_older_versions.py, newer mirrors in
test_ownership.py.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhei_pipeline import ChangeLog, unseen_events
from rhei_pipeline.errors import CaptureError, SchemaError
from rhei_pipeline.wiring.engine import bridge
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

MakeWorld = Callable[..., World]
CREATE = "create table t(id integer primary key, v integer, updated_at integer)"
NEWER = r"has format 99, and this version knows \d at most"
POLLED = [{"name": "t", "polling": {"updated_at": "updated_at"}}]


def synced(world: World) -> World:
    world.run(CREATE, "insert into t values (1, 1, 1767225600)")
    world.htap.sync_now()
    world.crash()
    return world


def rewrite(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    form = json.loads(file.read_text())
    change(form)
    file.write_text(json.dumps(form))


def assert_goes_on(world: World, copied_rows: int = 0) -> None:
    report = world.htap.sync_now().tables["t"]
    assert report.error is None
    assert report.copied_rows == copied_rows
    world.assert_equal("t")


def test_a_registry_of_a_newer_format_is_refused_until_it_is_deleted(make_world: MakeWorld) -> None:
    world = synced(make_world(mode="temporal"))
    registry = world.settings.registry.path
    rewrite(registry, lambda form: form.update(format=99))
    before = registry.read_text()
    world.run("update t set v = 2")
    with pytest.raises(SchemaError, match=f"registry .*{NEWER}.*delete it"):
        world.htap  # noqa: B018
    assert registry.read_text() == before
    registry.unlink()
    assert_goes_on(world, copied_rows=1)
    assert [version["v"] for version in world.versions("t")] == [1, 2]


def test_a_buffer_of_a_newer_format_is_refused_until_it_is_moved_away(
    make_world: MakeWorld,
) -> None:
    world = synced(make_world(buffered=True))
    world.run("update t set v = 2")
    bridge(world.settings)
    put_format(world.buffer, b"99")
    for _ in range(2):
        with pytest.raises(CaptureError, match=f"buffer .*{NEWER}.*move it away"):
            world.htap  # noqa: B018
    with pytest.raises(CaptureError, match=NEWER):
        bridge(world.settings)
    world.buffer.rename(world.directory / "away")
    assert_goes_on(world, copied_rows=1)


def put_format(buffer: Path, number: bytes) -> None:
    with ChangeLog(buffer) as log, log.writing() as writer:
        writer.set_fact("format", number)


def confirmation(world: World) -> Path:
    return world.directory / "cdc.confirmed.json"


def test_a_confirmation_of_a_newer_format_is_refused_until_it_is_deleted(
    make_world: MakeWorld,
) -> None:
    world = synced(make_world(buffered=True))
    rewrite(confirmation(world), lambda form: form.update(format=99))
    with pytest.raises(CaptureError, match=f"{NEWER}.*delete it: the next sync"):
        unseen_events(world.settings)
    confirmation(world).unlink()
    world.run("update t set v = 2")
    assert_goes_on(world)
    assert unseen_events(world.settings) == 0


@pytest.mark.parametrize("name", ["t", "format"])
def test_notes_of_polling_are_read_in_both_formats_and_passed_over_in_a_newer_one(
    make_world: MakeWorld, name: str
) -> None:
    world = make_world(method="polling", tables=[{**POLLED[0], "name": name}])
    world.run(CREATE.replace(" t(", f" {name}("), f"insert into {name} values (1, 1, 1767225600)")
    world.htap.sync_now()
    world.htap.sync_now()
    world.crash()
    (notes,) = world.directory.glob("*.polled.json")
    unseen = unseen_events(world.settings)
    assert unseen is not None
    form = json.loads(notes.read_text())
    notes.write_text(json.dumps(form["positions"]))
    assert unseen_events(world.settings) == unseen
    others: list[Any] = [{**form, "format": 99}, {"format": 2}, [], {"t": 1}]
    for other in others:
        notes.write_text(json.dumps(other))
        assert unseen_events(world.settings) is None
    world.htap.sync_now()
    assert json.loads(notes.read_text())["format"] == 2


def test_capture_of_sqlite_by_a_newer_version_is_refused_and_left_alone(
    make_world: MakeWorld,
) -> None:
    world = synced(make_world(mode="temporal"))
    assert_goes_on(world)
    # As an upgrade does, beside a process that runs.
    world.run("update _rhei_format set number = 99", "create table _rhei_more(id integer)")
    world.run("update t set v = 2")
    with pytest.raises(CaptureError, match=NEWER):
        world.htap.sync_now()
    world.crash()
    before = list(world.app.execute("select * from sqlite_master"))
    for refused in (lambda: world.htap, lambda: unseen_events(world.settings)):
        with pytest.raises(CaptureError, match=f"{NEWER}.*newer version of rhei-pipeline"):
            refused()
    assert list(world.app.execute("select * from sqlite_master")) == before
    world.run("update _rhei_format set number = 1", "drop table _rhei_more")
    assert_goes_on(world)
    assert [version["v"] for version in world.versions("t")] == [1, 2]


def test_capture_of_postgres_is_told_apart_by_its_format(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres(capture={"method": "trigger"}, mode="temporal")
    world.run("create table t(id int primary key, v int)", "insert into t values (1, 1)")
    world.htap.sync_now()
    found = world.app.execute("select obj_description('_rhei.capture'::regclass)").fetchone()
    assert found == ("rhei: format 1",)
    world.run("comment on table _rhei.capture is null", "update t set v = 2")
    assert world.htap.sync_now().tables["t"].copied_rows == 0
    world.run("comment on table _rhei.capture is 'rhei: format 99'", "update t set v = 3")
    with pytest.raises(CaptureError, match=NEWER):
        world.htap.sync_now()
    world.crash()
    for refused in (lambda: world.htap, lambda: unseen_events(world.settings)):
        with pytest.raises(CaptureError, match=f"{NEWER}.*newer version of rhei-pipeline"):
            refused()
    world.run("comment on table _rhei.capture is 'rhei: format 1'")
    assert world.htap.sync_now().tables["t"].copied_rows == 0
    assert [version["v"] for version in world.versions("t")] == [1, 2, 3]


def test_a_mirror_of_files_says_that_a_column_is_no_columns_of_its_files(
    make_world: MakeWorld,
) -> None:
    """Whoever does not know such columns refuses it; whoever needs not know them reads it."""
    world = make_world(storage="parquet")
    manifests = world.settings.mirror.path / "manifests"

    def written() -> int:
        number: int = json.loads(max(manifests.iterdir()).read_text())["format"]
        return number

    world.run("create table t(id integer primary key, v integer)", "insert into t values (1, 1)")
    world.htap.sync_now()
    world.run("update t set v = 2")
    world.htap.sync_now()
    assert written() == 3
    world.run("alter table t add column c integer default 7")
    world.htap.sync_now()
    assert written() == 4
    assert world.htap.query("select c from t", hint="olap")["c"].to_pylist()[-1] == 7
