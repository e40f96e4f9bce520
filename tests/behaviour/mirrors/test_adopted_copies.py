"""A mirror is copied and the copy adopted: both live on, and neither costs the other a change."""

import re
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from examples.postgres_server import Server
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import CaptureError, SchemaError
from rhei_pipeline.sync.schema_registry import mirror_id_of
from rhei_pipeline.wiring import adoption
from rhei_pipeline.wiring.adoption import adopt
from rhei_pipeline.wiring.engine import unseen_events
from rhei_pipeline.wiring.source import validate
from tests.support.fix_postgres import drop_slots
from tests.support.forked import output_of
from tests.support.other_process import copy

pytestmark = pytest.mark.turns

TABLES = [{"name": "t", "mode": "temporal", "polling": {"deletes": "reconcile"}}]
FILLED = (
    "create table t(id int primary key, v int, updated_at timestamptz)",
    "insert into t values (1, 1, '2026-01-01')",
)
BUFFERED = {"buffer": {"kind": "rocksdb", "path": "cdc"}}
LOGICAL, TRIGGER = {"method": "logical"}, {"method": "trigger"}
CAPTURES = [
    LOGICAL,
    LOGICAL | {"streaming": True},
    LOGICAL | BUFFERED,
    TRIGGER,
    TRIGGER | BUFFERED,
    {"method": "polling"},
]
NAMES = ["logical", "stream", "logical-buffer", "trigger", "trigger-buffer", "polling"]
captures = pytest.mark.parametrize("capture", CAPTURES, ids=NAMES)
storages = pytest.mark.parametrize("storage", [None, "parquet", "delta"])
IN_USE = r"slot 'rhei_.* is there already, in database '.*rhei adopt --as-copy"


class Pipeline:
    """A declaration, an application's connection to its source, and what was written there."""

    def __init__(self, settings: Settings, run: Callable[[str], object]) -> None:
        self.settings, self.run, self.values = settings, run, [1]

    def change(self, *values: int) -> None:
        """Write these values, each in a transaction of its own."""
        for v in values:
            self.run(f"update t set v = {v}, updated_at = '2026-01-01 00:00:00.{v:06}'")

    def sync(self) -> list[int]:
        """Return the history's values, after a sync that has left nothing out."""
        with HTAP(self.settings) as htap:
            report = htap.sync_now()
            assert not report.errors
            assert htap.verify().equal
            return values_of(htap)


def values_of(htap: HTAP) -> list[int]:
    found = htap.query("select v from t order by _rhei_valid_from", hint="olap")
    return [int(v) for v in found["v"].to_pylist()]


def declared(
    directory: Path, source: dict[str, Any], capture: dict[str, Any], **more: Any
) -> Settings:
    """Declare a pipeline of which everything is in one directory."""
    storage = more.pop("storage", None)
    buffer = {"buffer": {"kind": "rocksdb", "path": directory / "cdc"}}
    mirror = {
        "kind": "datafusion" if storage else "duckdb",
        "storage": storage,
        "path": directory / "mirror",
        **more.pop("mirror", {}),
    }
    return Settings(
        source=source,
        capture=capture | (buffer if "buffer" in capture else {}),
        mirror=mirror,
        registry={"path": directory / "registry.json"},
        tables=TABLES,
        **more,
    )


@contextmanager
def cloned(server: Server, dsn: str) -> Iterator[str]:
    """Make a database of the same contents on the same server."""
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,)
        )
        admin.execute(f"create database {name}_c template {name}".encode())
        try:
            yield server.dsn(f"{name}_c")
        finally:
            drop_slots(admin, f"{name}_c")
            admin.execute(f"drop database {name}_c with (force)".encode())


@pytest.fixture
def original(dsn: str, tmp_path: Path, storage: str | None, capture: dict[str, Any]) -> Pipeline:
    directory = tmp_path / "original"
    directory.mkdir()
    source = {"kind": "postgres", "dsn": dsn}

    def run(sql: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as application:
            application.execute(sql.encode())

    for sql in FILLED:
        run(sql)
    made = Pipeline(declared(directory, source, capture, storage=storage), run)
    assert made.sync() == [1]
    return made


@pytest.fixture
def copied(
    original: Pipeline, server: Server, tmp_path: Path, storage: str | None, capture: dict[str, Any]
) -> Iterator[Pipeline]:
    """The original's files and database, copied; the mirror is not adopted yet."""
    source = original.settings.source.model_dump()
    with cloned(server, source["dsn"].get_secret_value()) as dsn:
        copy(tmp_path / "original", tmp_path / "copy")
        if (tmp_path / "original" / "cdc.confirmed.json").exists():
            assert (tmp_path / "copy" / "cdc.confirmed.json").exists()
        settings = declared(
            tmp_path / "copy", {"kind": "postgres", "dsn": dsn}, capture, storage=storage
        )

        def run(sql: str) -> None:
            with psycopg.connect(dsn, autocommit=True) as application:
                application.execute(sql.encode())

        yield Pipeline(settings, run)


def live_on(*pipelines: Pipeline, between: bool = True) -> None:
    """Each has changes of its own, captured while the other syncs; each keeps all of them."""
    for round_ in range(2):
        for number, pipeline in enumerate(pipelines):
            first = 100 * round_ + 10 * number + 20
            pipeline.change(first, first + 1)
            pipeline.values += [first, first + 1] if between else [first + 1]
        for pipeline in reversed(pipelines):
            assert pipeline.sync() == pipeline.values


@pytest.mark.long
@storages
@captures
def test_two_copies_of_a_mirror_follow_two_databases_of_a_server(
    original: Pipeline, copied: Pipeline, capture: dict[str, Any]
) -> None:
    original.change(2, 3)
    adopted = adopt(copied.settings)
    is_polled = capture["method"] == "polling"
    original.values += [3] if is_polled else [2, 3]
    left = ["replication slot" in text for text in adopted.left]
    assert left == [True] * (capture["method"] == "logical")
    assert copied.sync() == [1], "the copy of the database has no other row yet"
    assert original.sync() == original.values, "the copy has taken the original's changes"
    live_on(original, copied, between=not is_polled)


@pytest.mark.long
@pytest.mark.parametrize("storage", [None, "parquet"])
@captures
def test_a_copy_that_follows_the_same_database_is_a_reader_of_its_own(
    original: Pipeline, tmp_path: Path, storage: str | None, capture: dict[str, Any]
) -> None:
    copy(tmp_path / "original", tmp_path / "copy")
    source = original.settings.source.model_dump()
    second = declared(tmp_path / "copy", source, capture, storage=storage)
    adopt(second, as_copy=True)
    copied = Pipeline(second, original.run)
    assert copied.sync() == [1]
    is_polled = capture["method"] == "polling"
    for first in (2, 4):
        original.change(first, first + 1)
        expected = [1, *range(2, first + 2)] if not is_polled else [1, *range(3, first + 2, 2)]
        assert copied.sync() == expected
        assert original.sync() == expected


STEPS = ["_record", "give_to", "_claim_log", "left_slots"]


class _Died(BaseException):
    """The process ends here."""


def die(*_args: object, **_named: object) -> None:
    """End a process here."""
    raise _Died


@pytest.mark.long
@pytest.mark.parametrize("storage", [None, "parquet"])
@pytest.mark.parametrize(
    "capture", [LOGICAL | BUFFERED, TRIGGER], ids=["logical-buffer", "trigger"]
)
@pytest.mark.parametrize("step", STEPS)
def test_an_adoption_that_is_cut_off_harms_nobody_and_is_finished_by_the_next(
    original: Pipeline, copied: Pipeline, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original.change(2, 3)
    original.values += [2, 3]
    with monkeypatch.context() as patched, suppress(_Died):
        patched.setattr(adoption, step, die)
        adopt(copied.settings)
    if step in {"give_to", "_claim_log"} and (
        step == "give_to" or "buffer" in str(copied.settings)
    ):
        with suppress(SchemaError, CaptureError), HTAP(copied.settings) as htap:
            htap.sync_now()
    assert original.sync() == original.values
    adopt(copied.settings)
    assert copied.sync() == [1]
    live_on(original, copied)


@pytest.mark.long
@pytest.mark.parametrize("storage", [None])
@pytest.mark.parametrize("capture", [LOGICAL], ids=["logical"])
def test_copies_that_an_older_version_adopted_do_not_drop_each_others_slots(
    original: Pipeline, copied: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share an id; the error says so, and the way out gives one of them its own."""
    with monkeypatch.context() as patched:
        patched.setattr(uuid, "uuid4", lambda: _SameId(original.settings))
        adopt(copied.settings)
    original.change(2, 3)
    original.values += [2, 3]
    with HTAP(copied.settings) as htap:
        report = htap.sync_now()
    checked = "".join(map(str, validate(copied.settings)))
    assert all(re.search(IN_USE, told) for told in (str(report.errors["t"]), checked))
    config = copied.settings.registry.path.with_name("pipeline.json")
    config.write_text(_as_written(copied.settings))
    told = CliRunner().invoke(app, ["adopt", "--as-copy", "--config", str(config)])
    assert told.exit_code == 0, told.output
    assert "pg_drop_replication_slot" in told.output
    assert original.sync() == original.values
    assert copied.sync() == [1]
    live_on(original, copied)


class _SameId:
    """The id that a mirror has already."""

    def __init__(self, settings: Settings) -> None:
        self.hex = mirror_id_of(settings.registry.path)


def _as_written(settings: Settings) -> str:
    form = settings.model_dump(mode="json")
    form["source"]["dsn"] = settings.source.dsn.get_secret_value()  # type: ignore[union-attr]
    return str(Settings.model_validate(form).model_dump_json()).replace(
        '"**********"', f'"{form["source"]["dsn"]}"'
    )


@pytest.mark.long
@pytest.mark.parametrize("storage", [None, "parquet", "delta"])
@pytest.mark.parametrize("capture", [TRIGGER, TRIGGER | BUFFERED], ids=["trigger", "buffer"])
def test_copies_that_follow_one_sqlite_file_are_two_readers(
    tmp_path: Path, storage: str | None, capture: dict[str, Any]
) -> None:
    first, second = tmp_path / "original", tmp_path / "copy"
    first.mkdir()
    source = {"path": tmp_path / "app.db"}
    with closing(sqlite3.connect(source["path"], isolation_level=None)) as application:
        for sql in FILLED:
            application.execute(sql.replace("timestamptz", "text"))
        original = Pipeline(
            declared(first, source, capture, storage=storage, name="shop"), application.execute
        )
        assert original.sync() == [1]
        copy(first, second)
        settings = declared(second, source, capture, storage=storage, name="shop")
        adopt(settings, as_copy=True)
        copied = Pipeline(settings, application.execute)
        assert copied.sync() == [1]
        for v in (2, 4):
            original.change(v, v + 1)
            assert copied.sync() == [*range(1, v + 2)]
            assert original.sync() == [*range(1, v + 2)]
        readers = application.execute("select count(distinct mirror) from _rhei_consumer")
        assert readers.fetchone() == (2,)


@pytest.mark.parametrize("how", ["whole", "cut off", "without its buffer"])
def test_a_sync_of_an_adopted_copy_is_asked_for_though_its_original_has_every_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What its buffer noted names the reader that it was: that one is the original now."""
    first, second = tmp_path / "original", tmp_path / "copy"
    first.mkdir()
    source = {"path": tmp_path / "app.db"}
    with closing(sqlite3.connect(source["path"], isolation_level=None)) as application:
        for sql in FILLED:
            application.execute(sql.replace("timestamptz", "text"))
        capture = TRIGGER | BUFFERED
        original = Pipeline(declared(first, source, capture), application.execute)
        original.sync()
        copy(first, second)
        copied = Pipeline(declared(second, source, capture), application.execute)
        if how == "without its buffer":
            shutil.rmtree(second / "cdc")
        if how == "cut off":
            with monkeypatch.context() as patched, pytest.raises(_Died):
                patched.setattr(adoption, "file_of", die)
                adopt(copied.settings, as_copy=True)
        adopt(copied.settings, as_copy=how != "cut off")
        original.change(2)
        assert original.sync() == [1, 2]
        assert unseen_events(original.settings) == 0
        assert unseen_events(copied.settings) is None
        assert copied.sync() == [1, 2]
        assert unseen_events(copied.settings) == 0


@pytest.mark.long
def test_an_adopted_copy_leaves_the_published_copy_of_its_original(tmp_path: Path) -> None:
    """Its declaration was copied with the path of that; the adoption names it."""
    sources = [{"path": tmp_path / f"{name}.db"} for name in ("app", "staging")]
    shared = {"published": {"path": tmp_path / "reading.duckdb", "interval_seconds": 0}}
    for number, source in enumerate(sources):
        with closing(sqlite3.connect(source["path"], isolation_level=None)) as application:
            application.execute(FILLED[0].replace("timestamptz", "text"))
            application.execute(f"insert into t values (1, {number}, '')")
    first, second = tmp_path / "original", tmp_path / "copy"
    first.mkdir()
    settings = declared(first, sources[0], TRIGGER, mirror=shared)
    with HTAP(settings) as htap:
        htap.sync_now()
    copy(first, second)
    copied = declared(second, sources[1], TRIGGER, mirror=shared)
    assert any("published copy" in text for text in adopt(copied).left)
    with HTAP(copied) as htap:
        htap.sync_now()
    assert shown(tmp_path / "reading.duckdb") == "[(0,)]"
    (tmp_path / "reading.duckdb").unlink()
    with HTAP(copied) as htap, closing(sqlite3.connect(sources[1]["path"])) as application:
        application.execute("update t set v = 2")
        application.commit()
        htap.sync_now()
    assert shown(tmp_path / "reading.duckdb") == "[(2,)]"


def shown(published: Path) -> str:
    """Return the rows of a published copy that are valid now, as another process reads them."""
    asked = f"duckdb.connect({str(published)!r}, read_only=True).execute({PRESENT!r})"
    return output_of(f"import duckdb; print({asked}.fetchall())").strip()


PRESENT = "select v from t where _rhei_valid_to is null"
