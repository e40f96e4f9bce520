"""A mirror in a bucket makes its requests side by side, and each commit after all that it names."""

import random
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

import rhei_pipeline as rhei
from rhei_pipeline import HTAP
from rhei_pipeline.errors import MirrorError, MirrorUnreachableError
from rhei_pipeline.mirrors.datafusion.files import Files
from rhei_pipeline.mirrors.datafusion.storages import open_files
from rhei_pipeline.testing.oracle import arrow_rows
from tests.support.delta_readers import read_by_delta_rs
from tests.support.fix_object_store import Store
from tests.support.fix_world import World
from tests.support.model import source_rows
from tests.support.parts import engine_of, manifest_of

pytestmark = pytest.mark.turns

TABLES = [f"t{number}" for number in range(4)]
_KEY = re.compile(r"<Key>(.*?)</Key>")


@dataclass
class Several:
    """A source of several tables, and its mirror in a bucket."""

    world: World
    bucket: Store
    mode: str
    storage: str
    drawn: random.Random = field(default_factory=lambda: random.Random(9))

    def __post_init__(self) -> None:
        for table in TABLES:
            self.world.run(f"create table {table}(id integer primary key, v integer)")
            self.world.run(f"insert into {table} values (1, 0), (2, 0)")

    def opened(self, **stored: Any) -> HTAP:
        """Open it."""
        directory = self.world.directory
        return HTAP(
            rhei.Settings(
                source={"path": self.world.path},
                mirror={
                    "kind": "datafusion",
                    "storage": self.storage,
                    "path": self.bucket.url,
                    "object_store": {**self.bucket.settings, **self.bucket.keys, **stored},
                },
                registry={"path": directory / "there.json"},
                mode=self.mode,
                tables=[{"name": table} for table in TABLES],
            )
        )

    def change(self) -> None:
        """Change a row of each table."""
        for table in TABLES:
            self.world.run(f"update {table} set v = v + 1 where id = {self.drawn.randint(1, 2)}")

    def there(self, server: int) -> set[str]:
        """Return what is in the bucket, as its server says."""
        url = f"http://127.0.0.1:{server}/{self.bucket.bucket}?list-type=2"
        with urllib.request.urlopen(url) as answer:
            return {
                key.removeprefix("some/mirror/") for key in _KEY.findall(answer.read().decode())
            }


@pytest.fixture(params=["destructive", "temporal"])
def several(
    request: pytest.FixtureRequest, bucket: Store, make_world: Callable[..., World]
) -> Several:
    return Several(make_world(), bucket, request.param, "parquet")


def _name(path: str) -> str:
    """Return what a request names, without what else it says."""
    return unquote(urlsplit(path).path)


def _is_data(method: str, path: str) -> bool:
    return method == "PUT" and "/data/" in _name(path)


@pytest.mark.long
def test_files_are_put_side_by_side(several: Several) -> None:
    together = threading.Barrier(2 * len(TABLES))

    def fault(method: str, path: str) -> str:
        if _is_data(method, path) and _name(path).endswith((".parquet", ".index")):
            together.wait(60)  # or it breaks, and the request fails
        return ""

    with closing(several.opened(retry_seconds=0)) as htap:
        htap.sync_now()
        several.change()
        several.bucket.fault = fault
        assert htap.sync_now().updated == len(TABLES)
        several.bucket.fault = None
        assert htap.verify().equal


def test_a_commit_comes_after_all_that_it_names(several: Several, s3_server: int) -> None:
    there: dict[str, set[str]] = {}
    drawn = random.Random(1)

    def fault(method: str, path: str) -> str:
        if _is_data(method, path):
            time.sleep(drawn.random() / 20)
        if method == "PUT" and "/manifests/" in _name(path):
            there[_name(path).rpartition("/")[2]] = several.there(s3_server)
        return ""

    several.bucket.fault = fault
    with closing(several.opened()) as htap:
        for _ in range(3):
            several.change()
            htap.sync_now()
            manifest = manifest_of(engine_of(htap).mirror)
            named = set(manifest.files)
            assert named
            assert named <= there[f"{manifest.version:012d}.json"]


@pytest.mark.long
def test_what_fails_beside_others_leaves_nothing_behind(several: Several, s3_server: int) -> None:
    refused = threading.Event()

    def fault(method: str, path: str) -> str:
        if not _is_data(method, path):
            return ""
        if _name(path).endswith(".index") and not refused.is_set():
            refused.set()
            return "403"
        time.sleep(0.1)  # on its way when the other has failed already
        return ""

    with closing(several.opened(retry_seconds=0)) as htap:
        htap.sync_now()
        before = several.there(s3_server)
        several.change()
        several.bucket.fault = fault
        with pytest.raises(rhei.RheiError, match="the store refused"):
            htap.sync_now()
        several.bucket.fault = None
        assert several.there(s3_server) == before
        assert htap.sync_now().updated == len(TABLES)
        assert htap.verify().equal


@pytest.mark.long
def test_all_that_a_sync_reads_is_asked_for_once(several: Several) -> None:
    with closing(several.opened()) as htap:
        for _ in range(3):
            htap.sync_now()
            several.change()
    with closing(several.opened()) as htap:
        several.bucket.seen.clear()
        htap.sync_now()
        data = [seen for seen in map(_name, several.bucket.seen) if "/data/" in seen]
        assert not [seen for seen in data if seen.startswith("HEAD")]
        read = [seen for seen in data if seen.startswith("GET")]
        assert len(read) == len(set(read)) > 0
        assert htap.verify().equal


@pytest.mark.long
def test_a_store_that_is_away_fails_a_sync_once(several: Several) -> None:
    """What failed in one sync is not told again by the next one."""
    with closing(several.opened(retry_seconds=0)) as htap:
        htap.sync_now()
        several.change()
        several.bucket.fault = lambda method, path: "cut" if _is_data(method, path) else ""
        with pytest.raises(MirrorUnreachableError):
            htap.sync_now()
        several.bucket.fault = None
        assert htap.sync_now().updated == len(TABLES)
        assert htap.verify().equal


@pytest.fixture
def files(bucket: Store) -> Iterator[Files]:
    made = open_files("parquet", bucket.url, replace(bucket.access, retry_seconds=0), 0)
    yield made
    made.close()


def test_who_asks_for_a_file_waits_until_it_is_there(bucket: Store, files: Files) -> None:
    def fault(method: str, path: str) -> str:
        if _is_data(method, path):
            time.sleep(0.2)
        return ""

    bucket.fault = fault
    content = pa.py_buffer(b"content")
    asked: dict[str, Callable[[str], object]] = {
        "mark": files.mark,
        "size": files.size,
        "get": files.get,
        "link": lambda name: files.link(f"{name}-again", name),
        "each": lambda name: files.each([name], files.size),
    }
    for name, ask in asked.items():
        files.put(f"data/deeper/{name}", content)
        found = ask(f"data/deeper/{name}")
        assert found is not None or name in {"link", "each"}
    files.put("data/gone", content)
    files.delete(["data/gone"])
    files.set_aside(["data/deeper/mark"])
    files.close()  # what is on its way arrives before that
    with closing(open_files("parquet", bucket.url, bucket.access, 0)) as again:
        there = set(again.names("data"))
    assert there == {*(f"data/deeper/{n}" for n in asked if n != "mark"), "data/deeper/link-again"}


def test_a_failure_is_told_once(bucket: Store, files: Files) -> None:
    bucket.fault = lambda method, path: "403" if _is_data(method, path) else ""
    files.put("data/refused", pa.py_buffer(b""))
    with pytest.raises(MirrorError, match="refused"):
        files.create("manifests/1.json", b"{}")
    assert not files.names("manifests")
    files.flush()
    files.create("manifests/1.json", b"{}")
    assert files.names("manifests")


@pytest.fixture
def published(bucket: Store, make_world: Callable[..., World]) -> Several:
    return Several(make_world(), bucket, "destructive", "delta")


def rows_published(published: Several, table: str) -> frozenset[tuple[object, ...]]:
    """Return what others read of a table's newest version."""
    place = f"{published.bucket.url}/delta/main/{table}"
    found = DeltaTable(place, storage_options=published.bucket.storage_options)
    return frozenset(arrow_rows(read_by_delta_rs(found)))


@pytest.mark.long
def test_tables_are_published_side_by_side(published: Several) -> None:
    together = threading.Barrier(len(TABLES))

    def fault(method: str, path: str) -> str:
        if method == "PUT" and _name(path).endswith("/_delta_log/00000000000000000000.json"):
            together.wait(60)  # or it breaks, and the request fails
        return ""

    published.bucket.fault = fault
    with closing(published.opened(retry_seconds=0)) as htap:
        htap.sync_now()
        assert htap.sync_status().not_published is None
    for table in TABLES:
        assert rows_published(published, table) == frozenset(
            source_rows(published.world.app, table)
        )


@pytest.mark.long
@pytest.mark.parametrize("what", [".parquet", ".json"])
def test_a_table_that_cannot_be_published_keeps_no_other_from_it(
    published: Several, what: str
) -> None:
    def fault(method: str, path: str) -> str:
        name = _name(path)
        return "403" if method == "PUT" and "/main/t3/" in name and name.endswith(what) else ""

    with closing(published.opened(retry_seconds=0)) as htap:
        published.bucket.fault = fault
        htap.sync_now()
        assert "t3" in str(htap.sync_status().not_published)
        for table in set(TABLES) - {"t3"}:
            assert len(rows_published(published, table)) == 2
        with pytest.raises(TableNotFoundError):
            rows_published(published, "t3")
        published.bucket.fault = None
        published.change()
        htap.sync_now()
    for table in TABLES:
        assert rows_published(published, table) == frozenset(
            source_rows(published.world.app, table)
        )


@pytest.mark.long
def test_who_only_asks_publishes_nothing_beside_the_writer(published: Several) -> None:
    with closing(published.opened()) as writer:
        writer.sync_now()
        with closing(published.opened()) as asking:
            found = asking.query("select sum(v) as s from t1", hint="olap")
            assert found["s"].to_pylist() == [0]
            published.change()
            writer.sync_now()
            published.bucket.seen.clear()
        assert not [seen for seen in map(_name, published.bucket.seen) if "/delta/" in seen]
    for table in TABLES:
        assert rows_published(published, table) == frozenset(
            source_rows(published.world.app, table)
        )


def test_a_bucket_that_is_gone_is_named(bucket: Store, files: Files, s3_server: int) -> None:
    def ask(method: str) -> None:
        url = f"http://127.0.0.1:{s3_server}/{bucket.bucket}"
        urllib.request.urlopen(urllib.request.Request(url, method=method)).close()

    ask("DELETE")
    files.put("data/one", pa.py_buffer(b"content"))
    with pytest.raises(
        MirrorError, match="its bucket, or the local cache of this process, is gone"
    ):
        files.flush()
    ask("PUT")
    files.put("data/one", pa.py_buffer(b"content"))
    files.flush()
    assert files.names("data") == {"data/one": 7}


def test_a_copy_that_is_read_again_harms_nobody_who_has_mapped_it(
    bucket: Store, files: Files
) -> None:
    content = pa.py_buffer(b"a" * 2**20)
    files.put("data/one", content)
    files.flush()
    mapped = files.get("data/one")
    with closing(open_files("parquet", bucket.url, bucket.access, 0)) as other:
        other.put("data/one", pa.py_buffer(b"cut off"))
    assert files.get("data/one") == content
    assert files.get("data/one", fresh=True) == pa.py_buffer(b"cut off")
    assert mapped == content


def test_failures_leave_room_for_what_follows(bucket: Store, files: Files) -> None:
    """More of them than are put at once."""
    bucket.fault = lambda method, path: "403" if _is_data(method, path) else ""
    for number in range(40):
        files.put(f"data/{number}", pa.py_buffer(b""))
    with pytest.raises(MirrorError, match="refused"):
        files.flush()
    bucket.fault = None
    for number in range(40):
        files.put(f"data/{number}", pa.py_buffer(b"whole"))
    files.flush()
    assert set(files.names("data").values()) == {5}


@pytest.mark.parametrize("status", ["403", "404", "409", "500"])
def test_whatever_a_store_answers_it_is_an_error_of_ours(
    bucket: Store, files: Files, status: str
) -> None:
    asked: dict[str, Callable[[], object]] = {
        "put": lambda: files.put("data/new", pa.py_buffer(b"")),
        "flush": files.flush,
        "create": lambda: files.create("manifests/2.json", b"{}"),
        "create again": lambda: files.create("manifests/1.json", b"{}"),
        "get": lambda: files.get("data/one", fresh=True),
        "size": lambda: files.size("data/one"),
        "mark": lambda: files.mark("data/one"),
        "link": lambda: files.link("data/other", "data/one"),
        "set aside": lambda: files.set_aside(["data/one"]),
        "names": lambda: files.names("data"),
        "abandoned": lambda: files.abandoned("data"),
        "delete": lambda: files.delete(["data/gone"]),
        "remembered": files.remembered,
    }
    files.put("data/one", pa.py_buffer(b"content"))
    files.create("manifests/1.json", b"{}")
    bucket.fault = lambda *_: status
    said: dict[str, str] = {}
    for name, ask in asked.items():
        try:
            ask()
        except rhei.RheiError as error:
            said[name] = str(error)
    expected = {
        "403": ("the store refused", asked.keys() - {"put"}),
        "404": (
            "",
            {"flush", "create", "create again", "get", "size", "link", "names", "abandoned"},
        ),
        "409": ("did not answer (status code: 409)", asked.keys() - {"put"}),
        "500": ("did not answer (status code: 500)", asked.keys() - {"put"}),
    }[status]
    assert said.keys() == expected[1]
    assert all(expected[0] in text for text in said.values())
    files.remember(1)
    files.close()  # which says nothing: it is one number less


@pytest.mark.long
def test_a_conflict_with_nobody_is_tried_again(several: Several) -> None:
    """S3 refuses a name while another request for it is under way, of a try that was given up."""
    with closing(several.opened(retry_seconds=0)) as htap:
        htap.sync_now()
        several.change()
        refusals = ["409"]

        def fault(method: str, path: str) -> str:
            is_commit = method == "PUT" and "/manifests/" in _name(path)
            return refusals.pop() if is_commit and refusals else ""

        several.bucket.fault = fault
        with pytest.raises(MirrorUnreachableError, match=r"\(a conflict\) \(try again"):
            htap.sync_now()
        assert htap.sync_now().updated == len(TABLES)
        assert htap.verify().equal
