"""The commands with which processes share a copy."""

import json
from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from rhei_pipeline import RangeReport, copy_range
from rhei_pipeline.cli.main import app
from rhei_pipeline.protocols import Step
from rhei_pipeline.sync import copy_ranges as sharing
from tests.support.fix_world import World

ROWS = 100


@pytest.fixture
def shared(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> World:
    """A copy in four ranges that was planned, and whose process is gone."""
    monkeypatch.setattr(sharing, "PATIENCE_SECONDS", 0.05)
    world = make_world(storage="parquet", batch_rows=5, tables=[{"name": "t", "copy_ranges": 4}])
    world.run(
        "create table t(id integer primary key, v text)", "create table u(id int primary key)"
    )
    world.app.executemany("insert into t values (?, 'v')", [(n,) for n in range(ROWS)])
    world.faults.arm(Step.RANGES_PLANNED)
    assert world.surviving(world.htap.sync_now)
    return world


def rhei(world: World, *arguments: str) -> Result:
    config = world.directory / "pipeline.yaml"
    mirror = f"{{kind: datafusion, storage: parquet, path: {world.directory}/parquet}}"
    config.write_text(
        f"source: {{path: {world.path}}}\nregistry: {{path: {world.directory}/registry.json}}\n"
        f"mirror: {mirror}\nsync: {{batch_rows: 5}}\n"
        "tables: [{name: t, copy_ranges: 4}]\n"
    )
    return CliRunner().invoke(app, [*arguments, "--config", str(config)], prog_name="rhei")


def test_ranges_are_copied_by_the_command_and_the_status_names_what_is_missing(
    shared: World,
) -> None:
    found = json.loads(rhei(shared, "copy", "--table", "t", "--range", "3", "--json").stdout)
    assert (found["ranges"], found["rows"], found["missing"]) == ([3], 25, [1, 2, 4])
    told = rhei(shared, "status")
    assert "of 4 ranges these are missing: 1, 2, 4" in told.output.replace("\n", " ")
    assert "'rhei copy --table t' copies them" in told.output.replace("\n", " ")
    status = json.loads(rhei(shared, "status", "--json").stdout)
    assert status["copying"]["t"] == {"rows": 25, "of": ROWS, "ranges": 4, "missing": [1, 2, 4]}
    assert "25" in rhei(shared, "copy", "--table", "t", "--range", "4").output
    told = rhei(shared, "copy", "--table", "t", "--json")
    assert told.exit_code == 0, told.exception
    done = json.loads(told.stdout)
    assert done["tables"][0]["rows"] == ROWS
    shared.assert_equal("t")
    shared.crash()
    assert json.loads(rhei(shared, "status", "--json").stdout)["copying"] == {}


def test_any_range_is_taken_that_nobody_works_on(shared: World) -> None:
    found = json.loads(rhei(shared, "copy", "--table", "t", "--range", "any", "--json").stdout)
    assert (found["rows"], found["missing"]) == (ROWS, [])
    status = rhei(shared, "status").output.replace("\n", " ")
    assert "'rhei copy --table t' puts its ranges in place" in status
    assert rhei(shared, "copy", "--table", "t").exit_code == 0
    assert "puts its ranges in place" not in rhei(shared, "status").output.replace("\n", " ")
    shared.assert_equal("t")
    told = rhei(shared, "copy", "--table", "t", "--range", "2", "--json")
    again = json.loads(told.stdout)
    assert (again["of"], again["rows"]) == (0, 0)
    assert "its copy is in place, and nothing is left to copy" in told.stderr


def test_what_no_range_is_says_the_way_out(shared: World) -> None:
    for arguments in (["--range", "3"], ["--table", "t", "--range", "third"]):
        told = rhei(shared, "copy", *arguments)
        assert told.exit_code == 2
        assert "give '--table', and a range such as" in " ".join(told.output.split())
    told = rhei(shared, "copy", "--table", "t", "--range", "5")
    assert told.exit_code == 1
    assert "give a range from 1 to 4" in str(told.exception)
    told = rhei(shared, "copy", "--table", "u", "--range", "1")
    assert "no copy of it in ranges is under way" in str(told.exception)
    assert rhei(shared, "copy", "--table", "t", "--range", "3").exit_code == 0


def test_the_library_copies_a_range(shared: World) -> None:
    report = copy_range(shared.settings, "t", 1)
    assert isinstance(report, RangeReport)
    assert repr(report).startswith("RangeReport('t', 25 rows of 1 of 4 ranges, missing: 2, 3, 4, ")
    shared.tables = [{"name": "t", "copy_ranges": 9}]
    assert copy_range(shared.settings, "t", 9).rows == 0, "there are no keys for it"
