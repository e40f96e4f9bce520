"""The Dagster UI on the demo, with the airline's application writing without end."""

import os
import signal
import subprocess
import sys
from datetime import date, timedelta

from examples.airline.application import connect
from examples.airline.database import build
from examples.airline.demo import FIRST_DAY
from examples.airline.home import (
    PROJECT,
    address,
    choose_declaration,
    database_server,
    is_built,
    prepare_home,
    refuse_other_data,
    remove_data,
)
from rhei_pipeline import Settings

PORT = os.environ.get("PORT", "3000")
#: A day of flights in so many seconds: about 50 changes a second.
SECONDS_PER_DAY = 60


def main() -> None:
    """Run both until one ends or Ctrl-C is typed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = Settings.load(choose_declaration())
    refuse_other_data(settings)
    with database_server(settings):
        if not is_built(settings):
            print("Building the airline's past ...", flush=True)
            remove_data(settings)
            build(address(settings), FIRST_DAY)
        prepare_home()
        os.environ.setdefault("RHEI__SCHEDULE__WEBSERVER", f"http://127.0.0.1:{PORT}")
        _run(address(settings))


def _run(database: str) -> None:
    writer = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "examples.airline.writer",
            *("--database", database, "--first", _next_day(database).isoformat()),
            *("--endless", "--seconds-per-day", str(SECONDS_PER_DAY)),
        ],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
    )
    print(f"Dagster UI: http://127.0.0.1:{PORT}  (Ctrl-C ends it)", flush=True)
    try:
        dagster = [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml"]
        subprocess.run([*dagster, "-p", PORT], cwd=PROJECT, check=False)
    except KeyboardInterrupt:  # the ordinary end
        pass
    finally:
        writer.terminate()
        writer.wait()


def _next_day(database: str) -> date:
    airline = connect(database)
    try:
        last = airline.value("select max(flight_date) from flights")
        return date.fromisoformat(str(last)) + timedelta(days=1)
    finally:
        airline.close()


if __name__ == "__main__":
    main()
