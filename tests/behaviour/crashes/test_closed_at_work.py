"""A pipeline that is closed while another thread works in it: the work ends first, and no process.

A driver's connection that is closed while another thread works with it ends the whole process.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event
from typing import Any

import pytest

from rhei_pipeline import HTAP
from rhei_pipeline.errors import MirrorError
from rhei_pipeline.protocols import Step
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

pytestmark = pytest.mark.turns

AnyWorld = World | PostgresWorld
WORK: dict[str, Callable[[HTAP], object]] = {
    "sync": HTAP.sync_now,
    "copy": lambda htap: htap.initial_sync("t"),
    "verify": HTAP.verify,
    "repair": lambda htap: htap.repair("t"),
}
#: For how long closing is seen to wait.
SEEN_SECONDS = 0.2


class Halt:
    """Halts the work of a pipeline at its first step in a cycle."""

    def __init__(self) -> None:
        self.is_at_work, self._goes_on = Event(), Event()

    def __call__(self, step: Step) -> None:
        """Wait at the step until the work is to go on."""
        if step is Step.SNAPSHOT:
            self.is_at_work.set()
            assert self._goes_on.wait(60)

    def end(self) -> None:
        """Let the work go on."""
        self._goes_on.set()


def close_at_work(world: AnyWorld, work: Callable[[HTAP], object]) -> None:
    halt = Halt()
    htap = HTAP(world.settings, on_step=halt)
    with ThreadPoolExecutor(3) as threads:
        working = threads.submit(work, htap)
        assert halt.is_at_work.wait(60)
        late = threads.submit(htap.sync_now)
        closing = threads.submit(htap.close)
        is_early = bool(wait([closing], SEEN_SECONDS).done)
        halt.end()
        assert not is_early
        working.result(60)
        with pytest.raises(MirrorError, match="the mirror is closed"):
            late.result(60)
        closing.result(60)


def play(world: AnyWorld, work: str) -> None:
    world.run("create table t(id integer primary key, v integer)", "insert into t values (1, 1)")
    world.htap.sync_now()
    world.crash()
    world.run("update t set v = 2", "insert into t values (2, 2)")
    close_at_work(world, WORK[work])
    world.assert_equal("t")


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("storage", [None, "ipc", "delta"])
@pytest.mark.parametrize("how", [{}, {"buffered": True}], ids=["triggers", "buffer"])
def test_closing_waits_for_work_in_sqlite(
    how: dict[str, Any], storage: str | None, mode: str, work: str, make_world: Callable[..., World]
) -> None:
    play(make_world(mode=mode, storage=storage, **how), work)


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("storage", [None, "parquet"])
@pytest.mark.parametrize("method", ["trigger", "logical"])
def test_closing_waits_for_work_in_postgres(
    method: str, storage: str | None, work: str, make_postgres: Callable[..., PostgresWorld]
) -> None:
    play(make_postgres(capture={"method": method}, storage=storage), work)
