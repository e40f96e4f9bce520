"""A declaration is read whole, or refused by the field's name."""

from pathlib import Path
from typing import Any

import pytest

from rhei_pipeline.errors import SettingsError
from rhei_pipeline.settings.model import Settings, schema_text
from rhei_pipeline.settings.reading import read_declaration

MINIMAL = "source: {path: app.db}\nmirror: {path: m.duckdb}\n"


def load(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "pipeline.yaml"
    file.write_text(text, "utf-8")
    return Settings.load(file)


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    settings = load(tmp_path, MINIMAL)
    assert settings.tables is None
    assert settings.sync.batch_rows == 50_000
    assert settings.mode == "destructive"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            MINIMAL + "sync: {batchrows: 3}",
            "unknown field 'sync.batchrows'; did you mean 'batch_rows'",
        ),
        (MINIMAL + "sorce: {}", "unknown field 'sorce'; did you mean 'source'"),
        (MINIMAL + "tables: [{nam: t}]", r"unknown field 'tables\[0\].nam'; did you mean 'name'"),
        (MINIMAL + "tables: [{name: t, types: {a: int3}}]", "unknown type 'int3'"),
        ("source: {path: a.db}\nmirror: {path: ./a.db}", "mirror.path: this is source.path, too"),
        (MINIMAL + "tables: [orders]", r"field 'tables\[0\]': it has .* such as {name: ...}"),
        ("source: {path: a}\nmirror: b", "field 'mirror': it has fields of its own, such as {kind"),
        ("source: app.db\nmirror: {path: b}", "field 'source': it has .*, such as {kind: ...}"),
        (MINIMAL + "mode: temporl", "field 'mode': input should be 'destructive' or 'temporal'"),
        (MINIMAL + "sync: {batch_rows: 0}", "field 'sync.batch_rows'"),
        (MINIMAL + "verify: {rows_per_second: .inf}", "'verify.rows_per_second'.*finite"),
        (MINIMAL + "sync: {interval_seconds: .inf}", "'sync.interval_seconds'.*finite"),
        (MINIMAL + "sync: {interval_seconds: 1e10}", "interval_seconds': .* equal to 1000000000$"),
        (MINIMAL + "sync: {batch_rows: 1000000000000000000000}", "batch_rows': .* less than or eq"),
        (MINIMAL + "sync: {batch_rows: yes}", "batch_rows': a number is needed, not yes or no"),
        (MINIMAL + "history: {keep_days: true}", "'history.keep_days': a number is needed"),
        (MINIMAL + "history: {keep_days: 1000000}", "'history.keep_days': .* equal to 365000"),
        (MINIMAL + "queries: {query_seconds: 1e10}", "'queries.query_seconds': .* to 2000000"),
        (
            "source: {path: a, busy_timeout_seconds: 2592000}\nmirror: {path: b}",
            "'source.busy_timeout_seconds': input should be less than or equal to 2000000",
        ),
        (
            "source: {kind: postgres, dsn: a, statement_timeout_seconds: 3e6}\nmirror: {path: b}",
            "'source.statement_timeout_seconds': input should be less than or equal to 2000000",
        ),
        ("source: {path: a, kind: oracle}\nmirror: {path: b}", "field 'source.kind'.*'sqlite'"),
        ("mirror: {path: b}", "field 'source' is missing"),
        ("source: {path: a}\nmirror: {kind: duckdb}", "'path' is missing"),
        ("source: {path: a}\nmirror: {kind: duckbd, path: b}", "'duckdb' or 'datafusion'"),
        (
            "source: {path: a}\nmirror: {kind: datafusion, storage: parket, path: b}",
            "field 'mirror.storage'.*'memory', 'ipc', 'parquet' or 'delta'",
        ),
        ("source: {path: a}\nmirror: {storage: ipc, path: b}", "'storage' is for the kind"),
        (
            "source: {path: a}\nmirror: {kind: datafusion, storage: ipc, path: 's3://b/c'}",
            "an object store holds",
        ),
        (
            "source: {path: a}\nmirror: {kind: datafusion, path: b, delta: {retention_hours: 2}}",
            "'delta' is for the storage 'delta'",
        ),
        (
            "source: {path: a}\nmirror: {kind: datafusion, path: b, published: {path: c}}",
            "'published' is for a DuckDB file",
        ),
        (MINIMAL + "shards: 1", r"^[^:]+: 'shards' are at least 2 and at most 64"),
        (MINIMAL + "shards: 65", r"^[^:]+: 'shards' are at least 2 and at most 64"),
        (MINIMAL + "shards: [a]", r"field 'shards': .*; field 'shards\[0\]': .*valid list"),
        ("source: [", "not YAML in line 1"),
        ("[" * 5000, "nested too deeply"),
        ("name: !!int none", "line 1, column 7 is no valid int"),
        (MINIMAL + "name: !!timestamp foo", "line 3, column 7 is no valid timestamp"),
        (MINIMAL + "name: !!float foo", "line 3, column 7 is no valid float"),
        (MINIMAL + "name: !!bool foo", "line 3, column 7 is no valid bool"),
        (MINIMAL + "name: " + "9" * 5000, "line 3, column 7 is no valid int"),
        (MINIMAL + "tables: !!set foo", "not YAML in line 3, column 9"),
        (MINIMAL + "tables: !!omap foo", "not YAML in line 3, column 9"),
        (MINIMAL + "masking: !!map foo", "not YAML in line 3, column 10"),
        (MINIMAL + "masking: {[a]: b}", "not YAML in line 3, column 11"),
        (MINIMAL + "masking: {<<: 3}", "not YAML in line 3, column 15"),
        (MINIMAL + "masking:\n  <<: {a: 1}\n  <<: {b: 1}", "'<<' is given twice, in lines 4 and 5"),
        (MINIMAL + "tables: &all [*all]", r"field 'tables\[0\]': it has fields of its own"),
        (MINIMAL + 'name: "\\UFFFFFFFF"', "this is not YAML"),
        (MINIMAL + "name: !!python/object:os.getcwd {}", "not YAML in line 3, column 7"),
        (MINIMAL + "source: {path: b.db}", "'source' is given twice, in lines 1 and 3"),
        (MINIMAL + "sync: {prune: true,\n  prune: no}", "'prune' is given twice, in lines 3 and 4"),
        (MINIMAL + "registry: {path: 5}", "field 'registry.path': a path is text"),
        (MINIMAL + "registry: {path: " + "x" * 300 + "}", "'registry.path': no file can have"),
        ('source: {path: a}\nmirror: {path: "m\\0"}', "'mirror.path': no file can have"),
        ("- 1", "a declaration is a YAML mapping"),
        ("", "a declaration is a YAML mapping"),
    ],
)
def test_a_wrong_declaration_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(tmp_path, text)


def test_a_date_that_there_is_none_of_is_named_and_written_as_text(tmp_path: Path) -> None:
    named = r"line 3, column 17 is no valid timestamp.*write it in quotes"
    with pytest.raises(SettingsError, match=named):
        load(tmp_path, MINIMAL + "tables: [{name: 2024-13-01}]")
    tables = load(tmp_path, MINIMAL + "tables: [{name: '2024-13-01'}]").tables or []
    assert [table.name for table in tables] == ["2024-13-01"]


@pytest.mark.parametrize(
    ("wrong", "place", "way_out", "right"),
    [
        (
            "masking:\n\tkey: a",
            "line 4, column 1",
            "indent with spaces, not with tabs",
            "tables:\n  - name: a",
        ),
        (
            "name: *secret",
            "line 3, column 7",
            "write a value that starts with '*' in quotes",
            "name: '*secret'",
        ),
        (
            "name: !secret",
            "line 3, column 7",
            "write a value that starts with '!' or '=' in quotes",
            "name: '!secret'",
        ),
        (
            "name: =",
            "line 3, column 7",
            "write a value that starts with '!' or '=' in quotes",
            "name: '='",
        ),
        (
            "---\nname: secret",
            "line 3, column 1",
            "keep one document, without '---' between its sections",
            "name: secret",
        ),
        (
            "name: a: secret",
            "line 3, column 8",
            "write a value that holds ': ' in quotes",
            "name: 'a: secret'",
        ),
        (
            r'name: "a\secret"',
            "line 3, column 10",
            "write a value that holds a backslash in single quotes",
            r"name: 'a\secret'",
        ),
        (
            "name: a\x07secret",
            "line 3",
            "remove it, or write it in double quotes as an escape, such as \\x07",
            r'name: "a\x07secret"',
        ),
    ],
)
def test_what_yaml_does_not_take_is_named_without_its_value(
    tmp_path: Path, wrong: str, place: str, way_out: str, right: str
) -> None:
    with pytest.raises(SettingsError) as told:
        load(tmp_path, MINIMAL + wrong)
    assert told.value.hint == way_out
    assert f"in {place}" in told.value.message
    assert "secret" not in str(told.value)
    file = tmp_path / "pipeline.yaml"
    file.write_text(MINIMAL + right, "utf-8")
    assert read_declaration(file).keys() > {"source", "mirror"}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_a_declaration_that_is_no_utf_8_is_saved_as_such(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(MINIMAL + "name: caf\xe9", encoding)
    with pytest.raises(SettingsError, match=r"not UTF-8 text in line [13] .*UTF-8"):
        Settings.load(file)
    file.write_text("\ufeff" + MINIMAL + "name: caf\xe9", "utf-8")
    assert Settings.load(file).name == "caf\xe9"


def test_a_mirror_in_an_object_store_keeps_its_url(tmp_path: Path) -> None:
    place = "{kind: datafusion, path: 's3://bucket/some/mirror'}"
    settings = load(tmp_path, f"source: {{path: app.db}}\nmirror: {place}\n")
    assert settings.mirror.url == "s3://bucket/some/mirror"
    assert settings.mirror.uri == "s3://bucket/some/mirror"
    settings = load(tmp_path, "source: {path: a}\nmirror: {kind: datafusion, storage: memory}\n")
    assert settings.mirror.in_memory


def test_there_are_as_many_pipelines_as_shards(tmp_path: Path) -> None:
    assert len(load(tmp_path, MINIMAL + "shards: 64").pipelines()) == 64
    two = load(tmp_path, MINIMAL + "shards: 2")
    first, second = two.pipelines()
    assert (first.shard, second.shard) == (1, 2)
    assert second.pipelines() == [second]
    for none in (0, 3):
        with pytest.raises(SettingsError, match=f"no shard {none}.*from 1 to 2"):
            two.of_shard(none)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml.*No such file"):
        Settings.load(tmp_path / "nowhere.yaml")


def test_the_environment_stands_above_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RHEI__SYNC__BATCH_ROWS", "7")
    monkeypatch.setenv("RHEI__SOURCE__PATH", "/elsewhere/x.db")
    settings = load(tmp_path, MINIMAL + "sync: {prune: false}")
    assert settings.sync.batch_rows == 7
    assert settings.sync.prune is False
    assert settings.sqlite_path == Path("/elsewhere/x.db")


@pytest.mark.parametrize("variable", ["RHEI__SYNC__BATCH_ROWS", "rhei__sync__batch_rows"])
def test_one_variable_in_any_case_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "7")
    assert load(tmp_path, MINIMAL).sync.batch_rows == 7


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("RHEI__SYNK__BATCH_ROWS", "unknown section 'synk'.*did you mean 'sync'"),
        (
            "RHEI__SYNC__BATCH_ROW",
            "environment variable RHEI__SYNC__BATCH_ROW; did you mean 'RHEI__SYNC__BATCH_ROWS'",
        ),
    ],
)
def test_an_unknown_variable_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, message: str
) -> None:
    monkeypatch.setenv(variable, "7")
    with pytest.raises(SettingsError, match=message):
        load(tmp_path, MINIMAL)


def test_a_value_never_shows_in_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RHEI__SYNC__BATCH_ROWS", "hunter2")
    with pytest.raises(SettingsError) as error:
        load(tmp_path, MINIMAL)
    assert "hunter2" not in str(error.value)


def test_relative_paths_are_taken_from_the_project(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL).sqlite_path == tmp_path / "app.db"
    (tmp_path / "config").mkdir()
    assert load(tmp_path / "config", MINIMAL).sqlite_path == tmp_path / "app.db"
    assert (
        str(load(tmp_path, "source: {path: a}\nmirror: {path: ':memory:'}").mirror.path)
        == ":memory:"
    )


def test_the_schema_for_editors_is_current() -> None:
    kept = Path(__file__).parents[2] / "config" / "pipeline.schema.json"
    assert kept.read_text("utf-8") == schema_text(), "run 'make schema'"


def test_only_the_log_of_postgres_can_be_streamed() -> None:
    with pytest.raises(SettingsError, match=r"capture\.streaming.*only PostgreSQL's log"):
        Settings(source={"path": "app.db"}, mirror={"path": "m"}, capture={"streaming": True})


@pytest.mark.parametrize(
    ("section", "fields", "named"),
    [
        ("capture", {"method": "logical"}, "does not suit a sqlite source"),
        ("sync", {"batch_rows": -5}, "sync.batch_rows"),
        ("sync", {"batch_row": 5}, "batch_rows"),
        ("source", {"kind": "postgres", "path": "other.db"}, "source.kind"),
        ("mirror", {"kind": "duckdb", "storage": "parquet"}, "storage"),
    ],
)
def test_fields_replaced_later_are_validated_as_those_declared(
    section: str, fields: dict[str, Any], named: str
) -> None:
    settings = Settings(source={"path": "a.db"}, mirror={"path": "m.duckdb"})
    with pytest.raises(SettingsError, match=named):
        settings.with_fields({section: fields})


def test_fields_replaced_later_stand_above_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHEI__SYNC__BATCH_ROWS", "7")
    settings = Settings(source={"path": "a.db"}, mirror={"path": "m.duckdb"})
    assert settings.sync.batch_rows == 7
    changed = settings.with_fields({"sync": {"batch_rows": 9}, "capture": {"method": "polling"}})
    assert (changed.sync.batch_rows, changed.capture_method) == (9, "polling")
    assert changed.sync.prune is settings.sync.prune
