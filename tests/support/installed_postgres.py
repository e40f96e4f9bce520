"""PostgreSQL and pgbouncer as the system's packages install them, started for tests."""

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psycopg

from examples.postgres_server import SETTINGS

_BINARIES = Path("/usr/lib/postgresql")
_PATH = f"/usr/sbin:/usr/bin:{os.environ.get('PATH', '')}"
_LOOPBACK = "127.0.0.1"


def binaries(version: str) -> Path:
    """Return where a version's programs are, whether or not they are."""
    return _BINARIES / version / "bin"


def user() -> str | None:
    """Return who runs servers: they refuse to be run by root."""
    return "postgres" if os.geteuid() == 0 else None


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def give(path: Path) -> None:
    """Let the user who runs servers write there."""
    owner = user()
    if owner is not None:
        shutil.chown(path, owner)


class InstalledServer:
    """A server of one version: as `examples.postgres_server.Server`, from installed binaries."""

    def __init__(
        self,
        version: str,
        directory: Path,
        settings: Mapping[str, str] | None = None,
        locale: tuple[str, ...] = ("--locale=C",),
    ) -> None:
        """Make and start it."""
        self._programs = binaries(version)
        self._data, self._directory = directory / "data", directory
        self.port = free_port()
        give(directory)
        self._run("initdb", "-D", self._data, "-U", "postgres", "-E", "UTF8", "-N", *locale)
        written = {**SETTINGS, **(settings or {})}
        text = "".join(f"{name} = '{value}'\n" for name, value in written.items())
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(text)
        self._control("start")

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        """Return how to connect to a database."""
        return f"postgresql://{user}:@/{database}?host={_LOOPBACK}&port={self.port}"

    def kill(self) -> None:
        """Stop it as a power cut would, and start it again."""
        self._control("restart", "-m", "immediate")

    def stop(self) -> None:
        """End it."""
        self._control("stop", "-m", "immediate")

    def keep(self, where: Path) -> None:
        """Copy its disk, as a snapshot of a volume does."""
        self._control("stop", "-m", "immediate")
        self._run("/bin/cp", "-a", self._data, where)
        self._control("start")

    def put_back(self, kept: Path) -> None:
        """Put a copy of its disk in place."""
        self._control("stop", "-m", "immediate")
        shutil.rmtree(self._data)
        self._run("/bin/cp", "-a", kept, self._data)
        self._control("start")

    def dump(self, database: str, file: Path) -> None:
        """Dump a database."""
        self._run("pg_dump", *self._as_client, "-Fc", "-f", file, database)

    def restore(self, database: str, file: Path) -> None:
        """Put all that a dump has in the place of what a database has."""
        self._run("pg_restore", *self._as_client, "--clean", "-d", database, file)

    @property
    def _as_client(self) -> tuple[str, ...]:
        return ("-h", _LOOPBACK, "-p", str(self.port), "-U", "postgres")

    def _control(self, *arguments: str) -> None:
        where = f"-h {_LOOPBACK} -p {self.port} -k {self._directory}"
        log = self._directory / "log"
        self._run("pg_ctl", "-D", self._data, "-w", *arguments, "-o", where, "-l", log)

    def _run(self, program: str, *arguments: object) -> None:
        # Nobody reads what a server that goes on running writes: it has a log of its own.
        subprocess.run(
            [str(self._programs / program), *map(str, arguments)],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            user=user(),
            cwd=self._directory,
        )


class Pooler:
    """pgbouncer before one database of a server, whose sessions its clients share."""

    def __init__(self, directory: Path, dsn: str, mode: str, size: int, wait: int) -> None:
        """Start it; clients share `size` sessions of the server, and wait so long for one."""
        self.port, self.directory = free_port(), directory
        server = psycopg.conninfo.conninfo_to_dict(dsn)
        self._database, self._user = server["dbname"], server.get("user", "postgres")
        users = directory / "users.txt"
        users.write_text(f'"{self._user}" ""\n')
        target = " ".join(f"{name}={server[name]}" for name in ("host", "port") if server.get(name))
        file = directory / "pgbouncer.ini"
        file.write_text(
            f"[databases]\n{self._database} = {target} dbname={self._database}\n"
            f"[pgbouncer]\nlisten_addr = {_LOOPBACK}\nlisten_port = {self.port}\n"
            f"unix_socket_dir =\nauth_type = trust\nauth_file = {users}\npool_mode = {mode}\n"
            f"default_pool_size = {size}\nquery_wait_timeout = {wait}\n"
        )
        for path in (directory, users, file):
            give(path)
        program = shutil.which("pgbouncer", path=_PATH)
        self._process = subprocess.Popen(
            [str(program), str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=user(),
            cwd=directory,
        )
        self._await()

    def _await(self) -> None:
        while self._process.poll() is None:
            with suppress(psycopg.OperationalError):
                psycopg.connect(self.dsn).close()
                return
            time.sleep(0.02)
        raise RuntimeError("pgbouncer ended")

    @property
    def dsn(self) -> str:
        """How to connect through it."""
        return f"postgresql://{self._user}:@/{self._database}?host={_LOOPBACK}&port={self.port}"

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


def missing(*programs: Path | str) -> list[str]:
    """Return the programs that are not installed, and the user to run them where there is none."""
    absent = [str(name) for name in programs if shutil.which(name, path=_PATH) is None]
    owner = user()
    if owner is not None:
        try:
            pwd.getpwnam(owner)
        except KeyError:
            absent.append(f"a user {owner!r}")
    return absent
