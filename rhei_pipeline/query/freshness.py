"""How new an answer has to be, and how the mirror is made as new."""

import math
import re
import threading
import time
from dataclasses import dataclass
from typing import Literal, Self

from rhei_pipeline.errors import QueryError, TransientError
from rhei_pipeline.sync.pipeline import Pipeline

WhenStale = Literal["sync", "wait", "oltp"]
_NANOSECONDS = 1_000_000_000
_LOOK_SECONDS = 0.005
_TOKEN = re.compile(r"(\d+)@(\d+)", re.ASCII)


class Written(int):
    """The rows that a write changed, and when it was committed.

    An integer in every respect. Passed to a query as `after`, it makes sure that the query sees
    the write. Pickling and copying keep the commit time; JSON would keep only the number, so send
    `token` instead.

    Attributes:
        committed_at: By `time.monotonic_ns`, which all processes of a machine share.
    """

    committed_at: int

    def __new__(cls, rows: int, committed_at: int) -> Self:
        """Create one."""
        made = super().__new__(cls, rows)
        made.committed_at = committed_at
        return made

    def __reduce__(self) -> tuple[type[Self], tuple[int, int]]:
        """Return the arguments for a copy."""
        return type(self), (int(self), self.committed_at)

    @property
    def token(self) -> str:
        """The write as a short text, such as `2@81234567890`; a query's `after` takes it."""
        return f"{int(self)}@{self.committed_at}"

    @classmethod
    def parse(cls, token: str) -> Self:
        """Parse a token.

        Raises:
            QueryError: It is not a token.
        """
        found = _TOKEN.fullmatch(token)
        if found is None:
            raise _no_write()
        return cls(int(found[1]), int(found[2]))


def moment_of(after: Written | str | None) -> int:
    """Return when a write was committed, by the monotonic clock; 0 for none.

    Raises:
        QueryError: It is neither the result of a write nor its token.
    """
    if after is None:
        return 0
    written = Written.parse(after) if isinstance(after, str) else after
    if not isinstance(written, Written):
        raise _no_write()
    # One of before the machine was started again lies in the past, whatever its number.
    return min(written.committed_at, time.monotonic_ns())


def _no_write() -> QueryError:
    return QueryError(
        "'after' is not a write",
        hint="pass what execute returned, or its 'token': a number alone has no commit time",
    )


@dataclass(frozen=True, slots=True)
class Demand:
    """How new an answer has to be.

    Attributes:
        max_staleness: How many seconds it may be behind the source.
        after: A write that it shows, because that was asked for.
        own: The last write of whoever asks; it is shown where the side is chosen.
    """

    max_staleness: float | None = None
    after: Written | str | None = None
    own: Written | None = None

    def refuse_for_cluster(self) -> None:
        """Refuse a bound that nobody keeps: a cluster reads what was published, of any age."""
        if (self.max_staleness, self.after) != (None, None):
            raise QueryError(
                "a cluster answers from what was published last, and 'max_staleness' and 'after' do"
                " not bound that",
                hint="leave them out, or use the hint 'olap'",
            )


#: An answer may be of any age.
NO_DEMAND = Demand()


class Writes:
    """The writes of one object, of which the last is known; from any thread."""

    def __init__(self) -> None:
        self.last: Written | None = None
        self._lock = threading.Lock()

    def note(self, rows: int) -> Written:
        """Return a write that was committed just now."""
        written = Written(rows, time.monotonic_ns())
        with self._lock:  # one that was committed earlier may be noted later
            if self.last is None or self.last.committed_at < written.committed_at:
                self.last = written
        return written


@dataclass(frozen=True, slots=True)
class Freshness:
    """What happens when a query needs newer data than the mirror has.

    Attributes:
        when_stale: sync: sync first. wait: wait for the background sync. oltp: query the source,
            if the query allows that.
        wait_seconds: How long `wait` waits before it syncs.
    """

    when_stale: WhenStale = "sync"
    wait_seconds: float = 5.0


class MirrorFreshness:
    """Knows how new the mirror is, and makes it newer where an answer needs that.

    Args:
        pipeline: Syncs the mirror, and knows since when it is one with the source.
        freshness: What to do when the mirror is not fresh enough.
    """

    def __init__(self, pipeline: Pipeline, freshness: Freshness) -> None:
        self._pipeline = pipeline
        self._freshness = freshness

    def age_seconds(self, synced_from: int | None) -> float | None:
        """Return the seconds since the start of the sync that an answer shows."""
        return None if synced_from is None else (time.monotonic_ns() - synced_from) / _NANOSECONDS

    def needed(self, max_staleness: float | None, written: int) -> int:
        """Return the time, by the monotonic clock, whose state the answer must show."""
        if max_staleness is None:
            return written
        if not 0 <= max_staleness < math.inf:
            raise QueryError(
                "max_staleness is negative, or not a number",
                hint="give a number of seconds; 0 asks for the present state",
            )
        now = time.monotonic_ns()
        return max(written, now - int(max_staleness * _NANOSECONDS))

    def described(self, needed: int) -> str:
        """Return how new an answer of the mirror would be; see `leaves`."""
        if not self._is_fresh(needed):
            return "the mirror syncs first, to show the last write"
        age = self.age_seconds(self._pipeline.synced_from)
        return "as of the last sync" if age is None else f"as of a sync {age:.1f} s ago"

    def leaves(self, needed: int) -> bool:
        """Return whether the source answers for a mirror that is not as fresh as needed."""
        return self._freshness.when_stale == "oltp" and not self._is_fresh(needed)

    def reach(self, needed: int, *, may_leave: bool) -> bool:
        """Make the mirror as fresh as needed; return False if the source should answer."""
        return self._is_fresh(needed) or self._freshen(needed, may_leave=may_leave)

    def _is_fresh(self, needed: int) -> bool:
        return not needed or (self._pipeline.synced_from or 0) >= needed

    def _freshen(self, needed: int, *, may_leave: bool) -> bool:
        if self._freshness.when_stale == "oltp" and may_leave:
            return False
        if self._freshness.when_stale == "wait":
            deadline = time.monotonic() + self._freshness.wait_seconds
            while time.monotonic() < deadline:
                if self._is_fresh(needed):
                    return True
                time.sleep(_LOOK_SECONDS)
        try:
            self._pipeline.sync_round(goes_on=False)
        except TransientError:
            if not may_leave:
                raise
            return False
        return True
