"""A program that asks for JSON gets JSON, also of a command that fails."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from rhei_pipeline.cli.failures import failures_told
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import MirrorBusyError
from tests.support.fix_world import World

#: What each command needs that has '--json', besides that option.
ASKED = {
    "adopt": [],
    "as-of": ["orders", "2026-11-01"],
    "bridge": [],
    "changes": ["--table", "orders"],
    "check": [],
    "copy": ["--table", "orders"],
    "dead-letters": [],
    "demo": ["--directory", "."],  # which is not empty
    "diff": ["--table", "orders", "--from", "2026-11-01"],
    "drop-table": ["orders"],
    "execute": ["delete from orders"],
    "forget": ["--table", "orders", "--key", "1"],
    "info": [],
    "maintain": [],
    "query": ["select 1"],
    "repair": ["orders"],
    "schema": ["log"],
    "status": [],
    "sync": [],
    "verify": [],
}
FIELDS = {"type", "message", "table", "hint", "transient"}


def told(*asked: str, code: int = 1) -> list[dict[str, Any]]:
    """Return the errors that a failing command writes to standard output, and nothing else."""
    found = CliRunner().invoke(app, asked, prog_name="rhei")
    ended = found.exit_code if isinstance(found.exception, SystemExit) else 1
    assert ended == code, (asked, found.output, found.exception)
    errors = [json.loads(line)["error"] for line in found.stdout.splitlines()]
    assert all(error.keys() == FIELDS for error in errors)
    return errors


def test_every_command_tells_a_program_why_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: Any = typer.main.get_command(app)
    has_json = {
        name
        for name, command in commands.commands.items()
        if any("--json" in option.opts for option in command.params)
    }
    assert has_json == set(ASKED)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "not_empty").mkdir()
    for name, asked in ASKED.items():
        (error,) = told(name, *asked, "--json")
        assert error["type"] == "SettingsError", name
        assert error["hint"], name
        (error,) = told(name, *asked, "--json", "--no-such-option", code=2)
        assert (error["type"], error["table"]) == ("UsageError", None)
        assert told(name, *asked, "--no-such-option", code=2) == []
        (error,) = told(name, *asked, "one", "more", "--json", code=2)
        has_table = any("--table" in option.opts for option in commands.commands[name].params)
        assert ("by '--table NAME'" in error["message"]) is has_table, name


@pytest.fixture
def declared(world: World, tmp_path: Path) -> Path:
    settings = world.settings
    config = tmp_path / "pipeline.yaml"
    config.write_text(
        f"source: {{kind: sqlite, path: {settings.sqlite_path}}}\n"
        f"mirror: {{kind: duckdb, path: {settings.mirror.path}}}\n"
        f"registry: {{path: {settings.registry.path}}}\n"
        "tables: [{name: orders, mode: temporal}]\n",
        "utf-8",
    )
    return config


def test_what_a_program_is_told_is_what_a_person_reads(declared: Path) -> None:
    (error,) = told("repair", "odrers", "--json", "--config", str(declared))
    assert (error["type"], error["transient"]) == ("SchemaError", False)
    assert "'orders'" in error["hint"]
    for asked in (["--json"], ["--format", "json"]):
        (error,) = told("query", "select nothing", *asked, "--config", str(declared))
        assert error["type"] == "QueryError"
    (error,) = told("verify", "--sample", "all", "--json", "--config", str(declared), code=2)
    assert "1% or 0.01" in error["message"]


def test_a_program_learns_whether_to_try_again(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MirrorBusyError), failures_told(as_json=True):
        raise MirrorBusyError("it is held", table="orders", hint="wait")
    assert json.loads(capsys.readouterr().out) == {
        "error": {
            "type": "MirrorBusyError",
            "message": "it is held",
            "table": "orders",
            "hint": "wait",
            "transient": True,
        }
    }


def test_a_shard_that_fails_has_a_document_of_its_own(declared: Path, world: World) -> None:
    text = declared.read_text("utf-8").replace("tables: [{name: orders, mode: temporal}]\n", "")
    declared.write_text(f"{text}shards: 2\n", "utf-8")
    world.settings.sqlite_path.unlink()
    errors = told("sync", "--json", "--config", str(declared))
    assert len(errors) == 2
    (error,) = told("drop-table", "orders", "--json", "--config", str(declared))
    assert "'--shard 1'" in error["hint"]
