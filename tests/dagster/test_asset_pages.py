"""What an asset's page says before anything has run."""

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import duckdb
import pytest

import rhei_pipeline as rhei
from rhei_pipeline import Settings
from rhei_pipeline.dagster import Declaration, RheiAsset, RheiTranslator, Stage, load_assets

DECLARED = """\
source: {path: app.db}
mirror: {path: mirror.duckdb}
registry: {path: registry.json}
tables:
  - name: orders
    mode: temporal
    types: {amount: "decimal(10,2)"}

  - {mode: destructive, columns: [id], name: Parts}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    connection = sqlite3.connect(tmp_path / "app.db")
    connection.executescript(
        "create table orders(id integer primary key, amount text);"
        "create table parts(id integer primary key, secret text);"
    )
    connection.close()
    (tmp_path / "pipeline.yaml").write_text(DECLARED)
    return tmp_path / "pipeline.yaml"


def spec(
    file: Path, stage: Stage, name: str, translator: RheiTranslator | None = None
) -> dg.AssetSpec:
    declaration = Declaration.of(Settings.load(file), translator)
    (table,) = (found for found in declaration.tables if found.name == name)
    return declaration.spec(stage, table)


def test_a_mirrors_page_says_what_is_declared_and_promised(file: Path) -> None:
    orders, parts = spec(file, Stage.MIRROR, "orders"), spec(file, Stage.MIRROR, "parts")
    assert "mode `temporal`" in str(orders.description)
    assert "Triggers log each version" in str(orders.description)
    assert "at exactly the watermark" in str(orders.description)
    assert "that are not listed" not in str(orders.description)
    assert "mode `destructive`" in str(parts.description)
    assert "that are not listed" in str(parts.description)
    columns = orders.metadata["dagster/column_schema"].columns
    described = {column.name: (column.type, column.description) for column in columns}
    assert described["id"] == ("bigint", "primary key")
    assert described["amount"] == ("decimal(10, 2)", "declared as decimal(10,2)")
    assert "since when" in str(described["_rhei_valid_from"][1])


def test_a_snapshots_page_has_the_column_of_the_day_and_calls_no_key_unique(file: Path) -> None:
    """All days are in one table, by the name that the page gives."""
    page = spec(file, Stage.SNAPSHOT, "orders")
    with rhei.open(file) as htap:
        htap.sync_now()
        now = datetime.now(UTC)
        htap.snapshot("orders", {now.date(): now})
    columns = page.metadata["dagster/column_schema"].columns
    assert not any(column.constraints.unique for column in columns)
    _, _, place = page.metadata["dagster/table_name"].partition(".")
    with duckdb.connect(file.parent / "mirror.duckdb", read_only=True) as mirror:
        found = mirror.execute(f"describe {place}").fetchall()
    assert [row[0] for row in found] == [column.name for column in columns]


@pytest.mark.parametrize("stage", [Stage.SOURCE, Stage.INITIAL_SYNC, Stage.MIRROR])
def test_what_is_wrong_with_a_table_or_the_source_stands_on_the_page(
    file: Path, stage: Stage
) -> None:
    assert "**Wrong" not in str(spec(file, stage, "orders").description)
    file.write_text(DECLARED.replace("name: Parts", "name: Pats"))
    assert "did you mean 'parts'?" in str(spec(file, stage, "Pats").description)
    assert "**Wrong" not in str(spec(file, stage, "orders").description)
    (file.parent / "app.db").rename(file.parent / "away.db")
    assert "does not exist" in str(spec(file, stage, "orders").description)
    changes = Declaration.of(Settings.load(file)).spec(Stage.CHANGES)
    assert "does not exist" in str(changes.description)


def test_a_polled_mirror_promises_what_its_reports_prove(file: Path) -> None:
    polled = DECLARED.replace("mirror:", "capture: {method: polling}\nmirror:", 1)
    file.write_text(polled)
    assert "`proof` says" in str(spec(file, Stage.MIRROR, "orders").description)


def test_a_page_leads_to_the_line_of_the_declaration(file: Path) -> None:
    def line(stage: Stage, name: str) -> tuple[str, int | None]:
        (found,) = spec(file, stage, name).metadata["dagster/code_references"].code_references
        return found.file_path, found.line_number

    lines = DECLARED.splitlines()
    for name, declared in (("orders", "  - name: orders"), ("parts", lines[-1])):
        for stage in (Stage.SOURCE, Stage.INITIAL_SYNC, Stage.MIRROR, Stage.SNAPSHOT):
            assert line(stage, name) == (str(file), lines.index(declared) + 1)
    made = Settings(source={"path": file.parent / "app.db"}, mirror={"path": file.parent / "m.db"})
    assert made.file is None
    assert "dagster/code_references" not in Declaration.of(made).spec(Stage.CHANGES).metadata


def test_a_code_version_follows_the_declaration_of_its_table_alone(file: Path) -> None:
    before = {name: spec(file, Stage.MIRROR, name).code_version for name in ("orders", "parts")}
    file.write_text(DECLARED.replace("(10,2)", "(12,2)"))
    after = {name: spec(file, Stage.MIRROR, name).code_version for name in ("orders", "parts")}
    assert before["orders"] != after["orders"]
    assert before["parts"] == after["parts"]
    assert spec(file, Stage.SOURCE, "orders").code_version is None


def test_columns_lead_to_those_they_come_from_under_the_names_of_a_translator(file: Path) -> None:
    class Lake(RheiTranslator):
        asked = 0

        def get_asset_spec(self, asset: RheiAsset) -> dg.AssetSpec:
            Lake.asked += 1
            found = super().get_asset_spec(asset)
            return found.replace_attributes(key=found.key.with_prefix("lake"))

    for stage, upstream in ((Stage.MIRROR, "oltp"), (Stage.SNAPSHOT, "mirror")):
        found = spec(file, stage, "orders", Lake()).metadata["dagster/column_lineage"]
        key = dg.AssetKey(["lake", upstream, "orders"])
        assert found.deps_by_column == {
            name: [dg.TableColumnDep(key, name)] for name in ("id", "amount")
        }
    Lake.asked = 0
    assets = load_assets(Declaration.of(Settings.load(file), Lake()))
    # Once for each asset, and for each whose key another one asks for: not tables times tables.
    assert Lake.asked <= 3 * len(assets)
