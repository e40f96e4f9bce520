"""Any history of changes, syncs, crashes and restarts: the mirror is the source, its past exact."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rhei_pipeline.model.schema import VALID_FROM, VALID_TO, Mode
from rhei_pipeline.protocols import Step
from tests.unit.stub_world import StubWorld

#: Keys and values of one transaction; None deletes.
WRITES = st.lists(
    st.tuples(st.integers(0, 3), st.none() | st.sampled_from("abc")), min_size=1, max_size=3
)
STEPS = [
    step
    for step in Step
    if "bridge" not in step and "range" not in step and step not in {"audited", "buffering"}
]
ACTIONS = st.one_of(
    st.tuples(st.just("write"), WRITES),
    st.tuples(st.just("write"), WRITES),
    st.just(("sync", None)),
    st.just(("restart", None)),
    st.just(("copy", None)),
    st.tuples(st.just("crash"), st.tuples(st.sampled_from(STEPS), st.integers(1, 3))),
)


class Oracle:
    """What each key was, in order, told by those who wrote it."""

    def __init__(self) -> None:
        self.states: dict[int, list[str | None]] = {}

    def saw(self, key: int, value: str | None) -> None:
        before = self.states.setdefault(key, [None])
        if before[-1] != value:
            before.append(value)

    def begin(self) -> None:
        """Forget the past: a first copy knows the present only."""
        self.states = {key: [None, *states[-1:]] for key, states in self.states.items()}
        self.states = {key: states for key, states in self.states.items() if states[-1]}

    def versions(self) -> dict[int, list[str]]:
        told = {k: [state for state in states if state] for k, states in self.states.items()}
        return {key: versions for key, versions in told.items() if versions}


def act(world: StubWorld, oracle: Oracle, what: str, given: Any) -> None:
    if what == "write":
        with world.source.transaction() as writes:
            for key, value in given:
                if value is None:
                    writes.delete("t", key)
                else:
                    writes.put("t", k=key, v=value)
                oracle.saw(key, value)
    elif what == "restart":
        world.restart()
    elif what == "crash":
        world.faults.arm(*given)
    else:
        work = world.pipeline.sync if what == "sync" else lambda: world.pipeline.copy("t")
        world.surviving(work)


@settings(max_examples=40)
@given(st.lists(ACTIONS, max_size=14), st.sampled_from(list(Mode)), st.integers(1, 4))
def test_any_history_ends_in_the_sources_rows_and_every_version(
    actions: list[tuple[str, Any]], mode: Mode, batch_rows: int
) -> None:
    world, oracle = StubWorld(mode=mode, batch_rows=batch_rows), Oracle()
    world.fill(0, 1)
    for key in (0, 1):
        oracle.saw(key, f"v{key}")
    world.pipeline.sync()
    oracle.begin()
    for what, given_ in actions:
        act(world, oracle, what, given_)
        present = world.present()
        assert all(len(row) == 2 for row in present.values())
    world.faults.disarm()
    world.pipeline.sync()
    assert world.equal()
    assert world.pipeline.verify().equal
    if mode is Mode.TEMPORAL:
        versions: dict[int, list[str]] = {}
        rows = sorted(world.mirror.rows("t"), key=lambda row: row[VALID_FROM])
        for row in rows:
            versions.setdefault(row["k"], []).append(row["v"])
            assert row[VALID_TO] is None or row[VALID_TO] > row[VALID_FROM]
        assert versions == oracle.versions()
