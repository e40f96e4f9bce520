"""A DuckDB file that is opened again: texts that this process compressed are slow to read."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import duckdb
import pytest

from rhei_pipeline.errors import MirrorBusyError, MirrorError, QueryError
from rhei_pipeline.mirrors.duckdb import block_cache
from rhei_pipeline.mirrors.duckdb import mirror as duckdb_mirror
from rhei_pipeline.mirrors.duckdb.connecting import connect_once_free
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.mirrors.publishing import PublishSchedule
from tests.support import forked
from tests.support.fix_world import World
from tests.support.other_process import copy
from tests.support.parts import connection_of, engine_of

MODES = ["destructive", "temporal"]


@pytest.fixture(autouse=True)
def little_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have any checkpoint write much."""
    monkeypatch.setattr(block_cache, "_MUCH_BYTES", 1)


def filled(make_world: Callable[..., World], mode: str = "destructive") -> World:
    """Return a world whose mirror has a table."""
    world = make_world(mode=mode, tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    return world


def mirror_of(world: World) -> DuckDBMirror:
    """Return the mirror of a world."""
    mirror = engine_of(world.htap).mirror
    assert isinstance(mirror, DuckDBMirror)
    return mirror


def change(world: World, where: str = "") -> Any:
    """Change the table, mirror that, and return the connection by which it was written."""
    world.run(f"update t set v = v || 'x' {where}", "insert into t(v) values ('new')")
    world.htap.sync_now()
    world.assert_equal("t")
    return connection_of(mirror_of(world))


@pytest.mark.parametrize("mode", MODES)
def test_the_file_is_opened_again_behind_a_checkpoint_and_only_then(
    make_world: Callable[..., World], mode: str
) -> None:
    world = filled(make_world, mode)
    first = change(world)
    assert change(world) is first
    world.htap.maintain()
    assert change(world) is first  # it comes to know of the checkpoint
    second = change(world)
    assert second is not first
    with pytest.raises(duckdb.ConnectionException):
        first.execute("select 1")
    assert change(world) is second


@pytest.mark.long
def test_the_file_is_opened_again_behind_a_large_copy(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB writes many rows of one commit into the file at once, without its log."""
    monkeypatch.setattr(block_cache, "_MUCH_BYTES", 2**20)
    world = make_world(tables=[{"name": "t"}], batch_rows=200_000)
    world.run(
        "create table t(id integer primary key, v text)",
        "with recursive r(i) as (select 1 union all select i + 1 from r where i < 130000)"
        " insert into t select i, hex(randomblob(16)) from r",
    )
    world.htap.sync_now()
    first = connection_of(mirror_of(world))
    second = change(world, where="where id < 100")
    assert second is not first
    assert change(world, where="where id < 100") is second


def test_no_query_is_ended_for_it(make_world: Callable[..., World]) -> None:
    world = filled(make_world)
    first = change(world)
    world.htap.maintain()
    change(world)
    under_way = mirror_of(world).stream("select id, v from t order by id", (), 1)
    next(under_way.batches)
    assert change(world) is first
    assert sum(batch.num_rows for batch in under_way.batches) == 2
    assert change(world) is not first


def test_it_waits_for_the_end_of_a_copy(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tables=[{"name": "t"}], batch_rows=1000)
    world.run(
        "create table t(id integer primary key, v text)",
        "with recursive r(i) as (select 1 union all select i + 1 from r where i < 5000)"
        " insert into t select i, 'v' from r",
    )
    monkeypatch.setattr(block_cache.BlockCache, "decodes_slowly", True)
    copying, connect_again = [], DuckDBMirror._connect_again

    def noted(mirror: DuckDBMirror, patience_seconds: float) -> None:
        copying.append(bool(mirror.ledger().copies))
        connect_again(mirror, patience_seconds)

    monkeypatch.setattr(DuckDBMirror, "_connect_again", noted)
    world.htap.sync_now()
    change(world)
    assert copying
    assert not any(copying)


COUNTED = "select count(*) as n from t"


def counted(world: World, hint: Literal["auto", "olap"]) -> int:
    """Return how many rows the table has."""
    found: int = world.htap.query(COUNTED, hint=hint)["n"][0].as_py()
    return found


@contextmanager
def kept_by_another_program(
    world: World, monkeypatch: pytest.MonkeyPatch, work: str = "pass"
) -> Iterator[None]:
    """Have another program open the file as it is let go, do some work, and keep it open."""
    monkeypatch.setattr(duckdb_mirror, "REOPENED_SECONDS", 0.2)
    let_go = DuckDBMirror._let_go
    program = (
        f"import duckdb, sys; held = duckdb.connect(sys.argv[1], read_only={work == 'pass'}); "
        f"{work}; print('open', flush=True); sys.stdin.read()"
    )
    with ExitStack() as others, monkeypatch.context() as patched:

        def won(mirror: DuckDBMirror) -> None:
            patched.undo()
            let_go(mirror)
            other = others.enter_context(forked.Forked(program, mirror.path))
            assert other.stdout.readline() == "open\n"

        patched.setattr(DuckDBMirror, "_let_go", won)
        yield


def test_while_another_program_has_the_file_that_is_named_and_the_source_answers(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = filled(make_world)
    change(world)
    world.htap.maintain()
    first = change(world)
    world.run("insert into t(v) values ('pending')")
    with kept_by_another_program(world, monkeypatch):
        asked: list[Callable[[], object]]
        asked = [world.htap.sync_now, partial(counted, world, "olap"), world.htap.maintain]
        for ask in [*asked, *asked]:
            with pytest.raises(MirrorBusyError, match="is held by another process"):
                ask()
        assert counted(world, "auto") == 4
        assert "is held by another process" in str(world.htap.sync_status(60).unreadable)
        # Who waits for the one that tries to open it hears the same.
        trying = mirror_of(world)._lock
        with trying, pytest.raises(MirrorBusyError, match="is held by another process"):
            counted(world, "olap")
    assert counted(world, "olap") == 3
    assert change(world) is not first


def about_to_be_opened_again(make_world: Callable[..., World]) -> World:
    """Return a world that mirrors every table, whose file the next sync opens again."""
    world = make_world()
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    change(world)
    world.htap.maintain()
    change(world)
    return world


def test_what_another_program_wrote_meanwhile_is_met(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables of its own, which a mirrored one of that name does not replace."""
    world = about_to_be_opened_again(make_world)
    world.run("insert into t(v) values ('pending')")
    work = "held.execute('create table theirs as select 7 as x')"
    with kept_by_another_program(world, monkeypatch, work), pytest.raises(MirrorBusyError):
        world.htap.sync_now()
    world.run("create table theirs(id integer primary key)")
    assert "theirs" in world.htap.sync_now().errors
    assert world.htap.query("select x from theirs", hint="olap")["x"].to_pylist() == [7]
    world.assert_equal("t")


def test_so_is_what_another_program_wrote_that_has_let_go_of_it(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = about_to_be_opened_again(make_world)

    def connect_late(path: str, *given: Any) -> duckdb.DuckDBPyConnection:
        patched.undo()
        program = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute(sys.argv[2])"
        work = "create table theirs as select 7 as x"
        subprocess.run([sys.executable, "-c", program, path, work], check=True)
        return connect_once_free(path, *given)

    world.run("insert into t(v) values ('pending')")
    with monkeypatch.context() as patched:
        patched.setattr(duckdb_mirror, "connect_once_free", connect_late)
        assert not world.htap.sync_now().errors
    world.run("create table theirs(id integer primary key)")
    assert "theirs" in world.htap.sync_now().errors
    assert world.htap.query("select x from theirs", hint="olap")["x"].to_pylist() == [7]
    world.assert_equal("t")


def test_a_file_that_another_program_had_as_it_was_to_be_written_again_is_opened_later(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = filled(make_world)
    with kept_by_another_program(world, monkeypatch, "held.execute('checkpoint')"):
        with pytest.raises(MirrorBusyError):
            mirror_of(world).erase()
        with pytest.raises(MirrorBusyError):
            counted(world, "olap")
    assert counted(world, "olap") == 1
    assert mirror_of(world).erase() == ()
    change(world)


def test_a_pipeline_closes_while_another_program_has_the_file(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    published = {"path": tmp_path / "copy.duckdb", "interval_seconds": 3600}
    world = filled(partial(make_world, published=published))
    with kept_by_another_program(world, monkeypatch):
        for _ in range(2):
            with suppress(MirrorBusyError):
                change(world)
                world.htap.maintain()
        monkeypatch.setattr(PublishSchedule, "due", True)
        world.close()
    with duckdb.connect(str(tmp_path / "copy.duckdb"), read_only=True) as copy:
        assert copy.execute("select count(*) from t").fetchall() == [(1,)]


def test_another_file_that_was_put_there_meanwhile_is_not_taken_for_it(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = filled(make_world)
    file, backup = world.directory / "mirror.duckdb", world.directory / "backup.duckdb"
    world.crash()
    copy(file, backup)
    change(world)
    world.htap.maintain()
    change(world)

    def put_back(*given: Any) -> duckdb.DuckDBPyConnection:
        backup.replace(file)
        return connect_once_free(*given)

    world.run("insert into t(v) values ('pending')")
    with monkeypatch.context() as patched:
        patched.setattr(duckdb_mirror, "connect_once_free", put_back)
        with pytest.raises(MirrorError, match="replaced"):
            world.htap.sync_now()
    for _ in range(2):
        with pytest.raises(MirrorError, match="replaced"):
            world.htap.query("select * from t", hint="olap")
        with pytest.raises(MirrorError, match="replaced"):
            world.htap.sync_now()
    world.crash()
    world.htap.sync_now()
    world.assert_equal("t")


def test_logged_bytes_count_where_no_file_grows(
    tmp_path: Path,
) -> None:
    file, log = tmp_path / "mirror.duckdb", tmp_path / "mirror.duckdb.wal"
    file.write_bytes(b"as large as before")
    cache = block_cache.BlockCache(str(file), None)
    with duckdb.connect() as connection:
        log.write_bytes(b"logged")
        cache.note_commit(connection)
        assert not cache.decodes_slowly
        log.unlink()
        cache.note_commit(connection)
        assert cache.decodes_slowly
        cache.note_opened()
        assert not cache.decodes_slowly


def test_queries_of_another_thread_are_answered_while_it_is_opened_again(
    make_world: Callable[..., World],
) -> None:
    world = filled(make_world)
    troubles: list[Exception] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(0.005):
            try:
                world.htap.query("select count(*) as n, max(v) as v from t", hint="olap")
            except Exception as error:  # noqa: BLE001  (the test shows it)
                troubles.append(error)
                return

    asking = threading.Thread(target=ask)
    asking.start()
    connections: set[Any] = set()
    while len(connections) < 4 and asking.is_alive():
        with suppress(MirrorError):  # a query is under way
            world.htap.maintain()
        connections |= {change(world), change(world)}
    ended.set()
    asking.join()
    assert not troubles


def test_an_error_that_is_kept_does_not_keep_the_file_open(
    make_world: Callable[..., World],
) -> None:
    """Its frames hold the answer; who opened the file again in this process waited for ever."""
    world = filled(make_world)
    path = mirror_of(world).path
    world.crash()
    cancels: list[Callable[[], None]] = []
    mirror = DuckDBMirror(path, lock_timeout_seconds=0, read_only=True)
    streamed = mirror.stream("select range from range(1000000)", (), 10, cancels.append)
    next(streamed.batches)
    for cancel in cancels:
        cancel()
    with pytest.raises(QueryError) as kept:
        list(streamed.batches)
    mirror.close()
    written = "import duckdb, sys; duckdb.connect(sys.argv[1]).close(); print('written')"
    assert "written" in forked.output_of(written, path)
    assert kept.tb is not None
