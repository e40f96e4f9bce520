"""One timestamp for each transaction, so that its changes become visible together."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rhei_pipeline.model.changes import CHANGED_AT
from rhei_pipeline.model.type_names import INSTANT

#: Which transaction made an entry.
XID = "_rhei_xid"


def apart(instants: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Move equal timestamps of different transactions to the next free microsecond.

    Args:
        instants: When each transaction was committed, in their order, in microseconds.
        taken: Timestamps of transactions before them.
    """
    _, firsts = np.unique(instants, return_index=True)
    is_first = np.zeros(len(instants), dtype=bool)
    is_first[firsts] = True
    repeats = np.flatnonzero(~is_first | np.isin(instants, taken))
    if not len(repeats):
        return instants
    found, used = instants.copy(), {*instants.tolist(), *taken.tolist()}
    free: dict[int, int] = {}
    for place in repeats.tolist():
        wanted = int(instants[place])
        instant = free.get(wanted, wanted + 1)
        while instant in used:
            instant += 1
        found[place] = instant
        used.add(instant)
        free[wanted] = instant + 1
    return found


def dated_here(told: np.ndarray, elsewhere: np.ndarray, clock: int) -> np.ndarray:
    """Return when transactions were committed on this server, in their order, in microseconds.

    One that replication brought tells when it was committed where it came from. That may be long
    before it was here, and so where it was not yet when somebody asked. It is dated right before
    the next one that was made here, which is not earlier than it was here.

    Args:
        told: What each transaction tells.
        elsewhere: Which ones were committed on another server first.
        clock: The date of those that none follows.
    """
    (brought,), (own,) = np.nonzero(elsewhere), np.nonzero(~elsewhere)
    following = np.searchsorted(own, brought)
    found = told.copy()
    found[brought] = np.append(told[own], clock)[following]
    found[brought] -= np.where(following < len(own), np.append(own, 0)[following] - brought, 0)
    return found


@dataclass(frozen=True, slots=True)
class CommitInstants:
    """The commit times of some transactions, by ascending xid."""

    xids: np.ndarray
    micros: np.ndarray

    @classmethod
    def read(cls, texts: pa.Table | None) -> "CommitInstants":
        """Read transactions and microseconds in order; no two get the same timestamp."""
        if texts is None:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64))
        xids, at = (
            texts[name].combine_chunks().cast(pa.int64()).to_numpy() for name in (XID, CHANGED_AT)
        )
        order = np.argsort(xids)
        return cls(xids[order], apart(at, np.empty(0, np.int64))[order])

    def of(self, xids: np.ndarray) -> pa.Array:
        """Return each transaction's timestamp."""
        return pa.array(self.micros[np.searchsorted(self.xids, xids)]).cast(INSTANT)
