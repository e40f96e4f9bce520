"""The Dagster UI on the demo, with the airline's application writing without end."""

import os
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

from config.settings import load
from examples.airline.database import build, connect
from examples.airline.demo import FIRST_DAY
from examples.airline.home import PROJECT, prepare_home, refuse_other_data

PORT = os.environ.get("PORT", "3000")
#: A day of flights in so many seconds: about 50 changes a second.
SECONDS_PER_DAY = 60


def main() -> None:
    """Run both until one ends or Ctrl-C is typed."""
    settings = load()
    refuse_other_data(settings)
    prepare_home()
    path = settings.sqlite_path
    if not path.exists():
        print("Building the airline's past ...", flush=True)
        build(path, FIRST_DAY)
    writer = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "examples.airline.writer",
            *("--database", str(path), "--first", _next_day(path).isoformat()),
            *("--endless", "--seconds-per-day", str(SECONDS_PER_DAY)),
        ],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
    )
    print(f"Dagster UI: http://127.0.0.1:{PORT}  (Ctrl-C ends it)", flush=True)
    try:
        dagster = [str(Path(sys.executable).with_name("dagster")), "dev", "-w", "workspace.yaml"]
        subprocess.run([*dagster, "-p", PORT], cwd=PROJECT, check=False)
    except KeyboardInterrupt:  # the ordinary end
        pass
    finally:
        writer.terminate()
        writer.wait()


def _next_day(path: Path) -> date:
    connection = connect(path)
    try:
        (last,) = connection.execute("select max(flight_date) from flights").fetchone()
        return date.fromisoformat(last) + timedelta(days=1)
    finally:
        connection.close()


if __name__ == "__main__":
    main()
