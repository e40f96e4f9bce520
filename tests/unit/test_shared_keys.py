"""Whether two rows may have had one key at once, of what a catalogue and a log's bytes say."""

import struct
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from rhei_pipeline.model.schema import Column
from rhei_pipeline.sources.postgres.logical.pgoutput import LoggedRelation, Run
from rhei_pipeline.sources.postgres.logical.shared_keys import (
    LoggedPart,
    UniqueKey,
    Uniqueness,
    share_a_key,
    uniqueness,
)

NAMES = ("id", "v")
KEY = Column("id", pa.int32())
RELATION = LoggedRelation(1, NAMES, (23, 25), ("id",))
IMMEDIATE = UniqueKey(frozenset({"id"}), frozenset({10, 11}), is_immediate=True)
LATE = UniqueKey(frozenset({"id"}), frozenset({20, 21}), is_immediate=False)
WIDER = UniqueKey(frozenset({"id", "a"}), frozenset({30}), is_immediate=True)

Row = tuple[str | None, ...]


@pytest.mark.parametrize(
    ("held", "since", "expected"),
    [
        (None, [10], Uniqueness.ALWAYS),
        ([], [10], Uniqueness.NEVER),
        ([IMMEDIATE], [11], Uniqueness.ALWAYS),
        ([LATE], [21], Uniqueness.AT_COMMITS),
        ([LATE, IMMEDIATE], [20, 10], Uniqueness.ALWAYS),
        ([LATE, IMMEDIATE], [20], Uniqueness.AT_COMMITS),
        ([IMMEDIATE], [9], Uniqueness.UNKNOWN),
        ([WIDER], [30], Uniqueness.NEVER),
    ],
)
def test_what_stands_in_the_catalogue_says_when_a_key_told_rows_apart(
    held: Sequence[UniqueKey] | None, since: Sequence[int], expected: Uniqueness
) -> None:
    """Of a table that is gone nothing is read any more but its end."""
    assert uniqueness(held, ("id",), since) is expected


def row_of(values: Row) -> bytes:
    texts = (
        b"n" if value is None else b"t" + struct.pack(">i", len(value)) + value.encode()
        for value in values
    )
    return struct.pack(">h", len(values)) + b"".join(texts)


def came(*values: str) -> bytes:
    return b"I" + struct.pack(">i", 1) + b"N" + row_of(values)


def went(*values: str | None, whole: bool) -> bytes:
    return b"D" + struct.pack(">i", 1) + (b"O" if whole else b"K") + row_of(values)


def logged(*messages: bytes) -> tuple[bytes, Run]:
    """Return messages of one transaction, as the server sends them."""
    lengths = np.array([len(message) for message in messages], np.int64)
    count = np.arange(len(messages), dtype=np.int64)
    same = np.zeros(len(messages), np.int64)
    places = np.cumsum(lengths) - lengths
    return b"".join(messages), Run(RELATION, places, count, same, same, same)


def shared(*messages: bytes, is_by_key: bool = False) -> bool:
    return share_a_key([LoggedPart(*logged(*messages), is_by_key)], [KEY], at_commits=True)


def test_a_row_that_goes_by_its_key_alone_is_not_taken_for_another_one() -> None:
    """The log does not say what it held, and its values are not there."""
    assert not shared(went("1", None, whole=False), came("1", "a"), went("1", None, whole=False))


def test_a_row_that_goes_with_other_values_than_came_is_another_one() -> None:
    gone = went("1", "x", whole=True)
    assert shared(gone, came("1", "a"), gone)
    assert not shared(gone, came("1", "a"), went("1", "a", whole=True))


def test_two_rows_that_come_with_one_key_share_it() -> None:
    assert shared(went("1", "x", whole=True), came("1", "a"), came("1", "b"))
    assert not shared(went("1", "x", whole=True), came("1", "a"), came("2", "a"))


def test_a_row_that_came_while_its_key_was_unique_had_no_other_one_beside_it() -> None:
    came_and_went = came("1", "a"), went("1", "a", whole=True)
    assert shared(*came_and_went)
    assert not shared(*came_and_went, is_by_key=True)
    assert shared(came("1", "a"), *came_and_went, is_by_key=True)
