"""The factories in projects of others: loaded, merged, translated, overridden, in YAML."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import warnings
from importlib.metadata import entry_points
from itertools import product
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster.components.testing import create_defs_folder_sandbox

import rhei_pipeline as rhei
from rhei_pipeline import Settings
from rhei_pipeline.dagster import (
    CdcResource,
    Declaration,
    Names,
    OlapResource,
    OltpResource,
    RheiAsset,
    RheiComponent,
    RheiTranslator,
    Stage,
    build_definitions,
    pipeline_resources,
)

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

MIRRORS = [
    {"kind": "duckdb"},
    *({"kind": "datafusion", "storage": storage} for storage in ("memory", "ipc", "parquet")),
    {"kind": "datafusion", "storage": "delta"},
]


def shop(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    with sqlite3.connect(directory / "app.db") as connection:
        connection.execute("create table orders(id integer primary key, status text)")
        connection.execute("insert into orders values (1, 'new')")
    connection.close()
    return directory / "app.db"


def declared(directory: Path, **fields: Any) -> Settings:
    given = {
        "source": {"path": directory / "app.db"},
        "mirror": {"path": directory / "mirror"},
        "registry": {"path": directory / "registry.json"},
        "tables": [{"name": "orders", "mode": "temporal"}],
        "schedule": {"idle_seconds": 0.2, "catalog_seconds": 20},
    }
    return Settings(**{**given, **fields})


def keys(definitions: dg.Definitions) -> set[str]:
    graph = definitions.resolve_asset_graph()
    return {key.to_user_string() for key in graph.get_all_asset_keys()}


def loads(settings: Settings) -> None:
    """Everything of one table is there, and nothing warns: a beta function would."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", dg.BetaWarning)
        definitions = build_definitions(settings)
        dg.Definitions.validate_loadable(definitions)
    temporal = settings.mode is rhei.Mode.TEMPORAL
    stages = {"oltp", "initial_sync", "mirror"} | ({"snapshot"} if temporal else set())
    assert keys(definitions) == {f"{stage}/orders" for stage in stages} | {"cdc/changes"}


def test_every_sqlite_source_loads_with_every_mirror(tmp_path: Path) -> None:
    shop(tmp_path)
    for method, mirror, mode in product(("trigger", "polling"), MIRRORS, rhei.Mode):
        fields = {"mirror": {**mirror, "path": str(tmp_path / "mirror")}, "mode": mode}
        loads(declared(tmp_path, capture={"method": method}, tables=None, **fields))


def test_tables_whose_keys_dagster_joins_to_one_are_told_apart(dsn: str, tmp_path: Path) -> None:
    names = ["a__b", "a.b", "a.c"]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create schema a")
        for name in names:
            connection.execute(f"create table {name}(id int primary key)")
    declaration = Declaration.of(
        Settings(
            source={"kind": "postgres", "dsn": dsn},
            mirror={"path": tmp_path / "m.duckdb"},
            mode="temporal",
            schedule={"catalog_seconds": 60},
        )
    )
    definitions = build_definitions(declaration.settings)
    dg.Definitions.validate_loadable(definitions)
    keys = {table.name: declaration.key(Stage.MIRROR, table).path for table in declaration.tables}
    assert keys["a.b"] == ["mirror", "a", "b"]
    assert keys["a.c"] == ["mirror", "a", "c"]
    assert keys["a__b"][1].startswith("a__b_")


def test_every_postgres_source_loads_with_every_mirror(dsn: str, tmp_path: Path) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table orders(id int primary key, status text)")
    source = {"kind": "postgres", "dsn": dsn}
    for method, mirror in product(("logical", "trigger", "polling"), (MIRRORS[0], MIRRORS[-1])):
        fields = {"mirror": {**mirror, "path": tmp_path / "mirror"}, "source": source}
        loads(
            declared(tmp_path, capture={"method": method}, mode="temporal", tables=None, **fields)
        )


@pytest.mark.parametrize("was_synced", [False, True], ids=["at first", "later"])
@pytest.mark.parametrize("trouble", ["dropped", "moved"])
def test_definitions_load_without_the_table_or_the_source(
    tmp_path: Path, trouble: str, *, was_synced: bool
) -> None:
    file, settings = shop(tmp_path), declared(tmp_path)
    if was_synced:
        with rhei.open(settings) as htap:
            htap.sync_now()
    if trouble == "dropped":
        with sqlite3.connect(file) as connection:
            connection.execute("drop table orders")
        connection.close()
    else:
        file.rename(file.with_suffix(".away"))
    definitions = build_definitions(settings)
    assert keys(definitions) >= {"oltp/orders", "initial_sync/orders", "mirror/orders"}
    metadata = definitions.metadata or {}
    (said,) = (str(value.value) for value in metadata.values())
    assert "orders" in said if trouble == "dropped" else "app.db" in said
    spec = definitions.resolve_asset_graph().get(dg.AssetKey(["mirror", "orders"]))
    columns = [column.name for column in spec.metadata["dagster/column_schema"].columns]
    assert columns[:2] == (["id", "status"] if was_synced else columns[:2])
    assert definitions.get_repository_def().sensor_defs


def test_definitions_load_while_a_server_is_down_or_hangs(tmp_path: Path) -> None:
    """A server that accepts and never answers takes no more than the declared time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        dsn = f"postgresql://app:secret@127.0.0.1:{port}/shop"
        settings = declared(
            tmp_path,
            source={"kind": "postgres", "dsn": dsn},
            tables=[{"name": "public.orders", "mode": "temporal"}, {"name": "sales.items"}],
            schedule={"catalog_seconds": 0.3},
        )
        found = build_definitions(settings)
    assert {"mirror/orders", "mirror/sales/items", "snapshot/orders"} <= keys(found)
    assert "secret" not in str(found.metadata)
    down = build_definitions(settings)
    assert keys(down) == keys(found)
    assert list(down.metadata or {}) == ["source"]


def test_what_is_wrong_is_said_of_each_pipeline_of_a_code_location(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Both may have a table of one name, and lack it."""
    settings = []
    for name in ("shop", "bills"):
        home = tmp_path / name
        home.mkdir()
        shop(home)
        tables = [{"name": "orders"}, {"name": "gone"}]
        settings.append(declared(home, name=name, tables=tables))
    (tmp_path / "bills" / "app.db").unlink()
    found = dg.Definitions.merge(*map(build_definitions, settings))
    assert {*(found.metadata or {})} == {"shop: left out: gone", "bills: source"}
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [line.split(": ")[0] for line in told] == ["pipeline 'shop'", "pipeline 'bills'"]


class Ours(RheiTranslator):
    """A team's own names."""

    def get_asset_spec(self, asset: RheiAsset) -> dg.AssetSpec:
        spec = super().get_asset_spec(asset)
        return spec.replace_attributes(key=spec.key.with_prefix("lake"), owners=["team:data"])


def test_a_translator_renames_assets_and_what_depends_on_them(tmp_path: Path) -> None:
    shop(tmp_path)
    definitions = build_definitions(declared(tmp_path), Ours())
    graph = definitions.resolve_asset_graph()
    mirror = graph.get(dg.AssetKey(["lake", "mirror", "orders"]))
    assert {key.to_user_string() for key in mirror.parent_keys} == {
        "lake/cdc/changes",
        "lake/initial_sync/orders",
    }
    assert mirror.owners == ["team:data"]
    with dg.instance_for_test() as instance:
        job = definitions.resolve_job_def("sync")
        assert job.execute_in_process(instance=instance).success
        assert instance.get_latest_materialization_event(mirror.key) is not None


def test_pipelines_merge_with_each_other_and_with_a_strangers_project(tmp_path: Path) -> None:
    """Two pipelines keep apart, and a stranger's job, group, resource and executor stay his."""

    @dg.asset(group_name="mirror", required_resource_keys={"olap"})
    def report() -> None:
        return None

    stranger = dg.Definitions(
        assets=[report],
        jobs=[dg.define_asset_job("sync", selection=[report])],
        resources={"olap": "his own"},
        executor=dg.multiprocess_executor,
    )
    ours = []
    for name in ("shop", "crm of 2026"):
        directory = tmp_path / name
        shop(directory)
        ours.append(build_definitions(declared(directory, name=name)))
    merged = dg.Definitions.merge(stranger, *ours)
    repository = merged.get_repository_def()
    jobs = {job.name for job in repository.get_all_jobs()}
    crm = Names.of(declared(tmp_path, name="crm of 2026")).pipeline
    assert {"sync", "shop_sync", f"{crm}_sync", "shop_snapshots"} <= jobs
    assert {sensor.name for sensor in repository.sensor_defs} >= {
        "shop_pending_changes",
        f"{crm}_pending_changes",
    }
    assert repository.get_top_level_resources().keys() >= {"olap", "shop_olap", f"{crm}_cdc"}
    assert merged.resolve_job_def("__ASSET_JOB").executor_def is dg.multiprocess_executor
    with dg.instance_for_test() as instance:
        for name in ("shop", crm):
            result = merged.resolve_job_def(f"{name}_sync").execute_in_process(instance=instance)
            assert result.success
            found = {event.asset_key for event in result.get_asset_materialization_events()}
            assert {key.path[0] for key in found if key} == {name}


def test_pipelines_without_a_name_have_pools_of_their_own(tmp_path: Path) -> None:
    first, second = declared(tmp_path), declared(tmp_path / "other")
    assert Names.of(first).pool == Names.of(declared(tmp_path)).pool != Names.of(second).pool


def test_dg_finds_the_component() -> None:
    """`dg list components` and `dg scaffold defs` load the modules of this group."""
    group = entry_points(group="dagster_dg_cli.registry_modules", name="rhei_pipeline")
    assert [each.load().RheiComponent for each in group] == [RheiComponent]


def test_a_component_loads_a_declaration_from_yaml(tmp_path: Path) -> None:
    file = shop(tmp_path)
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(
            component_cls=RheiComponent,
            defs_yaml_contents={
                "type": "rhei_pipeline.dagster.RheiComponent",
                "attributes": {"declaration": "shop.yaml"},
            },
        )
        (folder / "shop.yaml").write_text(
            json.dumps(
                {
                    "source": {"path": str(file)},
                    "mirror": {"path": "mirror.duckdb"},
                    "registry": {"path": "registry.json"},
                }
            )
        )
        with sandbox.load_component_and_build_defs(defs_path=folder) as (component, definitions):
            assert isinstance(component, RheiComponent)
            assert "mirror/orders" in keys(definitions)
            olap = dict(definitions.resources or {}).get("olap")
            assert isinstance(olap, OlapResource)
            assert olap.settings().mirror.path == folder / "mirror.duckdb"


def test_resources_serve_any_asset(tmp_path: Path) -> None:
    shop(tmp_path)
    settings = declared(tmp_path)
    found: dict[str, object] = {}

    @dg.asset(deps=[Declaration.of(settings).key(Stage.MIRROR, Declaration.of(settings).tables[0])])
    def both_sides(oltp: OltpResource, olap: OlapResource) -> None:
        assert oltp.execute("insert into orders values (?, ?)", (2, "paid")) == 1
        connection = oltp.connect()
        found["driver"] = connection.execute("select count(*) from orders").fetchall()[0][0]
        connection.close()
        found["source"] = oltp.query("select count(*) as n from orders").to_pylist()
        found["pending"] = olap.cdc.pending()
        with olap.open() as htap:
            htap.sync_now()
            found["mirror"] = htap.query("select * from orders", hint="olap").num_rows
        found["pending after"] = olap.cdc.pending()

    resources = pipeline_resources(settings)
    result = dg.materialize([both_sides], resources=resources, selection=[both_sides])
    assert result.success
    assert found == {
        "driver": 2,
        "source": [{"n": 2}],
        "pending": None,
        "mirror": 2,
        "pending after": 0,
    }


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"method": "logical"}, "logical"),
        ({"batch_rows": -5}, "sync.batch_rows"),
        ({"method": "telepathy"}, "capture.method"),
    ],
)
def test_an_overridden_resource_is_validated_with_the_whole_declaration(
    tmp_path: Path, fields: dict[str, object], named: str
) -> None:
    shop(tmp_path)
    cdc = pipeline_resources(declared(tmp_path))["cdc"]
    assert isinstance(cdc, CdcResource)
    wrong = cdc.model_copy(update=fields)
    with pytest.raises(rhei.SettingsError, match=named):
        wrong.pending()


@pytest.mark.parametrize(
    ("resource", "fields"),
    [
        ("oltp", {"dsn": "postgresql://elsewhere/shop"}),
        ("cdc", {"batch_rows": 7}),
        ("cdc", {"prune": True}),
        ("cdc", {"method": "trigger"}),
        ("olap", {"path": "elsewhere"}),
        ("olap", {"lock_timeout_seconds": 7.0}),
        ("olap", {"storage": "ipc"}),
    ],
)
def test_a_run_that_configures_one_field_has_all_others_as_declared(
    resource: str, fields: dict[str, object], tmp_path: Path
) -> None:
    settings = Settings(
        source={"kind": "postgres", "dsn": "postgresql://here/shop"},
        capture={"method": "polling"},
        mirror={
            "kind": "datafusion",
            "storage": "parquet",
            "path": tmp_path / "mirror",
            "lock_timeout_seconds": 5,
        },
        registry={"path": tmp_path / "registry.json"},
        sync={"batch_rows": 123, "prune": False},
    )
    found = list[Settings]()

    @dg.op(required_resource_keys={resource})
    def look(context: dg.OpExecutionContext) -> None:
        found.append(getattr(context.resources, resource).settings())

    @dg.job(resource_defs=dict(pipeline_resources(settings)))
    def look_at_it() -> None:
        look()

    look_at_it.execute_in_process({"resources": {resource: {"config": fields}}})
    section = {"oltp": "source", "olap": "mirror", "cdc": "sync"}[resource]
    section = "capture" if "method" in fields else section
    assert found == [settings.with_fields({section: fields})]


@pytest.mark.parametrize("kind", ["duckdb", "datafusion"])
def test_a_run_that_names_another_kind_of_mirror_takes_no_storage_with_it(
    kind: str, tmp_path: Path
) -> None:
    mirror = {"kind": "datafusion", "storage": "parquet", "path": tmp_path / "mirror"}
    olap = pipeline_resources(declared(tmp_path, mirror=mirror))["olap"]
    assert isinstance(olap, OlapResource)
    other = olap.model_copy(update={"kind": kind, "storage": None})
    storage = {"duckdb": None, "datafusion": "parquet"}[kind]
    assert other.settings().mirror.storage == storage


@pytest.mark.long
def test_the_command_line_of_a_dg_project_accepts_the_definitions(tmp_path: Path) -> None:
    shop(tmp_path)
    file = tmp_path / "pipeline.yaml"
    file.write_text("source: {path: app.db}\nmirror: {path: m.duckdb}\nregistry: {path: r.json}\n")
    found = subprocess.run(
        [Path(sys.executable).with_name("dg"), "check", "defs"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "RHEI_CONFIG": str(file), "DAGSTER_HOME": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "All definitions loaded successfully" in found.stdout


def test_importing_the_engine_does_not_import_dagster() -> None:
    code = "import sys, rhei_pipeline; sys.exit('dagster' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
