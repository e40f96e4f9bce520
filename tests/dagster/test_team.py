"""What a team builds over the mirror, and what follows the source's catalogue."""

import sqlite3
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

import rhei_pipeline as rhei
from definitions import build
from rhei_pipeline import Settings
from rhei_pipeline.dagster import build_definitions

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

FLIGHTS = """
create table flights(id integer primary key, flight_date text, carrier text, arrival_delay real);
insert into flights(flight_date, carrier, arrival_delay) values
    ('2013-01-01', 'AA', 10), ('2013-01-01', 'AA', 50), ('2013-01-01', 'UA', null),
    ('2013-01-02', 'UA', -5);
"""


@pytest.fixture
def airline(tmp_path: Path) -> Settings:
    connection = sqlite3.connect(tmp_path / "app.db")
    connection.executescript(FLIGHTS)
    connection.close()
    return Settings(
        source={"path": tmp_path / "app.db"},
        mirror={"path": tmp_path / "mirror.duckdb"},
        registry={"path": tmp_path / "registry.json"},
        mode="temporal",
    )


def test_an_asset_over_the_mirror_is_backfilled_and_checked(
    airline: Settings, tmp_path: Path
) -> None:
    with rhei.open(airline) as htap:
        htap.sync_now()
    job = build(airline).resolve_implicit_global_asset_job_def()
    key = dg.AssetKey(["marts", "delay_by_airline"])
    days = {"start": "2013-01-01", "end": "2013-01-03"}
    with dg.instance_for_test() as instance:
        result = job.execute_in_process(
            asset_selection=[key],
            instance=instance,
            tags={f"dagster/asset_partition_range_{end}": day for end, day in days.items()},
        )
        assert result.success
        assert len(instance.get_materialized_partitions(key)) == 3
        (check,) = result.get_asset_check_evaluations()
        assert check.passed
        assert check.metadata["flights"].value == 3
    found = pq.read_table(tmp_path / "marts" / "delay_by_airline" / "2013-01-01.parquet")
    assert found.to_pylist() == [{"carrier": "AA", "flights": 2, "average_delay": 30.0, "late": 1}]


def tick(settings: Settings, definitions: dg.Definitions, cursor: str | None = None) -> Any:
    repository = definitions.get_repository_def()
    with (
        dg.instance_for_test() as instance,
        dg.build_sensor_context(
            instance=instance,
            cursor=cursor,
            repository_def=repository,
            resources=definitions.resources,
        ) as context,
    ):
        return repository.get_sensor_def("new_tables").evaluate_tick(context)


def test_a_sensor_names_the_tables_that_differ_from_those_loaded(airline: Settings) -> None:
    definitions = build_definitions(airline)
    assert "show the source's tables" in str(tick(airline, definitions).skip_message)
    with sqlite3.connect(airline.sqlite_path) as connection:
        connection.execute("create table airlines(carrier text primary key)")
        connection.execute("alter table flights add column note text")
    connection.close()
    first = tick(airline, definitions)
    assert "new: airlines; changed: flights" in str(first.skip_message)
    assert "reload code location" in str(first.skip_message)
    again = tick(airline, definitions, first.cursor)
    assert "already" in str(again.skip_message)
    assert "show the source's" in str(tick(airline, build_definitions(airline)).skip_message)
    airline.sqlite_path.rename(airline.sqlite_path.with_suffix(".away"))
    assert "does not exist" in str(tick(airline, definitions).skip_message)


def test_definitions_of_a_source_that_was_away_are_loaded_again(airline: Settings) -> None:
    away = airline.sqlite_path.with_suffix(".away")
    airline.sqlite_path.rename(away)
    definitions = build_definitions(airline)
    assert not definitions.resolve_asset_graph().get_all_asset_keys()
    away.rename(airline.sqlite_path)
    assert "new: flights" in str(tick(airline, definitions).skip_message)
