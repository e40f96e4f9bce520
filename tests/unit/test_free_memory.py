"""Free memory is given back now and then, not in each cycle."""

import re
from pathlib import Path

import pyarrow as pa
import pytest

from rhei_pipeline.sync.free_memory import EVERY_SECONDS, FreeMemory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells what is held")
def test_what_is_free_is_given_back_once_in_a_while() -> None:
    now = [0.0]
    memory = FreeMemory(lambda: now[0])
    parts = [pa.allocate_buffer(4096) for _ in range(25_000)]
    del parts
    assert not memory.give_back()
    before = _held()
    now[0] += EVERY_SECONDS
    assert memory.give_back()
    assert before - _held() > 20 * 2**20
    assert not memory.give_back()


def _held() -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024
