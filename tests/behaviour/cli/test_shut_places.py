"""Places that the system does not let this user use: named by every command, and never a crash."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import RheiError
from tests.support.fix_users import ordinary_user

PLACES = ("source", "mirror", "files", "registry", "buffer")
COMMANDS = ("check", "sync", "sync --dry-run", "status", "info", "schema log", "query 'select 1'")
#: What is answered all the same: by the source, where only the mirror is shut, or by the mirror.
ANSWERED = {
    *(("mirror", "query 'select 1'"), ("files", "query 'select 1'")),
    *(("source", "schema log"), ("buffer", "schema log")),
}


def rhei(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="rhei")


def declare(folder: Path, shut: str) -> str:
    """Declare a pipeline one of whose places is below the folder `shut`; return the option."""
    at = {place: folder / ("shut" if place == shut else "open") / place for place in PLACES}
    kind = {"kind": "datafusion", "storage": "parquet", "path": str(at["files"])}
    declared = {
        "source": {"path": str(at["source"])},
        "mirror": kind if shut == "files" else {"path": str(at["mirror"])},
        "registry": {"path": str(at["registry"])},
        "capture": {"buffer": {"kind": "rocksdb", "path": str(at["buffer"])}},
    }
    if shut != "buffer":
        del declared["capture"]
    (folder / "p.yaml").write_text(json.dumps(declared))
    at["source"].parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(at["source"])) as app_connection:
        app_connection.execute("create table if not exists orders(id integer primary key)")
    return f"--config={folder / 'p.yaml'}"


@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_is_shut_is_named_and_opened(shared_place: Path, place: str) -> None:
    for name in ("open", "shut"):
        (shared_place / name).mkdir()
    declared = declare(shared_place, place)
    # What a command imports is not this user's to read, and there from the first run on.
    assert rhei("sync", declared).exit_code == 0
    for command in COMMANDS:
        rhei(*_parts(command), declared)
    with ordinary_user(shared_place):
        shut = shared_place / "shut"
        shut.chmod(0o000)
        for command in COMMANDS:
            done = rhei(*_parts(command), declared)
            assert_named(done, str(shut / place), is_answered=(place, command) in ANSWERED)
        told = json.loads(rhei("sync", "--json", declared).stdout)["error"]
        assert str(shut / place) in told["message"]
        assert told["hint"]
        shut.chmod(0o700)
        for command in COMMANDS:
            assert rhei(*_parts(command), declared).exit_code == 0, command


def assert_named(done: Result, place: str, *, is_answered: bool) -> None:
    """The command says which place it may not use and what to do, or needs it not."""
    if is_answered:
        assert done.exit_code == 0, (done.output, done.exception)
        return
    told = f"{done.output} {done.exception}"
    assert done.exit_code == 1, told
    assert isinstance(done.exception, RheiError | SystemExit), repr(done.exception)
    for said in (place, "give this user"):
        assert said in " ".join(told.split()), told
    assert not {"delete it", "Errno"} & {said for said in ("delete it", "Errno") if said in told}


def _parts(command: str) -> list[str]:
    name, _, sql = command.partition(" '")
    return [*name.split(), *([sql.rstrip("'")] if sql else [])]
