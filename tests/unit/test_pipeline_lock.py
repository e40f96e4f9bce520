"""Work in a pipeline: nobody begins any once it is ended, and who gave way does not go on."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rhei_pipeline.errors import MirrorError
from rhei_pipeline.sync.pipeline_lock import PipelineLock

CLOSED = "the mirror is closed"


def test_no_work_begins_once_a_pipeline_is_ended() -> None:
    lock = PipelineLock()
    with lock, lock:
        pass
    lock.end()
    lock.end()
    with pytest.raises(MirrorError, match=CLOSED), lock:
        pytest.fail("it was let in")


def test_work_that_is_under_way_may_take_the_lock_again() -> None:
    lock = PipelineLock()
    with lock:
        lock.end()
        with lock:
            pass
    with pytest.raises(MirrorError, match=CLOSED), lock:
        pytest.fail("it was let in")


def test_work_that_gave_way_ends_and_leaves_the_lock_to_who_waits() -> None:
    lock, begun = PipelineLock(), threading.Event()

    def work() -> None:
        with lock, lock:
            begun.set()
            while True:
                lock.give_way(0.001)

    with ThreadPoolExecutor(1) as thread:
        working = thread.submit(work)
        assert begun.wait(60)
        with lock:
            assert not working.done()
        lock.end()
        with pytest.raises(MirrorError, match=CLOSED):
            working.result(60)
