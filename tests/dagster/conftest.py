"""What the tests of Dagster share."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage
from sqlalchemy import Engine, create_engine

from rhei_pipeline import Settings
from tests.support.dagster_shop import Shop


@pytest.fixture(scope="session", autouse=True)
def _migrations_read_once() -> Iterator[None]:
    """Dagster reads all its migrations, each a file of code, for each storage that it opens."""
    read, known = ScriptDirectory.from_config, dict[str | None, ScriptDirectory]()

    def from_config(config: Config) -> ScriptDirectory:
        place = config.get_main_option("script_location")
        if place not in known:
            known[place] = read(config)
        return known[place]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", from_config)
        yield


@pytest.fixture(autouse=True)
def _engines_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster makes an engine each time it asks a file, and an engine compiles each statement."""
    made = dict[str, Engine]()

    def engine(place: str, **options: Any) -> Engine:
        if place not in made:
            made[place] = create_engine(place, **options)
        return made[place]

    for storage in (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage):
        monkeypatch.setattr(storage, "create_engine", engine)


@pytest.fixture(autouse=True)
def _sessions_look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhei_pipeline.dagster.mirrors.LOOK_SECONDS", 0.05)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """Two tables, one with history, and a mirror in DuckDB; nothing is synced yet."""
    with closing(sqlite3.connect(tmp_path / "app.db")) as connection:
        connection.executescript(
            "create table orders(id integer primary key, status text not null);"
            "create table items(id integer primary key, amount integer);"
            "insert into orders values (1, 'new'); insert into items values (1, 1), (2, 2);"
        )
    settings = Settings(
        source={"path": tmp_path / "app.db"},
        mirror={"path": tmp_path / "mirror.duckdb"},
        registry={"path": tmp_path / "registry.json"},
        sync={"interval_seconds": 0.05},
        tables=[{"name": "orders", "mode": "temporal"}, {"name": "items"}],
        schedule={"idle_seconds": 0.2, "catalog_seconds": 60},
    )
    (tmp_path / "home").mkdir()
    with dg.instance_for_test(temp_dir=str(tmp_path / "home")) as instance:
        yield Shop(settings, instance)
