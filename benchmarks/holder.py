"""What it costs to ask the process that holds the mirror, and what that costs the process."""

import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, cast

from benchmarks.orders import Orders, orders
from benchmarks.timing import Timing, median, prove
from rhei_pipeline import HTAP

_ROWS = 100_000
_POINT = "select * from orders where id = ?"
_ROUNDS, _CALLS = 5, 200
_CHANGES, _CYCLES = 1_000, 15
_READERS = 16
#: A dashboard refreshes far less often.
_PAUSE_SECONDS = 0.1

_ASK = """
import logging, sys, time
import rhei_pipeline as rhei
from benchmarks.timing import median
# A reader that is stopped, and one among many, wait longer than a person is left without a word.
logging.getLogger("rhei_pipeline").setLevel(logging.ERROR)
with rhei.open(rhei.Settings.model_validate_json(sys.argv[1])) as htap:
    assert not htap.holds
    for line in sys.stdin:
        calls, pause = line.split()
        def ask():
            htap.query("select * from orders where id = ?", (777,), hint="olap")
            time.sleep(float(pause))
        if int(calls):
            print(median(ask, int(calls)) - float(pause), flush=True)
        else:
            print("begun", flush=True)
            while True:
                ask()
"""


class _Asker:
    """Another process that asks a point query, again and again."""

    def __init__(self, htap: HTAP) -> None:
        command = [sys.executable, "-c", _ASK, htap.settings.model_dump_json()]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def asks(self, calls: int, pause: float = 0.0) -> str:
        """Have it ask so often, or until it ends; return what it says."""
        print(calls, pause, file=self._process.stdin, flush=True)
        return cast("IO[str]", self._process.stdout).readline()

    def stop(self) -> None:
        """Have it stand still."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it go on where it stood still."""
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def measure() -> Iterator[tuple[str, str]]:
    """Measure a point query from another process, and the writer's cycles beside readers."""
    with orders(_ROWS) as table, table.open() as htap, ExitStack() as stack:
        htap.sync_now()
        asker = _Asker(htap)
        stack.callback(asker.end)
        own, asked = [], []
        for _ in range(_ROUNDS):  # turn by turn: the machine is shared
            own.append(median(lambda: htap.query(_POINT, (777,), hint="olap"), _CALLS))
            asked.append(float(asker.asks(_CALLS)))
        inside, outside = (statistics.median(found) * 1000 for found in (own, asked))
        yield (
            "point query of the mirror from another process, p50 (bar: 2 ms more)",
            f"{outside:.2f} ms against {inside:.2f} ms: {outside - inside:.2f} ms more",
        )
        for name, pause in (("each ten times a second", _PAUSE_SECONDS), ("without a pause", 0.0)):
            alone, beside = _writer(table, htap, pause)
            for what, unit in (
                ("", "wall_seconds"),
                (", processor time", "cpu_seconds"),
            ):
                with_none, with_all = (
                    statistics.median(getattr(cycle, unit) for cycle in cycles)
                    for cycles in (alone, beside)
                )
                yield (
                    f"a cycle of {_CHANGES:,} changes beside {_READERS} readers, {name}{what}"
                    " (bar: 1.2 x)",
                    f"{with_all * 1000:.0f} ms against {with_none * 1000:.0f} ms: "
                    f"{with_all / with_none:.2f} x",
                )
        prove(htap)


def _writer(table: Orders, htap: HTAP, pause: float) -> tuple[list[Timing], list[Timing]]:
    """Time cycles alone, and beside readers, turn by turn."""
    alone, beside = list[Timing](), list[Timing]()
    askers = [_Asker(htap) for _ in range(_READERS)]
    for asker in askers:
        asker.asks(0, pause)
    try:
        for _ in range(_ROUNDS):
            for asker in askers:
                asker.stop()
            alone += _cycles(table, htap)
            for asker in askers:
                asker.go_on()
            beside += _cycles(table, htap)
    finally:
        for asker in askers:
            asker.end()
    return alone, beside


def _cycles(table: Orders, htap: HTAP) -> list[Timing]:
    found = []
    for _ in range(_CYCLES):
        table.change(_CHANGES)
        wall, own = time.perf_counter(), time.thread_time()
        htap.sync_now()
        found.append(Timing(time.thread_time() - own, time.perf_counter() - wall))
    return found
