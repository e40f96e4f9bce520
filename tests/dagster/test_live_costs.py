"""What a pipeline costs under Dagster: its event log, its share of a core, its start.

The machine may be busy, so processor time is compared, never the time on the wall.
"""

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import dagster as dg
import pytest

from tests.support.dagster_deployment import Deployment, Location, awaited, deployment
from tests.support.live_worlds import World

pytestmark = pytest.mark.soak

STARTED, SUCCESS = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS
MEGABYTE = 1e6
MINUTES = 10
QUIET_SECONDS = 180
SESSIONS_A_DAY = 12

#: A project that does nothing, with a sensor that looks as often as ours.
EMPTY = """
import time
from pathlib import Path
import dagster as dg

asked, used = Path({asked!r}), Path({used!r})

@dg.op
def nothing():
    used.write_text(str(time.process_time()))

@dg.job(executor_def=dg.in_process_executor)
def sync():
    nothing()

@dg.sensor(job=sync, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def looks(context):
    if not asked.exists():
        return dg.SkipReason("nothing to do")
    asked.unlink()
    return dg.RunRequest()

defs = dg.Definitions(jobs=[sync], sensors=[looks])
"""


def told(text: str) -> None:
    sys.stderr.write(f"\n{text}\n")


def stored_bytes(made: Deployment) -> dict[str, int]:
    """Return the size of each of Dagster's files, what waits in their logs included."""
    sizes = dict[str, int]()
    for file in made.home.rglob("*.db"):
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)) as opened:
            pages, size = (
                opened.execute(f"pragma {name}").fetchone()[0]
                for name in ("page_count", "page_size")
            )
        sizes[str(file.relative_to(made.home))] = pages * size
    return sizes


def grown(before: dict[str, int], after: dict[str, int]) -> int:
    """Return by how much the event log grew; ticks are deleted after a day."""
    return sum(
        size - before.get(file, 0) for file, size in after.items() if "schedules" not in file
    )


@contextmanager
def written(world: World, tables: list[str]) -> Iterator[None]:
    """Write into each table twenty times a second."""
    ended = threading.Event()
    inserts = [
        f"insert into {table}({'status' if table == 'orders' else 'amount'}) values (1)"
        for table in tables
    ]

    def write() -> None:
        while not ended.wait(0.05):
            world.write(*inserts)

    writing = threading.Thread(target=write)
    writing.start()
    try:
        yield
    finally:
        ended.set()
        writing.join()


@pytest.mark.parametrize(("count", "bar"), [(1, 15), (5, 30)])
def test_the_event_log_of_a_busy_day(tmp_path: Path, count: int, bar: int) -> None:
    tables = ["orders", "items", "stores", "clerks", "prices"][:count]
    world = World.made(tmp_path / "shop", tables=tables)
    world.order()
    with deployment(tmp_path / "home", world.location) as made, written(world, tables):
        awaited("a session is open", lambda: made.runs("sync", STARTED))
        time.sleep(90)
        begun = stored_bytes(made)
        time.sleep(MINUTES * 60)
        after = stored_bytes(made)
        each_minute = grown(begun, after) / MINUTES
        os.kill(made.session_process(), 15)
        awaited("a session ends", lambda: made.runs("sync", SUCCESS))
        awaited("the next one is open", lambda: made.runs("sync", STARTED))
        time.sleep(60)
        ended = stored_bytes(made)
    session = grown(after, ended)
    day = (1440 * each_minute + SESSIONS_A_DAY * session) / MEGABYTE
    told(
        f"{count} tables: {each_minute / 1000:.1f} KB a minute, {session / 1000:.0f} KB a session "
        f"and its first minute: {day:.1f} MB a day; {begun} {after} {ended}"
    )
    assert day < bar


def test_a_quiet_pipeline_and_a_cold_start(tmp_path: Path) -> None:
    world = World.made(tmp_path / "shop", schedule="idle_seconds: 2")
    world.order()
    asked, used = tmp_path / "asked", tmp_path / "used"
    project = tmp_path / "empty.py"
    project.write_text(EMPTY.format(asked=str(asked), used=str(used)))
    empty = Location("empty", tmp_path, file=project)
    with (
        deployment(tmp_path / "home", world.location) as ours,
        deployment(tmp_path / "other", empty) as others,
    ):
        awaited("the first copy", world.applied)
        starts = [cold_start(world, ours, others, asked, used) for _ in range(3)]
        awaited("the session ends", lambda: not ours.runs("sync", STARTED))
        time.sleep(30)
        begun = ours.cpu_seconds(), others.cpu_seconds()
        time.sleep(QUIET_SECONDS)
        ended = ours.cpu_seconds(), others.cpu_seconds()
    shares = [
        {name: (seconds - before[name]) / QUIET_SECONDS for name, seconds in after.items()}
        for before, after in zip(begun, ended, strict=True)
    ]
    told(
        "quiet, in shares of a core: "
        + " against ".join(
            ", ".join(f"{name} {share:.1%}" for name, share in used.items()) for used in shares
        )
        + " of an empty project; from a commit to its row, with the session's start, in seconds: "
        + ", ".join(
            f"{clock:.1f} by the clock, {own:.1f} of a core beside {least:.1f} of an empty run"
            for clock, own, least in starts
        )
    )
    # What the daemon takes more, for schedules and freshness policies, is Dagster's own.
    assert shares[0][world.name] - shares[1][empty.name] < 0.02


def cold_start(
    world: World, ours: Deployment, others: Deployment, asked: Path, used: Path
) -> tuple[float, float, float]:
    """Return what a session takes until it has a change, by the clock and of a core.

    The third is what an empty run takes of a core.
    """
    awaited("the session ends", lambda: not ours.runs("sync", STARTED))
    used.unlink(missing_ok=True)
    begun = time.monotonic()
    world.order()
    asked.touch()
    awaited("a session is open", lambda: ours.runs("sync", STARTED))
    awaited("it is applied", world.applied)
    clock = time.monotonic() - begun
    own = ours.session_cpu_seconds()
    awaited("the empty run has run", lambda: used.exists() and used.read_text())
    return clock, own, float(used.read_text())
