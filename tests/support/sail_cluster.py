"""A Sail cluster of processes: a driver, and workers that it asks for as pods."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.dagster_deployment import awaited, free_port
from tests.support.fix_object_store import Store
from tests.support.pods import Pods

WORKERS = 2


@dataclass
class SailCluster:
    """A driver's process, and those of the workers that it starts for each session.

    Attributes:
        home: Where logs go.
        pods: The workers.
        environment: What the processes have in their environment.
    """

    home: Path
    pods: Pods
    environment: Mapping[str, str]
    port: int = field(default_factory=free_port)

    @property
    def endpoint(self) -> str:
        """Where the driver answers."""
        return f"sc://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the driver; returns once it listens."""
        command = ["-m", "pysail", "spark", "server", "--ip", "127.0.0.1", "--port", str(self.port)]
        with (self.home / "driver.log").open("ab") as log:
            self._driver = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

        def listens() -> bool:
            with socket.socket() as tried:
                return tried.connect_ex(("127.0.0.1", self.port)) == 0

        awaited("Sail's driver listens", listens)

    def kill_driver(self) -> None:
        """End the driver at once; its workers are left behind, as pods would be."""
        self._driver.kill()
        self._driver.wait()

    def close(self) -> None:
        """End all processes."""
        self.kill_driver()
        self.pods.close()


@contextmanager
def sail_cluster(home: Path, bucket: Store) -> Iterator[SailCluster]:
    """Start a cluster that reads a bucket."""
    environment = {
        "SAIL_MODE": "kubernetes-cluster",
        "SAIL_CLUSTER__WORKER_INITIAL_COUNT": str(WORKERS),
        "SAIL_CLUSTER__WORKER_MAX_COUNT": str(WORKERS),
        # A worker that gives no sign of life is missed after seconds, and not after two minutes.
        "SAIL_CLUSTER__WORKER_HEARTBEAT_INTERVAL_SECS": "1",
        "SAIL_CLUSTER__WORKER_HEARTBEAT_TIMEOUT_SECS": "10",
        "SAIL_EXECUTION__DEFAULT_PARALLELISM": "4",
        "AWS_ENDPOINT": bucket.endpoint,
        "AWS_ACCESS_KEY_ID": bucket.keys["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": bucket.keys["secret_access_key"],
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "RUST_LOG": "info",
    }
    home.mkdir()
    pods = Pods(home, environment)
    made = SailCluster(home, pods, environment | {"KUBECONFIG": str(pods.kubeconfig)})
    made.start()
    try:
        yield made
    finally:
        made.close()
