"""What an object store says of a request becomes words that name what to do, and no secret."""

import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import unquote

import pytest

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import MirrorError, MirrorUnreachableError, RheiError
from rhei_pipeline.model.schema import Mode
from rhei_pipeline.testing.oracle import arrow_rows
from tests.support.fix_object_store import Store
from tests.support.fix_world import World
from tests.support.model import source_rows

pytestmark = pytest.mark.turns

#: What a store does, what is then said, and the way out.
SAID = [
    ("expired", r"the store refused '\w+' \(ExpiredToken\) \(give this process new credentials"),
    ("skewed", r"the store refused '\w+' \(RequestTimeTooSkewed\) \(set this machine's clock"),
    ("301", r"the store refused '\w+' \(the bucket is elsewhere\) \(.*'region' have to be"),
    ("400", r"the store refused '\w+' \(status code: 400\) \(.*that are still valid"),
    ("401", r"the store refused '\w+' \(use credentials"),
    ("429", r"did not answer \(status code: 429\) \(try again"),
    ("cut", r"did not answer \(the connection broke off\) \(try again"),
]


@pytest.fixture
def settings(world: World, bucket: Store) -> Settings:
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    return declared(world, bucket)


def declared(world: World, bucket: Store, **place: Any) -> Settings:
    mirror = {
        "kind": "datafusion",
        "path": bucket.url,
        "object_store": bucket.settings | bucket.keys | {"retry_seconds": 0} | place,
    }
    return Settings(**{**world.settings.model_dump(), "mirror": mirror})


@pytest.fixture
def htap(settings: Settings) -> Iterator[HTAP]:
    with HTAP(settings) as opened:
        opened.sync_now()
    with HTAP(settings) as opened:  # which has nothing of it on this machine
        yield opened


@pytest.mark.parametrize(("fault", "said"), SAID)
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_sync_says_what_the_store_did_and_goes_on_once_it_serves_again(
    htap: HTAP, world: World, bucket: Store, fault: str, said: str
) -> None:
    world.run("update t set v = 'b'", "insert into t values (2, 'c')")
    bucket.fault = lambda *_: fault
    with pytest.raises(RheiError, match=said) as raised:
        htap.sync_now()
    is_refused = "refused" in said
    assert isinstance(raised.value, MirrorError if is_refused else MirrorUnreachableError)
    assert "hush" not in str(raised.value)
    bucket.fault = None
    report = htap.sync_now()
    assert (report.inserted, report.updated) == (1, 1)
    found = arrow_rows(htap.query("select * from t", hint="olap"))
    assert found == source_rows(world.app, "t")
    assert htap.verify().equal


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("expired", r"the store refused it \(ExpiredToken\) \(give"),
        ("400", r"the store refused it \(status code: 400\) \(give"),
        ("401", r"the store refused it \(use credentials"),
        ("403", r"the store refused it \(use credentials"),
        ("404", r"did not answer \(a file is missing\) \(try again: what is missing"),
        ("409", r"did not answer \(status code: 409\) \(try again"),
        ("412", r"did not answer \(status code: 412\) \(try again"),
    ],
)
@pytest.mark.parametrize("bucket", ["s3", "gs"], indirect=True)
def test_a_store_that_fails_the_engine_is_named_and_the_source_answers(
    htap: HTAP, bucket: Store, fault: str, said: str
) -> None:
    """What the mirror asks is served, and what its engine asks for itself is not."""

    def data(method: str, path: str) -> str:
        name = unquote(path)
        return fault if method == "GET" and "/data/" in name and ".parquet" in name else ""

    grouped = "select v, count(*) as n from t group by v"
    bucket.fault = data
    with pytest.raises((MirrorError, MirrorUnreachableError), match=said) as raised:
        htap.query(grouped, hint="olap")
    assert "hush" not in str(raised.value)
    answer = htap.query(grouped)
    assert answer.to_pylist() == [{"v": "a", "n": 1}]
    assert b"the mirror fails: the mirror cannot be read" in answer.schema.metadata[b"rhei.reason"]
    bucket.fault = None
    assert htap.query(grouped, hint="olap").to_pylist() == [{"v": "a", "n": 1}]


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_store_that_is_late_is_told_from_one_that_hangs_up(world: World, bucket: Store) -> None:
    world.run("create table t(id integer primary key)")
    bucket.fault = lambda *_: "slow"
    with pytest.raises(MirrorUnreachableError, match=r"\(not in time\) \(try again"):
        HTAP(declared(world, bucket, timeout_seconds=0.2)).sync_now()
    bucket.released.set()
    bucket.fault = None
    with HTAP(declared(world, bucket)) as htap:
        htap.sync_now()
        assert htap.verify().equal


def _closed(_: Store) -> str:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        (_closed, "no connection could be made"),
        (lambda _: "http://nowhere.invalid", "its name is not known here"),
        (lambda store: store.endpoint.replace("http", "https"), "no encrypted connection"),
    ],
)
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_an_endpoint_that_is_none_is_named(
    world: World, bucket: Store, endpoint: Callable[[Store], str], said: str
) -> None:
    world.run("create table t(id integer primary key)")
    wrong = declared(world, bucket, endpoint=endpoint(bucket))
    with pytest.raises(MirrorUnreachableError, match=f"{said}.*mirror.object_store.endpoint"):
        HTAP(wrong).sync_now()
    with HTAP(declared(world, bucket)) as htap:
        htap.sync_now()
        assert htap.verify().equal


@pytest.mark.parametrize("work", ["maintain", "forget"])
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_what_failed_work_was_writing_troubles_no_later_work(
    world: World, bucket: Store, work: str
) -> None:
    """Several files are written side by side: all of them may fail, and one of them is told."""
    settings = declared(world, bucket).model_copy(update={"mode": Mode.TEMPORAL})
    world.run("create table t(id integer primary key, v integer)", "insert into t values (1, 0)")
    with HTAP(settings) as filling:
        for value in range(6):
            world.run(f"update t set v = {value}", f"update orders set amount = {value}")
            filling.sync_now()
        world.run("delete from orders where id = 1")
        filling.sync_now()
    with HTAP(settings) as htap:
        written: list[str] = []

        def fault(method: str, path: str) -> str:
            written.extend([path] if method == "PUT" else [])
            return "503" if written else ""

        works: dict[str, Callable[[], object]] = {
            "maintain": htap.maintain,
            "forget": lambda: htap.forget("orders", [(1,)]),
        }
        bucket.fault = fault
        with pytest.raises(MirrorUnreachableError):
            works[work]()
        assert written
        bucket.fault = None
        works[work]()
        assert htap.verify().equal
