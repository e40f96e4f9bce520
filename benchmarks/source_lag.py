"""How long after its commit in PostgreSQL a mirror shows a change, and what log it holds back."""

import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

import rhei_pipeline as rhei
from rhei_pipeline.model.reports import SyncReport

_EVERY_SECONDS = 0.02
#: Where the log ends, how far the slot is behind it, and what the server keeps for the slot.
_LOOK = """
select pg_current_wal_flush_lsn() - '0/0', pg_current_wal_flush_lsn() - confirmed_flush_lsn,
    pg_current_wal_flush_lsn() - restart_lsn
from pg_replication_slots where database = current_database()
"""


@dataclass
class Samples:
    """What was found at random times: seconds until a mirror showed it, and bytes of log.

    Attributes:
        lags: For each time, how long it took until all that was committed then was shown.
        behind: How far the slot was behind the log's end.
        kept: What the server could not remove for the slot.
        syncs: How many syncs there were meanwhile.
        cpu_seconds: What looking took of this process.
    """

    lags: list[float] = field(default_factory=list)
    behind: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    syncs: int = 0
    cpu_seconds: float = 0.0

    def __str__(self) -> str:
        shares = statistics.quantiles(self.lags, n=100)
        return (
            f"lag p50 {shares[49] * 1000:.0f} ms, p99 {shares[98] * 1000:.0f} ms,"
            f" {max(self.behind) / 1e6:.1f} MB of log behind, {max(self.kept) / 1e6:.1f} kept"
        )


class SourceLag:
    """Notes where the source's log ends at random times, and when a sync had all up to there.

    The server commits nothing whose record is not in the log, so a mirror whose watermarks are
    beyond a place shows all that was committed before that place was noted. A sync counts from
    its end, with all that it does behind its commit: what is found is never too short.
    """

    def __init__(self, htap: rhei.HTAP, dsn: str) -> None:
        self._dsn = dsn
        self._waiting: deque[tuple[float, int]] = deque()
        self._samples = Samples()
        htap.watch(self._synced, lambda *_: None)

    @contextmanager
    def sampling(self) -> Iterator[Samples]:
        """Look until the block ends; what a sync shows behind it counts as well."""
        self._samples, done = Samples(), threading.Event()
        thread = threading.Thread(target=self._look, args=(self._samples, done))
        thread.start()
        try:
            yield self._samples
        finally:
            done.set()
            thread.join()

    def _look(self, samples: Samples, done: threading.Event) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not done.wait(random.uniform(0, 2 * _EVERY_SECONDS)):
                at = time.perf_counter()
                end, behind, kept = map(int, connection.execute(_LOOK).fetchone() or (0, 0, 0))
                self._waiting.append((at, end))
                samples.behind.append(behind)
                samples.kept.append(kept)
        samples.cpu_seconds = time.thread_time()

    def _synced(self, report: SyncReport) -> None:
        now = time.perf_counter()
        self._samples.syncs += 1
        # A sync that found nothing moves no watermark, and shows what was there when it began.
        begun = 0.0 if report.did_something else now - report.duration_seconds
        shown = min(table.watermark or 0 for table in report.tables.values())
        while self._waiting and (self._waiting[0][1] <= shown or self._waiting[0][0] < begun):
            self._samples.lags.append(now - self._waiting.popleft()[0])
