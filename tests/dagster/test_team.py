"""What a team builds over the mirror, and what follows the source's catalogue."""

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin

import rhei_pipeline as rhei
from definitions import build
from rhei_pipeline import Settings
from rhei_pipeline.dagster import build_definitions
from rhei_pipeline.settings.sections import TableSettings

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

CHANGES = ("marts", "flight_changes")
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


@pytest.mark.long
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


def tick(
    settings: Settings,
    definitions: dg.Definitions,
    cursor: str | None = None,
    location: str | None = None,
) -> Any:
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
        if location is not None:  # as in a daemon; the builder of contexts takes none
            context._code_location_origin = RegisteredCodeLocationOrigin(location)
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


def test_a_sensor_names_the_tables_that_are_left_out_by_now_and_those_that_no_longer_are(
    airline: Settings,
) -> None:
    """One that was mirrored keeps its columns in the definitions: they alone tell nothing."""
    declared = airline.model_copy(update={"tables": [TableSettings(name="flights")]})
    with rhei.open(declared) as htap:
        htap.sync_now()
    definitions = build_definitions(declared)
    with sqlite3.connect(airline.sqlite_path) as connection:
        connection.execute("alter table flights rename to away")
    assert "left out: flights" in str(tick(declared, definitions).skip_message)
    definitions = build_definitions(declared)
    assert "show the source's" in str(tick(declared, definitions).skip_message)
    with sqlite3.connect(airline.sqlite_path) as connection:
        connection.execute("alter table away rename to flights")
    connection.close()
    assert "no longer left out: flights" in str(tick(declared, definitions).skip_message)


def test_a_table_that_changes_twice_has_the_location_reloaded_twice(airline: Settings) -> None:
    """The words are the same for both changes, and the sensor keeps its cursor over a reload."""

    def changed(column: str, cursor: str | None) -> Any:
        definitions = build_definitions(airline)
        with sqlite3.connect(airline.sqlite_path) as connection:
            connection.execute(f"alter table flights add column {column} text")
        connection.close()
        return tick(airline, definitions, cursor)

    first = changed("note", None)
    second = changed("remark", first.cursor)
    assert "changed: flights: reload code location" in str(second.skip_message)
    assert second.cursor != first.cursor


def test_a_source_that_was_away_twice_has_the_location_reloaded_twice(airline: Settings) -> None:
    """Its tables are the same both times, and the sensor keeps its cursor over a reload."""
    away, cursor = airline.sqlite_path.with_suffix(".away"), None
    for _ in range(2):
        airline.sqlite_path.rename(away)
        definitions = build_definitions(airline)
        away.rename(airline.sqlite_path)
        found = tick(airline, definitions, cursor)
        assert "reload code location" in str(found.skip_message)
        assert "already" not in str(found.skip_message)
        again = tick(airline, definitions, found.cursor)
        assert "already" in str(again.skip_message)
        reloaded = tick(airline, build_definitions(airline), again.cursor)
        assert "show the source's tables" in str(reloaded.skip_message)
        cursor = reloaded.cursor


DECLARED = "source: {path: app.db}\nmirror: {path: m.duckdb}\nregistry: {path: r.json}"


def written(declaration: Path, *lines: str) -> Settings:
    declaration.write_text("\n".join([DECLARED, "tables:", *lines]))
    return Settings.load(declaration)


@pytest.mark.parametrize("is_linked", [False, True])
def test_a_sensor_tells_that_the_declaration_was_changed_and_not_reloaded(
    airline: Settings, tmp_path: Path, *, is_linked: bool
) -> None:
    """Runs have what is declared now: a table that left it is shown as followed, and is not."""
    declaration = written(tmp_path / "first.yaml", "- {name: flights}").file
    assert declaration is not None
    if is_linked:  # as a release is put in the place of the one before
        (tmp_path / "link.yaml").symlink_to(declaration)
        declaration = tmp_path / "link.yaml"
    settings = Settings.load(declaration)
    definitions = build_definitions(settings)
    assert "show the source's tables" in str(tick(settings, definitions).skip_message)
    edited = tmp_path / "second.yaml" if is_linked else declaration
    written(edited, "- {name: flights, mode: temporal}")
    if is_linked:
        (tmp_path / "link.new").symlink_to(edited)
        (tmp_path / "link.new").rename(declaration)
    first = tick(settings, definitions)
    assert "the declaration was changed: reload code location" in str(first.skip_message)
    assert "already" in str(tick(settings, definitions, first.cursor).skip_message)
    written(edited, "- {name: flights, mode: temporal}", "# once more")
    assert "changed: reload" in str(tick(settings, definitions, first.cursor).skip_message)
    airline.sqlite_path.rename(tmp_path / "away")
    assert "changed: reload" in str(tick(settings, definitions, first.cursor).skip_message)
    (tmp_path / "away").rename(airline.sqlite_path)
    again = build_definitions(Settings.load(declaration))
    assert "show the source's tables" in str(tick(settings, again, first.cursor).skip_message)
    edited.write_text(f"{DECLARED}\ntable: []")
    told = str(tick(settings, definitions).skip_message)
    assert "every run fails" in told
    assert "'table'" in told
    edited.unlink()
    assert "cannot be read" in str(tick(settings, definitions).skip_message)


def test_a_reload_is_asked_for_until_the_webserver_has_answered(
    airline: Settings, tmp_path: Path
) -> None:
    schedule = airline.schedule.model_copy(update={"webserver": "http://127.0.0.1:9/dagster"})
    settings = airline.model_copy(update={"schedule": schedule})
    definitions = build_definitions(settings)
    with sqlite3.connect(airline.sqlite_path) as connection:
        connection.execute("create table airlines(carrier text primary key)")
    connection.close()
    found = tick(settings, definitions, location="ours")
    assert "http://127.0.0.1:9/dagster was asked to reload" in str(found.skip_message)
    assert found.cursor is None


def test_definitions_of_a_source_that_was_away_are_loaded_again(airline: Settings) -> None:
    away = airline.sqlite_path.with_suffix(".away")
    airline.sqlite_path.rename(away)
    definitions = build_definitions(airline)
    assert not definitions.resolve_asset_graph().get_all_asset_keys()
    away.rename(airline.sqlite_path)
    assert "new: flights" in str(tick(airline, definitions).skip_message)


def test_changes_are_followed_once_an_hour_once_the_mirror_has_reported(airline: Settings) -> None:
    definitions, now = build(airline), datetime.now(UTC)
    mirror, follower = (dg.AssetKey([*key]) for key in (("mirror", "flights"), CHANGES))
    with dg.instance_for_test() as instance:

        def asked(at: datetime, cursor: Any = None) -> tuple[int, Any]:
            found = dg.evaluate_automation_conditions(
                definitions,
                instance,
                dg.AssetSelection.assets(follower),
                evaluation_time=at,
                cursor=cursor,
            )
            return found.get_num_requested(follower), found.cursor

        requested, cursor = asked(now - timedelta(hours=2))
        assert requested == 0
        requested, cursor = asked(now, cursor)  # an hour has begun, and nothing is new
        assert requested == 0
        instance.report_runless_asset_event(dg.AssetMaterialization(mirror))
        requested, cursor = asked(now + timedelta(milliseconds=1), cursor)
        assert requested == 1
        requested, _ = asked(now + timedelta(milliseconds=2), cursor)
        assert requested == 0
    # Nobody has to switch it on, and it asks for nothing else.
    runs = definitions.get_repository_def().get_sensor_def("automation")
    assert runs.default_status is dg.DefaultSensorStatus.RUNNING
    assert runs.asset_selection is not None
    assert runs.asset_selection.resolve(definitions.resolve_asset_graph()) == {follower}


def fold(folder: Path) -> dict[int, float | None]:
    """Apply the files of changes in their order, refusing what would come twice or be lost."""
    flights = dict[int, float | None]()
    for file in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            before = flights.pop(row["id"], "absent")
            if row["_rhei_operation"] == "I":
                assert before == "absent"
            else:
                assert before == row["_rhei_old_arrival_delay"]
            if row["_rhei_operation"] != "D":
                flights[row["id"]] = row["arrival_delay"]
    return flights


def written_and_killed(found: rhei.TableChanges, file: Path) -> None:
    pq.write_table(found.rows, file)
    raise OSError("killed")


@pytest.mark.long
def test_an_asset_follows_each_change_once_across_a_crash_and_a_lost_position(
    airline: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = build(airline).resolve_implicit_global_asset_job_def()
    key = dg.AssetKey([*CHANGES])
    marts = tmp_path / "marts" / "flight_changes"

    def change(sql: str) -> dict[int, float | None]:
        with sqlite3.connect(airline.sqlite_path) as connection:
            connection.execute(sql)
        now = dict(connection.execute("select id, arrival_delay from flights").fetchall())
        connection.close()
        with rhei.open(airline) as htap:
            htap.sync_now()
        return now

    def follow(instance: dg.DagsterInstance) -> tuple[dict[int, float | None], list[int]]:
        assert job.execute_in_process(asset_selection=[key], instance=instance).success
        event = instance.get_latest_materialization_event(key)
        assert event is not None
        assert event.asset_materialization is not None
        told = event.asset_materialization.metadata
        (folder,) = (path for path in marts.iterdir() if path.is_dir())
        assert str(folder) == told["folder"].value
        counts = [told[name].value for name in ("inserted", "updated", "deleted")]
        return fold(folder), counts  # type: ignore[return-value]

    with dg.instance_for_test() as instance:
        now = change("insert into flights values (9, '2013-01-02', 'UA', 3)")
        assert follow(instance) == (now, [5, 0, 0])
        change("update flights set arrival_delay = 4 where id = 9")
        now = change("delete from flights where id = 1")
        assert follow(instance) == (now, [0, 1, 1])
        assert follow(instance) == (now, [0, 0, 0])
        # Written, and killed before it is reported: the same position is gone on from again.
        change("update flights set arrival_delay = 5 where id = 9")
        with monkeypatch.context() as patched, pytest.raises(OSError, match="killed"):
            patched.setattr("assets.flight_changes._write", written_and_killed)
            follow(instance)
        now = change("insert into flights values (1, '2013-01-03', 'AA', 7)")
        assert follow(instance) == (now, [1, 1, 0])
        with rhei.open(airline) as htap:
            htap.drop_table("flights", discard_history=True)
        now = change("delete from flights where id = 2")
        assert follow(instance) == (now, [4, 0, 0])
