"""A published copy of a DuckDB mirror: always whole, always a committed state."""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import rhei_pipeline as rhei
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import MirrorError, SettingsError
from rhei_pipeline.mirrors.duckdb.last_commit import LastCommit, noted_mirror
from rhei_pipeline.mirrors.duckdb.published_copy import PublishedCopy
from rhei_pipeline.mirrors.locking import WriterLock
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.protocols import Step
from rhei_pipeline.testing.faults import Crash
from tests.support.fix_world import World
from tests.support.forked import Forked, output_of
from tests.support.locks import assert_held
from tests.support.parts import engine_of

MakeWorld = Callable[..., World]

_READ = """
import duckdb, sys
with duckdb.connect(sys.argv[1], read_only=True) as opened:
    print(opened.execute("select sum(v), count(*) from t").fetchone())
"""


def published(world: World, interval: float) -> Settings:
    copy = {"path": world.directory / "published" / "copy.duckdb", "interval_seconds": interval}
    mirror = {"path": world.directory / "mirror.duckdb", "published": copy}
    return Settings(**{**world.settings.model_dump(), "mirror": mirror})


def read(world: World) -> str:
    copy = str(world.directory / "published" / "copy.duckdb")
    return output_of(_READ, copy).strip()


def filled(world: World) -> World:
    world.run("create table t(id integer primary key, v int)", "insert into t values (1, 1)")
    return world


def test_other_processes_read_the_copy_while_the_mirror_is_open(world: World) -> None:
    with HTAP(published(filled(world), 0)) as htap:
        htap.sync_now()
        assert read(world) == "(1, 1)"
        world.run("insert into t values (2, 10)")
        htap.sync_now()
        assert read(world) == "(11, 2)"
        assert htap.verify().equal
    assert not list((world.directory / "published").glob("*.partial"))


def standing_since(world: World, seconds: float) -> None:
    """Have the copy look as if it had been made so long ago."""
    copy = world.directory / "published" / "copy.duckdb"
    then = copy.stat().st_mtime - seconds
    os.utime(copy, (then, then))


@pytest.mark.long
def test_the_interval_counts_from_the_copy_that_stands_over_all_processes(world: World) -> None:
    settings = published(filled(world), 3600)
    with HTAP(settings) as htap:
        htap.sync_now()
    assert read(world) == "(1, 1)"
    for n in (2, 3):
        world.run(f"insert into t values ({n}, 10)")
        with HTAP(settings) as htap:
            htap.sync_now()
        assert read(world) == "(1, 1)"
    standing_since(world, 3601)
    with HTAP(settings) as htap:
        htap.query("select 1 as n", hint="olap")
    assert read(world) == "(21, 3)"


def test_a_clock_that_was_put_back_does_not_hide_that_the_mirror_changed(world: World) -> None:
    settings = published(filled(world), 0)
    with HTAP(settings) as htap:
        htap.sync_now()
    world.run("insert into t values (2, 10)")
    with HTAP(world.settings) as htap:  # a process that ends before the copy is due
        htap.sync_now()
    assert read(world) == "(1, 1)"
    standing_since(world, -3600)
    with HTAP(settings) as htap:
        htap.query("select 1 as n", hint="olap")
    assert read(world) == "(11, 2)"


def test_a_mirror_that_did_not_change_is_not_copied_again(world: World) -> None:
    settings = published(filled(world), 0)
    with HTAP(settings) as htap:
        htap.sync_now()
    copy = world.directory / "published" / "copy.duckdb"
    made = copy.stat().st_ino
    with HTAP(settings) as htap:
        htap.sync_now()
        htap.query("select * from t", hint="olap")
    assert copy.stat().st_ino == made


@pytest.mark.parametrize("step", [Step.COPY_BEGUN, Step.COPY_BATCH, Step.COPY_COMPLETE])
def test_a_first_copy_that_was_cut_off_publishes_nothing(
    make_world: Callable[..., World], step: Step
) -> None:
    world = filled(make_world(batch_rows=1))
    world.run("insert into t values (2, 2), (3, 3)")
    world.faults.arm(step)
    with pytest.raises(Crash), HTAP(published(world, 0), on_step=world.faults) as htap:
        htap.sync_now()
    assert not list((world.directory / "published").glob("*"))


@pytest.mark.long
def test_a_table_whose_first_copy_is_under_way_is_left_out_and_the_others_are_whole(
    make_world: Callable[..., World],
) -> None:
    world = filled(make_world(batch_rows=1))
    settings = published(world, 0)
    with HTAP(settings) as htap:
        htap.sync_now()
    world.run("create table u(id integer primary key)", "insert into u values (1), (2), (3)")
    world.run("insert into t values (2, 10)")
    world.faults.arm(Step.COPY_BATCH)
    with pytest.raises(Crash), HTAP(settings, on_step=world.faults) as htap:
        htap.sync_now()
    assert read(world) == "(1, 1)"
    assert tables_of(world) == ["t"]
    with HTAP(settings) as htap:
        htap.sync_now()
    assert read(world) == "(11, 2)"
    assert tables_of(world) == ["t", "u"]


def tables_of(world: World) -> list[str]:
    code = (
        "import duckdb, sys; opened = duckdb.connect(sys.argv[1], read_only=True);"
        "rows = opened.execute('select table_name from duckdb_tables() order by 1').fetchall();"
        "print(*(n for (n,) in rows if not n.startswith('_rhei_') or 'copy' in n))"
    )
    copy = str(world.directory / "published" / "copy.duckdb")
    return output_of(code, copy).split()


def test_what_a_killed_publication_left_is_swept_away(world: World) -> None:
    settings = published(filled(world), 0)
    left = world.directory / "published" / f"copy.duckdb.{'0' * 32}.partial"
    others = left.with_name(f"copy.duckdb.b.{'0' * 32}.partial")
    left.parent.mkdir()
    for file in (left, others):
        file.write_text("half")
    with HTAP(settings) as htap:
        htap.sync_now()
    assert {file.name for file in left.parent.iterdir()} == {"copy.duckdb", others.name}


def test_a_copy_that_cannot_be_written_is_named_and_the_mirror_is_in_order(world: World) -> None:
    settings = published(filled(world), 0)
    (world.directory / "published").write_text("a file where a folder is needed")
    with HTAP(settings) as htap:
        for v in (2, 3):
            report = htap.sync_now()
            assert "copy.duckdb' cannot be written" in str(report.not_published)
            assert htap.sync_status().not_published == report.not_published
            assert htap.verify().equal
            world.run(f"update t set v = {v}")
    # Closed without an error: what was committed is in order.
    (world.directory / "published").unlink()
    with HTAP(settings) as htap:
        assert htap.sync_now().not_published is None
        assert read(world) == "(3, 1)"


@pytest.mark.long
@pytest.mark.parametrize("name", ["app.db-wal", "link", "notes"])
def test_nothing_but_a_copy_is_replaced_by_a_copy(world: World, name: str) -> None:
    """A path that is mistyped may be that of the source itself."""
    (world.directory / "link").symlink_to("app.db")
    (world.directory / "notes").write_text("a note")
    form = filled(world).settings.model_dump()
    form["mirror"]["published"] = {"path": world.directory / name, "interval_seconds": 0}
    with HTAP(Settings(**form)) as htap:
        for v in (2, 3):
            assert "no DuckDB database, and is left" in str(htap.sync_now().not_published)
            world.run(f"update t set v = {v}")
        assert world.app.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert htap.verify().equal


def test_a_quiet_mirror_is_published_once_its_interval_is_over(world: World) -> None:
    with HTAP(published(filled(world), 3600)) as htap:
        htap.sync_now()
        world.run("update t set v = 2")
        htap.sync_now()
        assert read(world) == "(1, 1)"
        standing = engine_of(htap).mirror._published.pace  # type: ignore[attr-defined]
        standing.note_publication(3600)
        standing.note_change()
        htap.sync_now()  # with nothing to apply
        assert read(world) == "(2, 1)"


def test_a_source_that_cannot_be_copied_is_named_by_the_child(tmp_path: Path) -> None:
    copy = PublishedCopy(tmp_path / "copy.duckdb", 0)
    with pytest.raises(MirrorError, match="cannot be written: No such file"):
        copy.publish(tmp_path / "missing.duckdb", "", unfinished=False)
    assert not list(tmp_path.iterdir())


def test_a_mirror_published_over_itself_is_refused(world: World) -> None:
    path = world.directory / "mirror.duckdb"
    with pytest.raises(SettingsError, match=r"'published' needs a path of its own"):
        Settings(source={"path": world.path}, mirror={"path": path, "published": {"path": path}})


@pytest.mark.parametrize("interval", [0, 3600])
def test_the_mirrors_lock_outlives_publishing(world: World, interval: float) -> None:
    with HTAP(published(filled(world), interval)) as htap:
        for n in range(2, 5):
            world.run(f"insert into t values ({n}, 1)")
            htap.sync_now()
            assert_held(world.directory / "mirror.duckdb")


def named(world: World, name: str, published_at: str) -> Settings:
    """Declare a pipeline of this source, with a mirror of its own that is published there."""
    form = world.settings.model_dump()
    copy = {"path": world.directory / published_at, "interval_seconds": 0}
    form["mirror"] |= {"path": world.directory / f"{name}.duckdb", "published": copy}
    form["registry"] = {"path": world.directory / f"{name}.json"}
    return Settings(**{**form, "name": name})


OTHERS_COPY = "the file that is there is a copy of another mirror, and is left as it is"


@pytest.mark.long
def test_a_mirror_is_not_replaced_by_the_copy_of_another_one(make_world: MakeWorld) -> None:
    """Its history is nowhere else."""
    world = filled(make_world(mode="temporal"))
    standing = named(world, "standing", "standing_copy.duckdb")
    other = named(world, "other", "standing.duckdb")
    with HTAP(standing) as htap:
        htap.sync_now()
        world.run("update t set v = 2")
        htap.sync_now()
        with HTAP(other) as beside:
            assert "that is there is a mirror, and no copy" in str(beside.sync_now().not_published)
        world.run("update t set v = 3")
        htap.sync_now()
    with HTAP(other) as beside:  # while nobody holds it, too
        assert "that is there is a mirror, and no copy" in str(beside.sync_now().not_published)
    with HTAP(named(world, "other", "other_copy.duckdb")) as beside:
        assert beside.sync_now().not_published is None
    with HTAP(standing) as htap:
        assert sorted(htap.query("select v from t", hint="olap")["v"].to_pylist()) == [1, 2, 3]


def test_two_pipelines_that_publish_to_one_place_never_show_the_rows_of_one_as_the_others(
    world: World,
) -> None:
    filled(world)
    first, second = (named(world, name, "copy.duckdb") for name in ("first", "second"))
    with HTAP(first) as htap, HTAP(second) as later:
        assert htap.sync_now().not_published is None
        assert OTHERS_COPY in str(later.sync_now().not_published)
        world.run("update t set v = 2")
        assert OTHERS_COPY in str(later.sync_now().not_published)
        assert htap.sync_now().not_published is None
        with rhei.reader([first]) as reader:
            assert reader.query("select v from first.t")["v"].to_pylist() == [2]
        for settings in ({"first": first, "second": second}, {"second": second}):
            with (
                rhei.reader(settings) as reader,
                pytest.raises(MirrorError, match=r"is of another mirror than .*second.duckdb"),
            ):
                reader.query("select v from second.t")


def test_a_reader_that_cannot_ask_the_holder_reads_no_copy_of_another_mirror(world: World) -> None:
    filled(world)
    first, second = (named(world, name, "copy.duckdb") for name in ("first", "second"))
    with HTAP(first) as htap, HTAP(second) as later:
        htap.sync_now()
        later.sync_now()
    for settings, message in ((first, None), (second, "is of another mirror than")):
        held = str(settings.mirror.path)
        with Forked(_HOLD, held) as holder, rhei.reader(settings) as reader:
            assert holder.stdout.readline() == "opened\n"
            if message is None:
                found = reader.query("select v from t")
                assert (found.schema.metadata or {})[b"rhei.read_from"] == b"published copy"
                continue
            with pytest.raises(MirrorError, match=message):
                reader.query("select v from t")


_HOLD = "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print('opened', flush=True)"
_HOLD += "; sys.stdin.read()"


def test_a_mirror_that_is_begun_anew_is_published_once_the_former_ones_copy_is_gone(
    world: World,
) -> None:
    """What that copy shows of the past, the new mirror does not have."""
    settings = named(filled(world), "shop", "copy.duckdb")
    with HTAP(settings) as htap:
        htap.sync_now()
    for left in world.directory.glob("shop.duckdb*"):
        left.unlink()
    with HTAP(settings) as htap:
        told = str(htap.sync_now().not_published)
        assert OTHERS_COPY in told
        assert "delete the copy" in told
        (world.directory / "copy.duckdb").unlink()
        world.run("update t set v = 2")
        assert htap.sync_now().not_published is None
        with rhei.reader([settings]) as reader:
            assert reader.query("select v from shop.t")["v"].to_pylist() == [2]


def moved(world: World) -> Settings:
    """Sync a mirror, move its file alone, and declare its copy in the former place."""
    after = named(filled(world), "moved", "shop.duckdb")
    form = after.model_dump()
    form["mirror"] |= {"path": world.directory / "shop.duckdb", "published": None}
    with HTAP(Settings(**form)) as htap:
        htap.sync_now()
    (world.directory / "shop.duckdb").rename(world.directory / "moved.duckdb")
    return after


@pytest.mark.long
def test_a_mirror_may_be_moved_and_publish_its_copies_where_it_was(world: World) -> None:
    after = moved(world)
    for v in (2, 3, 4):
        world.run(f"update t set v = {v}")
        with HTAP(after) as htap:
            assert htap.sync_now().not_published is None
    with Forked(_HOLD, str(after.mirror.path)) as holder, rhei.reader(after) as reader:
        assert holder.stdout.readline() == "opened\n"
        assert reader.query("select v from t")["v"].to_pylist() == [4]


def test_a_mirrors_former_place_is_its_copys_once_its_lock_is_deleted(world: World) -> None:
    """An earlier version left the lock there, and copied to it."""
    after, lock = moved(world), world.directory / "shop.duckdb.lock"
    with HTAP(after) as htap:
        assert htap.sync_now().not_published is None
    lock.write_text("")
    with HTAP(after) as htap:
        world.run("update t set v = 2")
        told = str(htap.sync_now().not_published)
        assert f"if a mirror was moved away from there, delete {str(lock)!r}" in told
        lock.unlink()
        world.run("update t set v = 3")
        assert htap.sync_now().not_published is None


def test_a_place_where_a_mirror_is_about_to_be_made_is_no_copys(world: World) -> None:
    after = moved(world)
    lock = WriterLock(world.directory / "shop.duckdb.lock", "shop.duckdb", 0)
    with HTAP(after) as htap:
        world.run("update t set v = 2")
        assert "is already open in this process" in str(htap.sync_now().not_published)
        lock.release()
        world.run("update t set v = 3")
        assert htap.sync_now().not_published is None


def test_a_commit_that_is_under_way_leaves_noted_whose_file_it_is(tmp_path: Path) -> None:
    file = str(tmp_path / "mirror.duckdb")
    assert noted_mirror(file) is None
    with closing(LastCommit(file, writing=True)) as last:
        last.blank("some-id")
        assert noted_mirror(file) == "some-id"
        assert last.lost("some-id", Ledger()) is None
        last.note("some-id", Ledger())
    assert noted_mirror(file) == "some-id"
