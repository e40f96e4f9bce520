"""A report without rows says in words that there is nothing, instead of an empty table."""

from pathlib import Path

from typer.testing import CliRunner

from rhei_pipeline.cli.main import app
from tests.support.fix_world import World


def test_a_log_of_no_schema_changes_says_so(world: World, tmp_path: Path) -> None:
    config = tmp_path / "pipeline.yaml"
    config.write_text(
        f"source: {{path: {world.path}}}\nmirror: {{path: {tmp_path / 'm.duckdb'}}}\n"
        f"registry: {{path: {tmp_path / 'r.json'}}}\n"
    )
    found = CliRunner().invoke(app, ["schema", "log", "--config", str(config)])
    assert found.exit_code == 0
    assert found.stdout.strip() == "no schema changes"
