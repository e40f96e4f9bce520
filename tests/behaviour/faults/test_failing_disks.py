"""Whatever call to the disk fails: nothing is lost, what failed is named, and it goes on."""

import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

import rhei_pipeline as rhei
from rhei_pipeline.errors import MirrorError
from rhei_pipeline.mirrors.duckdb.progress import ProgressRecords
from tests.support import forked
from tests.support.failing_disks import ERRORS, failing, points, sampled, synced
from tests.support.fix_postgres import skip_without
from tests.support.fix_world import World
from tests.support.parts import connection_of, engine_of

TABLES = ("t", "u")
#: Calls that fail in one run of the long form, some three seconds each.
MOST_POINTS = 60
STORAGES = pytest.mark.parametrize("storage", ["duckdb", "parquet", "delta"])
_CHANGES = (
    "update t set v = 'w' || id where id < 100",
    "delete from t where id > 450",
    "insert into u values (1000, 'n')",
)
#: Opens the pipeline, and for each line that it reads syncs a change; tells what the sync said.
_SYNCING = """
import sqlite3, sys
import rhei_pipeline as rhei
app = sqlite3.connect("app.db", isolation_level=None)
with rhei.open("pipeline.yaml") as htap:
    for line in sys.stdin:
        for _ in range(2):  # taken twice, the first of them would come again after the second
            app.execute("update u set v = v || 'x' where id = 1")
        try:
            print(htap.sync_now().errors or "ok", flush=True)
        except rhei.RheiError as error:
            print(error, flush=True)
"""
#: Opens a mirror where no file may have more bytes than those of its argument.
_CREATING = """
import resource, signal, sys
from rhei_pipeline.errors import MirrorError
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
try:
    DuckDBMirror("mirror.duckdb")
except MirrorError as error:  # told through a pipe: no file may be written
    print(error)
"""
#: Runs a command that answers into the file of its first argument.
_ANSWERING = """
import os, sys
os.dup2(os.open(sys.argv.pop(1), os.O_WRONLY), 1)
from rhei_pipeline.cli.main import main
main()
"""


def declared(directory: Path, storage: str, **more: Any) -> None:
    """Make a source of two tables in the directory, and declare its mirror there."""
    directory.mkdir()
    mirror: dict[str, Any] = {"path": "mirror.duckdb"}
    if storage != "duckdb":
        mirror = {"kind": "datafusion", "storage": storage, "path": "mirror"}
    pipeline = {
        "source": {"path": "app.db"},
        "mirror": mirror,
        "mode": "temporal",
        "registry": {"path": "registry.json"},
        "tables": [{"name": name} for name in TABLES],
        **more,
    }
    (directory / "pipeline.yaml").write_text(json.dumps(pipeline))
    with sqlite3.connect(directory / "app.db") as app:
        app.execute("pragma journal_mode = wal")
        for name in TABLES:
            app.execute(f"create table {name}(id integer primary key, v text)")
            app.executemany(f"insert into {name} values (?, 'v')", ((n,) for n in range(500)))


def written(directory: Path, *statements: str) -> None:
    with sqlite3.connect(directory / "app.db") as app:
        for statement in statements:
            app.execute(statement)


def recovered(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next sync brings the mirror up to the source, with its past."""
    monkeypatch.chdir(directory)
    with rhei.open("pipeline.yaml") as htap:
        assert htap.sync_now().errors == {}
        assert htap.verify().equal
        (past,) = htap.query("select count(*) as n from t", hint="olap")["n"].to_pylist()
        assert past == 600  # each of 100 rows has two versions
        assert htap.query("select count(*) as n from u", hint="olap")["n"].to_pylist() == [501]


def is_told(done: subprocess.CompletedProcess[str]) -> bool:
    """Return whether a command that may have failed has said so as it should."""
    if "Wakeup" in done.stderr:
        return True  # gRPC ends a process in which writing to an event fails, which no disk does
    if "loading shared libraries" in done.stderr:
        return True  # the call of the same number, of the thread that loads Python
    named = done.returncode == 0 or "error" in done.stderr
    return named and done.returncode in {0, 1, 3} and "Traceback" not in done.stderr


def fail_at_each(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have one call fail after the other; each time from the same state on.

    Some hundred calls are made; those that fail are drawn by a seed, which is printed.
    """
    skip_without("strace")
    place, kept, log = tmp_path / "place", tmp_path / "kept", tmp_path / "log"
    declared(place, storage)
    with monkeypatch.context() as there:
        there.chdir(place)
        with rhei.open("pipeline.yaml") as htap:
            htap.sync_now()
    written(place, *_CHANGES)
    shutil.copytree(place, kept)
    assert synced(("-e", f"trace={','.join(ERRORS)}"), place, log).returncode == 0
    found = list(points(log, place))
    assert {"write", "pwrite64"} & {point.call for point in found}
    failed, seed = 0, int(os.environ.get("RHEI_TEST_SEED") or time.time_ns())
    chosen = sampled(found, MOST_POINTS, seed)
    print(f"RHEI_TEST_SEED={seed}: {len(chosen)} of {len(found)} calls fail")  # noqa: T201
    for point in chosen:
        shutil.rmtree(place)
        shutil.copytree(kept, place)
        done = synced(point.injected, place, log)
        # A write in another thread may be that of what is said.
        assert is_told(done) or point.call == "write", (point, done.stderr)
        failed += done.returncode != 0
        recovered(place, monkeypatch)
    assert failed


@pytest.mark.soak
@STORAGES
def test_any_call_to_the_disk_fails(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at_each(storage, tmp_path, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize(
    ("written", "capture"),
    [
        ("mirror.duckdb.wal", {}),
        ("cdc/*.log", {"buffer": {"path": "cdc"}}),
    ],
    ids=["mirror", "buffer"],
)
def test_a_process_opens_again_what_an_engine_has_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, capture: dict[str, Any]
) -> None:
    """Where a write cannot be made durable, DuckDB and RocksDB do nothing more until then."""
    skip_without("strace")
    place = tmp_path / "place"
    declared(place, "duckdb", capture=capture)
    monkeypatch.chdir(place)
    with forked.Forked(_SYNCING) as syncing:

        def sync() -> str:
            syncing.stdin.write("\n")
            syncing.stdin.flush()
            return syncing.stdout.readline().strip()

        assert [sync(), sync()] == ["ok", "ok"]
        (file,) = place.glob(written)
        with failing(syncing.pid, "fsync,fdatasync", file):
            assert "disk" in sync()
        assert [sync(), sync()] == ["ok", "ok"]
        syncing.stdin.close()
        assert syncing.wait() == 0
    with rhei.open("pipeline.yaml") as htap:
        past = htap.query("select v from u where id = 1 order by _rhei_valid_from", hint="olap")
        seen = past["v"].to_pylist()
        # The first two are copied; of what one sync met, all have instants of their own.
        assert seen == sorted({*seen})
        assert seen[0] == "vxx"
        assert seen[-1] == "v" + "x" * 10
        assert htap.verify().equal


def test_what_was_given_up_is_opened_again_for_queries_too(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(mode="temporal", tables=[{"name": "t"}])
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    world.htap.sync_now()
    counted = "select count(*) as n from t"

    def given_up(_self: ProgressRecords) -> None:
        raise duckdb.FatalException("fsync failed!")

    asked = (lambda: world.htap.query(counted, hint="olap"), world.htap.sync_now)
    for ask in (*asked, world.htap.maintain):
        with monkeypatch.context() as patch:
            patch.setattr(ProgressRecords, "write", given_up)
            world.run("insert into t default values")
            with pytest.raises(MirrorError, match="fsync failed!"):
                world.htap.sync_now()
        given_up_on = connection_of(engine_of(world.htap).mirror)
        ask()
        assert connection_of(engine_of(world.htap).mirror) is not given_up_on
    world.htap.sync_now()
    world.assert_equal("t")


@pytest.mark.parametrize("size", [0, 5_000, 12_000])
def test_a_file_that_could_not_be_created_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "is full" in forked.output_of(_CREATING, str(size))
    assert not list(tmp_path.glob("*.duckdb*.begun*"))
    assert not (tmp_path / "mirror.duckdb").exists()


@pytest.mark.long
@pytest.mark.parametrize("arguments", [["sync"], ["status", "--json"], ["query", "select 1"]])
def test_an_answer_that_cannot_be_written_is_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    declared(tmp_path / "place", "duckdb")
    monkeypatch.chdir(tmp_path / "place")
    command = [*arguments, "--config", "pipeline.yaml"]
    done = forked.run(_ANSWERING, "/dev/full", *command)
    assert done.returncode == 1
    assert forked.run(_ANSWERING, "/dev/null", *command).returncode == 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert said == [
        "error the answer cannot be written: No space left on device (write it elsewhere)"
    ]
    assert "Traceback" not in done.stderr
