"""Files and directories that are not what a command or a declaration needs, and the ways out."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rhei_pipeline.buffer import writer as buffer_writer
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import MirrorError
from tests.support.fix_world import World


@pytest.fixture
def place(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with a text, an empty directory and an application's database."""
    world.crash()
    folder = tmp_path / "place"
    (folder / "directory").mkdir(parents=True)
    (folder / "text").write_text("some text")
    monkeypatch.chdir(folder)
    return folder


def rhei(*asked: str) -> Result:
    return CliRunner().invoke(app, asked, prog_name="rhei", terminal_width=300)


def declare(world: World, **places: str) -> str:
    """Declare a pipeline; return the option that names the declaration."""
    named = {"mirror": "m.duckdb", "registry": "r.json", "buffer": None, **places}
    buffer = f"{{kind: rocksdb, path: {named['buffer']}}}" if named["buffer"] else "null"
    Path("p.yaml").write_text(
        f"source: {{path: {named.get('source', world.settings.sqlite_path)}}}\n"
        f"mirror: {{path: {named['mirror']}}}\nregistry: {{path: {named['registry']}}}\n"
        f"capture: {{buffer: {buffer}}}\n",
        "utf-8",
    )
    return "--config=p.yaml"


@pytest.mark.usefixtures("place")
def test_a_check_names_what_a_sync_could_not_write(world: World) -> None:
    for field, severity, code in (
        ("mirror", "error", 1),
        ("buffer", "error", 1),
        ("registry", "warning", 0),
    ):
        for wrong in ("text/in/it", "text" if field == "buffer" else "text/it"):
            found = rhei("check", "--json", declare(world, **{field: wrong}))
            told = [f for f in json.loads(found.stdout)["findings"] if field in f["what"]]
            assert [each["severity"] for each in told] == [severity]
            assert f"{field}.path" in told[0]["remedy"]
            assert found.exit_code == code
    assert rhei("check", declare(world)).exit_code == 0
    assert not Path("m.duckdb").exists()
    assert rhei("sync", declare(world)).exit_code == 0
    # What only makes each process learn again hides nothing that no sync can begin with.
    with closing(sqlite3.connect("other.db")) as other:
        other.execute("create table orders(id integer primary key)")
    found = rhei("check", "--json", declare(world, source="other.db", registry="text/it"))
    told = json.loads(found.stdout)["findings"]
    assert found.exit_code == 1
    assert {"registry", "mirror"} <= {each["what"].split()[0] for each in told}


#: Files of ours by a pattern, and what they hold instead; None: they are directories.
UNREADABLE = {
    "b/CURRENT": b"x" * 100,
    "b/LOCK": None,
    "b/MANIFEST-*": b"",
    "b.confirmed.json": None,
    "c.duckdb": b"x" * 100,
    "m.duckdb.last": None,
    "m.duckdb.lock": b"x" * 100,
    "m.duckdb.lock.turn": b"x" * 100,
    "r.json": b"x" * 100,
}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("file", UNREADABLE)
def test_a_check_names_a_file_that_a_sync_could_not_open(world: World, file: str) -> None:
    """It is made unreadable, and mended as the check says."""
    option, damage = declare(world, buffer="b"), UNREADABLE[file]
    declared = Path("p.yaml").read_text("utf-8")
    published = "mirror: {path: m.duckdb, published: {path: c.duckdb, interval_seconds: 0}}"
    Path("p.yaml").write_text(declared.replace("mirror: {path: m.duckdb}", published), "utf-8")
    assert rhei("sync", option).exit_code == 0
    before = contents()
    assert rhei("check", option).exit_code == 0
    assert contents() == before
    (path,) = Path().glob(file)
    kept = path.read_bytes()
    path.unlink()
    path.mkdir() if damage is None else path.write_bytes(damage)
    (told,) = errors(rhei("check", "--json", option))
    assert path.name in told["what"] or path.parent.name in told["what"], told
    assert told["remedy"]
    world.run("insert into orders(id) select 1 + max(id) from orders")
    assert rhei("sync", option).exit_code == (3 if file == "c.duckdb" else 1)
    path.rmdir() if damage is None else path.unlink()
    if file.startswith("b/"):
        path.write_bytes(kept)
    assert rhei("check", option).exit_code == 0
    assert rhei("sync", option).exit_code == 0


@pytest.mark.usefixtures("place")
def test_a_check_names_a_disk_that_is_too_full_for_the_buffer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    option = declare(world, buffer="b")
    assert rhei("sync", option).exit_code == 0
    with monkeypatch.context() as full:
        full.setattr(buffer_writer, "RESERVE_BYTES", 2**60)
        (told,) = errors(rhei("check", "--json", option))
        assert "bytes left, and" in told["what"]
        assert told["remedy"] == "free space, or let the mirror catch up"
        world.run("insert into orders(id) select 1 + max(id) from orders")
        assert rhei("sync", option).exit_code == 1
    assert rhei("check", option).exit_code == 0
    assert rhei("sync", option).exit_code == 0


def contents() -> dict[str, bytes]:
    """Return what the buffer holds: a check changes none of it."""
    return {str(file): file.read_bytes() for file in Path("b").iterdir()}


def errors(done: Result) -> list[dict[str, str]]:
    """Return what a check has found that is an error, or why it failed."""
    assert done.exit_code == 1, done.output
    told = json.loads(done.stdout)
    if "error" in told:
        return [{"what": told["error"]["message"], "remedy": told["error"]["hint"]}]
    return [each for each in told["findings"] if each["severity"] == "error"]


@pytest.mark.usefixtures("place")
def test_a_check_says_where_there_is_nothing_to_mirror(world: World) -> None:
    Path("empty.db").write_text("")
    for command in ("check", "sync"):
        found = rhei(command, declare(world, source="empty.db"))
        assert found.exit_code == 1
        assert "the source has no table with a primary key" in f"{found.output}{found.exception}"


@pytest.mark.usefixtures("place")
def test_a_directory_is_no_source(world: World) -> None:
    for command in ("check", "sync", "status"):
        assert "is no file" in str(rhei(command, declare(world, source="directory")).exception)
    assert rhei("sync", declare(world)).exit_code == 0


@pytest.mark.usefixtures("place")
def test_a_field_that_is_given_twice_is_written_once(world: World) -> None:
    file, option = Path("p.yaml"), declare(world)
    right = file.read_text("utf-8")
    for wrong in (
        f"{right}registry: {{path: other.json}}\n",
        right.replace("r.json", "7"),
        right.replace("r.json", "x" * 300),
    ):
        file.write_text(wrong, "utf-8")
        assert type(rhei("sync", option).exception).__name__ == "SettingsError"
    file.write_text(right, "utf-8")
    assert rhei("sync", option).exit_code == 0


@pytest.mark.usefixtures("place")
def test_a_place_that_a_command_cannot_use_is_named(world: World) -> None:
    source, option = str(world.settings.sqlite_path), declare(world)
    unusable = ("text/it", "/proc/no/such", "x" * 300)
    for wrong in unusable:
        assert "cannot be used" in refused("init", source, "--output", wrong)
        assert "cannot be used" in refused("demo", "--directory", wrong)
    assert "cannot be used" in refused("init", source, "--output", "directory", "--force")
    assert "cannot be used" in refused("demo", "--directory", "text")
    assert "cannot be used" in refused("query", "select 1", "--output", f"{'x' * 300}.csv", option)
    for wrong in ("directory", "no_such_file", "x" * 300):
        assert "is no file" in refused("init", wrong, "--output", "other.yaml")
    assert rhei("init", source, "--output", "other.yaml").exit_code == 0
    assert rhei("query", "select 1", "--output", "one.csv", option).exit_code == 0


def refused(*asked: str) -> str:
    """Return what is said of wrong usage, without the frame around it."""
    found = rhei(*asked)
    assert found.exit_code == 2, (asked, found.output, found.exception)
    return " ".join(found.output.replace("│", " ").split())


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("command", ["sync", "status", "verify", "maintain", "schema log"])
def test_a_mirror_that_cannot_be_opened_is_named_once(
    world: World, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    declared = declare(world, mirror="text")
    done = rhei(*command.split(), declared)
    assert isinstance(done.exception, MirrorError)
    assert (done.exit_code, caplog.text) == (1, "")  # the error itself is printed by `main`
    asked = rhei("query", "select 1", declared)
    assert (asked.exit_code, caplog.text.count("and the source answers")) == (0, 1)
