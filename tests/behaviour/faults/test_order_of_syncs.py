"""What is on the disk before the next step is taken: seen from outside, by the calls of a sync."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import rhei_pipeline as rhei
from tests.behaviour.faults.test_failing_disks import declared, written
from tests.support.failing_disks import synced
from tests.support.fix_postgres import skip_without

CALLS = "openat,write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,link,linkat"
BUFFERED = {"capture": {"method": "trigger", "buffer": {"kind": "rocksdb", "path": "cdc"}}}
CHANGES = ("update t set v = 'w' where id < 100", "insert into u values (1000, 'n')")
CONFIRMED = "cdc.confirmed.json"
_CALL = re.compile(r"^\d+ +(\w+)\((?:\d+<([^>]*)>)?")
_PATHS = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass
class Disk:
    """A disk of which only that is safe which was synced.

    Attributes:
        place: Where all is that counts.
        unsafe: The files that were written since, and the folders that got a name.
        steps: How often each step was taken that needs others to be safe.
        is_confirmed: Whether the buffer's file says that the mirror lacks what it holds.
    """

    place: Path
    unsafe: set[str] = field(default_factory=set)
    steps: Counter[str] = field(default_factory=Counter)
    is_confirmed: bool = False

    def see(self, line: str) -> None:
        """Follow one call."""
        call = _CALL.match(line)
        if call is None:
            return
        name, of = call.groups()
        if name == "openat" and "O_CREAT" in line:
            self._named(self._within(_PATHS.findall(line)[-1]))
        elif name.startswith(("rename", "link")):
            self._renamed(*(self._within(found) for found in _PATHS.findall(line)[:2]))
        elif of is not None and name in {"fsync", "fdatasync"}:
            path = self._within(of)
            self.unsafe.discard(path)
            if path == "." and self.is_confirmed:
                self.unsafe.discard(CONFIRMED)
        elif of is not None and "write" in name:
            self._written(self._within(of))

    def _within(self, path: str) -> str:
        whole = self.place / path
        return str(whole.relative_to(self.place)) if whole.is_relative_to(self.place) else ""

    def _named(self, path: str) -> None:
        if path.startswith(("mirror/data/", "mirror/delta/")) and not path.endswith(".partial"):
            self.unsafe.add(str(Path(path).parent))

    def _renamed(self, old: str, new: str) -> None:
        if "/.rhei/" in new or not new or new.startswith("cdc/"):
            return  # told for people, or RocksDB's own
        assert old not in self.unsafe, f"{new} is named before {old} is safe"
        if "_delta_log" in new:
            self._step("publish", str(Path(new).parent.parent), new)
        elif new.startswith("mirror/manifests/"):
            self._step("commit", "mirror/data", new)
        self.unsafe.add(str(Path(new).parent))
        self.is_confirmed = self.is_confirmed or new == CONFIRMED

    def _written(self, path: str) -> None:
        if path.startswith("app.db") and not path.endswith("-shm"):
            for needed in ("cdc", "mirror"):
                self._step("let the source forget", needed, path)
        if path.startswith(("mirror", "cdc")) and not path.endswith(_OF_NO_IMPORTANCE):
            self.unsafe.add(path)
        if path.startswith("cdc/") and path.endswith(".log"):
            self.unsafe.add(CONFIRMED)  # it has to say that the mirror lacks what came
            self.is_confirmed = False

    def _step(self, step: str, needed: str, by: str) -> None:
        left = {path for path in self.unsafe if path.startswith(needed)}
        assert not left, f"to {step}, {by} comes before these are safe: {left}"
        self.steps[step] += 1


#: Notes that may be lost, and what RocksDB and DuckDB tell for people, or to other processes.
_OF_NO_IMPORTANCE = (
    *("/newest", "/lock", ".turn", "/LOG", "LOCK", ".lock", ".last", "rocksdict-config.json"),
    *("/IDENTITY",),
)


@pytest.mark.parametrize(
    ("storage", "more", "steps"),
    [
        pytest.param("duckdb", {}, {"let the source forget"}, marks=pytest.mark.long),
        pytest.param("duckdb", BUFFERED, {"let the source forget"}, marks=pytest.mark.long),
        ("parquet", BUFFERED, {"let the source forget", "commit"}),
        pytest.param("ipc", {}, {"let the source forget", "commit"}, marks=pytest.mark.long),
        pytest.param(
            "delta", {}, {"let the source forget", "commit", "publish"}, marks=pytest.mark.long
        ),
    ],
)
def test_no_step_comes_before_what_it_relies_on_is_on_the_disk(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    storage: str,
    more: dict[str, Any],
    steps: set[str],
) -> None:
    skip_without("strace")
    place, log = tmp_path / "place", tmp_path / "log"
    declared(place, storage, **more)
    with monkeypatch.context() as there:
        there.chdir(place)
        with rhei.open("pipeline.yaml") as htap:
            htap.sync_now()
    written(place, *CHANGES)
    done = synced(("-e", f"trace={CALLS}"), place, log)
    assert done.returncode == 0, done.stderr
    disk = Disk(place)
    for line in log.read_text(errors="replace").splitlines():
        disk.see(line)
    assert disk.steps.keys() == steps
