"""The key index of a segment: sorted hashes, searched without reading the rows."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhei_pipeline.mirrors.datafusion.digests import KeyHashes, Words

Numbers = npt.NDArray[np.int64]

_BYTES_PER_ROW = 24
#: A smaller index is mostly in the cache anyway.
_DIRECTORY_FROM = 500_000
#: About 2 to this many entries share a place in the directory.
_BUCKET_BITS = 5


@dataclass(frozen=True, slots=True)
class KeyIndex:
    """One entry for each row of a segment, ordered by hash.

    Attributes:
        hashes: The keys' hashes; `words` ascend.
        digests_or_ends: The row's digest; for a version that has ended, its end in microseconds.
        positions: The row's position in the segment.
    """

    hashes: KeyHashes
    digests_or_ends: Words
    positions: npt.NDArray[np.uint32]
    #: Made once it is wanted: how far to shift a word, and where each number so got begins.
    _starts: list[tuple[np.uint64, Numbers]] = field(default_factory=list, repr=False)

    @classmethod
    def build(cls, hashes: KeyHashes, digests_or_ends: Words) -> "KeyIndex":
        """Return the index of rows, given in their order in the segment."""
        order = np.argsort(hashes.words, kind="stable")
        return cls(hashes.take(order), digests_or_ends[order], order.astype(np.uint32))

    @classmethod
    def decode(cls, buffer: pa.Buffer) -> "KeyIndex":
        """Read the output of `encode`, without copying."""
        rows = buffer.size // _BYTES_PER_ROW
        words = np.frombuffer(buffer, np.uint64, rows)
        digests_or_ends = np.frombuffer(buffer, np.uint64, rows, 8 * rows)
        positions = np.frombuffer(buffer, np.uint32, rows, 16 * rows)
        checks = np.frombuffer(buffer, np.uint32, rows, 20 * rows)
        return cls(KeyHashes(words, checks), digests_or_ends, positions)

    def encode(self) -> pa.Buffer:
        """Return the columns one after the other, without a header."""
        parts = (self.hashes.words, self.digests_or_ends, self.positions, self.hashes.checks)
        return pa.py_buffer(b"".join(part.tobytes() for part in parts))

    def find(self, sought: KeyHashes) -> tuple[Numbers, Numbers]:
        """Find keys; the cost depends on the number of keys sought.

        Best in the order of their words: neighbours fall on the same pages of the file then.

        Returns:
            For each match: the number of the sought key, and the number of this index's entry.
        """
        if not len(self.positions) or not len(sought.words):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        words = sought.words
        low = self._lowest(words)
        met = self.hashes.words[np.minimum(low, len(self.positions) - 1)] == words
        order = met.nonzero()[0]
        if not len(order):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        low = low[order]
        counts = np.ones(len(low), dtype=np.int64)
        if self._repeats(low, words[met]):
            counts = np.searchsorted(self.hashes.words, words[met], side="right") - low
        key_numbers, entries = _spread(order, low, counts)
        certain = self.hashes.checks[entries] == sought.checks[key_numbers]
        return key_numbers[certain], entries[certain]

    def _lowest(self, words: Words) -> Numbers:
        """Return the insertion point of each word, before any equal ones.

        Hashes are evenly distributed, so their leading bits give the approximate position. A
        directory of these fits in the processor's cache, which a plain binary search misses at
        nearly every step.
        """
        if len(self.positions) < _DIRECTORY_FROM:
            found: Numbers = self.hashes.words.searchsorted(words)
            return found
        shift, starts = self._directory()
        bucket = words >> shift
        low: Numbers = starts[bucket]
        high: Numbers = starts[bucket + np.uint64(1)]
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = (low + high) >> 1
            after = (low < high) & (self.hashes.words[np.minimum(middle, high - 1)] < words)
            low = np.where(after, middle + 1, low)
            high = np.where(after, high, np.maximum(middle, low))
        return low

    def _directory(self) -> tuple[np.uint64, Numbers]:
        if not self._starts:
            bits = len(self.positions).bit_length() - _BUCKET_BITS
            shift = np.uint64(64 - bits)
            bounds = np.arange(1 << bits, dtype=np.uint64) << shift
            starts = np.searchsorted(self.hashes.words, bounds)
            self._starts.append((shift, np.append(starts, len(self.positions))))
        return self._starts[0]

    def _repeats(self, low: Numbers, words: Words) -> bool:
        """Return whether any of these words has a second entry, which is rare except in history."""
        following = np.minimum(low + 1, len(self.positions) - 1)
        return bool(((self.hashes.words[following] == words) & (following > low)).any())

    def in_row_order(self) -> tuple[KeyHashes, Words]:
        """Return hashes and digests_or_ends in the order of the segment's rows."""
        words, digests_or_ends = (
            np.empty_like(self.hashes.words),
            np.empty_like(self.digests_or_ends),
        )
        checks = np.empty_like(self.hashes.checks)
        words[self.positions] = self.hashes.words
        digests_or_ends[self.positions] = self.digests_or_ends
        checks[self.positions] = self.hashes.checks
        return KeyHashes(words, checks), digests_or_ends


def _spread(key_numbers: Numbers, low: Numbers, counts: Numbers) -> tuple[Numbers, Numbers]:
    """Give each key one row for each of its entries, which begin at `low`."""
    total = int(counts.sum())
    if total == len(key_numbers):
        return key_numbers, low
    within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(key_numbers, counts), np.repeat(low, counts) + within
