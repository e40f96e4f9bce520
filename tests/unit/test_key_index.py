"""An index of keys finds what a plain search finds, whatever its size."""

import numpy as np
import pytest

from rhei_pipeline.mirrors.datafusion.digests import KeyHashes
from rhei_pipeline.mirrors.datafusion.key_index import KeyIndex


@pytest.mark.parametrize("rows", [0, 1, 2, 1_000, 600_000])
def test_an_index_finds_every_entry_of_a_key_and_nothing_else(rows: int) -> None:
    draw = np.random.default_rng(rows)
    words = draw.integers(0, 2**64 - 1, rows, dtype=np.uint64, endpoint=True)
    words[::1000] = words[:1]  # one key with many entries
    words[1:2], words[2:3] = 0, 2**64 - 1
    checks = (words >> np.uint64(7)).astype(np.uint32)
    index = KeyIndex.build(KeyHashes(words, checks), words)
    sought = np.concatenate([words[: min(rows, 500)], draw.integers(0, 2**63, 50, dtype=np.uint64)])
    key_numbers, entries = index.find(KeyHashes(sought, (sought >> np.uint64(7)).astype(np.uint32)))
    found = {(int(n), int(p)) for n, p in zip(key_numbers, index.positions[entries], strict=True)}
    expected = {(n, int(p)) for n, w in enumerate(sought) for p in np.flatnonzero(words == w)}
    assert found == expected
    decoded = KeyIndex.decode(index.encode())
    hashes, digests_or_ends = decoded.in_row_order()
    assert (hashes.words == words).all()
    assert (digests_or_ends == words).all()


def test_another_check_is_another_key() -> None:
    words = np.array([5, 5], np.uint64)
    index = KeyIndex.build(KeyHashes(words, np.array([1, 2], np.uint32)), words)
    key_numbers, entries = index.find(KeyHashes(words[:1], np.array([2], np.uint32)))
    assert index.positions[entries].tolist() == [1]
    assert key_numbers.tolist() == [0]
