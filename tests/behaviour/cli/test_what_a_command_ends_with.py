"""How a command ends where the sync was done and something is wrong beside, and what it left."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
from typer.testing import CliRunner, Result

from rhei_pipeline import Settings
from rhei_pipeline.cli.main import app
from rhei_pipeline.htap import HTAP
from rhei_pipeline.model.reports import CopyStatus
from tests.support.fix_world import World


def commands(settings: Settings, directory: Path) -> Callable[..., Result]:
    """Return what runs commands on a declaration."""
    config = directory / "pipeline.yaml"
    config.write_text(settings.model_dump_json())

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, [*words, "--config", str(config)], prog_name="rhei")

    return run


def test_a_table_left_out_is_named_and_no_state_of_it_is_shown(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    world = make_world()
    world.run("create table t(id integer primary key)", "create table u(id integer primary key)")
    world.htap.sync_now()
    world.crash()
    world.run("drop table t", "create table t(id integer)")
    world.tables = [{"name": "t"}, {"name": "u"}]
    rhei = commands(world.settings, tmp_path)
    assert rhei("sync").exit_code == 3
    status = rhei("status")
    assert status.exit_code == 3
    (row,) = [line for line in status.stdout.splitlines() if line[1:].split()[0] == "t"]
    assert "left out" in row
    assert "ready" not in row
    assert "not known" in row
    assert rhei("sync", "--table", "v").exit_code == 1
    assert rhei("sync", "--dry-run").exit_code == 3
    world.run("drop table t")
    world.tables = [{"name": "u"}]
    rhei = commands(world.settings, tmp_path)
    assert rhei("sync").exit_code == rhei("status").exit_code == 0


def test_what_was_not_published_fails_a_sync(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    """The mirror is as it should be, and whoever reads its copy has an older one."""
    copy = tmp_path / "copy.duckdb"
    world = make_world(published={"path": str(copy), "interval_seconds": 0})
    world.run("create table t(id integer primary key)")
    rhei = commands(world.settings, tmp_path)
    assert rhei("sync").exit_code == rhei("status").exit_code == 0
    copy.unlink()
    copy.mkdir()
    world.run("insert into t values (1)")
    assert rhei("sync").exit_code == 3


def test_a_status_ends_as_the_state_is_that_it_shows(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process that holds the mirror says it, whose background sync has had trouble."""
    rhei = commands(world.settings, tmp_path)
    assert rhei("sync").exit_code == 0
    real = HTAP.sync_status
    for trouble, code in (
        ({}, 0),
        ({"not_published": "the disk is full"}, 3),
        ({"unreadable": "the source is away"}, 1),
        ({"tables": {}, "last_error": "there is nothing to mirror"}, 1),
        ({"tables": {}, "last_error": "none yet", "copying": {"t": CopyStatus(1, 2)}}, 0),
    ):
        told = dict[str, Any](trouble)
        monkeypatch.setattr(
            HTAP, "sync_status", lambda *asked, told=told: replace(real(*asked), **told)
        )
        assert rhei("status").exit_code == code, trouble


def test_letters_of_one_table_are_forgotten_alone(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    world = make_world()
    for table in ("a", "b"):
        world.run(f"create table {table}(id integer primary key, n integer)")
        world.run(f"insert into {table} values (1, 'no number')")
    rhei = commands(world.settings, tmp_path)
    assert rhei("sync").exit_code == 0
    assert rhei("dead-letters", "--table", "a", "--drop").exit_code == 0
    left = json.loads(rhei("dead-letters", "--json").stdout)
    assert [letter["table_name"] for letter in left] == ["b"]


def test_a_repair_keeps_to_the_keys_that_are_asked_for(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    world = make_world()
    world.run("create table t(id integer primary key)", "insert into t values (1), (2), (3), (4)")
    rhei = commands(world.settings, tmp_path)
    assert rhei("sync").exit_code == 0

    world.crash()
    with duckdb.connect(str(world.settings.mirror.path)) as mirror:
        mirror.execute("delete from t")
    sampled = json.loads(rhei("verify", "--sample", "1", "--json").stdout)
    assert sampled["tables"]["t"]["missing"] == 4
    for more, expected in ((["--dry-run"], []), ([], [2, 3])):
        done = rhei("repair", "t", "--from", "2", "--to", "3", *more, "--json")
        assert json.loads(done.stdout)["inserted"] == 2
        with duckdb.connect(str(world.settings.mirror.path)) as mirror:
            found = mirror.execute("select id from t order by id").fetchall()
        assert [key for (key,) in found] == expected
