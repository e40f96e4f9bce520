"""The Dagster UI on the demo, with the airline's application writing without end."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date, timedelta
from threading import Event, Thread
from typing import TextIO

from examples.airline.application import connect
from examples.airline.database import build
from examples.airline.demo import FIRST_DAY
from examples.airline.home import (
    PROJECT,
    address,
    claim_data,
    database_server,
    declared,
    is_built,
    prepare_home,
    refuse_other_data,
    remove_data,
    writer,
)
from rhei_pipeline import Settings

PORT = os.environ.get("PORT", "3000")
ADDRESS = f"http://127.0.0.1:{PORT}"
#: A day of flights in so many seconds: about 50 changes a second.
SECONDS_PER_DAY = 60
#: How often a session reports: what has just been opened should soon have a plot to look at.
REPORT_SECONDS = 10
#: How long Dagster may take to end: an open session finishes its cycle first.
_END_SECONDS = 60.0
#: Dagster's word that it does not read the `dagster.yaml` beside it: the home has a copy of that.
_KNOWN = "Found a dagster instance configuration value (dagster.yaml) in the current folder"
#: A line that tells of work as usual: Dagster prints some a second, for ever.
_COLOUR = r"(\x1b\[\d+m)?"
_ROUTINE = re.compile(rf"{_COLOUR}[\d-]+ [\d:]+ \S+ - \S+ - {_COLOUR}(DEBUG|INFO)\b")
#: The address is said again below so many other lines, which may have moved it off the screen.
_LINES = 10


def main() -> None:
    """Run both until one ends, Ctrl-C is typed, or the process is asked to end."""
    # Of SIGINT, too: a script's 'make dev &' begins with it ignored, and so would Dagster's
    # processes, which are asked to end by it.
    for asked in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(asked, signal.default_int_handler)
    try:
        with running("make dev") as dagster:
            print("Starting Dagster, which takes some seconds; Ctrl-C ends it", flush=True)
            if wait_until_up(dagster):
                print(f"\nThe Dagster UI is ready: {ADDRESS}\n", flush=True)
                print("Its pages show what goes on. Only warnings and errors follow.", flush=True)
            dagster.wait()
    except KeyboardInterrupt:
        print("Ended. 'make dev' goes on where this stopped.", flush=True)


def wait_until_up(dagster: "subprocess.Popen[str]") -> bool:
    """Wait until Dagster's webserver answers; return whether it does, and has not ended before."""
    while dagster.poll() is None:
        try:
            with urllib.request.urlopen(f"{ADDRESS}/server_info", timeout=5):  # noqa: S310
                return True
        except OSError:
            time.sleep(0.2)
    return False


@contextmanager
def running(
    command: str, prepare: Callable[[Settings], None] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """Run the airline's application and Dagster for the length of a block.

    Args:
        command: What others are told who want the demo's data meanwhile.
        prepare: Called once the past is there, before anything runs; the past is then built anew.
    """
    settings = declared()
    refuse_other_data(settings)
    with claim_data(command), database_server(settings):
        if prepare is not None or not is_built(settings):
            print("Building the airline's past ...", flush=True)
            remove_data(settings)
            build(address(settings), FIRST_DAY)
        prepare_home()
        os.environ.setdefault("RHEI__SCHEDULE__WEBSERVER", ADDRESS)
        os.environ.setdefault("RHEI__SCHEDULE__REPORT_SECONDS", str(REPORT_SECONDS))
        if prepare is not None:
            prepare(settings)
        database = address(settings)
        pace = ("--endless", "--seconds-per-day", str(SECONDS_PER_DAY))
        with writer(database, _next_day(database), *pace, quiet=True), _dagster() as dagster:
            yield dagster


@contextmanager
def _dagster() -> Iterator["subprocess.Popen[str]"]:
    # A group of its own: Ctrl-C reaches this process alone, which then ends the group as a whole.
    dagster = subprocess.Popen(
        [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml", "-p", PORT],
        cwd=PROJECT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    ending = Event()
    assert dagster.stdout is not None  # noqa: S101  (it is a pipe)
    shown = Thread(target=_show, args=(dagster.stdout, ending), daemon=True)
    shown.start()
    try:
        yield dagster
    finally:
        ending.set()
        _end(dagster, shown)


def _show(lines: TextIO, ending: Event) -> None:
    """Show what is not routine as Dagster prints it, and the address again below much of that.

    Not shown is how each of Dagster's processes notes that it has to end.
    """
    shown = 0
    for line in lines:
        if ending.is_set() or _KNOWN in line:
            continue
        if not _ROUTINE.match(line):
            print(line, end="", flush=True)
            shown += 1
        elif shown >= _LINES:
            print(f"\nThe Dagster UI: {ADDRESS}\n", flush=True)
            shown = 0


def _end(dagster: "subprocess.Popen[str]", shown: Thread) -> None:
    """End all of Dagster's processes; who asks once more does not wait for what they have open."""
    with suppress(ProcessLookupError):
        with suppress(KeyboardInterrupt):
            os.killpg(dagster.pid, signal.SIGINT)
            print("\nEnding ...", flush=True)
            shown.join(_END_SECONDS)  # the last process closes the pipe
        os.killpg(dagster.pid, signal.SIGKILL)
    dagster.wait()


def _next_day(database: str) -> date:
    airline = connect(database)
    try:
        last = airline.value("select max(flight_date) from flights")
        return date.fromisoformat(str(last)) + timedelta(days=1)
    finally:
        airline.close()


if __name__ == "__main__":
    main()
