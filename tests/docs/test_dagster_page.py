"""The Dagster page: its Python loads, its YAML is accepted, what it names is there."""

import os
import re
import sqlite3
from contextlib import closing
from importlib.metadata import entry_points
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._config import validate_config
from dagster._core.instance.config import dagster_instance_config_schema

import rhei_pipeline.dagster
from rhei_pipeline import Settings
from rhei_pipeline.dagster import build_definitions

PROJECT = Path(__file__).parents[2]
PAGE = "".join((PROJECT / "docs" / name).read_text() for name in ("dagster.md", "how-to/dbt.md"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_of_the_page_loads(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "pipeline.yaml").write_text(
        "source: {path: app.db}\nmirror: {path: mirror.duckdb}\ntables: [{name: orders}]\n"
    )
    made: dict[str, object] = {}
    exec(compile(code, "docs/dagster.md", "exec"), made)  # noqa: S102  (the page is ours)
    definitions = made.get("defs")
    if definitions is not None:
        assert isinstance(definitions, dg.Definitions)
        dg.Definitions.validate_loadable(definitions)
        keys = {
            key.to_user_string() for key in definitions.resolve_asset_graph().get_all_asset_keys()
        }
        assert any(key.endswith("mirror/orders") for key in keys)


def test_the_yaml_of_the_page_is_accepted() -> None:
    _once, component, mirror, *_ = map(yaml.safe_load, blocks("yaml"))
    assert component["type"] == "rhei_pipeline.dagster.RheiComponent"
    assert rhei_pipeline.dagster.RheiComponent(**component["attributes"])
    assert Settings(source={"path": "app.db"}, **mirror).mirror.published is not None


@pytest.mark.long
def test_a_session_by_hand_ends_once_everything_is_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhei_pipeline.dagster.mirrors.LOOK_SECONDS", 0.05)
    with closing(sqlite3.connect(tmp_path / "app.db")) as app:
        app.executescript(
            "create table orders(id integer primary key);insert into orders values(1)"
        )
    settings = Settings(
        name="shop",
        source={"path": tmp_path / "app.db"},
        mirror={"path": tmp_path / "mirror.duckdb"},
        registry={"path": tmp_path / "registry.json"},
        schedule={"session_seconds": 20},  # ends one that does not end by itself
    )
    job = build_definitions(settings).resolve_job_def("shop_sync")
    with dg.instance_for_test() as instance:
        given = yaml.safe_load(blocks("yaml")[0])
        result = job.execute_in_process(instance=instance, run_config=given)
        logged = [entry.message for entry in instance.all_logs(result.run_id)]
    assert "the session ends: nothing has changed for a while" in logged
    with rhei_pipeline.open(settings) as htap:
        assert htap.query("select id from orders", hint="olap").num_rows == 1


def test_each_sensor_job_and_schedule_that_a_page_names_is_there(tmp_path: Path) -> None:
    settings = Settings(
        name="shop",
        source={"path": tmp_path / "app.db"},
        capture={"buffer": {"path": tmp_path / "cdc"}},
        mirror={"kind": "datafusion", "storage": "parquet", "path": tmp_path / "mirror"},
        registry={"path": tmp_path / "registry.json"},
        tables=[{"name": "orders", "mode": "temporal", "copy_ranges": 4}],
    )
    found = build_definitions(settings)
    made = {
        "sensor": [one.name for one in found.sensors or ()],
        "schedule": [one.name for one in found.schedules or ()],
        "job": [one.name for one in found.jobs or ()],
    }
    text = "".join(page.read_text() for page in (PROJECT / "docs").rglob("*.md"))
    named = set(re.findall(r"\b(sensor|schedule|job) `(\w+)`", text))
    assert {("sensor", "pending_changes"), ("job", "sync")} <= named
    for kind, name in named:
        assert name in made[kind] or f"shop_{name}" in made[kind], (kind, name)


def test_the_files_of_a_deployment_fit_together() -> None:
    deploy = PROJECT / "deploy"
    for name in re.findall(r"`(deploy/[\w./]+)`", PAGE):
        assert (PROJECT / name).exists()
    services = yaml.safe_load((deploy / "compose.yaml").read_text())["services"]
    assert services.keys() == {"storage", "code", "webserver", "daemon"}
    given = services["code"]["environment"].keys()
    workspace = yaml.safe_load((deploy / "workspace.yaml").read_text())
    server = workspace["load_from"][0]["grpc_server"]
    assert server["host"]["env"] in given
    assert f"-p {server['port']} " in services["code"]["command"]
    programs = {found.name for found in entry_points(group="console_scripts")}
    for service in ("code", "webserver", "daemon"):
        assert services[service]["command"].split()[0] in programs
    instance = yaml.safe_load((deploy / "dagster.yaml").read_text())
    assert instance["storage"]["postgres"]["postgres_url"]["env"] in given
    copied = re.findall(r"^COPY (.*) \S+$", (deploy / "Dockerfile").read_text(), flags=re.MULTILINE)
    for name in " ".join(copied).split():
        assert (PROJECT / name).exists()
    beside = re.search(r'"\.\[.*?\]" \\\n *(.*)', (deploy / "Dockerfile").read_text())
    assert beside is not None
    for package in beside[1].replace('"', "").split():
        assert package in PAGE  # a machine without the image needs it as well
    units = sorted(path.stem for path in (deploy / "systemd").glob("*.service"))
    assert units == ["rhei-code", "rhei-daemon", "rhei-webserver"]


def test_a_container_has_what_its_declaration_names(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = yaml.safe_load((PROJECT / "deploy" / "compose.yaml").read_text())
    code = composed["services"]["code"]
    for name, value in code["environment"].items():
        if value is not None:  # else it is set where the machine has set it
            monkeypatch.setenv(name, re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value))
    declared = Path(os.environ["RHEI_CONFIG"])
    settings = Settings.load(PROJECT / declared.relative_to("/app"))
    volumes = [Path(volume.rsplit(":", 1)[1]) for volume in code["volumes"]]
    for path in (settings.mirror.path, settings.registry.path, settings.sqlite_path):
        assert any(path.is_relative_to(volume) for volume in volumes), path
    kept = {volume.split(":")[0] for volume in code["volumes"]}
    assert "mirror" in kept & composed["volumes"].keys()
    image = (PROJECT / "deploy" / "Dockerfile").read_text()
    assert f"chown -R rhei {settings.mirror.path.parent} " in image


@pytest.mark.parametrize("file", ["dagster.yaml", "deploy/dagster.yaml"])
def test_the_settings_of_an_instance_are_known_to_dagster(file: str) -> None:
    found = yaml.safe_load((PROJECT / file).read_text())
    found.pop("storage", None)  # its module is installed where it is used
    schema = dagster_instance_config_schema()
    assert validate_config(schema, found).success
