"""What the tests of Dagster share."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from dagster._core.execution import compute_logs
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import QueuePool

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


@pytest.fixture(scope="session")
def new_databases(
    _migrations_read_once: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """Return what each file of a new instance holds, and that of a new run, by their names."""
    home = tmp_path_factory.mktemp("home")
    with dg.instance_for_test(temp_dir=str(home)) as instance:
        storage = instance.event_log_storage
        assert isinstance(storage, sqlite_event_log.SqliteEventLogStorage)
        with storage.run_connection("any"):
            pass
        found = {}
        for file in home.rglob("*.db"):
            with closing(sqlite3.connect(file)) as connection:
                found[file.name] = connection.serialize()
    return found


@pytest.fixture(autouse=True)
def _files_made_once(new_databases: dict[str, bytes]) -> Iterator[None]:
    """Dagster makes each file by its migrations, and an engine each time it asks one.

    An engine compiles each statement; and an engine of its own, a connection of its own.
    """
    made = dict[str, Engine]()

    def engine(place: str, **options: Any) -> Engine:
        if place not in made:
            # Its connections are kept; Dagster disposes of them after each question.
            made[place] = create_engine(place, **{**options, "poolclass": QueuePool})
            patch.setattr(made[place], "dispose", lambda: None)
            file = Path(made[place].url.database or "")
            if not file.exists():
                file.write_bytes(new_databases.get(file.name, new_databases["any.db"]))
        return made[place]

    with pytest.MonkeyPatch.context() as patch:
        for storage in (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage):
            patch.setattr(storage, "create_engine", engine)
        yield
    for one in made.values():
        one.dispose()


@pytest.fixture(autouse=True)
def _logs_shown_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster starts two processes for each stream of a step, which show what its file holds."""
    monkeypatch.setattr(compute_logs, "tail_to_stream", lambda *_: nullcontext())


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
