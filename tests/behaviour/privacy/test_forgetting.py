"""Forgotten keys: no byte of theirs stays in a file, and what stays is named."""

import errno
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rhei_pipeline.capabilities import refuse_unless_forgetting
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import SchemaError
from rhei_pipeline.holder.searching import search
from rhei_pipeline.mirrors.datafusion import delta as delta_tables
from rhei_pipeline.testing.faults import Crash
from rhei_pipeline.testing.stub_mirror import StubMirror
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.masking import KEY
from tests.support.parts import engine_of
from tests.support.refusals import refused, rhei

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
MakePostgres = Callable[..., PostgresWorld]
AnyWorld = World | PostgresWorld

#: Begins every text of the person to be forgotten; nothing of it is in another row.
MARK = "Vergessmich"
CREATE = "create table people(id integer primary key, name text, note text, n integer)"


def holding(world: AnyWorld, *, apart: str = "app.db") -> list[str]:
    """Return the files that hold a byte of the person; not the source's own."""
    return sorted(
        file.name
        for file in Path(world.directory).rglob("*")
        if file.is_file() and not file.name.startswith(apart) and MARK.encode() in file.read_bytes()
    )


def live(world: AnyWorld) -> None:
    """A person among others is inserted, changed twice, moved among snapshots, and deleted."""
    world.run(CREATE)
    world.run(
        *(f"insert into people values ({n}, 'person {n}', 'kept note', {n})" for n in range(50)),
        f"insert into people values (77, '{MARK} 1', 'kept note', 0)",
    )
    world.htap.sync_now()
    world.run(f"update people set name = '{MARK} 2', note = '{MARK} note' where id = 77")
    world.htap.sync_now()
    world.run("update people set note = 'another' where id = 3")
    world.htap.sync_now()


def versions(world: AnyWorld) -> list[tuple[Any, ...]]:
    found = world.htap.query("select * from people", hint="olap").to_pylist()
    return sorted((tuple(row.values()) for row in found), key=repr)


def forget_and_look(world: AnyWorld) -> None:
    """Refused while the source has the row; afterwards nothing of it is left, and all else is."""
    live(world)
    with pytest.raises(SchemaError, match="delete it in the source first"):
        world.htap.forget("people", [77])
    others = [row for row in versions(world) if row[0] != 77]
    world.run("delete from people where id = 77")
    planned = world.htap.forget("people", [77], dry_run=True)
    assert planned.dry_run
    if world.mode == "temporal":
        assert planned.searched >= 2
    world.crash()
    assert holding(world) != []
    report = world.htap.forget("people", [77])
    assert report.keys == 1
    assert report.rows == planned.rows
    assert report.is_clear
    assert report.after == {}
    assert MARK not in repr(report.to_dict())
    assert versions(world) == others
    assert world.htap.verify("people").equal
    world.run("insert into people values (78, 'person 78', 'x', 1)")
    assert world.htap.sync_now().inserted == 1
    told = world.htap.schema_log("people")[-1]
    assert told.what == "forgot 1 key with all their past"
    world.crash()
    assert holding(world) == []
    assert len(versions(world)) == len(others) + 1
    assert world.htap.verify("people").equal


@pytest.mark.parametrize(
    ("storage", "mode", "options"),
    [
        (None, "temporal", {"published": True}),
        (None, "destructive", {}),
        ("ipc", "temporal", {"buffered": True}),
        ("parquet", "destructive", {}),
        ("delta", "temporal", {}),
    ],
)
def test_nothing_of_a_forgotten_key_is_left_on_the_disk(
    make_world: MakeWorld, tmp_path: Path, storage: str | None, mode: str, options: dict[str, Any]
) -> None:
    if options.get("published"):
        options = {"published": {"path": tmp_path / "world0" / "out.duckdb"}}
    forget_and_look(make_world(storage=storage, mode=mode, **options))


def test_postgres_forgets_in_memory_too(make_postgres: MakePostgres) -> None:
    """The log still brings what was made of a key before it went; forgetting takes that as well."""
    world = make_postgres(storage="memory", mode="temporal")
    live(world)
    world.run(
        f"insert into people values (79, '{MARK} 3', 'x', 0)",
        "delete from people where id in (77, 79)",
    )
    report = world.htap.forget("people", [77, {"id": 79}])
    assert (report.keys, report.is_clear) == (2, True)
    world.htap.sync_now()
    assert {77, 79}.isdisjoint(row[0] for row in versions(world))
    assert world.htap.verify("people").equal


def test_snapshots_and_dead_letters_are_forgotten_and_others_stay(make_world: MakeWorld) -> None:
    for storage in (None, "parquet"):
        world = make_world(storage=storage, mode="temporal")
        live(world)
        now = datetime.now(UTC)
        world.htap.snapshot("people", {now.date(): now})
        world.run("update people set n = 'no number' where id in (3, 77)")
        world.htap.sync_now()
        assert world.htap.dead_letters().num_rows == 2
        with refused("delete it in the source first", SchemaError):
            world.htap.forget("people", [77])  # the source has it, as a row that does not fit
        world.run("delete from people where id = 77")
        world.htap.forget("people", [77])
        assert world.htap.dead_letters()["key"].to_pylist() == ['{"id": 3}']
        days = world.htap.query("select id from snapshot.people", hint="olap")["id"].to_pylist()
        assert sorted(days) == list(range(50))
        world.htap.replay_dead_letters()
        assert 77 not in {row[0] for row in versions(world)}
        world.crash()
        assert holding(world) == []


@pytest.mark.parametrize("storage", [None, "ipc"])
@pytest.mark.parametrize("step", ["forget", "erase"])
def test_forgetting_that_was_cut_off_is_finished_by_the_next(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, storage: str | None, step: str
) -> None:
    world = make_world(storage=storage, mode="temporal")
    live(world)
    world.run("delete from people where id = 77")
    world.htap.sync_now()
    mirror = type(engine_of(world.htap).mirror)
    real = getattr(mirror, step)

    def dying(*given: Any, **named: Any) -> Any:
        if not named.get("trial"):
            raise Crash
        return real(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(mirror, step, dying)
        assert world.surviving(lambda: world.htap.forget("people", [77]))
    assert holding(world) != []
    assert (77 in {row[0] for row in versions(world)}) is (step == "forget")
    world.htap.forget("people", [77])
    world.crash()
    assert holding(world) == []
    assert len(versions(world)) == 51


def test_a_hashed_key_is_given_as_the_mirror_has_it(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RHEI__MASKING__KEY", KEY)
    world = make_world(mode="temporal", tables=[{"name": "people", "mask": {"id": "hash"}}])
    live(world)
    world.run("delete from people where id = 77")
    report = world.htap.forget("people", ["77"])
    assert not report.is_clear
    assert "give them as the mirror has them" in report.kept[0]
    kept = world.htap.query(f"select id from people where name = '{MARK} 1'", hint="olap")
    report = world.htap.forget("people", kept["id"].to_pylist())
    assert (report.rows, report.is_clear) == (2, True)
    world.crash()
    assert holding(world) == []


@pytest.mark.long
def test_every_text_is_searched_for_however_many_there_are(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal")
    world.run("create table people(id integer primary key, name text, note text, n integer)")
    world.run(*(f"insert into people values ({n}, 'person {n}', 'kept', 0)" for n in range(600)))
    world.run(f"insert into people values (777, 'person 3', '{MARK} at the end', 0)")
    world.htap.sync_now()
    world.run("delete from people where id > 10")
    backup = world.directory / "mirror.duckdb.backup"
    backup.write_text(f"of somebody else's: {MARK} at the end, and person 3")
    report = world.htap.forget("people", [*range(11, 600), 777])
    # That text alone: what a row that stays has, too, says nothing.
    assert (report.searched, dict(report.after)) == (590, {str(backup): 1})
    assert not report.is_clear
    again = world.htap.forget("people", [777])
    assert "are not known any more" in again.beyond[0]


@pytest.mark.long
def test_a_command_that_could_not_forget_all_ends_as_one_that_failed(
    make_world: MakeWorld,
) -> None:
    world = make_world(mode="temporal")
    world.run("create table people(id integer primary key, name text)")
    world.run(f"insert into people values (1, '{MARK} of one')")
    world.htap.sync_now()
    world.run("delete from people")
    world.htap.sync_now()
    world.crash()
    config, backup = (world.directory / name for name in ("pipeline.yaml", "mirror.duckdb.backup"))
    config.write_text(world.settings.model_dump_json())
    backup.write_text(f"{MARK} of one")
    asked = ("forget", "--table", "people", "--key", "1", "--config", str(config))
    for more, code, told in ((["--dry-run"], 0, "backup holds"), ([], 1, "backup still holds")):
        found = CliRunner().invoke(app, [*asked, *more])
        assert (found.exit_code, told in " ".join(found.output.split())) == (code, True), (
            found.output
        )


@pytest.mark.parametrize("storage", [None, "delta"])
def test_a_published_copy_that_could_not_be_replaced_is_named(
    make_world: MakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str | None
) -> None:
    copy = tmp_path / "world0" / "out.duckdb"
    options: dict[str, Any] = {} if storage else {"published": {"path": copy}}
    world = make_world(storage=storage, mode="temporal", **options)
    live(world)
    world.run("delete from people where id = 77")
    world.htap.sync_now()
    with monkeypatch.context() as patched:
        if storage:
            patched.setattr(delta_tables, "_named_files", disk_full)
        else:
            copy.unlink()
            (copy / "in the way").mkdir(parents=True)
        report = world.htap.forget("people", [77])
        assert not report.is_clear
        assert "publish" in report.kept[0]
    if not storage:
        shutil.rmtree(copy)
    assert world.htap.forget("people", [77]).is_clear
    world.crash()
    assert holding(world) == []


def disk_full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "no space left on device")


def test_what_killed_rewrites_left_is_deleted_and_nothing_of_other_mirrors(
    world: World,
) -> None:
    world.mode = "temporal"
    live(world)
    world.run("delete from people where id = 77")
    left, others = (
        world.directory / f"{name}.{'0' * 32}.rewritten"
        for name in ("mirror.duckdb", "mirror.duckdb.b")
    )
    for folder in (left, others):
        (folder / "mirror.duckdb.tmp").mkdir(parents=True)
        (folder / "mirror.duckdb.tmp" / "spilled").write_text(f"{MARK} was here")
    file = Path(world.settings.mirror.path)
    file.chmod(0o600)
    report = world.htap.forget("people", [77])
    assert (left.exists(), others.exists()) == (False, True)
    assert file.stat().st_mode & 0o777 == 0o600
    assert report.rows == 3 - 1


def test_a_table_set_aside_is_forgotten_by_its_name(
    make_world: MakeWorld,
) -> None:
    world = make_world(mode="temporal")
    live(world)
    world.htap.drop_table("people", keep_as="people_2025")
    # The source still has the row, but no sync follows the table that was set aside.
    report = world.htap.forget("people_2025", [77])
    assert report.rows == 2
    # The present table has it still, and the search says so.
    assert not report.is_clear


def test_the_buffer_of_an_open_pipeline_forgets_what_the_mirror_has(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal", buffered=True)
    live(world)
    world.run("delete from people where id = 77")
    world.htap.sync_now()
    assert search([world.buffer], [MARK.encode()]) != {}
    report = world.htap.forget("people", [77])
    assert any("cdc" in file for file in report.before)
    assert search([world.buffer], [MARK.encode()]) == {}
    assert report.is_clear
    world.run("insert into people values (78, 'person 78', 'x', 1)")
    assert world.htap.sync_now().inserted == 1
    assert world.htap.verify("people").equal


@pytest.mark.long
def test_an_answer_that_nobody_takes_does_not_hold_forgetting_up(make_world: MakeWorld) -> None:
    """What it keeps on the disk is named, and the same call again finishes."""
    world = make_world(mode="temporal")
    live(world)
    world.run("delete from people where id = 77")
    world.htap.sync_now()
    mirror = engine_of(world.htap).mirror
    answer = mirror.stream("select a.* from people a, people b, people c", (), 1000)
    taken = iter(answer.batches)
    next(taken)
    report = world.htap.forget("people", [77])
    assert "a query under way" in report.kept[0]
    assert not report.is_clear
    del taken, answer
    assert len(versions(world)) == 51
    assert world.htap.forget("people", [77]).is_clear
    world.crash()
    assert holding(world) == []


def test_what_cannot_be_forgotten_is_refused_with_the_way_out(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    world = make_world(mode="temporal")
    live(world)
    world.run("delete from people where id = 77")
    with refused("name one with '--key'"):
        world.htap.forget("people", [])
    with refused("drop the whole table with 'rhei drop-table {}'"):
        refuse_unless_forgetting(StubMirror(), engine_of(world.htap).pipeline.table("people"))
    assert world.htap.forget("people", [77]).is_clear
    world.crash()
    unreadable = tmp_path / "unreadable"
    unreadable.symlink_to("/proc/self/mem")  # no user can read its first byte
    with refused("give this user the right to read them, and forget the keys again"):
        search([unreadable], [MARK.encode()])
    unreadable.unlink()
    assert search([world.directory], [MARK.encode()]).keys() <= {
        str(world.directory / name) for name in ("app.db", "app.db-wal")
    }


def test_the_command_counts_and_never_shows_a_value(world: World, tmp_path: Path) -> None:
    world.mode = "temporal"
    live(world)
    world.run("delete from people where id = 77")
    world.crash()
    asked = ("forget", "--table", "people", "--key", "77", "--key", "5")
    with pytest.raises(AssertionError, match="still has a row"):
        rhei(world.settings, tmp_path, *asked)
    planned = rhei(world.settings, tmp_path, *asked[:5], "--dry-run")
    assert "holds" in planned
    done = rhei(world.settings, tmp_path, *asked[:5], "--json")
    assert json.loads(done)["after"] == {}
    assert MARK not in planned + done
    assert holding(world) == []
