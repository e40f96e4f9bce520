"""A mirror in a bucket whose store fails, or goes away, at any request; and whose writer is killed.

`make test-cluster` runs them: a store for tests takes seconds for a publication.
"""

import json
import logging
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from deltalake import DeltaTable

import rhei_pipeline as rhei
from rhei_pipeline import HTAP
from rhei_pipeline.errors import MirrorBusyError, MirrorUnreachableError, RheiError
from rhei_pipeline.mirrors import publishing
from rhei_pipeline.mirrors.datafusion.delta_states import newest_state
from rhei_pipeline.mirrors.datafusion.storages import open_files
from rhei_pipeline.testing.oracle import exact
from tests.support.delta_readers import read_by_delta_rs
from tests.support.fix_object_store import Store
from tests.support.fix_world import World
from tests.support.forked import Forked
from tests.support.parts import engine_of, manifest_of
from tests.support.store_faults import FaultAt, drawn_fault

TABLES = [{"name": "orders", "mode": "temporal"}, {"name": "customers"}]
#: What both mirrors hold, but for the instants at which each of them was synced.
HELD = {
    "customers": "select * from customers",
    "orders": "select id, customer, n, _rhei_operation as o, _rhei_valid_to is null as still,"
    " row_number() over (partition by id order by _rhei_valid_from) as place from orders",
}
#: The same of a mirror that was begun later.
NEW = {**HELD, "orders": "select id, customer, n from orders where _rhei_valid_to is null"}

Work = Callable[["Mirrored"], object]


@dataclass
class Mirrored:
    """A source, its mirror in a bucket, and another one that nothing befalls."""

    world: World
    bucket: Store
    drawn: random.Random = field(default_factory=partial(random.Random, 4))
    root: int = 0
    there: HTAP | None = None

    def __post_init__(self) -> None:
        self.world.run(
            "create table customers(id integer primary key, name text)",
            "create table orders(id integer primary key, customer integer, n integer)",
        )
        for key in range(60):
            self.world.app.execute("insert into customers values (?, ?)", (key, f"c{key}"))
            self.world.app.execute("insert into orders values (?, ?, 0)", (key, key % 7))
        self.here = HTAP(rhei.Settings(**self._declared("here")))
        self.here.sync_now()
        self.sync()

    @property
    def declared(self) -> dict[str, Any]:
        """The declaration of the mirror in the bucket, without any patience."""
        stored = {**self.bucket.settings, **self.bucket.keys, "retry_seconds": 0}
        place = {"path": f"{self.bucket.url}/{self.root}", "object_store": stored}
        mirror = {
            "kind": "datafusion",
            "storage": "delta",
            "delta": {"deletion_vectors": True},
            **place,
        }
        return self._declared(f"there_{self.root}", **mirror)

    def _declared(self, name: str, **mirror: Any) -> dict[str, Any]:
        directory = str(self.world.directory)
        return {
            "source": {"path": str(self.world.path)},
            "mirror": {"path": f"{directory}/{name}.duckdb", **mirror},
            "registry": {"path": f"{directory}/{name}.json"},
            "tables": TABLES,
            "sync": {"batch_rows": 25},
        }

    def opened(self) -> HTAP:
        """Return the mirror in the bucket, opened where it is not open."""
        if self.there is None:
            self.there = HTAP(rhei.Settings(**self.declared))
        return self.there

    def sync(self) -> HTAP:
        """Sync the mirror in the bucket."""
        self.opened().sync_now()
        return self.opened()

    def change(self) -> None:
        """Insert, update and delete; the other mirror follows."""
        self.world.run("begin")
        for key in self.drawn.sample(range(90), 9):
            self.world.run(
                self.drawn.choice(
                    [
                        f"update orders set n = n + 1 where id = {key}",
                        f"delete from orders where id = {key}",
                        f"replace into orders values ({key}, {key}, {self.drawn.randrange(99)})",
                        f"replace into customers values ({key}, '{self.drawn.randrange(99)}')",
                    ]
                )
            )
        self.world.run("commit")
        self.here.sync_now()

    def assert_equal(self) -> None:
        """The mirror in the bucket has each row and version once, and so has what it published."""
        there = self.sync()
        for sql in (NEW if self.root else HELD).values():
            assert rows(there, sql) == rows(self.here, sql), sql
        manifest = manifest_of(engine_of(there).mirror)
        named = {segment.name for table in manifest.tables.values() for segment in table.segments}
        assert named <= {name.split("/")[1].split(".")[0] for name in manifest.files}

    def assert_published(self) -> None:
        """The tables that are published have the mirror's rows."""
        there = self.opened()
        root, access = self.declared["mirror"]["path"], self.bucket.access
        mirror: Any = engine_of(there).mirror
        mirror.publish()
        with closing(open_files("parquet", root, access)) as files:
            state = newest_state(files)
        assert state is not None
        for table in state.tables:
            options = self.bucket.storage_options
            shown = DeltaTable(f"{root}/{table.folder}", table.version, storage_options=options)
            found = there.query(f"select * from {table.name}", hint="olap")
            assert counted(read_by_delta_rs(shown)) == counted(found), table.name

    def close(self) -> None:
        """Close the mirror in the bucket."""
        if self.there is not None:
            self.there.close()
            self.there = None


@pytest.fixture
def mirrored(make_world: Callable[..., World], bucket: Store) -> Iterator[Mirrored]:
    """Make a source, and its mirror in a bucket."""
    made = Mirrored(make_world(), bucket)
    yield made
    made.close()
    made.here.close()


def rows(htap: HTAP, sql: str) -> Counter[tuple[str, ...]]:
    return counted(htap.query(sql, hint="olap"))


def counted(found: Any) -> Counter[tuple[str, ...]]:
    return Counter(exact(row.values()) for row in found.to_pylist())


def sync(mirrored: Mirrored) -> None:
    mirrored.sync()


def fold(mirrored: Mirrored) -> None:
    """Merge segments, and publish what they are then."""
    mirrored.opened().maintain()


def copy(mirrored: Mirrored) -> None:
    """Copy all tables below a root where nothing is, and publish them."""
    mirrored.close()
    mirrored.root += 1
    mirrored.sync()


def prepare(mirrored: Mirrored, work: Work) -> None:
    """Give the work something to do."""
    for _ in range(3 if work is fold else 1):
        mirrored.change()
        if work is fold:
            mirrored.sync()


def requests(mirrored: Mirrored, work: Work) -> int:
    """Do the work, and return how many requests it takes."""
    prepare(mirrored, work)
    counted_by = mirrored.bucket.fault = FaultAt(0)
    work(mirrored)
    mirrored.bucket.fault = None
    return counted_by.count


class Logged(logging.Handler):
    """The errors of publications that were logged: a later one of the same work may succeed."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[RheiError] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.errors += [found for found in record.args or () if isinstance(found, RheiError)]


def suffer(mirrored: Mirrored, work: Work, fault: FaultAt) -> RheiError | None:
    """Do the work while a fault befalls it; return what is then said to be wrong."""
    prepare(mirrored, work)
    logger, logged = logging.getLogger(publishing.__name__), Logged()
    logger.addHandler(logged)
    mirrored.bucket.fault = fault
    try:
        work(mirrored)
    except RheiError as error:
        return error
    finally:
        mirrored.bucket.fault = None
        logger.removeHandler(logged)
    mirror: Any = engine_of(mirrored.opened()).mirror
    trouble: RheiError | None = mirror.not_published
    return logged.errors[0] if logged.errors else trouble


def fail_at_requests(mirrored: Mirrored, work: Work, times: int | None) -> None:
    """Have requests of some work fail, drawn ones or all of them; each time it has to go on."""
    found = range(1, requests(mirrored, work) + 1)
    for number in found if times is None else mirrored.drawn.sample(found, times):
        fault = drawn_fault(mirrored.drawn, number)
        told = suffer(mirrored, work, fault)
        if fault.count >= number:  # it may take fewer requests than before
            assert isinstance(told, MirrorUnreachableError), (fault, told)
            assert "the store did not answer" in str(told)
            assert told.hint
            assert "hush" not in str(told)
        mirrored.assert_equal()
        if work is not sync:
            fold(mirrored)
            mirrored.assert_equal()
            mirrored.assert_published()


@pytest.mark.cluster
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_store_that_fails_at_some_request_is_named_and_loses_and_doubles_nothing(
    mirrored: Mirrored,
) -> None:
    for work, times in ((sync, 4), (fold, 1), (copy, 1)):
        fail_at_requests(mirrored, work, times)


@pytest.mark.soak
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
@pytest.mark.parametrize(("work", "times"), [(sync, None), (fold, 40), (copy, 40)])
def test_a_store_that_fails_at_any_request_is_named_and_loses_and_doubles_nothing(
    mirrored: Mirrored, work: Work, times: int | None
) -> None:
    fail_at_requests(mirrored, work, times)


def kill_at_requests(mirrored: Mirrored, work: Work, times: int) -> None:
    """Have a process of its own do the work, and kill it at drawn requests."""
    for number in mirrored.drawn.choices(range(1, 60 if work is not sync else 10), k=times):
        prepare(mirrored, work)
        mirrored.close()
        mirrored.root += work is copy
        with Forked(_WORK, json.dumps(mirrored.declared), work.__name__) as process:
            assert process.stdout.readline() == "opened\n"
            served = mirrored.drawn.choice(["cut", "unsaid"])
            kill = partial(os.kill, process.pid, signal.SIGKILL)
            mirrored.bucket.fault = FaultAt(number, served, work=kill)
            process.stdin.close()
            assert process.wait() in {-signal.SIGKILL, 0}
        mirrored.bucket.fault = None
        mirrored.assert_equal()
        assert mirrored.sync().verify().equal
        mirrored.assert_published()


_WORK = """
import json, sys
from rhei_pipeline import HTAP, Settings
with HTAP(Settings(**json.loads(sys.argv[1]))) as htap:
    print("opened", flush=True)
    sys.stdin.read()
    htap.maintain() if sys.argv[2] == "fold" else htap.sync_now()
"""


@pytest.mark.cluster
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_writer_that_is_killed_within_its_work_costs_no_row(mirrored: Mirrored) -> None:
    for work in (sync, fold, copy):
        kill_at_requests(mirrored, work, 1)


@pytest.mark.soak
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
@pytest.mark.parametrize("work", [sync, fold, copy])
def test_a_writer_that_is_killed_again_and_again_costs_no_row(
    mirrored: Mirrored, work: Work
) -> None:
    kill_at_requests(mirrored, work, 15)


@pytest.mark.cluster
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_of_two_syncs_at_once_on_one_root_one_is_told_and_nothing_is_doubled(
    mirrored: Mirrored,
) -> None:
    told = list[RheiError | None]()
    with HTAP(rhei.Settings(**mirrored.declared)) as rival:
        for number in range(1, requests(mirrored, sync) + 1, 3):
            fault = FaultAt(number, "", work=partial(until_done, rival.sync_now))
            told.append(suffer(mirrored, sync, fault))
            mirrored.assert_equal()
        mirrored.assert_published()
    assert any(told)
    for error in filter(None, told):
        assert isinstance(error, MirrorBusyError)
        assert "stop the other one first" in str(error)


def until_done(work: Callable[[], object]) -> None:
    """Do the work again where it was told that somebody else wrote."""
    with suppress(MirrorBusyError):
        work()
        return
    work()


@pytest.mark.cluster
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_while_the_store_is_away_the_source_answers_and_says_why(mirrored: Mirrored) -> None:
    there = mirrored.sync()
    mirrored.bucket.fault = lambda *_: "503"
    with pytest.raises(
        MirrorUnreachableError, match=r"store did not answer \(status code: 503\) \(try again"
    ):
        there.query(HELD["customers"], hint="olap")
    found = there.query("select n, count(*) as c from orders group by n")
    told = found.schema.metadata or {}
    assert told[b"rhei.engine"] == b"oltp"
    assert b"the store did not answer (status code: 503)" in told[b"rhei.reason"]
    mirrored.bucket.fault = None
    assert rows(there, HELD["customers"]) == rows(mirrored.here, HELD["customers"])
