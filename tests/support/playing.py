"""What a history being played does with the pipeline, and what the mirror then has to hold."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from rhei_pipeline.model.reports import VerifyReport
from rhei_pipeline.protocols import Step
from rhei_pipeline.testing.oracle import Expected, by_key
from tests.support.consumer import Consumer
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World


@dataclass(frozen=True)
class Work:
    """A piece of the pipeline's work, which crashes at a step, or does not.

    It is one of `sync`, `copy`, `repair`, `verify`, `replay` (the dead letters) and `reopen`;
    of a declaration that changes, `maintain` and `bridge`, too.
    """

    kind: str
    table: str
    crash_at: Step | None
    occurrence: int = 1


@dataclass
class Worked:
    """A mirror that is worked on, and what is expected of it.

    Args:
        world: The source and the mirror.
        keys: The keys of the tables.
        expected: What each table's mirror has to hold.
        consumers: Who reads the changes of a temporal table, and at each how-many-th check.
    """

    world: World | PostgresWorld
    keys: Mapping[str, tuple[str, ...]]
    expected: Mapping[str, Expected]
    consumers: tuple[tuple[Consumer, int], ...]
    checks: int = 0

    def do(self, work: Work) -> None:
        """Do it, and crash where it says so; the mirror is as expected if it does not."""
        self.world.faults.disarm()
        if work.crash_at:
            self.world.faults.arm(work.crash_at, work.occurrence)
        if not self.world.surviving(lambda: self._do(work)):
            self.world.faults.disarm()
            self._check()

    def _do(self, work: Work) -> None:
        # Opening belongs to what may crash: it drains and copies too.
        if work.kind == "reopen":
            self.world.crash()
        htap = self.world.htap
        if work.kind == "copy":
            htap.initial_sync(work.table)
        elif work.kind == "repair":
            htap.repair(work.table)
        elif work.kind == "verify":
            self.check_verification(htap.verify())
        elif work.kind == "replay":
            htap.replay_dead_letters(work.table)
        htap.sync_now()

    def _check(self) -> None:
        """The mirror holds what is expected, and has named each row that does not fit."""
        letters = self.world.htap.dead_letters().to_pylist()
        for table, expected in self.expected.items():
            if self.world.storage == "memory":
                expected.forgot()
            expected.check(by_key(self.world.present(table), self.keys[table]))
            named = {
                tuple(json.loads(x["key"]).values()) for x in letters if x["table_name"] == table
            }
            assert named == set(expected.now.unfit), (table, named)
        if self.world.mode == "temporal":
            self._consume()

    def _consume(self) -> None:
        """Whoever reads changes alone, now and then, has what the mirror holds."""
        self.checks += 1
        for consumer, pace in self.consumers:
            if self.checks % pace == 0:
                consumer.read(self.world.htap, may_lose=self.world.storage == "memory")
                consumer.check(self.world.present(consumer.table))

    def check_verification(self, report: VerifyReport) -> None:
        """Nothing differs but what does not fit."""
        for table, found in report.tables.items():
            unfit = len(self.expected[table].now.unfit)
            told = (found.missing, found.extra, found.different, found.dead_letters)
            assert told == (0, 0, 0, unfit), (table, told, unfit)


def worked(
    world: World | PostgresWorld,
    keys: Mapping[str, tuple[str, ...]],
    paces: tuple[tuple[str, int], ...],
) -> Worked:
    """Return a mirror that is worked on, whose source is still empty."""
    consumers = tuple((Consumer(table, keys[table]), pace) for table, pace in paces)
    return Worked(world, keys, {table: Expected() for table in keys}, consumers)
