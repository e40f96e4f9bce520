"""Every file of every mirror and of the buffer, damaged in every way.

Never a wrong answer, never the end of the process, always the file's name, and a way out that
works. Trials run in processes of their own, a batch in each (see `tests/support/damage.py`).
"""

import json
import random
import shutil
from pathlib import Path

import pytest

from tests.support import damage, forked

#: Mirror, mode, and whether changes go through a buffer, whose files are then the ones damaged.
WORLDS = [
    ("ipc", "destructive", False),
    ("ipc", "temporal", False),
    ("parquet", "destructive", False),
    ("parquet", "temporal", False),
    ("delta", "temporal", False),
    ("duckdb", "destructive", False),
    ("duckdb", "temporal", False),
    ("duckdb", "temporal", True),
]
_SAMPLE = [("ipc", "temporal", 5), ("parquet", "destructive", 3), ("duckdb", "temporal", 3)]
#: A damaged file may end the process that reads it.
_TRIALS = """
import json, pathlib, sys
from tests.support.damage import main
main(json.loads(pathlib.Path(sys.argv[1]).read_text()))
"""


def run(
    directory: Path, mirror: str, mode: str, *, buffered: bool = False, sample: int | None = None
) -> dict[tuple[str, str], str]:
    """Damage files of one world, one after the other; return what came of each."""
    storage = None if mirror == "duckdb" else mirror
    world, template = directory / "world", directory / "template"
    damage.build(world, storage, mode, buffered=buffered)
    shutil.copytree(world, template)
    names = [n for n in damage.files_of(template) if not buffered or n.startswith("cdc")]
    trials = [(name, kind) for name in names for kind in damage.KINDS]
    if sample is not None:
        # One of each kind of file at least, then whatever is drawn.
        drawn = random.Random(7)
        drawn.shuffle(trials)
        kinds = {Path(name).suffix: (name, kind) for name, kind in trials}
        trials = [*kinds.values(), *trials][:sample]
    outcomes: dict[tuple[str, str], str] = {}
    while len(outcomes) < len(trials):
        given = {
            "template": str(template),
            "world": str(world),
            "storage": storage,
            "mode": mode,
            "buffered": buffered,
            "trials": trials[len(outcomes) :],
        }
        order = directory / "order.json"
        order.write_text(json.dumps(given))
        process = forked.run(_TRIALS, str(order))
        for line in process.stdout.splitlines():
            step, *rest = json.loads(line)
            if step == "end":
                outcomes[rest[0], rest[1]] = rest[2]
        if process.returncode:
            crashed = trials[len(outcomes)]
            outcomes[crashed] = f"CRASHED {process.returncode}: {process.stderr[-2000:]}"
    return outcomes


def assert_harmless(outcomes: dict[tuple[str, str], str]) -> None:
    wrong = {trial: told for trial, told in outcomes.items() if told.startswith(("WRONG", "CRASH"))}
    assert not wrong


@pytest.mark.long
@pytest.mark.parametrize(("mirror", "mode", "trials"), _SAMPLE)
def test_a_damaged_file_is_named_and_the_way_out_works(
    tmp_path: Path, mirror: str, mode: str, trials: int
) -> None:
    outcomes = run(tmp_path, mirror, mode, sample=trials)
    assert len(outcomes) == trials
    assert_harmless(outcomes)
    assert any(told != "harmless" for told in outcomes.values())


@pytest.mark.soak
@pytest.mark.parametrize(("mirror", "mode", "buffered"), WORLDS)
def test_every_file_damaged_in_every_way(
    tmp_path: Path, mirror: str, mode: str, *, buffered: bool
) -> None:
    outcomes = run(tmp_path, mirror, mode, buffered=buffered)
    for (name, kind), told in outcomes.items():
        print(f"{name:70} {kind:14} {told}")  # noqa: T201  (the table is what is asked for)
    assert_harmless(outcomes)
