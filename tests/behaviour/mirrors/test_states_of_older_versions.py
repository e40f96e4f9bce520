"""State that version 0.1 wrote is opened by this version, with every row, version and dead letter.

The files under tests/stored/0.1 were written by that version: see tests/stored/write_states.py.
"""

import json
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhei_pipeline import HTAP, ChangeLog, MirrorError, Settings, unseen_events
from rhei_pipeline.testing.oracle import arrow_rows
from tests.stored.write_states import KINDS, answers, settings
from tests.support.model import source_rows

STATES = Path(__file__).parents[2] / "stored" / "0.1"
#: The application's writes that the older version never saw; polling sees no deleted row.
PENDING = {"polled": 3}
#: What a sync copies: nothing, but the rest of a copy that was cut off after two rows.
COPIED = {"readings": 0, "items": 0, "late": 3}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def declared(kind: str, tmp_path: Path) -> Settings:
    with tarfile.open(STATES / f"{kind}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return settings(tmp_path / kind, KINDS[kind], late=True)


@pytest.fixture
def source(declared: Settings) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(Path(declared.registry.path).parent / "app.db")
    yield connection
    connection.close()


def test_all_that_an_older_version_stored_is_there_and_goes_on(
    kind: str, declared: Settings, source: sqlite3.Connection
) -> None:
    kept = json.loads((Path(declared.registry.path).parent / "answers.json").read_text())
    assert kept["letters"]
    assert unseen_events(declared) == PENDING.get(kind, 4)
    with HTAP(declared) as htap:
        assert answers(htap) == kept
        report = htap.sync_now()
        assert not [table.error for table in report.tables.values() if table.error]
        if kind not in {"polled", "buffered"}:
            assert {name: table.copied_rows for name, table in report.tables.items()} == COPIED
        now = answers(htap)
        assert now["letters"] == []
        assert_past_is_kept(kept["readings"], now["readings"])
        assert_equal(htap, source)
        assert htap.verify().equal
    assert_is_owned(declared, source)
    if declared.capture.buffer:
        with ChangeLog(declared.capture.buffer.path) as log:
            assert log.fact("format") == b"1"
    with HTAP(declared) as htap:
        assert answers(htap) == now


def assert_past_is_kept(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> None:
    """Every version that had ended is as it was; one that was open may have ended since."""
    unknown = {"_rhei_valid_to": None, "_rhei_operation": None}
    for version in before:
        end = {} if version["_rhei_valid_to"] else unknown
        assert {**version, **end} in [{**later, **end} for later in now]
    assert len(now) == len(before) + 1


def assert_equal(htap: HTAP, source: sqlite3.Connection) -> None:
    for table in COPIED:
        where = "_rhei_valid_to is null" if table == "readings" else "true"
        names = [f'"{name}"' for _, name, *_ in source.execute(f"pragma table_info({table})")]
        sql = f"select {', '.join(names)} from {table} where {where}"
        assert arrow_rows(htap.query(sql, hint="olap")) == source_rows(source, table), table


def assert_is_owned(declared: Settings, source: sqlite3.Connection) -> None:
    """The older version recorded no owner; the one who syncs first is it."""
    other = Path(declared.registry.path).parent / "other.db"
    source.execute("vacuum into ?", (str(other),))
    form = declared.model_dump()
    with pytest.raises(MirrorError, match="belongs to another source"):
        HTAP(Settings(**{**form, "source": {**form["source"], "path": other}}))
