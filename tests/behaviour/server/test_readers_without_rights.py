"""Readers that may not write: of files of somebody else, or of a file system mounted to be read."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rhei_pipeline import HTAP, Settings
from tests.support.fix_world import World
from tests.support.holding import OtherProcess, written

#: Reads until its input ends, as nobody, who may write nothing: root could, whatever is allowed.
_READ = """
import os, select, sys
import rhei_pipeline as rhei

settings = rhei.Settings.model_validate_json(sys.argv[1])
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
count = 0
with rhei.reader(settings) as one, rhei.reader({"shop": settings}) as several:
    while True:
        found = one.query("select count(*) as n from t")
        assert found["n"][0].as_py() == 500, (found, found.schema.metadata)
        found = several.query("select count(*) as n from shop.t")
        assert found["n"][0].as_py() == 500, ("several", found, found.schema.metadata)
        if not count:
            print("ready", flush=True)
        count += 1
        if select.select([sys.stdin], [], [], 0)[0]:
            break
print(count, flush=True)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """Make a directory that everybody may enter, and its owner alone may write."""
    found = Path(tempfile.mkdtemp(dir="/tmp"))
    found.chmod(0o755)
    yield found
    shutil.rmtree(found)


def made(world: World) -> None:
    world.run("create table t(id integer primary key, v integer)")
    world.app.executemany("insert into t values (?, 0)", ((number,) for number in range(500)))
    world.htap.sync_now()


def without_rights(place: Path) -> None:
    """Leave nobody the right to write there: where the tests' user is not root, it has none."""
    for directory, _, files in os.walk(place):
        for name in files:
            Path(directory, name).chmod(0o444)
        Path(directory).chmod(0o555)


def with_rights(place: Path) -> None:
    for directory, _, _ in os.walk(place):
        Path(directory).chmod(0o755)


@pytest.mark.long
@pytest.mark.parametrize("storage", [None, "parquet", "ipc", "delta"])
def test_who_may_only_read_files_reads_them(place: Path, storage: str | None) -> None:
    world = World(place / "shop", storage=storage)
    made(world)
    world.crash()
    without_rights(world.directory)
    try:
        with OtherProcess(_READ, written(world.settings)) as reading:
            assert reading.end() == 0
    finally:
        with_rights(world.directory)
        world.app.close()


def test_a_reader_whom_no_writer_sees_finds_one_state_after_another(place: Path) -> None:
    world = World(place / "shop", storage="parquet", mode="destructive")
    made(world)
    mirror = world.settings.mirror.model_dump()
    mirror |= {"retained_manifests": 1, "lock_timeout_seconds": 60}
    settings = Settings(**{**world.settings.model_dump(), "mirror": mirror})
    world.crash()
    with HTAP(settings) as htap, OtherProcess(_READ, written(settings)) as reading:
        for number in range(30):
            world.run(f"update t set v = {number} where id % 3 = {number % 3}")
            htap.sync_now()
            htap.maintain()
        reading.process.stdin.close()
        assert int(reading.process.stdout.readline()) > 1
        assert reading.process.wait(60) == 0
    world.app.close()
