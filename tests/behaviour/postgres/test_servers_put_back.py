"""A server that was put back to an earlier state: the same by name, timeline and slot.

What was written after that state is gone, and what is written since stands in the log where the
mirror has read something else.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest

from rhei_pipeline import SourceUnreachableError
from rhei_pipeline.protocols import Step
from rhei_pipeline.wiring.engine import unseen_events
from tests.support.fix_postgres import INSTALLED, PostgresWorld, database, skip_without
from tests.support.installed_postgres import InstalledServer, binaries, give

POLLING = {"updated_at": "at", "clock": "database", "deletes": "reconcile", "reconcile_seconds": 0}
CAPTURES = {
    "log": {"method": "logical"},
    "stream": {"method": "logical", "streaming": True},
    "triggers": {"method": "trigger"},
    "buffer": {"method": "logical", "buffer": {}},
    "polling": {"method": "polling"},
}
MODES = ("destructive", "temporal")
Version = tuple[Any, ...]
#: Written after the state that is put back, or before it and synced after, or never.
TABLES = ("since", "before", "never")


@pytest.fixture
def server() -> Iterator[InstalledServer]:
    """Start a server of its own."""
    skip_without(binaries(INSTALLED) / "initdb")
    with TemporaryDirectory(prefix="rhei-postgres-") as directory:
        made = InstalledServer(INSTALLED, Path(directory))
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def disks() -> Iterator[Path]:
    """Return where copies of disks are kept."""
    with TemporaryDirectory(prefix="rhei-disks-") as directory:
        give(Path(directory))
        yield Path(directory)


def _world(server: InstalledServer, where: Path, **how: Any) -> PostgresWorld:
    where.mkdir()
    if "buffer" in how["capture"]:
        how["capture"] = {**how["capture"], "buffer": {"path": where / "cdc"}}
    polling = {"polling": POLLING} if how["capture"]["method"] == "polling" else {}
    tables = [{"name": name, **polling} for name in TABLES]
    # It is gone with the server.
    world = PostgresWorld(next(database(server)), where, tables=tables, **how)
    for name in TABLES:
        world.run(
            f"create table {name}(id int primary key, v text, at timestamptz default now())",
            f"create index on {name}(at, id)",
            f"insert into {name} select i, 'a' from generate_series(1, 9) i",
        )
    world.run("create table other(v text)")
    return world


@pytest.mark.long
@pytest.mark.parametrize(
    ("log", "session", "modes"), [("beyond", "closed", MODES), ("behind", "open", MODES[::-1])]
)
def test_what_was_lost_and_what_is_written_since_is_found(
    server: InstalledServer,
    disks: Path,
    tmp_path: Path,
    log: str,
    session: str,
    modes: tuple[str, str],
) -> None:
    """`log`: where it ends when it is read next, seen from what was read last."""
    with ExitStack() as stack:
        worlds = [
            _world(server, tmp_path / name, capture=capture, mode=modes[place % 2])
            for place, (name, capture) in enumerate(CAPTURES.items())
        ]
        for world in worlds:
            stack.callback(world.close)
            world.htap.sync_now()
            _update(world, "since", "id = 1", "b")
            world.htap.sync_now()
            _update(world, "before", "id = 1", "b")
        _restart(worlds, lambda: server.keep(disks / "kept"))
        pasts = [_written_and_lost(world) for world in worlds]
        for world in worlds if session == "closed" else ():
            world.crash()
        _restart(worlds, lambda: server.put_back(disks / "kept"))
        for world in worlds:
            _update(world, "since", "id = 7", "new")
            _update(world, "before", "id = 8", "new")
        for world in worlds:
            _write_elsewhere(world, 60 if log == "beyond" else 0)
        for world, past in zip(worlds, pasts, strict=True):
            _sync_behind_a_restart(world)
            for value in ("c", "d", "e"):
                world.assert_equal(*TABLES)
                _update(world, "before", "id = 2", value)
                assert world.htap.sync_now().events == 1
            world.assert_equal(*TABLES)
            assert past <= _closed(world)


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_a_dump_that_is_put_back_is_followed_with_what_is_written_since(
    server: InstalledServer, disks: Path, tmp_path: Path, mode: str
) -> None:
    """It has capture's own tables, triggers and publications in it, as they once were."""
    with ExitStack() as stack:
        for name in ("log", "triggers", "polling"):
            world = _world(server, tmp_path / name, capture=CAPTURES[name], mode=mode)
            stack.callback(world.close)
            world.htap.sync_now()
            shop, file = world.app.info.dbname, disks / f"{name}.dump"
            server.dump(shop, file)
            past = _written_and_lost(world)
            server.restore(shop, file)
            _update(world, "since", "id = 7", "new")
            for value in ("c", "d"):
                world.htap.sync_now()
                world.assert_equal(*TABLES)
                _update(world, "before", "id = 2", value)
            assert world.htap.sync_now().events == 1
            world.assert_equal(*TABLES)
            assert past <= _closed(world)


@pytest.mark.long
@pytest.mark.parametrize("capture", ["log", "triggers"])
def test_a_copy_that_had_begun_does_not_go_on_with_rows_that_are_gone(
    server: InstalledServer, disks: Path, tmp_path: Path, capture: str
) -> None:
    world = _world(server, tmp_path / capture, capture=CAPTURES[capture], mode="destructive")
    try:
        world.batch_rows = 3
        world.htap.sync_now()
        _restart([world], lambda: server.keep(disks / "kept"))
        _update(world, "since", "id < 3", "lost")
        _write_elsewhere(world, 20)
        _sync_behind_a_restart(world)
        world.faults.arm(Step.COPY_BATCH)
        assert world.surviving(lambda: world.htap.initial_sync("since"))
        _restart([world], lambda: server.put_back(disks / "kept"))
        _update(world, "since", "id = 1", "new")
        _write_elsewhere(world, 60)
        world.htap.sync_now()
        world.assert_equal(*TABLES)
        _update(world, "since", "id = 9", "c")
        assert world.htap.sync_now().events == 1
        world.assert_equal(*TABLES)
    finally:
        world.close()


@pytest.mark.long
@pytest.mark.parametrize(("mode", "elsewhere"), [("destructive", 0), ("temporal", 60)])
def test_a_server_that_was_put_back_is_something_to_see_to(
    server: InstalledServer, disks: Path, tmp_path: Path, mode: str, elsewhere: int
) -> None:
    """Though nothing is pending in the state that was put back, and nothing is written since.

    Or other tables only are, until the log is longer than it was.
    """
    buffered = {"method": "trigger", "buffer": {}}
    with ExitStack() as stack:
        worlds = [
            _world(server, tmp_path / name, capture=capture, mode=mode)
            for name, capture in {**CAPTURES, "buffered triggers": buffered}.items()
            if name != "polling"  # a reconciliation is always due
        ]
        for world in worlds:
            stack.callback(world.close)
            world.htap.sync_now()
            world.crash()
            assert unseen_events(world.settings) == 0
        _restart(worlds, lambda: server.keep(disks / "kept"))
        for world in worlds:
            _update(world, "since", "id < 4", "lost")
            world.htap.sync_now()
            world.crash()
        _restart(worlds, lambda: server.put_back(disks / "kept"))
        for world in worlds:
            _write_elsewhere(world, elsewhere)
        for world in worlds:
            assert unseen_events(world.settings) != 0, world.capture
        for world in worlds:
            world.htap.sync_now()
            world.assert_equal(*TABLES)
            world.crash()
            assert unseen_events(world.settings) == 0, world.capture


def _written_and_lost(world: PostgresWorld) -> set[Version]:
    """Write and mirror what is lost afterwards; return the versions that have ended by then."""
    _update(world, "since", "id < 4", "lost")
    world.run("delete from since where id = 5", "insert into since values (10, 'lost')")
    _write_elsewhere(world, 20)
    _sync_behind_a_restart(world)
    world.assert_equal(*TABLES)
    return _closed(world)


def _sync_behind_a_restart(world: PostgresWorld) -> None:
    with suppress(SourceUnreachableError):  # the session of before
        world.htap.sync_now()
    world.htap.sync_now()


def _closed(world: PostgresWorld) -> set[Version]:
    """Return the versions of a history that have ended."""
    if world.mode == "destructive":
        return set()
    return {
        (table, version["id"], version["v"], version["_rhei_valid_from"], version["_rhei_valid_to"])
        for table in TABLES
        for version in world.versions(table)
        if version["_rhei_valid_to"] is not None
    }


def _update(world: PostgresWorld, table: str, where: str, value: str) -> None:
    world.run(f"update {table} set v = '{value}', at = clock_timestamp() where {where}")


def _write_elsewhere(world: PostgresWorld, count: int) -> None:
    for _ in range(count):
        world.run("insert into other values (repeat('x', 2000))")


def _restart(worlds: list[PostgresWorld], work: Callable[[], None]) -> None:
    for world in worlds:
        world.app.close()
    work()
    for world in worlds:
        world.app = psycopg.connect(world.dsn, autocommit=True, prepare_threshold=None)
