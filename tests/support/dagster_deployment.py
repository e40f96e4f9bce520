"""A Dagster deployment on this machine: daemon, webserver and code servers as processes."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import dagster as dg

PROJECT = Path(__file__).parents[2]
#: Generous, since the machine may be busy: whoever waits goes on as soon as it is so.
PATIENCE_SECONDS = 180.0

_Found = TypeVar("_Found")


def awaited(what: str, look: Callable[[], _Found], seconds: float = PATIENCE_SECONDS) -> _Found:
    """Return the first true thing that `look` returns."""
    until = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < until, f"waited {seconds:g} s in vain: {what}"
        time.sleep(0.05)
    return found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Location:
    """A code location: its name, the declaration that it loads, and the file that loads it.

    Attributes:
        shard: The one that it has of a declaration with shards; None: all of them.
    """

    name: str
    declaration: Path
    port: int = field(default_factory=free_port)
    file: Path = PROJECT / "definitions.py"
    shard: int | None = None


@dataclass
class Deployment:
    """Processes by name; each may be stopped, killed and started again."""

    home: Path
    locations: list[Location]
    environment: Mapping[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    web_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / "dagster.yaml", self.home)
        lines = ["load_from:"]
        for location in self.locations:
            lines += [
                "  - grpc_server:",
                "      host: 127.0.0.1",
                f"      port: {location.port}",
                f"      location_name: {location.name}",
            ]
        (self.home / "workspace.yaml").write_text("\n".join(lines) + "\n")

    @property
    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.home))

    def start(self, *, webserver: bool = False) -> None:
        for location in self.locations:
            self.start_code_server(location)
        self.start_daemon()
        if webserver:
            self.start_webserver()

    def start_webserver(self) -> None:
        workspace = str(self.home / "workspace.yaml")
        self.start_process(
            "webserver",
            *("dagster_webserver", "-h", "127.0.0.1", "-p", str(self.web_port), "-w", workspace),
        )

    def start_daemon(self) -> None:
        self.start_process(
            "daemon", "dagster._daemon", "run", "-w", str(self.home / "workspace.yaml")
        )

    def start_code_server(self, location: Location) -> None:
        self.start_process(
            location.name,
            *("dagster", "code-server", "start", "-h", "127.0.0.1", "-p", str(location.port)),
            *("-f", str(location.file), "-d", str(PROJECT)),
            RHEI_CONFIG=str(location.declaration),
            RHEI_SHARD=str(location.shard or ""),
        )

        def answers() -> bool:
            with socket.socket() as tried:
                return tried.connect_ex(("127.0.0.1", location.port)) == 0

        awaited(f"the code server of {location.name}", answers)

    def kill(self, name: str) -> None:
        """End a process at once, with what it started."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for name, process in list(self.processes.items()):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill(name)
            else:
                self._end_group(process.pid)
        self.processes.clear()

    @staticmethod
    def _end_group(group: int) -> None:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            return

    def start_process(self, name: str, module: str, *arguments: str, **environment: str) -> None:
        """Start a module as a process of that name."""
        log = (self.home / f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=self.home,
            env={
                **os.environ,
                "DAGSTER_HOME": str(self.home),
                "PYTHONPATH": str(PROJECT),
                **self.environment,
                **environment,
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()

    def runs(self, job: str, *statuses: dg.DagsterRunStatus) -> list[dg.RunRecord]:
        """Return the runs of a job, the newest one first."""
        wanted = dg.RunsFilter(job_name=job, statuses=statuses or None)
        with self.instance as instance:
            return list(instance.get_run_records(wanted))

    def cpu_seconds(self) -> dict[str, float]:
        """Return what each process has used of a core, with what it started, ended or not."""
        used = list(_processes())
        return {
            name: sum(seconds for _, group, seconds in used if group == process.pid)
            for name, process in self.processes.items()
        }

    def session_cpu_seconds(self) -> float:
        """Return what the newest open session has used of a core."""
        session = self.session_process()
        return next(used for process, _, used in _processes() if process == session)

    def session_process(self, job: str = "sync") -> int:
        """Return the process of the newest open session, as its run says."""
        (record, *_) = self.runs(job, dg.DagsterRunStatus.STARTED)
        with self.instance as instance:
            found = instance.all_logs(
                record.dagster_run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT
            )
        told = (re.search(r"process \(pid: (\d+)\)", event.message) for event in found)
        return next(int(match[1]) for match in told if match)


def _processes() -> Iterator[tuple[int, int, float]]:
    """Yield each process, its group, and what it and its ended children have used of a core."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            _, _, told = file.read_text().rpartition(")")
            fields = told.split()
            used = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            yield int(file.parent.name), int(fields[2]), used


@contextmanager
def deployment(home: Path, *locations: Location, webserver: bool = False) -> Iterator[Deployment]:
    """Run a deployment for the length of a block."""
    made = Deployment(home, list(locations))
    try:
        made.start(webserver=webserver)
        yield made
    finally:
        made.stop()
