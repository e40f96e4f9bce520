"""A log of an application's own events as the source: events in, mirror out, no database."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import rhei_pipeline as rhei
from rhei_pipeline import ChangeLog, Settings
from rhei_pipeline.errors import PositionLostError, QueryError, SchemaError
from rhei_pipeline.protocols import Step
from rhei_pipeline.testing.faults import Crash, CrashAt
from tests.support.other_process import copy
from tests.support.refusals import filled_in, refused
from tests.support.refusals import rhei as command

KEPT = {"name": "kept", "mode": "temporal"}
PLAIN = {"name": "plain"}
SHAPE = {"types": {"id": "int64", "v": "string", "n": "int32"}, "primary_key": ["id"]}


def at(second: int) -> datetime:
    return datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)


def events(*rows: tuple[int, str | None, int], live: bool = True) -> pa.Table:
    """Return events of the keys with these values, made at these seconds."""
    keys, values, seconds = zip(*rows, strict=True)
    made = {"id": keys, "v": values, "_rhei_changed_at": [at(second) for second in seconds]}
    return pa.table({**made, "_rhei_live": [live] * len(rows)})


@pytest.fixture
def declared(tmp_path: Path) -> Callable[..., Settings]:
    """Declare the log's tables for a mirror of some name."""

    def make(mirror: str = "mirror", *tables: dict[str, Any], **more: Any) -> Settings:
        return Settings(
            source={"kind": "log", "path": tmp_path / "log"},
            mirror={"path": tmp_path / f"{mirror}.duckdb", "lock_timeout_seconds": 0.5},
            registry={"path": tmp_path / f"{mirror}.json"},
            tables=list(tables) or [{**KEPT, **SHAPE}, {**PLAIN, **SHAPE}],
            **more,
        )

    return make


def rows(htap: rhei.HTAP, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in htap.query(sql).to_pylist()]


VERSIONS = "select id, v, _rhei_operation from kept order by id, _rhei_valid_from"
PRESENT = "select id, v from plain order by id"


def test_events_become_rows_and_all_their_history(
    declared: Callable[..., Settings], tmp_path: Path
) -> None:
    with ChangeLog(tmp_path / "log") as log:
        for stream in ("kept", "plain"):
            log.append(events((1, "a", 1), (2, "b", 2)), stream=stream)
            log.append(events((1, "c", 3)), stream=stream)
            log.append(events((2, None, 4), live=False), stream=stream)
    settings = declared()
    assert rhei.validate(settings) == []
    with rhei.open(settings) as htap:
        htap.sync_now()
        assert rows(htap, VERSIONS) == [(1, "a", "I"), (1, "c", "U"), (2, "b", "D")]
        assert rows(htap, PRESENT) == [(1, "c")]
        # The history begins with the first event, not with the first sync.
        assert htap.known_since("kept") == at(1)
        assert htap.as_of("kept", at(2))["v"].to_pylist() == ["a", "b"]
        assert htap.append("plain", events((3, "d", 5))) == 1
        assert rows(htap, "select count(*) from plain") == [(1,)]
        assert htap.sync_status().tables["plain"].lag_events == 1
        assert htap.sync_now().tables["plain"].inserted == 1
        assert htap.verify().equal
        assert htap.initial_sync("kept").inserted == 0
        assert rows(htap, VERSIONS) == [(1, "a", "I"), (1, "c", "U"), (2, "b", "D")]
    assert rhei.unseen_events(settings) == 0
    with rhei.open(declared("other")) as htap:
        htap.sync_now()
        assert rows(htap, VERSIONS) == [(1, "a", "I"), (1, "c", "U"), (2, "b", "D")]
        assert rows(htap, PRESENT) == [(1, "c"), (3, "d")]


def test_a_mirror_killed_at_any_step_has_each_event_once(
    declared: Callable[..., Settings],
) -> None:
    settings, faults = declared(), CrashAt()
    steps = [Step.CAPTURED, Step.APPLIED, Step.RECORDED, Step.COMMITTED, Step.ACKNOWLEDGED]
    for number, step in enumerate(steps):
        with rhei.open(settings) as htap:
            for table in ("kept", "plain"):
                htap.append(table, events((1, f"v{number}", number), (number + 2, "new", number)))
        with pytest.raises(Crash), rhei.HTAP(settings, on_step=faults) as htap:
            faults.arm(step)
            htap.sync_now()
        if number == 0:  # the first sync was cut off while it replayed
            with rhei.open(settings) as htap:
                htap.sync_now()
    with rhei.open(settings) as htap:
        htap.sync_now()
        present = [(1, "v4"), *((number + 2, "new") for number in range(5))]
        assert rows(htap, PRESENT) == present
        history = rows(htap, "select v from kept where id = 1 order by _rhei_valid_from")
        assert history == [(f"v{number}",) for number in range(5)]
        assert htap.verify().equal


@pytest.mark.long
def test_what_does_not_fit_is_a_dead_letter_until_an_event_fits(
    declared: Callable[..., Settings],
) -> None:
    with rhei.open(declared()) as htap:
        htap.append("plain", pa.table({"id": [1, 2, None], "n": ["5", "many", "7"]}))
        assert htap.sync_now().dead_letters == 2
        assert rows(htap, "select id, n from plain") == [(1, 5)]
        found = htap.verify().tables["plain"]
        assert (found.missing, found.extra, found.dead_letters) == (0, 0, 2)
        htap.append("plain", pa.table({"id": [2], "n": [6]}))
        htap.sync_now()
        assert rows(htap, "select id, n from plain order by id") == [(1, 5), (2, 6)]
        assert htap.dead_letters()["column_name"].to_pylist() == ["id"]
        htap.append("kept", pa.table({"id": [1], "strange": [1]}))
        assert htap.sync_now().errors.keys() == {"kept"}
        with refused("declare its type under 'types'; {}", SchemaError):
            htap.initial_sync("kept")
    shape = {**SHAPE, "types": {**SHAPE["types"], "strange": "int64"}}  # type: ignore[dict-item]
    with rhei.open(declared("mirror", {**KEPT, **shape}, {**PLAIN, **SHAPE})) as htap:
        assert not htap.sync_now().errors
        assert rows(htap, "select id, strange from kept") == [(1, 1)]


FAR = 2**62
#: What an event may say of itself that is none, and the values that it has then.
WRONG = {
    "_rhei_changed_at": (
        pa.array([FAR]).cast(pa.timestamp("us", "UTC")),
        pa.array([-FAR]).cast(pa.timestamp("us", "UTC")),
        pa.array(["Hunter2000"]),
        pa.array([[1]]),
        pa.array([1.5]),
    ),
    "_rhei_live": (pa.array(["Hunter2000"]), pa.array([[True]])),
}


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_what_an_event_says_of_itself_and_does_not_fit_is_a_dead_letter(
    declared: Callable[..., Settings], tmp_path: Path, storage: str | None
) -> None:
    """A log only grows: one such event would leave its table out for good."""
    files = {"kind": "datafusion", "storage": storage, "path": tmp_path / "files"}
    settings = declared()
    if storage:
        settings = Settings(**{**settings.model_dump(), "mirror": files})
    wrong = [(name, values) for name, each in WRONG.items() for values in each]
    with rhei.open(settings) as htap:
        for stream in ("kept", "plain"):
            for key, (name, values) in enumerate(wrong):
                htap.append(stream, pa.table({"id": [key], "v": ["x"]}))
                htap.append(stream, pa.table({"id": [key], "v": ["y"], name: values}))
        # The end of a row has no values, but a time.
        gone = {"id": [0], "_rhei_live": [False], "_rhei_changed_at": ["Hunter2000"]}
        htap.append("plain", pa.table(gone))
        report = htap.sync_now()
        assert not report.errors
        letters = htap.dead_letters().to_pylist()
        assert "Hunter" not in str(letters)
        expected = {
            (s, key, name) for s in ("kept", "plain") for key, (name, _) in enumerate(wrong)
        }
        assert {
            (each["table_name"], int(each["key"][7:-1]), each["column_name"]) for each in letters
        } == expected
        assert rows(htap, "select id, v from plain order by id") == [
            (key, "x") for key in range(len(wrong))
        ]
        for stream in ("kept", "plain"):
            htap.append(stream, pa.table({"id": list(range(len(wrong))), "v": ["z"] * len(wrong)}))
        htap.sync_now()
        assert htap.dead_letters().num_rows == 0
        assert htap.verify().equal


def test_the_instants_of_finer_clocks_are_cut_to_microseconds(
    declared: Callable[..., Settings],
) -> None:
    fine = pa.array([1_767_225_600_000_001_999]).cast(pa.timestamp("ns", "UTC"))
    with rhei.open(declared()) as htap:
        htap.append("kept", pa.table({"id": [1], "_rhei_changed_at": fine}))
        htap.sync_now()
        assert htap.known_since("kept") == at(0).replace(microsecond=1)


@pytest.mark.parametrize("name", ["id", "v", "_rhei_changed_at", "_rhei_live", "_rhei_sequence"])
def test_a_column_that_an_event_has_twice_is_refused(
    declared: Callable[..., Settings], name: str
) -> None:
    """The last one was taken, without a word."""
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([7]), pa.array([8])], ["id", name, name])
    way_out = "name each column of the events once, and append them again"
    with rhei.open(declared()) as htap:
        with refused(way_out, SchemaError):
            htap.append("plain", twice)
        htap.append("plain", pa.table({"id": [1], "v": ["a"]}))
        htap.sync_now()
        assert rows(htap, PRESENT) == [(1, "a")]


def test_what_a_log_cannot_do_is_refused(declared: Callable[..., Settings], tmp_path: Path) -> None:
    way_out = "query the mirror; write with 'append'"
    with rhei.open(declared()) as htap:
        htap.append("plain", events((1, "a", 1)))
        htap.sync_now()
        for ask in (
            lambda: htap.execute("delete from plain"),
            lambda: htap.execute_returning("delete from plain returning id"),
            lambda: htap.query("select 1", hint="oltp"),
            lambda: htap.drop_column("plain", "v"),
        ):
            with refused(way_out, QueryError):
                ask()
        assert rows(htap, PRESENT) == [(1, "a")]
    way_out = (
        "declare each column under 'types', such as 'types: {id: int64, v: string}', and"
        " 'primary_key: [id]'"
    )
    for half in ({}, {"types": {"id": "int64"}}, {"types": {"v": "string"}, "primary_key": ["id"]}):
        settings = declared("half", {"name": "plain", **half})
        assert way_out in [found.remedy for found in rhei.validate(settings)]
        with rhei.open(settings) as htap:
            filled_in(way_out, htap.sync_now().errors["plain"])
    database = Settings(
        source={"path": tmp_path / "a.db", "create": True}, mirror={"path": ":memory:"}
    )
    way_out = "write with 'execute', or declare 'source: {kind: log, path: ...}'"
    with rhei.open(database) as htap, refused(way_out, QueryError):
        htap.append("t", events((1, "a", 1)))


def test_a_log_that_lost_events_is_named(declared: Callable[..., Settings], tmp_path: Path) -> None:
    settings = declared("mirror", {**PLAIN, **SHAPE})
    with rhei.open(settings) as htap:
        for number in range(4):
            htap.append("plain", events((number, "a", number)))
        htap.sync_now()
    with ChangeLog(tmp_path / "log") as log:
        log.prune(2, stream="plain")
    way_out = (
        "put the log back from a backup; or append all rows that are there now again, to a log of"
        " another path"
    )
    with rhei.open(settings) as htap:
        htap.append("plain", events((1, "b", 9)))
        assert htap.sync_now().tables["plain"].updated == 1  # what it has is enough
    with (
        rhei.open(declared("new", {**PLAIN, **SHAPE})) as htap,
        refused(way_out, PositionLostError),
    ):
        htap.sync_now()


@pytest.mark.long
def test_an_older_log_is_not_taken_for_the_one_that_was_read(
    declared: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = declared("mirror", {**PLAIN, **SHAPE})
    with rhei.open(settings) as htap:
        htap.append("plain", events((1, "a", 1)))
    copy(tmp_path / "log", tmp_path / "older")
    with rhei.open(settings) as htap:
        htap.append("plain", events((1, "b", 2)))
        htap.sync_now()
    shutil.rmtree(tmp_path / "log")
    (tmp_path / "older").rename(tmp_path / "log")
    with rhei.open(settings) as htap:
        way_out = "put the newer log back, or start again: 'rhei drop-table {}'"
        filled_in(way_out, htap.sync_now().errors["plain"])
        assert rows(htap, PRESENT) == [(1, "b")]
    command(settings, tmp_path, "drop-table", "plain")
    with rhei.open(settings) as htap:
        htap.sync_now()
        assert rows(htap, PRESENT) == [(1, "a")]
