"""Runs whose process is gone without a word, and what they keep from those that live."""

import threading
from uuid import uuid4

import dagster as dg
import pytest

from rhei_pipeline.dagster import CdcResource, OltpResource, build_definitions
from rhei_pipeline.dagster.heartbeat import ALIVE, ENDED, SignsOfLife
from rhei_pipeline.dagster.names import Names
from rhei_pipeline.dagster.pool import SlotWatch
from tests.support.dagster_deployment import awaited
from tests.support.dagster_shop import Shop

STARTED, FAILURE = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.FAILURE
STARTING, CANCELING = dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING


class Line:
    """Runs that wait for the one slot of a pool, and a sensor's watch with a clock set by hand."""

    def __init__(self, instance: dg.DagsterInstance, pool: str = "olap_writer") -> None:
        self.now, self.instance, self.pool = 0.0, instance, pool
        self.joined = 0
        self.watch = SlotWatch(pool, lambda: self.now)
        self.watch.free(instance)  # which gives the pool its slot

    def joined_by(self, **tags: str) -> str:
        """Return a run that has asked for the slot, and has it if nobody else does."""
        run = dg.DagsterRun("by_hand", str(uuid4()), status=STARTED, tags=tags)
        self.instance.add_run(run)
        self.joined += 1
        self.asks(run.run_id)
        return run.run_id

    def asks(self, run_id: str) -> bool:
        """Ask for the slot; return whether the run has it."""
        storage = self.instance.event_log_storage
        # Who came first is served first: Dagster tells whole seconds apart.
        found = storage.claim_concurrency_slot(self.pool, run_id, "copy", -self.joined)
        return bool(found.is_claimed)

    def looked_at(self, after: float) -> None:
        """Have the sensor look twice, so many seconds apart."""
        for _ in range(2):
            self.watch.free(self.instance)
            self.now += after
        self.watch.free(self.instance)

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        found = self.instance.get_run_by_id(run_id)
        assert found is not None
        return found.status


@pytest.mark.long
def test_a_run_that_died_with_its_code_server_keeps_no_session_waiting(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was: a copy, a snapshot, a check; only a session's job was watched before."""
    assert shop.sync().success
    line = Line(shop.instance, Names.of(shop.settings).pool)
    killed = line.joined_by(**{ALIVE: "1"})
    shop.write("insert into orders values (2, 'new')")
    assert f"run {killed[:8]} of by_hand has the mirror" in str(shop.tick())
    session = line.joined_by()
    assert not line.asks(session)
    monkeypatch.setattr("rhei_pipeline.dagster.heartbeat._DEAD_SECONDS", -1.0)
    shop.tick()
    assert line.status(killed) is FAILURE
    assert line.asks(session)
    shop.instance.event_log_storage.free_concurrency_slots_for_run(session)
    assert isinstance(shop.tick(), dg.RunRequest)


def test_a_holder_lives_while_it_gives_signs_or_never_had_to() -> None:
    with dg.instance_for_test() as instance:
        line = Line(instance)
        alive = line.joined_by(**{ALIVE: "0"})
        for beat in range(5):
            instance.add_run_tags(alive, {ALIVE: str(beat)})
            line.watch.free(instance)
            line.now += 140
        assert line.status(alive) is STARTED
        instance.add_run_tags(alive, {ALIVE: ENDED})  # another step of the run has the slot
        line.looked_at(after=1000)
        assert line.status(alive) is STARTED
        assert line.asks(alive)


def test_a_step_of_others_in_the_pool_is_let_be_once_it_has_begun() -> None:
    @dg.op(pool="olap_writer")
    def copy(context: dg.OpExecutionContext) -> None:
        line.looked_at(after=1000)
        assert line.status(context.run_id) is STARTED

    @dg.job(executor_def=dg.in_process_executor)
    def theirs() -> None:
        copy()

    with dg.instance_for_test() as instance:
        line = Line(instance)
        assert theirs.execute_in_process(instance=instance).success


def test_a_step_that_was_killed_before_it_began_keeps_no_slot() -> None:
    """It may wait for a machine; after a quarter of an hour none will come any more."""
    with dg.instance_for_test() as instance:
        line = Line(instance)
        killed, waits = line.joined_by(), line.joined_by()
        line.looked_at(after=400)
        assert line.status(killed) is STARTED
        line.looked_at(after=100)
        assert line.status(killed) is FAILURE
        assert line.asks(waits)


def test_a_slot_goes_on_to_the_next_where_nobody_comes_for_it() -> None:
    """A run that waited for it was killed: Dagster gives it the slot all the same."""
    with dg.instance_for_test() as instance:
        line = Line(instance)
        first, killed, last = (line.joined_by(**{ALIVE: "1"}) for _ in range(3))
        instance.event_log_storage.free_concurrency_slots_for_run(first)
        assert not line.asks(last)
        line.looked_at(after=100)
        assert line.asks(last)
        assert line.asks(killed) is False  # were it alive, it would be in the line again


def test_a_waiting_run_that_has_failed_keeps_no_place_in_the_line() -> None:
    with dg.instance_for_test() as instance:
        line = Line(instance)
        first, killed, last = (line.joined_by(**{ALIVE: "1"}) for _ in range(3))
        found = instance.get_run_by_id(killed)
        assert found is not None
        instance.report_run_failed(found)
        line.watch.free(instance)
        instance.event_log_storage.free_concurrency_slots_for_run(first)
        assert line.asks(last)


@pytest.mark.parametrize(
    ("status", "ends_as", "patience"),
    [
        (CANCELING, dg.DagsterRunStatus.CANCELED, 150),
        (STARTING, FAILURE, 900),
        (dg.DagsterRunStatus.NOT_STARTED, FAILURE, 900),
    ],
)
def test_a_run_that_died_before_it_began_or_as_it_was_ended_is_over(
    status: dg.DagsterRunStatus, ends_as: dg.DagsterRunStatus, patience: float
) -> None:
    now = 0.0
    with dg.instance_for_test() as instance:
        run = instance.add_run(dg.DagsterRun("sync", str(uuid4()), status=status))
        signs = SignsOfLife(lambda: now)
        assert not signs.end_the_dead(instance, [run])
        now = patience - 1
        assert not signs.end_the_dead(instance, [run])
        now = patience + 1
        assert signs.end_the_dead(instance, [run])
        found = instance.get_run_by_id(run.run_id)
        assert found is not None
        assert found.status is ends_as


def test_a_bridge_that_died_is_followed_by_the_next(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = shop.settings.mirror.path.with_name("buffer")
    settings = shop.settings.with_fields({"capture": {"buffer": {"path": buffer}}})
    repository = build_definitions(settings).get_repository_def()
    shop.instance.add_run(dg.DagsterRun("bridge", str(uuid4()), status=STARTED))

    def told() -> str:
        cdc = CdcResource.of(settings, OltpResource.of(settings))
        with dg.build_sensor_context(
            instance=shop.instance, repository_def=repository, resources={"cdc": cdc}
        ) as context:
            return str(repository.get_sensor_def("mirror_away").evaluate_tick(context).skip_message)

    assert "are being taken into the buffer" in told()
    monkeypatch.setattr("rhei_pipeline.dagster.heartbeat._DEAD_SECONDS", -1.0)
    assert "are being taken" not in told()


def test_a_session_ends_where_its_run_was_given_up(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine stood still for minutes; the next session waits for the mirror by now."""
    monkeypatch.setattr("rhei_pipeline.dagster.heartbeat._BEAT_SECONDS", 0.05)
    shop.settings = shop.settings.with_fields({"schedule": {"idle_seconds": 3600.0}})
    ended = threading.Thread(target=shop.sync)
    ended.start()

    def at_work() -> dg.DagsterRun | None:
        return next(iter(shop.instance.get_runs(dg.RunsFilter(statuses=[STARTED]))), None)

    run = awaited("a session is open", at_work)
    assert run is not None
    awaited("it gives signs", lambda: (found := at_work()) and ALIVE in found.tags)
    shop.instance.report_run_failed(run)
    ended.join(60)
    assert not ended.is_alive()
