"""Mirrors, sources and what is beside them in places whose names mean something to an engine."""

from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from functools import reduce
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from rocksdict import Options, Rdict

import rhei_pipeline as rhei
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.buffer.log import ChangeLog
from rhei_pipeline.errors import (
    BufferDamagedError,
    MirrorError,
    RheiError,
    SchemaError,
    SettingsError,
)
from rhei_pipeline.mirrors.datafusion import object_store
from rhei_pipeline.mirrors.datafusion.reader import MirrorReader
from rhei_pipeline.wiring.adoption import validate_owner
from tests.support.fix_object_store import Store
from tests.support.fix_world import World

#: Each means something to a shell, a URL, SQL, a pattern of files, or a connection string.
NAMES = (
    *("a b", "it's", 'do"uble', "ha#sh", "per%20cent", "per%cent", "que?stion", "st*ar", "[[x]]"),
    *("br[ac]ket", "br{ac}e", "\u00fcn\u00efcode", "e\u0301", "-dash", "semi;colon", "co:lon"),
    *("$dollar", "~", "comma,name", "a&b=c", "plus+sign", "dot.", ".hidden", "x'; select 1; --"),
    *("\N{GRINNING FACE}", "back\\slash", "new\nline", "tab\tname"),
)
#: Those that a mirror cannot have in its path: a DuckDB file, a directory, one in a store.
NOT_IN_DUCKDB = {"que?stion", "back\\slash"}
NOT_IN_DIRECTORY = {"new\nline", "tab\tname"}
NOT_IN_STORE = NOT_IN_DUCKDB | NOT_IN_DIRECTORY
NOT_IN_STORE |= {"ha#sh", "per%20cent", "per%cent", "[[x]]", "br[ac]ket"}


def within_all(place: Path, unfit: set[str]) -> Path:
    """Return a directory within directories of all names but a few."""
    return reduce(Path.joinpath, (name for name in NAMES if name not in unfit), place)


def see_that_it_is_kept(world: World) -> None:
    for number in range(11):  # ten commits leave a checkpoint of a Delta table
        world.run(f"update t set v = '{number}' where id = 1")
        world.htap.sync_now()
    world.htap.maintain()
    world.assert_equal("t")
    world.crash()
    world.assert_equal("t")
    world.crash()


@pytest.mark.parametrize("storage", [None, "parquet", "ipc", "delta"])
def test_everything_is_in_a_place_of_any_name(tmp_path: Path, storage: str | None) -> None:
    place = within_all(tmp_path, NOT_IN_DIRECTORY if storage else NOT_IN_DUCKDB)
    world = World(
        place,
        mode="temporal",
        buffered=True,
        storage=storage,
        delta={"interval_seconds": 0} if storage == "delta" else None,
        published=None if storage else {"path": place / "copy", "interval_seconds": 0},
    )
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    see_that_it_is_kept(world)
    world.app.close()


@pytest.mark.long
def test_a_store_s_path_has_any_name_in_it(tmp_path: Path, bucket: Store) -> None:
    world = World(tmp_path, mode="temporal", storage="delta", delta={"interval_seconds": 0})
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    names = "/".join(name for name in NAMES if name not in NOT_IN_STORE)
    form = world.settings.model_dump()
    form["mirror"] |= {
        "path": f"{bucket.scheme}://{bucket.bucket}/{names}",
        "object_store": bucket.settings | bucket.keys,
    }
    with HTAP(Settings(**form)) as htap:
        for number in range(11):
            world.run(f"update t set v = '{number}' where id = 1")
            htap.sync_now()
        htap.maintain()
        assert htap.verify().equal
    with HTAP(Settings(**form)) as htap:
        assert htap.verify().equal
        found = htap.query("select v from t where _rhei_valid_to is null", hint="olap")
        assert found["v"].to_pylist() == ["10"]
    world.app.close()


@pytest.mark.long
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_url_in_a_store_is_read_as_it_is_meant_or_refused(tmp_path: Path, bucket: Store) -> None:
    world = World(tmp_path, storage="parquet")
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    root = f"s3://{bucket.bucket}"
    form = world.settings.model_dump()
    form["mirror"] |= {"path": f"{root}/a/b", "object_store": bucket.settings | bucket.keys}
    with HTAP(Settings(**form)) as htap:
        htap.sync_now()
    for url in ("a/b", "a/b/", "a//b", "/a/b", "a/b//"):
        with MirrorReader(f"{root}/{url}", access=bucket.access) as reader:
            assert reader.query("select * from t").num_rows == 1, url
    for url in ("a/b?x", "a/b#x", "a/b?", "a/./b", "a/x/../b", ".."):
        with pytest.raises(MirrorError, match=r"no mirror can be at .*without '\?', '#'"):
            MirrorReader(f"{root}/{url}", access=bucket.access)
    world.app.close()


#: What others may have where a mirror has its folders.
FOREIGN = (
    *("data/app.db", "data/sales.parquet", "data/deep/in/it.parquet", "manifests/12.json"),
    *("manifests/app.json", "manifests/app.partial", "ranges/all.json", "ranges/mine.plan.json"),
    *("published/1.json", "published/2.json", "published/3.json", "published/page.html"),
    *("pins/note", "delta/main/other/part.parquet", "set-aside/it"),
)


@pytest.mark.parametrize("storage", ["parquet", "delta"])
def test_what_others_have_in_a_mirror_s_folders_is_left_alone(tmp_path: Path, storage: str) -> None:
    for name in FOREIGN:
        file = tmp_path / "here" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    delta = {"interval_seconds": 0} if storage == "delta" else None
    world = World(tmp_path, mode="temporal", storage=storage, delta=delta)
    world.mirror_path = str(tmp_path / "here")
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    see_that_it_is_kept(world)
    with rhei.reader(world.settings) as reader:
        world.htap.sync_now()
        assert reader.query("select * from t").num_rows
    world.htap.repair("t")
    world.run("delete from t")
    world.htap.forget("t", [1])
    world.crash()
    assert {name: (tmp_path / "here" / name).read_text() for name in FOREIGN} == {
        name: name for name in FOREIGN
    }
    world.app.close()


@pytest.mark.parametrize("storage", [None, "parquet", "ipc", "delta"])
@pytest.mark.parametrize("content", ["theirs", "{}", "[1, 2]", "7 of us", "\n", "x" * 5000])
def test_somebody_else_s_file_is_not_written_over(
    tmp_path: Path, storage: str | None, content: str
) -> None:
    world = World(tmp_path, storage=storage)
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    mirror = tmp_path / (storage or "mirror.duckdb")
    files = [mirror / "lock", mirror / "newest"] if storage else [Path(f"{mirror}.lock")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
        with pytest.raises(MirrorError, match=r"somebody else's file.*move that file, or"):
            world.htap.sync_now()
        world.crash()
        assert file.read_text() == content
        file.rename(tmp_path / f"moved-{file.name}")
    world.htap.sync_now()
    world.assert_equal("t")
    world.crash()
    world.assert_equal("t")
    world.app.close()


@pytest.mark.long
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_mirrors_in_the_folders_of_another_one_are_left_alone(
    tmp_path: Path, bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in a store for an hour counts as nobody's."""
    monkeypatch.setattr(object_store, "ORPHAN_AGE", timedelta(-1))
    world = World(tmp_path, storage="delta", delta={"interval_seconds": 0})
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    forms: list[dict[str, Any]] = []
    for folder in ("", "/data", "/ranges", "/published", "/manifests", "/set-aside", "/b", "/bc"):
        form = world.settings.model_dump()
        form["registry"] = {"path": tmp_path / f"{len(forms)}.json"}
        form["mirror"] |= {
            "path": f"{bucket.scheme}://{bucket.bucket}{folder}",
            "object_store": bucket.settings | bucket.keys,
        }
        forms.append(form)
    for turn in range(2):
        world.run(f"insert into t values ({turn + 2}, 'b')")
        for number, form in enumerate([*forms, forms[0]]):
            with HTAP(Settings(**form)) as htap:
                new = 0 if number == len(forms) else 1 if turn else 2
                assert htap.sync_now().inserted == new, form["mirror"]["path"]
                assert htap.verify().equal
    world.app.close()


def mirror_at(path: Path | str, **fields: Any) -> dict[str, Any]:
    return {"source": {"path": "app.db"}, "mirror": {"path": path, **fields}}


def test_a_place_that_an_engine_takes_for_another_is_refused(tmp_path: Path) -> None:
    files: dict[str, Any] = {"kind": "datafusion", "storage": "parquet"}
    cases = [
        *((name, f"/data/{name}/m.duckdb", {}) for name in NOT_IN_DUCKDB),
        *((name, "m.duckdb", {"published": {"path": f"/data/{name}"}}) for name in NOT_IN_DUCKDB),
        *((name, f"/data/{name}", files) for name in NOT_IN_DIRECTORY),
        *((name, f"s3://bucket/{name}", files) for name in NOT_IN_STORE),
    ]
    for name, path, fields in cases:
        with pytest.raises(SettingsError, match="choose a path without") as refused:
            Settings(**mirror_at(path, **fields))
        [sign] = [sign for sign in "?\\\n\t#%[" if repr(sign) in str(refused.value)]
        assert sign in name
        if "published" in fields:
            Settings(**mirror_at(path, published={"path": "/data/plain"}))
        else:
            Settings(**mirror_at(path.replace(name, "plain"), **fields))


def test_a_directory_that_an_engine_takes_for_another_is_refused(tmp_path: Path) -> None:
    for name in ("que?stion", "plain"):
        file = tmp_path / name / "pipeline.yaml"
        file.parent.mkdir()
        file.write_text(yaml.safe_dump(mirror_at("m.duckdb")))
    with pytest.raises(SettingsError, match=r"'\?'.*choose a path without"):
        Settings.load(tmp_path / "que?stion" / "pipeline.yaml")
    assert Settings.load(tmp_path / "plain" / "pipeline.yaml").mirror.path.parent.name == "plain"


def test_a_url_where_no_url_can_be_is_refused(tmp_path: Path) -> None:
    form: dict[str, Any] = {
        "source": {"path": "app.db"},
        "capture": {"buffer": {"path": "cdc"}},
        "mirror": {"path": "m.duckdb", "published": {"path": "copy.duckdb"}},
        "registry": {"path": "registry.json"},
        "schedule": {"snapshot_files": "files"},
    }
    Settings(**form)
    places = [
        ("source", "path"),
        ("capture", "buffer", "path"),
        ("mirror", "path"),
        ("mirror", "published", "path"),
        ("registry", "path"),
        ("local", "path"),
        ("schedule", "snapshot_files"),
    ]
    for empty in ("", " "):
        for *sections, field in places:
            changed = deepcopy(form)
            if sections == ["local"]:
                changed |= {"capture": {"method": "polling"}, "local": {"path": "local.db"}}
            reduce(dict[str, Any].__getitem__, sections, changed)[field] = empty
            with pytest.raises(SettingsError, match=rf"{sections[-1]}.{field}'.*is empty: write"):
                Settings(**changed)
    for url in ("az://bucket/x", "S3://bucket/x", "file:///tmp/x", "postgresql://host/db", "s3://"):
        for *sections, field in places:
            changed = deepcopy(form)
            if sections == ["local"]:
                changed |= {"capture": {"method": "polling"}, "local": {"path": "local.db"}}
            section = reduce(dict[str, Any].__getitem__, sections, changed)
            section[field] = url
            scheme = url.partition("://")[0]
            with pytest.raises(SettingsError, match=rf"{sections[-1]}.{field}'.*'{scheme}://'"):
                Settings(**changed)
            section[field] = "here"
            Settings(**changed)
    files = {"kind": "datafusion", "storage": "parquet"}
    assert Settings(**mirror_at("s3://bucket", **files)).mirror.url == "s3://bucket"
    again = Settings(**mirror_at("gs://bucket/x", **files)).model_dump()
    assert Settings(**again).mirror.url == "gs://bucket/x"


def test_a_colon_in_a_relative_path_names_no_extension_of_duckdb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    world = World(tmp_path)
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    declared = mirror_at("sales:2026", published={"path": "copy:2026", "interval_seconds": 0})
    settings = Settings(**declared, registry={"path": "registry.json"})
    count = "select count(*) as n from t"
    with HTAP(settings) as htap:
        htap.sync_now()
    with rhei.reader(settings) as reader:
        assert reader.query(count)["n"][0].as_py() == 1
    with rhei.reader({"shop": settings}) as reader:
        assert reader.query("select count(*) as n from shop.t")["n"][0].as_py() == 1
    assert {"sales:2026", "copy:2026"} <= {file.name for file in tmp_path.iterdir()}
    world.app.close()


OWN_PLACES: dict[str, dict[str, Any]] = {
    "source": {"path": "app.db"},
    "capture": {"buffer": {"path": "cdc"}},
    "mirror": {"path": "m.duckdb", "published": {"path": "copy.duckdb"}},
    "registry": {"path": "registry.json"},
    "schedule": {"snapshot_files": "files"},
}


def test_two_things_in_one_place_are_refused() -> None:
    """A registry that is declared in the source's file: its error advised to delete it."""
    Settings(**OWN_PLACES)
    fields = [
        ("source", "path"),
        ("mirror", "path"),
        ("capture", "buffer", "path"),
        ("registry", "path"),
        ("schedule", "snapshot_files"),
        ("mirror", "published", "path"),
    ]
    for first, second in combinations(fields, 2):
        form = deepcopy(OWN_PLACES)
        for (*sections, field), place in ((first, "here"), (second, "there/../here")):
            section: dict[str, Any] = reduce(dict[str, Any].__getitem__, sections, form)
            section[field] = place
        with pytest.raises(SettingsError, match=r"give each a path of its own|own, beside"):
            Settings(**form)
    polled: dict[str, Any] = {"source": {"path": "app.db"}, "capture": {"method": "polling"}}
    with pytest.raises(SettingsError, match=r"local.path: this is source.path, too"):
        Settings(**polled, mirror={"path": "m"}, local={"path": "app.db"})


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", "[1]"), ("a.csv", "a,b\n1,2\n"), ("a.parquet", "PAR1"), ("a.tsv", ""), ("a", "")],
)
def test_a_file_of_others_in_the_mirror_s_place_is_refused_and_left(
    tmp_path: Path, name: str, content: str
) -> None:
    """Of a file of data, DuckDB shows a view, and keeps in memory what is written beside it."""
    (tmp_path / name).write_text(content)
    world = World(tmp_path, mirror_path=str(tmp_path / name))
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    for _ in range(2):
        with pytest.raises(MirrorError, match=r"is not a DuckDB database.*move .* away"):
            world.htap.sync_now()
    with (
        pytest.raises(MirrorError, match="is not a DuckDB database"),
        rhei.reader(world.settings) as reader,
    ):
        reader.query("select 1")
    assert (tmp_path / name).read_text() == content
    (tmp_path / name).rename(tmp_path / "away")
    world.htap.sync_now()
    world.crash()
    world.assert_equal("t")
    world.close()


def keep_theirs(directory: Path, *, raw: bool) -> Callable[[], object]:
    """Make another program's RocksDB, and return what it reads there."""
    key, value = (b"p1", b"v") if raw else ("a", "v")

    def read() -> object:
        database = Rdict(str(directory), Options(raw_mode=raw))
        try:
            return database[key]
        finally:
            database.close()

    database = Rdict(str(directory), Options(raw_mode=raw))
    database[key] = value
    database.close()
    return read


@pytest.mark.parametrize("theirs", ["files", "raw", "typed"])
def test_a_directory_of_others_is_no_buffer_and_is_left(tmp_path: Path, theirs: str) -> None:
    place = tmp_path / "cdc"
    place.mkdir()
    if theirs == "files":
        for name in ("000004.log", "7.sst", "CURRENT", "app.txt"):
            (place / name).write_text(name)

    def of_files() -> object:
        return {file.name: file.read_text() for file in place.iterdir()}

    read = of_files if theirs == "files" else keep_theirs(place, raw=theirs == "raw")
    before = read()
    world = World(tmp_path, buffered=True)
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    for _ in range(2):
        with pytest.raises(BufferDamagedError, match="choose a directory"):
            world.htap.sync_now()
    assert read() == before
    place.rename(tmp_path / "theirs")
    place.mkdir()
    (place / "app.txt").write_text("of somebody else, and no harm")
    world.htap.sync_now()
    world.run("insert into t values (2)")
    world.htap.sync_now()
    world.assert_equal("t")
    world.close()


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_two_declarations_that_share_a_registry_are_told(
    tmp_path: Path, storage: str | None
) -> None:
    """Each took it over from the other, and copied all its tables again at each opening."""
    shop, bills = (World(tmp_path / name, storage=storage) for name in ("shop", "bills"))
    shared = {"registry": {"path": tmp_path / "registry.json"}}
    forms = [world.settings.model_dump() | shared for world in (shop, bills)]
    for world, form in zip((shop, bills), forms, strict=True):
        world.run("create table t(id integer primary key)", "insert into t values (1)")
        with HTAP(Settings(**form)) as htap:
            htap.sync_now()
    shop.run("insert into t values (2)")
    with pytest.raises(SchemaError, match=r"give each a registry.path of its own"):
        HTAP(Settings(**forms[0]))
    (finding,) = validate_owner(Settings(**forms[0]))  # as 'rhei check' says it before
    assert "registry.path of its own" in finding.remedy
    assert not validate_owner(Settings(**forms[1]))
    with HTAP(Settings(**forms[1])) as htap:
        assert htap.sync_now().inserted == 0
    forms[0] |= {"registry": {"path": tmp_path / "own.json"}}
    for _ in range(2):
        with HTAP(Settings(**forms[0])) as htap:
            report = htap.sync_now()
            assert report.inserted == 1
            assert htap.verify().equal
        shop.run("insert into t select max(id) + 1 from t")
    assert report.events == 1  # nothing is copied any more
    shop.close()
    bills.close()


def test_a_registry_of_a_mirror_that_is_no_more_is_deleted_as_its_error_says(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    world.htap.sync_now()
    world.crash()
    first = world.directory / "mirror.duckdb"
    first.rename(tmp_path / "former")
    world.htap.sync_now()  # one made anew takes the registry over
    world.crash()
    (tmp_path / "former").replace(first)
    with pytest.raises(SchemaError, match="delete the registry"):
        world.htap.sync_now()
    (tmp_path / "registry.json").unlink()
    world.run("insert into t values (2)")
    world.htap.sync_now()
    world.assert_equal("t")
    world.close()


@pytest.mark.parametrize("storage", [None, "parquet"])
def test_a_mirror_that_is_gone_is_told_at_once_and_is_whole_once_put_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, storage: str | None
) -> None:
    world = World(tmp_path, storage=storage, mode="temporal")
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    world.run("update t set v = 'b'")
    world.htap.sync_now()
    before = world.versions("t")
    world.crash()
    place = tmp_path / (storage or "mirror.duckdb")
    place.rename(tmp_path / "away")
    with pytest.raises(RheiError, match="not copied yet"):
        world.versions("t")
    assert "put it back before the next sync" in caplog.text
    world.crash()
    place.rename(tmp_path / "empty")
    (tmp_path / "away").rename(place)
    assert world.versions("t") == before
    world.run("update t set v = 'c'")
    world.htap.sync_now()
    assert [row["v"] for row in world.versions("t")] == ["a", "b", "c"]
    world.close()


def test_a_buffer_without_one_of_its_files_is_whole_once_that_is_put_back(tmp_path: Path) -> None:
    world = World(tmp_path, buffered=True)
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    world.htap.sync_now()
    world.crash()
    file = world.buffer / "rocksdict-config.json"
    kept = file.read_bytes()
    file.unlink()
    with pytest.raises(BufferDamagedError, match=r"no file 'rocksdict-config.json'.*restore it"):
        world.htap.sync_now()
    assert not file.exists()
    file.write_bytes(kept)
    world.run("insert into t values (2)")
    world.htap.sync_now()
    world.assert_equal("t")
    world.crash()
    file.unlink()
    with pytest.raises(BufferDamagedError, match="or move it away"):
        world.htap.sync_now()
    world.buffer.rename(tmp_path / "away")
    world.run("insert into t values (3)")
    world.htap.sync_now()
    world.assert_equal("t")
    world.close()


def test_a_directory_of_others_is_no_log_for_an_application(tmp_path: Path) -> None:
    (tmp_path / "000004.log").write_text("theirs")
    with pytest.raises(BufferDamagedError, match="choose a directory that is empty"):
        ChangeLog(tmp_path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["theirs"]
    ChangeLog(tmp_path / "own").close()
