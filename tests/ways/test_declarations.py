"""A declaration that is refused, and the same one changed as the refusal says."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rhei_pipeline import Settings
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import SettingsError
from tests.support.fix_world import World
from tests.support.refusals import filled_in, refused

SOURCE: dict[str, Any] = {"path": "app.db"}
MIRROR: dict[str, Any] = {"path": "mirror.duckdb"}
POLLED = {"capture": {"method": "polling"}}
BUFFERED = {"method": "polling", "buffer": {"path": "cdc"}}
POSTGRES = {"kind": "postgres", "dsn": "postgresql://shop"}


def _of_types(**types: str) -> dict[str, Any]:
    return {"tables": [{"name": "t", "types": types}]}


#: The way out; what is declared and refused; what is declared instead.
WALKS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "use disabled, reconcile or soft_delete:<column>",
        {**POLLED, "tables": [{"name": "t", "polling": {"deletes": "soft"}}]},
        {**POLLED, "tables": [{"name": "t", "polling": {"deletes": "soft_delete:gone"}}]},
    ),
    (
        "masking.key: the mask 'hash' needs a key; set the environment variable {}MASKING__KEY",
        {"tables": [{"name": "t", "mask": {"v": "hash"}}]},
        {
            "tables": [{"name": "t", "mask": {"v": "hash"}}],
            "masking": {"key": "sixteen letters!"},
        },
    ),
    (
        "{}: this is {}, too: give each a path of its own",
        {"mirror": SOURCE},
        {"mirror": MIRROR},
    ),
    ("use one of: {}", _of_types(v="strnig"), _of_types(v="string")),
    ("use one of: {}", _of_types(v="number"), _of_types(v="decimal(9,2)")),
    (
        "use at most {} digits, and a scale within them",
        _of_types(v="decimal(39,2)"),
        _of_types(v="decimal(38,2)"),
    ),
    ("did you mean {}?", {"mirrors": MIRROR}, {"mirror": MIRROR}),
    (
        "known are: {}",
        {"source": {**SOURCE, "zzz": 1}},
        {"source": {**SOURCE, "read_pool": 1}},
    ),
    (
        "capture.method {} does not suit a {} source: use {}",
        {"capture": {"method": "logical"}},
        {"capture": {"method": "trigger"}},
    ),
    (
        "capture.streaming needs the method 'logical': only PostgreSQL's log can be streamed",
        {"source": POSTGRES, "capture": {"method": "trigger", "streaming": True}},
        {"source": POSTGRES, "capture": {"method": "logical", "streaming": True}},
    ),
    (
        "capture.publication needs the method 'logical': only PostgreSQL's log has publications",
        {"source": POSTGRES, "capture": {"method": "polling", "publication": "p"}},
        {"source": POSTGRES, "capture": {"method": "logical", "publication": "p"}},
    ),
    (
        "'local' needs a source that is polled: use 'capture: {method: polling}', or leave it out",
        {"local": {"path": "local.db"}},
        {"local": {"path": "local.db"}, **POLLED},
    ),
    (
        "'capture' does not suit a log, to which events are appended: leave out its method and its"
        " buffer",
        {"source": {"kind": "log", "path": "log"}, "capture": BUFFERED},
        {"source": {"kind": "log", "path": "log"}},
    ),
    (
        "source.create: a polled source is only read: use 'capture: {method: trigger}', or create"
        " the file with its application",
        {"source": {**SOURCE, "create": True}, **POLLED},
        {"source": {**SOURCE, "create": True}, "capture": {"method": "trigger"}},
    ),
    (
        "capture.buffer: table {} needs whole comparisons with the mirror, which a buffer cannot"
        " hold: use 'clock: database' and no 'reconcile', or no buffer",
        {"capture": BUFFERED, "tables": [{"name": "t"}]},
        {
            "capture": BUFFERED,
            "tables": [{"name": "t", "polling": {"clock": "database"}}],
        },
    ),
    (
        "an object store holds a 'datafusion' mirror with storage 'parquet' or 'delta'",
        {"mirror": {"path": "s3://bucket/mirror"}},
        {"mirror": {"kind": "datafusion", "path": "s3://bucket/mirror", "storage": "parquet"}},
    ),
    (
        "'delta' is for the storage 'delta'",
        {"mirror": {"kind": "datafusion", "path": "m", "storage": "parquet", "delta": {}}},
        {"mirror": {"kind": "datafusion", "path": "m", "storage": "delta", "delta": {}}},
    ),
    (
        "'storage' is for the kind 'datafusion'",
        {"mirror": {"path": "m", "storage": "ipc"}},
        {"mirror": {"kind": "datafusion", "path": "m", "storage": "ipc"}},
    ),
    (
        "'published' is for a DuckDB file; others are read as they are",
        {"mirror": {"kind": "datafusion", "path": "m", "published": {"path": "p"}}},
        {"mirror": {"kind": "datafusion", "path": "m"}},
    ),
    (
        "'published' needs a path of its own, beside the mirror's",
        {"mirror": {**MIRROR, "published": MIRROR}},
        {"mirror": {**MIRROR, "published": {"path": "published.duckdb"}}},
    ),
    (
        "unknown time zone {}: use a name such as 'Europe/Berlin' or 'UTC'",
        {"schedule": {"time_zone": "Berlin"}},
        {"schedule": {"time_zone": "Europe/Berlin"}},
    ),
    (
        "{} is no window of a day or longer: give minute and hour as numbers and three more fields,"
        " such as '0 0 * * *'; of other instants, ask 'rhei as-of'",
        {"schedule": {"snapshot_window": "* * * * *"}},
        {"schedule": {"snapshot_window": "0 0 * * *"}},
    ),
    ("'path' is missing", {"mirror": {"kind": "duckdb"}}, {"mirror": {"path": ":memory:"}}),
    (
        "storage {} needs a directory as its 'path'",
        {"mirror": {"kind": "datafusion", "path": ":memory:", "storage": "ipc"}},
        {"mirror": {"kind": "datafusion", "path": "mirror", "storage": "ipc"}},
    ),
    ("'shards' are at least {} and at most {}, or left out", {"shards": 1}, {"shards": 2}),
    (
        "'shards' names {} in shard {}, and shard {} takes it: name it in one of them alone",
        {"shards": [["a"], ["b", "A"]]},
        {"shards": [["a"], ["b"]]},
    ),
    (
        "'shards' names {} in shard {}, and shard {} takes it: name it in one of them alone",
        {"shards": [["a_*"], ["*_b", "a_b"]]},
        {"shards": [["a_*"], ["*_b"]]},
    ),
    (
        "'shards' does not suit a log, which one process opens: leave it out",
        {"source": {"kind": "log", "path": "log"}, "shards": 2},
        {"source": {"kind": "log", "path": "log"}},
    ),
    (
        "'shards' needs a 'mirror.path' in which each has a place of its own",
        {"mirror": {"path": ":memory:"}, "shards": 2},
        {"mirror": {"path": "m.duckdb"}, "shards": 2},
    ),
]


@pytest.mark.parametrize(("way_out", "wrong", "mended"), WALKS)
def test_a_declaration_is_mended_as_its_refusal_says(
    way_out: str, wrong: Mapping[str, Any], mended: Mapping[str, Any]
) -> None:
    whole = {"source": SOURCE, "mirror": MIRROR}
    with refused(way_out, SettingsError) as met:
        Settings(**{**whole, **wrong})
    if "use one of" in way_out:
        assert "decimal(p,s)" in met.told[-1]
        assert "string" in met.told[-1]
    if way_out.endswith("use {}"):
        assert repr(mended["capture"]["method"]) in met.told[-1]
    Settings(**{**whole, **mended})


def test_a_list_in_the_environment_is_written_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    way_out = "lists and mappings are written as JSON"
    for variable, wrong, mended in (
        ("RHEI__TABLES", "- name: t", '[{"name": "t"}]'),
        ("RHEI__CAPTURE", "method: trigger", '{"method": "trigger"}'),
        ("RHEI__QUERIES__FUNCTIONS", "f", '["f"]'),
    ):
        monkeypatch.setenv(variable, wrong)
        with refused(way_out, SettingsError):
            Settings(source=SOURCE, mirror=MIRROR)
        monkeypatch.setenv(variable, mended)
        Settings(source=SOURCE, mirror=MIRROR)
    found = Settings(source=SOURCE, mirror=MIRROR)
    assert [table.name for table in found.tables or ()] == ["t"]
    assert found.queries.functions == ["f"]


def test_a_variable_of_no_section_names_the_nearest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHEI__MIROR__PATH", "other.duckdb")
    with refused("did you mean {}?", SettingsError) as met:
        Settings(source=SOURCE, mirror=MIRROR)
    monkeypatch.delenv("RHEI__MIROR__PATH")
    monkeypatch.setenv(f"RHEI__{met.told[0].strip(chr(39)).upper()}__PATH", "other.duckdb")
    assert str(Settings(source=SOURCE, mirror=MIRROR).mirror.path) == "other.duckdb"


def _rhei(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, list(arguments), prog_name="rhei")
    return found.exit_code, f"{found.output} {found.exception or ''}"


def test_a_source_without_a_key_gets_one_before_its_first_declaration(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    world = make_world()
    world.run("create table t(id integer, v text)", "insert into t values (1, 'a')")
    config = str(tmp_path / "first.yaml")
    code, told = _rhei("init", str(world.path), "--output", config)
    assert code == 1
    assert filled_in("add a primary key to a table that it has{}", told)[0].startswith("; t: ")
    world.run("alter table t rename to former", "create table t(id integer primary key, v text)")
    world.run("insert into t select * from former", "drop table former")
    assert _rhei("init", str(world.path), "--output", config)[0] == 0
    assert _rhei("sync", "--config", config)[0] == 0


def test_a_declaration_that_is_not_there_is_made_by_init(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, told = _rhei("sync")
    assert code == 1
    filled_in("give its path with --config, or create one with 'rhei init'", told)
    assert _rhei("init", str(world.path))[0] == 0
    assert _rhei("sync")[0] == 0
    Path("config/pipeline.yaml").replace("elsewhere.yaml")
    assert _rhei("sync", "--config", "elsewhere.yaml")[0] == 0
    code, told = _rhei("init", str(world.path), "--output", "elsewhere.yaml")
    assert code == 2
    filled_in("{} exists: --force overwrites it", " ".join(told.replace("│", " ").split()))
    assert _rhei("init", str(world.path), "--output", "elsewhere.yaml", "--force")[0] == 0
    assert _rhei("sync", "--config", "elsewhere.yaml")[0] == 0
