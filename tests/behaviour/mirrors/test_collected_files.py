"""Files that nobody names any more go; those of a state that somebody reads do not."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rhei_pipeline.mirrors.datafusion.local_files import LocalFiles
from rhei_pipeline.mirrors.datafusion.manifest_store import ManifestStore
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.testing.mirror_work import TABLE, copy, held, keys, merge, rows
from tests.support.parts import manifest_of, store_of

Make = Callable[[int], DataFusionMirror]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make a mirror that keeps so many states."""
    made: list[DataFusionMirror] = []

    def open_it(retained: int) -> DataFusionMirror:
        made.append(DataFusionMirror("ipc", tmp_path / "m", retained_manifests=retained))
        return made[-1]

    yield open_it
    for mirror in made:
        mirror.close()


def manifests(mirror: DataFusionMirror) -> list[Path]:
    return sorted((Path(mirror.path) / "manifests").glob("*.json"))


def test_a_state_that_was_read_is_kept_no_longer_than_that(make: Make) -> None:
    mirror = make(1)
    copy(mirror, TABLE, rows(a=0.0))
    first = manifest_of(mirror)
    for number in range(1, 6):
        read = mirror.stream("select v from t", (), 10).batches
        merge(mirror, rows(a=float(number)), keys())
        assert [batch["v"].to_pylist() for batch in read] == [[number - 1.0]]
    merge(mirror, rows(), keys("a"))
    assert len(manifests(mirror)) == 1
    (old,) = first.tables.values()
    assert not any(
        (Path(mirror.path) / name).exists() for name in store_of(mirror).table_files(old)
    )


def test_what_a_reader_takes_up_while_files_are_collected_stays(make: Make) -> None:
    mirror = make(9)
    copy(mirror, TABLE, rows(a=0.0))
    first, store = manifest_of(mirror), store_of(mirror)
    named = [Path(mirror.path) / name for name in store.files_of(first)]
    for number in (1, 2):
        merge(mirror, rows(a=float(number)), keys())
    answers = iter([set[int](), {first.version}])
    ManifestStore(store.files, 1).collect(store, lambda: next(answers))
    assert len(manifests(mirror)) == 1
    assert named
    assert all(file.exists() for file in named)
    assert held(mirror) == {"a": 2.0}


def test_nothing_goes_while_somebody_reads_a_state_that_is_not_known(make: Make) -> None:
    mirror = make(1)
    copy(mirror, TABLE, rows(a=0.0))
    store, place = store_of(mirror), Path(mirror.path)
    (stored,) = manifest_of(mirror).tables.values()
    file = place / next(iter(store.table_files(stored)))
    other = file.with_name(f"{'1' if file.name[0] == '0' else '0'}{file.name[1:]}")
    shutil.copy(file, other)
    reading = LocalFiles(place, writing=False)
    with reading.pin(manifest_of(mirror).version + 7):
        assert ManifestStore(store.files, 1).collect_orphans(store) == 0
    assert other.exists()
    assert ManifestStore(store.files, 1).collect_orphans(store) == 1
    assert not other.exists()
    assert held(mirror) == {"a": 0.0}


def test_the_number_of_a_state_that_was_set_aside_is_not_given_again(make: Make) -> None:
    mirror = make(3)
    copy(mirror, TABLE, rows(a=0.0))
    for number in (1, 2):
        merge(mirror, rows(a=float(number)), keys())
    mirror.close()
    newest = manifests(mirror)[-1]
    newest.write_bytes(newest.read_bytes()[:-9])
    again = make(3)
    assert [found.file for found in again.heal(TABLE)] == [f"manifests/{newest.name}"]
    assert held(again) == {"a": 1.0}
    assert manifests(again)[-1].name > newest.name
